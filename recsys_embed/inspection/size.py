"""How large full tables would be."""

from __future__ import annotations

from recsys_embed.inspection.inspection import Inspection
from recsys_embed.inspection.kinds import Kind
from recsys_embed.inspection.sample import Sample
from recsys_embed.inspection.schema import features


def vocabularies(found: Inspection) -> list[Sample]:
    """The values of every feature to embed."""
    bags = (column.bags.sample for column in features(found, Kind.MULTI_VALUED) if column.bags)
    return [*(column.sample for column in features(found, Kind.CATEGORICAL)), *bags]


def table_rows(found: Inspection) -> int:
    """Rows of full tables: one for every value, and one of each feature for missing and unseen ones.

    There are fewer in the end, since only values of the training rows get one.
    """
    return sum(sample.distinct + 1 for sample in vocabularies(found))
