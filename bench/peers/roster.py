"""Who takes part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COMMON = "row-wise Adagrad"
MEDIUM = "products of factors that torch may round to bfloat16; the others' are in fp32"
SERIAL = "FBGEMM's CPU build runs on one thread"


@dataclass(frozen=True)
class Contender:
    """A way to train the model.

    Args:
        name: in the table.
        script: its file in ``contenders/``.
        environment: where it runs; None is this project's own.
        options: what its script alone is told, with the optimizer as it ships.
        common: the same with row-wise Adagrad: None where that is what it ships with, or where it has none.
        rowwise: whether it ships with row-wise Adagrad.
        copies: the most memory it takes, in units of its tables in fp32, as seen at width 16.
        note: how it differs from the others.
    """

    name: str
    script: str
    environment: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    common: Mapping[str, Any] | None = None
    rowwise: bool = False
    copies: float = 2.5
    note: str = ""


BASELINE = "FBGEMM by hand"
DENSE = "Adam moves every row at every step"

ROSTER = (
    Contender("ours", "ours", options={"backend": "auto", "precision": "medium"}, rowwise=True, note=MEDIUM),
    Contender("ours, fp32", "ours", options={"backend": "auto"}, rowwise=True),
    Contender("ours, fused", "ours", options={"backend": "fused"}, rowwise=True, note=SERIAL),
    Contender("ours, bf16", "ours", options={"backend": "auto", "precision": "bf16"}, rowwise=True),
    Contender(BASELINE, "fbgemm_by_hand", options={"halves": 1}, rowwise=True, note=SERIAL),
    Contender(
        "FBGEMM, two threads",
        "fbgemm_by_hand",
        options={"halves": 2},
        rowwise=True,
        note=f"{SERIAL}: two operators of 13 tables in two Python threads",
    ),
    Contender(
        "FBGEMM, medium",
        "fbgemm_by_hand",
        options={"halves": 1, "precision": "medium"},
        rowwise=True,
        note=f"{SERIAL}; {MEDIUM}",
    ),
    Contender("FBGEMM, bf16", "fbgemm_by_hand", options={"halves": 1, "precision": "bf16"}, rowwise=True, note=SERIAL),
    Contender(
        "TorchRec, fused",
        "torchrec_by_hand",
        "torchrec",
        {"fused": True, "optimizer": "Adagrad"},
        {"fused": True, "optimizer": COMMON},
        copies=3.5,
        note=SERIAL,
    ),
    Contender(
        "TorchRec, plain",
        "torchrec_by_hand",
        "torchrec",
        {"fused": False, "optimizer": "Adam"},
        {"fused": False, "optimizer": COMMON},
        copies=6,
        note=f"{DENSE}; gradients are dense",
    ),
    Contender("torch, sparse", "plain_torch", options={"sparse": True}, copies=3.5, note="Adagrad by element"),
    Contender("torch, dense", "plain_torch", options={"sparse": False}, copies=6, note=DENSE),
    Contender(
        "DeepCTR-Torch",
        "deepctr_library",
        "deepctr",
        copies=6,
        note=f"{DENSE}; ids pass through float32; last layers of its DeepFM have no bias, and weights a law of its own",
    ),
    Contender(
        "FuxiCTR",
        "fuxictr_library",
        "fuxictr",
        copies=7,
        note=f"{DENSE}; clips gradients; reads by Ray; tables begin normal with deviation 1e-4",
    ),
)
