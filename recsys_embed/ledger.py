"""The ledger: where the bytes of a layer go, predicted from its plan alone, and what stands beside its budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from recsys_embed.budget import Plan
from recsys_embed.embeddings.base import name_of
from recsys_embed.features import Feature
from recsys_embed.tables.base import UpdateRule

COLUMNS = ["part", "feature", "table", "rows", "width", "train_bytes", "checkpoint_bytes", "serve_bytes"]
VOCABULARY = "vocabulary"
"""The part of the rows that :func:`with_vocabularies` adds."""


def ledger(plan: Plan, rule: UpdateRule | None, padded_width: Callable[[int], int]) -> pd.DataFrame:
    """A row for every table and small parameter.

    Returns:
        Columns ``part`` (the strategy), ``feature`` (its readers, joined by ``+``), ``table``, ``rows``, ``width``
        (logical), and bytes: ``train_bytes`` (padded rows and the tables optimizer's state), ``checkpoint_bytes``
        (logical rows and that state), ``serve_bytes`` (what is shipped: logical rows, or a form of the strategy's own,
        with a row for each part that is no table). While tables are ordinary parameters they are float32, and the state
        of the caller's own optimizer is unknown and not in it.
    """
    lines: list[dict[str, object]] = []
    for strategy in plan.strategies:
        part = name_of(strategy)
        every = "+".join(feature.name for feature in strategy.features)
        serving = strategy.serving()
        readers: dict[str, list[str]] = {}
        for homes in strategy.reads().values():
            for feature, row in zip(strategy.features, homes, strict=True):
                for home in dict.fromkeys(row):
                    readers.setdefault(home, []).append(feature.name)
        for spec in strategy.stored_tables():
            weight = spec.storage.bytes if rule else 4
            state = rule.state_width(spec.width) if rule else 0
            padded_state = rule.state_width(padded_width(spec.width)) if rule else 0
            lines.append(
                {
                    "part": part,
                    "feature": "+".join(readers.get(spec.name, [])) or every,
                    "table": spec.name,
                    "rows": spec.rows,
                    "width": spec.width,
                    "train_bytes": spec.rows * (weight * padded_width(spec.width) + 4 * padded_state),
                    "checkpoint_bytes": spec.rows * (weight * spec.width + 4 * state),
                    "serve_bytes": serving.pop(spec.name, 0),
                }
            )
        for name, tensor in strategy.state_dict().items():
            size = tensor.numel() * tensor.element_size()
            line = [part, every, name, tensor.shape[0], 0, size, size, serving.pop(name, 0)]
            lines.append(dict(zip(COLUMNS, line, strict=True)))
        for name, size in serving.items():
            lines.append(dict(zip(COLUMNS, [part, every, name, 0, 0, 0, 0, size], strict=True)))
    return pd.DataFrame(lines, columns=COLUMNS)


def with_vocabularies(ledger: pd.DataFrame, features: Sequence[Feature], sizes: Mapping[str, int]) -> pd.DataFrame:
    """The ledger of a model that reads raw rows: a layer's, then a row for every vocabulary.

    Args:
        ledger: of a layer.
        features: the layer's.
        sizes: bytes of each vocabulary's strings, by its name.

    Returns:
        The columns of the layer's ledger and ``host_bytes``: what stands beside the budget, the strings that raw rows
        need to become ids. The new rows have the part ``vocabulary``, its readers, its name as ``table``, its ids as
        ``rows``, and 0 in all other columns; the layer's have no ``host_bytes``.
    """
    lines: list[dict[str, object]] = []
    ledger = ledger.assign(host_bytes=0)
    for name, size in sizes.items():
        readers = [feature for feature in features if feature.vocab == name]
        lines.append(
            {
                **dict.fromkeys(COLUMNS, 0),
                "part": VOCABULARY,
                "feature": "+".join(feature.name for feature in readers),
                "table": name,
                "rows": readers[0].size,
                "host_bytes": size,
            }
        )
    return pd.concat([ledger, pd.DataFrame(lines)], ignore_index=True) if lines else ledger
