"""The report's page, from ``results.csv``, ``trials.csv``, ``search.csv`` and ``predictions/`` alone: the same files,
the same bytes.

Names of features and messages of errors come from outside: the templates escape all text, and only our own figures are
markup. The page needs no script and loads nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from recsys_embed.errors import ConfigError
from recsys_embed.files import atomic_write
from recsys_embed.report import tables
from recsys_embed.report.figures import allocation, buckets, front, history, importance, pareto, parts, speed, tuning
from recsys_embed.report.importance import importances
from recsys_embed.report.sizes import budget_name
from recsys_embed.report.summary import Budget, Section, summarise

HTML, MARKDOWN = "report.html", "report.md"


def write_page(folder: str | Path, *, budget: str | None = None) -> Path:
    """Write ``report.html`` and ``report.md`` into a report's folder; return the path of the first.

    Args:
        folder: holds ``results.csv``, for intervals ``predictions/``, where settings were tuned ``trials.csv``, and
            after a search ``search.csv``.
        budget: the one that the recommendation is for, as it was typed or the same size; by default the smallest at
            which a strategy is within statistical reach of full, else the middle one.

    Raises:
        DataError: the files are not what a study writes; names file, column and row.
        ConfigError: no section of the study has that budget.
    """
    folder = Path(folder)
    page, markdown = render(summarise(folder), budget=budget)
    atomic_write(folder / HTML, page)
    atomic_write(folder / MARKDOWN, markdown)
    return folder / HTML


def render(sections: list[Section], *, budget: str | None = None) -> tuple[str, str]:
    """The page as HTML and as Markdown."""
    import jinja2

    chosen = [section.find_budget(budget) if budget is not None else None for section in sections]
    if budget is not None and not any(chosen):
        known = dict.fromkeys(budget_name(one) for section in sections for one in section.budgets)
        raise ConfigError(f"no such budget in the study: {budget!r}; there are {', '.join(known) or 'none'}")
    views = [
        _view(section, one or section.default_budget(), f"s{place}")
        for place, (section, one) in enumerate(zip(sections, chosen, strict=True))
    ]
    title = views[0]["title"] if len(views) == 1 else "Embedding compression"
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    out = []
    for name, escape in (("report.html.jinja", True), ("report.md.jinja", False)):
        environment = jinja2.Environment(
            loader=loader,
            autoescape=escape,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        environment.filters["md"] = escape_markdown
        out.append(environment.get_template(name).render(title=title, sections=views))
    return out[0].strip() + "\n", re.sub(r"\n{3,}", "\n\n", out[1]).strip() + "\n"


def escape_markdown(text: str) -> str:
    """Text that stays text in a Markdown table: no markup, no HTML, no line or column of its own.

    >>> print(escape_markdown("a|b <i> *c* [-1, 1] [x](y)"))
    a\\|b &lt;i> \\*c\\* [-1, 1] [x\\](y)
    """
    line = re.sub(r"([\\`*_|]|\](?=[(\[:]))", r"\\\1", re.sub(r"\s+", " ", str(text)))
    return line.replace("&", "&amp;").replace("<", "&lt;")


def _view(section: Section, budget: Budget | None, key: str) -> dict[str, Any]:
    """Everything that the templates show of a section."""
    from markupsafe import Markup

    cells = tables.part_cells(section, budget)
    finds = tables.finds_of(section)
    shown = [f"at budget {budget_name(budget)}"] if budget else []
    shown += ["of full"] if section.full else []
    return {
        "title": f"{_what(section)}: {section.dataset} with {section.model}",
        "about": _about(section),
        "advice": tables.advise(section, budget),
        "notices": tables.notices(section),
        "run_count": len(section.all_runs),
        "pareto": Markup(pareto.draw(section, f"{key}-pareto")),
        "pareto_caption": _PARETO + tables.absent_note(section),
        "budgets": [(budget_name(one), tables.budget_table(section, one)) for one in section.budgets],
        "budget_note": _budget_note(section),
        "search_facts": tables.search_facts(section),
        "search_table": tables.search_table(section),
        "history": Markup(history.draw(section.search, f"{key}-history")),
        "front": Markup(front.draw(section.search, f"{key}-front")),
        "importance": Markup(
            importance.draw(importances(section.search)[0], allocation.panels(finds)[1], f"{key}-importance")
        ),
        "importance_table": tables.importance_table(section),
        "importance_note": tables.importance_note(section),
        "allocation_table": tables.allocation_table(section),
        "allocation": Markup(allocation.draw(finds, f"{key}-allocation")),
        "tuning_facts": tables.tuning_facts(section),
        "tuning_table": tables.tuning_table(section),
        "tuning": Markup(tuning.draw(section, budget, f"{key}-tuning")),
        "tuning_caption": _tuning_caption(section, budget),
        "buckets": Markup(buckets.draw(section, f"{key}-buckets")),
        "bucket_caption": _bucket_caption(section),
        "bucket_table": tables.bucket_table(section),
        "parts": Markup(parts.draw(cells, f"{key}-parts")),
        "part_caption": f"Serving bytes by part, {' and '.join(shown)}.",
        "part_table": tables.part_table(cells),
        "speed": Markup(speed.draw_training(section, f"{key}-speed")),
        "speed_table": tables.speed_table(section),
        "serving": Markup(speed.draw_serving(section, f"{key}-serving")),
        "serving_table": tables.serving_table(section),
        "serving_note": tables.serving_note(section),
        "failure_table": tables.failure_table(section),
        "protocol": tables.protocol(section),
        "versions": tables.versions(section),
    }


_PARETO = (
    "Mean test AUC over seeds, with bars of one standard deviation. Filled: no other point has both fewer bytes and a "
    "higher AUC."
)


def _what(section: Section) -> str:
    return "Dimension search" if section.searched else "Embedding compression"


def _about(section: Section) -> str:
    parts = [f"vectors of width {section.dim}"] if section.dim.isdigit() else []
    names = {cell.family if section.searched else cell.name for cell in section.cells}
    parts.append(tables.plural(len(names), section.noun).replace("strategys", "strategies"))
    parts.append(tables.plural(len(section.budgets), "budget"))
    parts.append(tables.plural(section.seeds, "seed"))
    parts.append(tables.plural(len(section.all_runs), "run"))
    if tried := len(section.trials) + len(section.search):
        parts.append(tables.plural(tried, "trial"))
    if section.rows:
        parts.append(tables.plural(section.rows["test"], "test row"))
    return f"{', '.join(parts)}. Data fingerprint {section.fingerprint}."


def _budget_note(section: Section) -> str:
    seeds = "± one standard deviation over seeds. " if section.seeds > 1 else ""
    marks = (
        f"In brackets: {tables.PERCENT} intervals of the difference. ≈ best: not distinguishable from the best at that "
        "budget. "
        if section.draws
        else ""
    )
    if section.searched:
        marks += "Chosen: by validation; best: the highest test AUC. "
    marks += "Rank: all that the intervals leave open. " if section.draws and section.seeds > 1 else ""
    if section.tuned and section.full is not None:
        marks += f"Difference to full: to {section.full.method}, which validation prefers. "
    return (
        f"{seeds}{marks}NE: logloss divided by that of the mean label. Calibration: mean score divided by mean label."
    )


def _tuning_caption(section: Section, budget: Budget | None) -> str:
    full = " and of full" if any(cell.uncompressed for cell in section.cells) else ""
    shown = f"at budget {budget_name(budget)}{full}" if budget else "of full"
    return f"All trials {shown}. Large: chosen. Hollow: without decay of the embedding."


def _bucket_caption(section: Section) -> str:
    if section.full is None:
        return "Mean test AUC over seeds, with bars of one standard deviation."
    bars = f", with {tables.PERCENT} intervals" if section.draws else ""
    return f"Difference of mean test AUC to full{bars}; all budgets are in the table. Ids get rarer from left to right."
