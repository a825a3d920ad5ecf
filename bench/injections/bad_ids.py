"""F14: ids that cannot be, and KeyedJaggedTensors that do not fit, for every strategy on both back ends.

``on_unknown = "error"`` names feature, sample and value, and a training step afterwards changes nothing. With
``"unseen"`` an unknown id reads and trains what id 0 does; what is no id at all (offsets that fall, floats) is an error
all the same. The caller's tensors are never written to. FBGEMM's own default trains row 0 instead.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.injections.layers import layer
from bench.injections.tally import Scale, Tally
from recsys_embed.config import STRATEGIES
from recsys_embed.errors import DataError
from recsys_embed.features import Feature
from recsys_embed.layer import EmbeddingLayer

FEATURES = (Feature("user", 400), Feature("tags", 90, multi_valued=True), Feature("city", 40))
BATCH = 4
# user | tags | city; four samples each, the tags' second bag is empty
VALUES = [3, 399, 0, 7, 5, 6, 89, 1, 1, 39, 0, 8]
OFFSETS = [0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 11, 12]


@dataclass(frozen=True)
class Case:
    """A batch, the fault in it, and the place that an error has to name; ``id`` marks what may read as unseen."""

    name: str
    batch: Callable[[], Any]
    feature: str | None
    row: int | None = None
    value: int | None = None
    id: bool = False


def inject(scale: Scale, folder: Path) -> Tally:
    """Every case with every strategy, back end and ``on_unknown``."""
    tally = Tally()
    cases = [*id_cases(), *keyed_cases(tally)]
    backends = ["reference"]
    if importlib.util.find_spec("fbgemm_gpu") is not None:
        backends.append("fused")
    else:
        tally.gaps.append("the fused back end: FBGEMM is not installed")
    for strategy in STRATEGIES:
        for backend in backends:
            for on_unknown in ("error", "unseen"):
                emb = layer(strategy, FEATURES, backend=backend, on_unknown=on_unknown)
                optimizer = emb.optimizer("rowwise_adagrad", lr=0.5)
                for case in cases:
                    place = f"{strategy}, {backend}, {on_unknown}, {case.name}"
                    tally.injected += 1
                    _inject(emb, optimizer, case, place, tally)
    return tally


def _inject(emb: EmbeddingLayer, optimizer: Any, case: Case, place: str, tally: Tally) -> None:
    batch = case.batch()
    given = tensors(batch)
    copies = [tensor.clone() for tensor in given]
    before = {name: emb.tables.get(name).clone() for name in emb.tables.specs}
    try:
        vectors = emb(batch)
    except DataError as error:
        tally.detected += 1
        if case.id and emb.on_unknown == "unseen":
            tally.breach(f"{place}: an unknown id is an error: {error}")
        for what, wanted, found in (
            ("feature", case.feature, error.column),
            ("row", case.row, error.row),
            ("value", case.value, error.value),
        ):
            if wanted is not None and wanted != found:
                tally.breach(f"{place}: the error names {what} {found!r}, not {wanted!r}: {error}")
    except Exception as error:
        tally.breach(f"{place}: {type(error).__name__} is not ours: {str(error).splitlines()[0]}")
    else:
        if case.id and emb.on_unknown == "unseen":
            expected = emb(_with_zero(batch, case))
            tally.recovered += bool(torch.equal(vectors, expected))
            tally.silent += not torch.equal(vectors, expected)
        else:
            tally.silent += 1
            tally.breach(f"{place}: read as if nothing were wrong")
    finally:
        optimizer.step()  # nothing is pending: no gradient has arrived
        optimizer.zero_grad()
    if any(not torch.equal(emb.tables.get(name), table) for name, table in before.items()):
        tally.silent += 1
        tally.breach(f"{place}: a row has changed")
    if any(not torch.equal(one, copy) for one, copy in zip(given, copies, strict=True)):
        tally.silent += 1
        tally.breach(f"{place}: the caller's tensor has changed")


def tensors(batch: Any) -> list[Tensor]:
    """The caller's tensors in a batch."""
    if isinstance(batch, tuple):
        return [one for one in batch if isinstance(one, Tensor)]
    found = [batch.values(), batch.offsets(), batch.weights_or_none()]
    return [one for one in found if one is not None]


def _with_zero(batch: Any, case: Case) -> Any:
    """The same batch with id 0 in place of the bad id."""
    values, offsets = (batch[0], batch[1]) if isinstance(batch, tuple) else (batch.values(), batch.offsets())
    return values.masked_fill(values == case.value, 0), offsets


# --- the cases -----------------------------------------------------------------------------------------------


def id_cases() -> list[Case]:
    """The seven of FBGEMM's table: five kinds of ids and two of offsets."""

    def with_id(place: int, value: int) -> Callable[[], Any]:
        return lambda: (torch.tensor([*VALUES[:place], value, *VALUES[place + 1 :]]), torch.tensor(OFFSETS))

    def with_offsets(offsets: list[int]) -> Callable[[], Any]:
        return lambda: (torch.tensor(VALUES), torch.tensor(offsets))

    falling = [*OFFSETS[:5], 7, 6, *OFFSETS[7:]]  # the bags of tags run backwards at sample 1
    short = [*OFFSETS[:-1], OFFSETS[-1] - 1]
    return [
        Case("id = rows", with_id(0, 400), "user", 0, 400, id=True),
        Case("id = 2^62", with_id(1, 2**62), "user", 1, 2**62, id=True),
        Case("id = -2", with_id(4, -2), "tags", 0, -2, id=True),
        Case("id of another table", with_id(9, 350), "city", 1, 350, id=True),
        Case("id = -1", with_id(7, -1), "tags", 3, -1, id=True),
        Case("offsets that fall", with_offsets(falling), "tags", 1, -1),
        Case("offsets that end early", with_offsets(short), "city", 3, 11),
    ]


def keyed_cases(tally: Tally) -> list[Case]:
    """KeyedJaggedTensors: TorchRec's own where it is installed, else a stand-in with the same attributes."""
    keyed: Any = KeyedJaggedTensor
    if importlib.util.find_spec("torchrec") is not None:
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor as Theirs

        keyed = Theirs
    else:
        tally.notes.append("TorchRec is not installed: a stand-in with the same attributes was read")
    keys = [feature.name for feature in FEATURES]

    def built(keys: list[str], values: Tensor, offsets: list[int], weights: Tensor | None = None) -> Callable[[], Any]:
        def make() -> Any:
            copy = None if weights is None else weights.clone()
            return keyed(keys=list(keys), values=values.clone(), weights=copy, offsets=torch.tensor(offsets))

        return make

    def with_id(place: int, value: int) -> Tensor:
        return torch.tensor([*VALUES[:place], value, *VALUES[place + 1 :]])

    values = torch.tensor(VALUES)
    falling = [*OFFSETS[:5], 7, 6, *OFFSETS[7:]]
    return [
        Case("KJT without a key", built(["user", "tags", "town"], values, OFFSETS), "city"),
        Case("KJT with a key twice", built(["user", "tags", "city", "user"], *_twice()), "user"),
        Case("KJT, id = rows", built(keys, with_id(6, 90), OFFSETS), "tags", 2, 90, id=True),
        Case("KJT, id = -1", built(keys, with_id(3, -1), OFFSETS), "user", 3, -1, id=True),
        Case("KJT, offsets that fall", built(keys, values, falling), "tags", 1, -1),
        Case("KJT, values beyond the offsets", built(keys, torch.cat([values, values[:2]]), OFFSETS), "city", 3, 12),
        Case("KJT, keys in another order, offsets that fall", built(keys[::-1], values, falling), "tags", 1, -1),
        Case("KJT of floats", built(keys, values.double(), OFFSETS), None),
        Case("KJT, too few weights", built(keys, values, OFFSETS, torch.ones(len(VALUES) - 1)), None),
        Case("KJT, batch sizes that differ", built(keys[::-1], values, [*OFFSETS, 12]), None),
    ]


def _twice() -> tuple[Tensor, list[int]]:
    return torch.tensor([*VALUES, 9, 9, 9, 9]), [*OFFSETS, 13, 14, 15, 16]


class KeyedJaggedTensor:
    """The attributes of TorchRec's class that the layer reads."""

    def __init__(self, keys: list[str], values: Tensor, weights: Tensor | None, offsets: Tensor) -> None:
        self._keys, self._values, self._weights, self._offsets = keys, values, weights, offsets

    def keys(self) -> list[str]:
        """Names of the features."""
        return self._keys

    def values(self) -> Tensor:
        """``[N]``."""
        return self._values

    def offsets(self) -> Tensor:
        """``[F*B + 1]``."""
        return self._offsets

    def weights_or_none(self) -> Tensor | None:
        """``[N]``, or nothing."""
        return self._weights
