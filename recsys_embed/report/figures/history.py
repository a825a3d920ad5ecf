"""Validation AUC of every trial of a search in order, with the best so far: a line a method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from recsys_embed.report.figures.canvas import axes, drawing, svg, text_at
from recsys_embed.report.figures.labels import name_lines_right
from recsys_embed.report.figures.methods import colour_of, marker_of
from recsys_embed.report.figures.style import GRID, LETTER, LINE, MUTED, PAPER, WIDTH
from recsys_embed.search.contenders import ONE_TRAINING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(search: pd.DataFrame, key: str) -> str:
    """Methods of one training are a mark each, to the right of the trials; nothing where no trial has an AUC."""
    known = search[search["val_auc"].notna()]
    if known.empty:
        return ""
    methods = list(dict.fromkeys(search["method"]))
    tried = search[~search["method"].isin(list(ONE_TRAINING))]
    last = int(tried["trial"].max()) if len(tried) else 0
    once = known[known["method"].isin(list(ONE_TRAINING))]
    apart = max(1.0, 0.06 * last)
    edge = last + 0.5 + (apart if len(once) else 0.0)
    label = 18 + LETTER * max(map(len, methods))
    height = max(190.0, LINE * (len(methods) + 1))
    low, high = float(known["val_auc"].min()), float(known["val_auc"].max())
    room = max(high - low, 1e-3)
    with drawing((height + 50) / 72) as fig:
        ax = axes(fig, (46.0, 32.0, WIDTH * 72 - 46 - label, height))
        ax.set_xlim(0.5 if last else last + 0.5 - apart, edge)
        ax.set_ylim(low - 0.08 * room, high + 0.06 * room)
        ends = [
            _line(ax, mine) for method, mine in tried.groupby("method", sort=False) if mine["val_auc"].notna().any()
        ]
        for method, auc in zip(once["method"], once["val_auc"].tolist(), strict=True):
            x = last + 0.5 + apart / 2
            ax.plot(x, auc, marker=marker_of(method), ms=5.5, mfc=colour_of(method), mec=PAPER, mew=0.5, lw=0, zorder=4)
            ends.append((x, auc, method, colour_of(method)))
        if last:
            ax.locator_params(axis="x", integer=True)
            ax.set_xticks([tick for tick in ax.get_xticks() if 1 <= tick <= last])
            ax.set_xlabel("trial")
        else:
            ax.set_xticks([])
        if len(once):
            ax.axvline(last + 0.5, color=GRID, lw=0.8, zorder=0)
            text_at(ax, edge, 1.0, "one training", (0, 4), colour=MUTED, frame="top", ha="right")
        name_lines_right(ax, ends, edge)
        ax.set_ylabel("validation AUC")
        return svg(fig, key, "Validation AUC of the trials of the search", "The numbers are in search.csv.")


def best_so_far(aucs: np.ndarray, ok: np.ndarray) -> np.ndarray:
    """After each trial the highest AUC of those that were trained to the end; NaN before the first of them.

    >>> best_so_far(np.array([0.9, 0.6, np.nan, 0.7]), np.array([False, True, False, True]))
    array([nan, 0.6, 0.6, 0.7])
    """
    return np.asarray(np.fmax.accumulate(np.where(ok, aucs, np.nan)))


def _line(ax: Axes, trials: pd.DataFrame) -> tuple[float, float, str, str]:
    """Draw the trials of a method and the best of them so far; return the right end, to name it."""
    method = str(trials["method"].iloc[0])
    colour, marker = colour_of(method), marker_of(method)
    trials = trials.sort_values("trial")
    numbers = trials["trial"].astype("int64").to_numpy()
    aucs, ok = trials["val_auc"].to_numpy(dtype=np.float64), (trials["status"] == "ok").to_numpy()
    for number, auc, good, status in zip(numbers.tolist(), aucs.tolist(), ok.tolist(), trials["status"], strict=True):
        if good:
            ax.plot(number, auc, marker=marker, ms=3.2, mfc=colour, mec=colour, mew=0.6, lw=0, alpha=0.75, zorder=2)
        elif status == "pruned" and not np.isnan(auc):
            ax.plot(number, auc, marker=marker, ms=3.6, mfc=PAPER, mec=colour, mew=0.7, lw=0, zorder=2)
        else:
            text_at(ax, number, 0.0, "×", (0, 0), colour=colour, frame="top", ha="center")
    best = best_so_far(aucs, ok)
    ax.step(numbers, best, where="post", color=colour, lw=1.4, zorder=3)
    there = np.flatnonzero(~np.isnan(best))
    end = float(best[there[-1]]) if len(there) else float(np.nanmax(aucs))
    return float(numbers[-1]), end, method, colour
