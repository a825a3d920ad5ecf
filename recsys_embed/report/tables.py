"""The words and tables of the page, as plain text that both the HTML and the Markdown templates lay out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from recsys_embed.report.figures.pareto import absent
from recsys_embed.report.figures.parts import top_parts
from recsys_embed.report.results import BUCKETS
from recsys_embed.report.sizes import budget_name, format_bytes
from recsys_embed.report.statistics import LEVEL, Interval
from recsys_embed.report.summary import Budget, Cell, Section

PERCENT = f"{LEVEL:.0%}"
LATENCY, THROUGHPUT = "latency_single_row_microseconds", "predict_rows_per_second"


@dataclass(frozen=True)
class Text:
    """What a table's cell says: the value, a remark of one line or two in smaller print, and short tags."""

    main: str
    sub: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Columns with titles (the first ``words`` of them are words, the others numbers), rows, and a kind per row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    words: int = 1
    kinds: tuple[str, ...] = ()

    def kind(self, row: int) -> str:
        """How a row stands out: ``best``, ``reference``, ``absent`` or not at all."""
        return self.kinds[row] if self.kinds else ""


@dataclass(frozen=True)
class Advice:
    """The sentence of recommendation, cut around the name of the method that it recommends."""

    before: str
    method: str = ""
    after: str = ""

    def __str__(self) -> str:
        return self.before + self.method + self.after


# --- numbers -------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 4) -> str:
    """Fixed digits; what is not defined says so."""
    return "undefined" if np.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 4) -> str:
    """With its sign; what rounds to zero has none."""
    if np.isnan(value):
        return "undefined"
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def interval(gap: Interval) -> str:
    """The bounds, or nothing where there are none."""
    return f"[{signed(gap.low)}, {signed(gap.high)}]" if gap.defined else ""


def percent(value: float) -> str:
    """One digit below a hundred."""
    return "–" if np.isnan(value) else f"{value:.0%}" if value >= 0.9995 else f"{value:.1%}"


def _spread(cell: Cell, column: str, digits: int = 4) -> Text:
    sd = cell.sd(column)
    return Text(number(cell.mean(column), digits), "" if np.isnan(sd) else f"± {sd:.{digits}f}")


def listing(names: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def plural(count: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


# --- the recommendation --------------------------------------------------------------------------------------


def advise(section: Section, budget: Budget | None) -> Advice:
    """One sentence: what to use at a budget, what it costs, and how sure that is."""
    if not any(cell.seeds for cell in section.cells):
        return Advice("No run ended well, so there is nothing to recommend; the messages are below.")
    if budget is None:
        return Advice("Only full tables were trained, so there is nothing to compare them with.")
    best = section.best(budget)
    place = budget_name(budget)
    if best is None:
        return Advice(f"At a budget of {place} no strategy has a result, so there is nothing to recommend there.")
    full = section.full
    if best is full:
        tail = f" at a mean test AUC of {number(best.auc)} over {plural(best.seeds, 'seed')}"
        others = _likewise(section, budget)
        return Advice(f"A budget of {place} holds the ", "full", f" tables, and no strategy is better{tail}{others}.")

    cost = f" with a mean test AUC of {number(best.auc)} over {plural(best.seeds, 'seed')}"
    if full is not None:
        gap = section.difference(best, full)
        cost += f", {_against_full(gap, section.seeds)}"
        cost += (
            f", in {format_bytes(best.bytes)}, {percent(best.bytes / full.bytes)} of full’s {format_bytes(full.bytes)}"
        )
    else:
        cost += f", in {format_bytes(best.bytes)} (full was not trained, so the cost against it is unknown)"
    return Advice(f"At a budget of {place} use ", best.method, f"{cost}{_likewise(section, budget)}.")


def _against_full(gap: Interval, seeds: int) -> str:
    if np.isnan(gap.estimate):
        return "a difference to full that is undefined"
    side = "above" if gap.estimate > 0 else "below"
    size = f"{number(abs(gap.estimate))} {side} full"
    if not gap.defined:
        return size
    apart = "a real difference" if seeds > 1 else "more than the choice of test rows explains"
    known = "not distinguishable from it" if gap.contains_zero else apart
    return f"{size} ({PERCENT} interval of the difference {signed(gap.low)} to {signed(gap.high)}, {known})"


def _likewise(section: Section, budget: Budget) -> str:
    """How the others compare, and what one seed cannot say."""
    best = section.best(budget)
    assert best is not None
    others = [cell for cell in section.candidates(budget) if cell is not best]
    alike = section.like_best(budget)
    out = ""
    if others and "" in section.draws:
        if len(alike) == len(others):
            names = listing(cell.method for cell in others)
            out = f"; none of the others ({names}) is distinguishable from {best.method}"
        elif alike:
            verb = "is" if len(alike) == 1 else "are"
            out = f"; {listing(cell.method for cell in alike)} {verb} not distinguishable from {best.method}"
        elif section.seeds > 1:
            out = "; it is better than every other strategy there"
    if section.seeds == 1:
        out += "; but one seed cannot rank strategies"
    return out


def notices(section: Section) -> list[str]:
    """What limits the conclusions of a section."""
    out = []
    if section.missing:
        out.append(
            f"The predictions of {plural(len(section.missing), 'run')} are not in the folder, so nothing here has an "
            "interval and no difference is called real."
        )
    if section.seeds == 1:
        out.append(
            "One seed: the intervals cover the test rows alone, not how far the same strategy moves when it is trained "
            "again. Three seeds or more are needed to rank strategies."
        )
    elif section.seeds == 2:
        out.append("Two seeds: the spread over seeds is barely known and the intervals are wide. Three are better.")
    if section.full is None and any(cell.seeds for cell in section.cells):
        out.append("Full tables have no result in this study: there is no difference to full.")
    if section.runs["protocol"].nunique() > 1:
        out.append("Not all runs were trained under the same protocol: the comparison mixes it with the strategies.")
    return out


# --- tables --------------------------------------------------------------------------------------------------


def budget_table(section: Section, budget: Budget) -> Table:
    """What each method reaches at a budget, best first, and full beside it."""
    best, alike = section.best(budget), section.like_best(budget)
    ranks = section.ranks(budget) if section.seeds > 1 else {}
    full = section.full
    cells = sorted(section.at(budget), key=lambda cell: (-np.nan_to_num(cell.auc, nan=-1.0), cell.method))
    told = any(cell.options for cell in cells)
    columns = ["strategy", *(["settings"] if told else []), "serving bytes", "of budget", "test AUC"]
    columns += ["difference to full"] if full is not None else []
    columns += ["difference to best", *(["rank"] if ranks else []), "logloss", "NE", "calibration"]
    rows, kinds = [], []
    for cell in [*cells, *([full] if full is not None else [])]:
        tags = []
        if cell is best:
            tags.append("best")
        if any(cell is other for other in alike):
            tags.append("≈ best")
        if cell.seeds and cell.coarse:
            tags.append("coarse")
        lost = cell.runs[cell.runs["status"] != "ok"]
        if len(lost):
            what = ", ".join(sorted(set(lost["status"])))
            tags.append(what if not cell.seeds else f"{cell.seeds} of {plural(len(cell.runs), 'seed')}, rest {what}")
        row = [Text(cell.strategy if told else cell.method, tags=tuple(tags))]
        row += [Text(cell.options)] if told else []
        if cell.seeds:
            share = cell.bytes / budget.bytes if budget.bytes else float("nan")
            row += [Text(format_bytes(cell.bytes)), Text(percent(share)), _spread(cell, "test_auc")]
            if full is not None:
                row.append(_gap(section, cell, full))
            row.append(_gap(section, cell, best))
            if ranks:
                low, high = ranks.get(cell.method, (0, 0))
                row.append(Text("–" if not low else str(low) if low == high else f"{low}–{high}"))
            row += [Text(number(cell.mean(f"test_{name}"))) for name in ("logloss", "ne", "calibration")]
        else:
            row += [Text("–")] * (len(columns) - len(row))
        rows.append(tuple(row))
        kinds.append("best" if cell is best else "reference" if cell is full else "" if cell.seeds else "absent")
    return Table(tuple(columns), tuple(rows), 2 if told else 1, tuple(kinds))


def _gap(section: Section, cell: Cell, other: Cell | None) -> Text:
    if other is None or cell is other:
        return Text("–")
    gap = section.difference(cell, other)
    return Text(signed(gap.estimate), interval(gap))


def bucket_table(section: Section) -> Table | None:
    """AUC on frequent and rare ids, with the difference to full."""
    full = section.full
    rows, kinds = [], []
    for cell in _in_order(section):
        row = [Text(cell.method), Text(cell.budget or "–")]
        for name in BUCKETS:
            column = f"auc_{name}"
            value = number(cell.mean(column))
            if full is None or cell is full or np.isnan(cell.mean(column)):
                row.append(Text(value, _spread(cell, column).sub))
            else:
                gap = section.difference(cell, full, name)
                row.append(Text(value, f"{signed(gap.estimate)}\n{interval(gap)}".strip()))
        rows.append(tuple(row))
        kinds.append("reference" if cell is full else "")
    sizes = [f" ({section.rows[name]:,} rows)" if section.rows else "" for name in BUCKETS]
    columns = ("strategy", "budget", *(f"{name}{size}" for name, size in zip(BUCKETS, sizes, strict=True)))
    return Table(columns, tuple(rows), 2, tuple(kinds)) if rows else None


def _in_order(section: Section) -> list[Cell]:
    """Full, then by budget from large to small."""
    places = {budget.text: place for place, budget in enumerate(section.budgets)}
    return sorted(
        (cell for cell in section.cells if cell.seeds),
        key=lambda cell: (not cell.uncompressed, places.get(cell.budget, -1)),
    )


def part_cells(section: Section, budget: Budget | None) -> list[Cell]:
    """Whose bytes are shown: those at the budget of the recommendation, and full."""
    cells = [cell for cell in section.at(budget) if cell.seeds and cell.parts] if budget else []
    return [*([section.full] if section.full is not None and section.full.parts else []), *cells]


def part_table(cells: Sequence[Cell]) -> Table | None:
    """Serving bytes by part, a column a method."""
    if not cells:
        return None
    named = top_parts(cells)
    rows = []
    for name in named:
        rows.append((Text(name), *(_part(cell, cell.parts.get(name, 0.0)) for cell in cells)))
    others = sorted({name for cell in cells for name in cell.parts} - set(named))
    if others:
        rest = [sum(cell.parts.get(name, 0.0) for name in others) for cell in cells]
        rows.append(
            (Text(f"{len(others)} others"), *(_part(cell, size) for cell, size in zip(cells, rest, strict=True)))
        )
    rows.append((Text("all"), *(Text(format_bytes(sum(cell.parts.values()))) for cell in cells)))
    kinds = ("",) * (len(rows) - 1) + ("reference",)
    return Table(("part", *(cell.method for cell in cells)), tuple(rows), 1, kinds)


def _part(cell: Cell, size: float) -> Text:
    return Text(format_bytes(size), percent(size / sum(cell.parts.values()))) if size else Text("–")


def speed_table(section: Section) -> Table | None:
    """What training and prediction took."""
    rows = []
    for cell in _in_order(section):
        speed, late = cell.mean("train_samples_per_second"), cell.mean("predict_microseconds_per_row")
        rows.append(
            (
                Text(cell.method),
                Text(cell.budget or "–"),
                Text("–" if np.isnan(speed) else f"{speed:,.0f}"),
                Text("–" if np.isnan(late) else f"{late:.2f}"),
                Text("–" if np.isnan(cell.mean("epochs")) else f"{cell.mean('epochs'):.1f}"),
                Text("–" if np.isnan(cell.mean("wall_seconds")) else f"{cell.mean('wall_seconds'):.1f}"),
                Text(format_bytes(cell.mean("train_bytes"))),
                Text(format_bytes(cell.mean("checkpoint_bytes"))),
                Text(format_bytes(cell.mean("peak_rss_bytes"))),
            )
        )
    columns: tuple[str, ...] = (
        "strategy",
        "budget",
        "training, samples/s",
        "prediction, µs/row",
        "epochs",
        "seconds per run",
    )
    columns += ("training bytes", "checkpoint bytes", "peak memory of the process")
    return Table(columns, tuple(rows), 2) if rows else None


def serving_table(section: Section) -> Table | None:
    """How fast the shipped models answer, beside their bytes."""
    full = section.full
    rows = []
    for cell in _in_order(section):
        row = [Text(cell.method), Text(cell.budget or "–"), Text(format_bytes(cell.bytes))]
        for column in (LATENCY, THROUGHPUT):
            value = cell.median(column)
            row.append(Text("–" if np.isnan(value) else f"{value:,.0f}"))
            if full is not None:
                ratio = value / full.median(column)
                row.append(Text("–" if np.isnan(ratio) else f"{ratio:.2f}"))
        rows.append(tuple(row))
    columns = ["strategy", "budget", "serving bytes"]
    for title in ("one row, µs", "batch, rows/s"):
        columns += [title, "× full"] if full is not None else [title]
    kinds = tuple("reference" if cell is full else "" for cell in _in_order(section))
    return Table(tuple(columns), tuple(rows), 2, kinds) if rows else None


def serving_note(section: Section) -> str:
    """Where and how serving was measured; several values where runs differ."""
    texts = sorted({text for cell in section.cells for text in cell.ok["serving"] if text})
    if not texts:
        return "Not measured: these runs are from before serving was."
    told = [json.loads(text) for text in texts]

    def values(name: str) -> str:
        return " / ".join(dict.fromkeys(_number(one.get(name, "unknown")) for one in told))

    return (
        f"Shipped models on {values('processor')}, threads: {values('threads')}, warm, "
        f"from encoded rows to probabilities; medians over seeds. One row: the median of {values('requests')} "
        f"requests, each of another row. Batch: of {values('batch')} rows. Runs beside others in parallel slow "
        "each other down."
    )


def failure_table(section: Section) -> Table | None:
    """Every run without a result, with its message; equal messages of a cell together."""
    runs = section.unfinished()
    rows = []
    keys = ["method", "budget_requested", "status", "error"]
    for key, mine in runs.groupby(keys, sort=False):
        method, budget, status, error = (str(part) for part in key)
        seeds = ", ".join(str(seed) for seed in mine["seed"])
        rows.append((Text(method), Text(budget or "–"), Text(status), Text(seeds), Text(error or "no message")))
    return Table(("strategy", "budget", "status", "seeds", "message"), tuple(rows), 5) if rows else None


def absent_note(section: Section) -> str:
    """What the crosses in the Pareto plot are."""
    marks = absent(section)
    return f" × at the bottom edge: no result ({'; '.join(marks)})." if marks else ""


# --- protocol ------------------------------------------------------------------------------------------------


def protocol(section: Section) -> list[tuple[str, str]]:
    """How the numbers came to be, as terms with their explanations."""
    told = _first_json(section.runs["protocol"])
    training = _table(told.pop("training", {}))
    optimizer = _table(training.pop("optimizer", {}))
    rows = _table(told.pop("rows", {}))
    facts: list[tuple[str, str]] = []
    if rows:
        facts.append(("Rows", ", ".join(f"{name} {_number(count)}" for name, count in rows.items())))
    for name in ("split", "model"):
        if name in told:
            facts.append((name.capitalize(), _flat(told.pop(name))))
    if optimizer:
        facts.append(("Optimizer", _flat(optimizer)))
    if training:
        facts.append(("Training", _flat(training)))
    facts += [(name.capitalize(), _flat(value)) for name, value in told.items()]
    seeds = ", ".join(str(seed) for seed in sorted(set(section.runs["seed"])))
    facts.append(("Seeds", f"{seeds}; every number is the mean over them, ± the sample standard deviation"))
    tuned = section.runs["tuned"]
    facts.append(("Tuning", "every run tuned" if tuned.all() else "some runs tuned" if tuned.any() else _UNTUNED))
    facts += [
        ("Selection", "The best epoch is chosen on validation. The test split is read once, after training."),
        ("Bytes", _BYTES + _beside(section)),
        ("Head to unseen", _HEAD),
    ]
    if section.draws:
        facts.append(("Intervals", _intervals(section)))
        facts.append(("Many comparisons", _many(section)))
    facts.append(("Speed", "As met while training; a run that was reused keeps what it took when it was trained."))
    return facts


_UNTUNED = "none: every strategy ran under the settings above, which may suit one better than another"
_BYTES = (
    "A budget counts every tensor that is needed to turn ids into vectors, in its serving form, without the "
    "optimizer’s state. 1 MB is 10⁶ bytes. A budget of 0.1 keeps a tenth of the full 32-bit tables over the training "
    "vocabulary, as does 10x. Coarse: the sizes that the strategy can take leave more than 2 % of the budget unused."
)
_HEAD = (
    "A test row is unseen when one of its single-valued ids did not occur in training. The others are cut in thirds by "
    "the training count of their rarest single-valued id: head, torso, tail. AUC is undefined on a single class."
)


def _beside(section: Section) -> str:
    size = section.host_bytes
    if np.isnan(size):
        return ""
    return f" Beside every budget: the vocabulary’s strings, which turn raw rows into ids, {format_bytes(size)}."


def _intervals(section: Section) -> str:
    seeds = (
        "the few seeds by normal multipliers with the scale of Student’s t"
        if section.seeds > 1
        else "with one seed they cover rows alone"
    )
    return (
        f"{PERCENT} intervals of paired differences, from {section.resamples:,} bootstrap resamples of the test rows, "
        f"the same for all runs; {seeds}. “≈ best”: the interval of the difference to the best contains 0. A rank "
        "is given as all the ranks that these intervals leave open, and only with two seeds or more."
    )


def _many(section: Section) -> str:
    count = sum(max(0, len(section.candidates(budget)) - 1) for budget in section.budgets)
    return (
        f"Each interval stands alone: of the {plural(count, 'comparison')} with a best here, about {count * 0.05:.1f} "
        "would look real by chance if all were equal, and the best was picked on the rows that it is compared on. A "
        "narrow miss of 0 is weak evidence."
    )


def versions(section: Section) -> list[tuple[str, str]]:
    """What the runs were made with; several values where runs differ."""
    seen: dict[str, dict[str, None]] = {}
    for text in sorted(set(section.runs["versions"])):
        for name, value in (json.loads(text) if text else {}).items():
            seen.setdefault(str(name), {})[_flat(value)] = None
    return [(name, " / ".join(values)) for name, values in seen.items()]


def _first_json(column: pd.Series[str]) -> dict[str, Any]:
    return next((dict(json.loads(text)) for text in sorted(set(column)) if text), {})


def _table(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _flat(value: Any) -> str:
    """A tree of settings on one line, without what is not set."""
    if isinstance(value, dict):
        name = [str(value["name"])] if "name" in value else []
        inner = [f"{str(key).replace('_', ' ')} {_flat(one)}" for key, one in value.items() if _told(key, one)]
        return ", ".join(name + inner)
    if isinstance(value, (list, tuple)):
        return " / ".join(_flat(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _number(value) if isinstance(value, int) and value >= 10_000 else str(value)


def _told(key: Any, value: Any) -> bool:
    return key != "name" and value is not None and value is not False and value != [] and value != {}
