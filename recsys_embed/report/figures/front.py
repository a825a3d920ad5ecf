"""Validation AUC against serving bytes of all trials of a search, with the front of them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from recsys_embed.report.figures.canvas import axes, drawing, svg
from recsys_embed.report.figures.labels import name_marks
from recsys_embed.report.figures.methods import colour_of, marker_of
from recsys_embed.report.figures.sizes import budget_rules, byte_ticks, log_limits
from recsys_embed.report.figures.style import MUTED, PAPER, WIDTH
from recsys_embed.report.sizes import format_bytes
from recsys_embed.search.choice import front


def draw(search: pd.DataFrame, key: str) -> str:
    """A mark a trial, filled on the front; nothing where fewer than two trials ended well."""
    shown = measured(search)
    if len(shown) < 2:
        return ""
    methods = list(dict.fromkeys(shown["method"]))
    best = set(on_front(shown))
    budgets = search.dropna(subset=["budget_bytes"]).drop_duplicates("budget_bytes")
    rules = [
        (float(size), str(text))
        for size, text in zip(budgets["budget_bytes"], budgets["budget_requested"], strict=True)
        if size > 0
    ]
    low, high = float(shown["val_auc"].min()), float(shown["val_auc"].max())
    room = max(high - low, 1e-3)
    width = WIDTH * 72 - 46 - 12
    with drawing(4.1) as fig:
        ax = axes(fig, (46.0, 30.0, width, 228.0 - 12 * (len(methods) > 8)))
        ax.set_xscale("log")
        log_limits(ax, [*shown["serve_bytes"].tolist(), *(size for size, _ in rules)], width, 12, 12)
        ax.set_ylim(low - 0.07 * room, high + 0.07 * room)
        budget_rules(ax, rules)
        byte_ticks(ax, width)
        line = shown.loc[sorted(best, key=lambda place: shown["serve_bytes"][place])]
        ax.step(line["serve_bytes"], line["val_auc"], where="post", color=MUTED, lw=1.0, zorder=1)
        for place, method, size, auc in zip(
            shown.index, shown["method"], shown["serve_bytes"].tolist(), shown["val_auc"].tolist(), strict=True
        ):
            colour = colour_of(method)
            face, large = (colour, 6.0) if place in best else (PAPER, 4.0)
            ax.plot(size, auc, marker=marker_of(method), ms=large, mfc=face, mec=colour, mew=0.9, lw=0, zorder=3)
        name_marks(fig, [(marker_of(method), method, colour_of(method)) for method in methods], 46.0)
        ax.set_ylabel("validation AUC")
        ax.set_xlabel("serving bytes (logarithmic)")
        told = "; ".join(
            f"{method} {format_bytes(size)} {auc:.4f}"
            for method, size, auc in zip(line["method"], line["serve_bytes"], line["val_auc"], strict=True)
        )
        return svg(fig, key, "Validation AUC against serving bytes of all trials", f"The front: {told}.")


def measured(search: pd.DataFrame) -> pd.DataFrame:
    """The trials that ended well, each configuration of a method once, with their bytes as plain numbers."""
    shown = search[(search["status"] == "ok") & search["same_as"].isna() & (search["serve_bytes"] > 0)]
    return shown.assign(serve_bytes=shown["serve_bytes"].astype(np.float64))


def on_front(shown: pd.DataFrame) -> list[int]:
    """The index of the trials of which none other has both fewer bytes and a higher AUC, from the highest AUC down."""
    order = shown.assign(lower=-shown["val_auc"]).sort_values(["lower", "serve_bytes"], kind="stable")
    return [int(place) for place in front(order.index, lambda place: float(shown["serve_bytes"][place]))]
