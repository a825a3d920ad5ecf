"""How much each parameter of a search mattered."""

from __future__ import annotations

from recsys_embed.report.figures.allocation import panels
from recsys_embed.report.figures.importance import ranked
from recsys_embed.report.importance import BEST, importances, parameter_name
from recsys_embed.report.summary import Section
from recsys_embed.report.tables.allocation import finds_of
from recsys_embed.report.tables.cells import Table, Text
from recsys_embed.report.tables.words import percent


def importance_note(section: Section) -> str:
    """How importance is found, or why some is missing; empty where nothing was sampled."""
    found, why = importances(section.search)
    told = _IMPORTANCE if found else ""
    missing = f"No importance: {why}." if why else ""
    return " ".join(part for part in (told, missing) if part)


_IMPORTANCE = (
    f"How far the best {BEST:.0%} of a method’s complete trials are from all of them in each parameter, by PED-ANOVA, "
    "as shares. It is a hint, not a test: with few trials the order of the lower ones is chance."
)


def importance_table(section: Section) -> Table | None:
    """The importance of every parameter, a column a method."""
    found = {method: mine for method, mine in importances(section.search)[0].items() if mine}
    if not found:
        return None
    known = list(panels(finds_of(section))[1])
    rows = tuple(
        (Text(parameter_name(name, known)), *(Text(percent(mine.get(name, 0.0))) for mine in found.values()))
        for name in ranked(found)
    )
    return Table(("drawn", *found), rows)
