"""Training by several ranks: its speed, the parts of a step, the balance of the ranks; on a GPU, lookup bandwidth.

    python bench/sharding.py [--quick] [--json FILE]

**Speed**, on CPU with gloo: the trainer's own steps on the same model and the same global batches, by one process as it
is without torchrun, by one rank of the sharded back end, and by two. All processes live at once and step in turns, so
that their ratios are of one run and of the same moments; each has its share of the cores as threads. Times are medians.
Two ranks of one machine have no more cores than one process: what they show is what sharding costs, not how it scales.

**Balance**: lookups that fall on each rank, counted from drawn ids, with rows scattered and in contiguous blocks.

**Bandwidth**, where there is a CUDA device: forward and update of single-valued lookups, as the bytes that must be
moved over the time it took, against a copy measured on the same device (:mod:`bench.harness.bandwidth`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness.command import command
from bench.harness.setting import facts, heading

RANKS = (2, 8)


def main() -> None:
    command(__doc__, "smaller tables, fewer steps", lambda quick: run(quick=quick), table)


def run(*, quick: bool) -> dict[str, Any]:
    from bench.harness.worlds import SETUPS, Scale, compare

    scale = (
        Scale(features=26, rows=20_000, dim=16, batch=4096, rounds=5, steps=4)
        if quick
        else Scale(features=26, rows=200_000, dim=16, batch=4096, rounds=40, steps=8)
    )
    return {
        **facts("fbgemm-gpu-cpu", "fbgemm-gpu", "torchrec"),
        "note": "Ratios were taken in one run, in turns. Ranks share this machine's cores and talk by gloo: they show "
        "what sharding costs, not how it scales. FBGEMM's CPU build runs on one thread in every setup.",
        "setting": {**vars(scale), "model": "dlrm", "strategy": "full", "optimizer": "rowwise_adagrad", "zipf": 1.05},
        "speed": compare(SETUPS, scale),
        "balance": balance_of(RANKS, features=26, rows=1_000_000, draws=20_000 if quick else 200_000),
        "bandwidth": bandwidth(quick=quick),
    }


def balance_of(counts: Sequence[int], *, features: int, rows: int, draws: int) -> list[dict[str, Any]]:
    """For each rank of worlds of ``counts`` ranks: its share of ``draws`` lookups in each of some row-wise tables of
    width 16. Ids are ranked by frequency, as ``prepare`` numbers them."""
    import numpy as np
    import torch

    from bench.harness.draws import zipf_ranks
    from recsys_embed.embeddings.base import TableSpec
    from recsys_embed.sharding import work_of
    from recsys_embed.tables.base import UpdateRule
    from recsys_embed.tables.placement import row_wise

    rule, width = UpdateRule("rowwise_adagrad"), 16
    drawn = zipf_ranks(features, rows, draws, torch.Generator().manual_seed(0))
    loads = {TableSpec(f"f{f}", rows, width): torch.bincount(drawn[f], minlength=rows).numpy() for f in range(features)}
    lines = []
    for count in counts:
        placements = [(row_wise(spec, count), load) for spec, load in loads.items()]
        lookups, contiguous = (
            np.sum([work_of(one, load, count, scattered=order) / width for one, load in placements], axis=0)
            for order in (True, False)
        )
        lines += [
            {
                "ranks": count,
                "rank": rank,
                "bytes_held": sum(one.bytes_on(rank, rule) for one, _ in placements),
                "lookups": int(lookups[rank]),
                "share": round(lookups[rank] / lookups.sum(), 4),
                "row_bytes_read": int(lookups[rank]) * 4 * width,
                "contiguous_lookups": int(contiguous[rank]),
                "contiguous_share": round(contiguous[rank] / contiguous.sum(), 4),
                "contiguous_row_bytes_read": int(contiguous[rank]) * 4 * width,
            }
            for rank in range(count)
        ]
    return lines


def bandwidth(*, quick: bool) -> dict[str, Any]:
    """The CUDA part, or why there is none."""
    import torch

    if not torch.cuda.is_available():
        build = "a build without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        return {"skipped": f"no CUDA device is visible to torch {torch.__version__}, {build}"}
    from bench.harness.bandwidth import Size, measure

    size = (
        Size(features=26, table_bytes=1_000_000_000, vector_bytes=250_000_000, repeats=10)
        if quick
        else Size(features=26, table_bytes=4_000_000_000, vector_bytes=1_000_000_000, repeats=50)
    )
    return measure(torch.device("cuda"), (16, 64, 128), size)


def table(result: Mapping[str, Any]) -> str:
    lines = [*heading(result), result["note"], ""]
    lines += ["speed, in units of one process, with its quartiles; milliseconds of a step and its parts"]
    parts = list(result["speed"][0]["parts_ms"])
    lines += _aligned(
        [
            {
                "": one["name"],
                "back end": one["backend"],
                "threads": one["threads_per_rank"],
                "samples/s": one["samples_per_second"],
                "speed": f"{one['speed']:.2f}",
                "quartiles": "{:.2f}–{:.2f}".format(*one["speed_quartiles"]),
                "step": f"{one['step_ms']:.1f}",
                **{part.replace("_", " "): f"{one['parts_ms'][part]:.1f}" for part in parts},
            }
            for one in result["speed"]
        ]
    )
    lines += ["", "balance of row-wise tables of a million rows, Zipf(1.05)", *_aligned(result["balance"]), ""]
    found = result["bandwidth"]
    if "skipped" in found:
        return "\n".join([*lines, f"bandwidth: skipped, {found['skipped']}"])
    lines.append(f"bandwidth on {found['device']}, copy {found['copy_gb_per_second']} GB/s")
    measured = [cell for cell in found["cells"] if "refused" not in cell]
    refused = [f"{c['strategy']}, {c['backend']}, {c['dim']}: {c['refused']}" for c in found["cells"] if "refused" in c]
    return "\n".join([*lines, *_aligned(measured), *refused])


def _aligned(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A column for each key of the first row; all but the first to the right."""
    names = list(rows[0])
    cells = [[name.replace("_", " ") for name in names], *([str(row[name]) for name in names] for row in rows)]
    wide = [max(len(line[place]) for line in cells) for place in range(len(names))]
    return ["  ".join(text.rjust(width) for text, width in zip(line, wide, strict=True)).rstrip() for line in cells]


if __name__ == "__main__":
    main()
