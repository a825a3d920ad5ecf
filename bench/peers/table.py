"""The result as text."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from bench.peers.duel import BARE, OWN, SHARED, WRONG


def table(result: Mapping[str, Any]) -> str:
    """A block for each cell of the grid, a line for each contender."""
    lines = [f"{result['date']}  {result['machine']}  {result['versions']}", f"{result['setting']}"]
    cells = itertools.groupby(result["cells"], key=lambda one: (one["model"], one["size"], one["dim"], one["batch"]))
    for (model, size, dim, batch), found in cells:
        lines += ["", f"{model}, size {size}, D = {dim}, batch {batch}", *block(list(found))]
    lines += [
        "",
        "samples/s by the median step; of FBGEMM: turn by turn, FBGEMM by hand = 1; its CPU build runs on one thread;",
        "ours: products in medium, which is its default; whoever has no precision in its name: in fp32;",
        f"common: row-wise Adagrad; (…): more than {WRONG} AUC behind the best, a speed that does not count.",
    ]
    return "\n".join(lines)


def block(found: Sequence[Mapping[str, Any]]) -> list[str]:
    by_name: dict[str, dict[str, Mapping[str, Any]]] = {}
    for one in found:
        by_name.setdefault(one["contender"], {})[one["column"]] = one
    lines = [
        f"{'':<21}{'samples/s':>11}{'range':>18}{'of FBGEMM':>11}{'range':>12}{'total':>9}{'first s':>9}"
        f"{'peak MB':>9}{'AUC':>8}  {'optimizer':<17}{'common':>10}{'AUC':>8}{'no malloc':>11}"
    ]
    for name, columns in by_name.items():
        own = columns[OWN]
        if "left_out" in own:
            lines.append(f"{name:<21}{own['left_out']}")
            continue
        share = own.get("over_fbgemm")
        lines.append(
            f"{name:<21}{_speed(own):>11}{_range(own['samples_per_second'], ',.0f'):>18}"
            f"{_median(share, '.2f'):>11}{_range(share, '.2f'):>12}"
            f"{own['samples_per_second_total']['median']:>9,.0f}{own['first_batch_seconds']['median']:>9.1f}"
            f"{own['peak_bytes']['median'] / 1e6:>9,.0f}{own['auc']['median']:>8.4f}  {own['optimizer']:<17}"
            f"{_common(own, columns.get(SHARED))}{_speed(columns.get(BARE)):>11}"
        )
    return lines


def _common(own: Mapping[str, Any], shared: Mapping[str, Any] | None) -> str:
    if shared is not None:
        return f"{_speed(shared):>10}{_median(shared.get('auc'), '.4f'):>8}"
    return f"{_speed(own) if own['optimizer'] == 'row-wise Adagrad' else 'has none':>10}{'':>8}"


def _speed(one: Mapping[str, Any] | None) -> str:
    if one is None or "left_out" in one:
        return "-"
    text = f"{one['samples_per_second']['median']:,.0f}"
    return f"({text})" if one["behind"] else text


def _median(spread: Mapping[str, float] | None, form: str) -> str:
    return "-" if spread is None else f"{spread['median']:{form}}"


def _range(spread: Mapping[str, float] | None, form: str) -> str:
    return "-" if spread is None else f"{spread['lowest']:{form}}–{spread['highest']:{form}}"
