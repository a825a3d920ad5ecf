"""The kernels as torch operators, on CPU: ``recsys_embed::first_outside``, ``address``, ``read_rows``, ``update_rows``,
``combine`` and ``multiply_pairs``.

Shapes: L lanes, B samples, W width, M occurrences, V vectors, S width of the optimizer's state, T tables, n rows of a
store.

The store holds the rows of several tables, one below the other. ``lanes [3, L]`` (int64) are, for each lane, the first
row of its table in the store, the number of its rows, and the seed of its rounding noise; ``grids [2, L]`` (float32)
the scale and the midpoint of its integers. Rows and bags are those of :class:`recsys_embed.tables.base.Request`; rows
are int32 or int64, -1 is absent.

``slots`` are three numbers: how many lanes become one vector; how far from each other they lie, 1 or V; and whether
their rows are multiplied (1) or added (0). Where a slot is a vector they are ``ALONE``, of ``library.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recsys_embed.native.library import (
    Address,
    Combination,
    Library,
    Pairs,
    PairsGradient,
    Request,
    Slots,
    Source,
    load,
)
from recsys_embed.tables.buffers import Buffers

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3, torch.int16: 4}
"""Of stores, by their number in kernels.cpp."""

NUMBERINGS = {"as_they_are": 0, "hashes": 1, "digits": 2}
"""Of ids, by their number in interface.h."""

RULES = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 2, "lazy_adam": 3}

FINE, NO_MEMORY = -1, -(2**63) + 1

_PRODUCTS = Buffers()

_NAMESPACE = torch.library.Library("recsys_embed", "DEF")
_NAMESPACE.define("first_outside(Tensor ids, Tensor? offsets, Tensor sizes) -> int")
_NAMESPACE.define("address(Tensor ids, Tensor first, Tensor second, bool digits) -> Tensor")
_NAMESPACE.define(
    "read_rows(Tensor(a!) out, Tensor(b!)? kept, int[] slots, Tensor store, Tensor lanes, Tensor grids, int batch, "
    "Tensor(c!) rows, Tensor? offsets, Tensor? weights, Tensor[] ids, int[] features, int[] numberings, "
    "Tensor?[] constants, bool stream) -> int"
)
_NAMESPACE.define(
    "update_rows(Tensor(a!) store, Tensor(b!) state, Tensor lanes, Tensor grids, Tensor order, Tensor bounds, "
    "int batch, Tensor rows, Tensor? offsets, Tensor? weights, int[] slots, Tensor? kept, Tensor gradient, str rule, "
    "float lr, float eps, float[] betas, int step) -> int"
)
_NAMESPACE.define("combine(Tensor(a!) out, Tensor slots, Tensor? gradient, bool products) -> ()")
_NAMESPACE.define("multiply_pairs(Tensor? first, Tensor others, int padding) -> Tensor")
_NAMESPACE.define("multiply_pairs_back(Tensor gradient, Tensor? first, Tensor others) -> (Tensor, Tensor)")


def _first_outside(ids: Tensor, offsets: Tensor | None, sizes: Tensor) -> int:
    """The first of ``ids`` (int32 or int64) that is not in ``[0, size)`` of its feature, or -1: its place in memory, of
    ``[F, B]``, contiguous within a feature, or of bags ``[N]`` with offsets ``[F*B + 1]``."""
    library = _library()
    features = sizes.numel()
    batch, step, cuts = 0, 0, None
    if offsets is None:
        batch, step = ids.shape[1], ids.stride(0)
    else:
        batch, cuts = (offsets.numel() - 1) // max(features, 1), offsets.data_ptr()
    found = library.first_outside(
        *(library.level, torch.get_num_threads(), ids.data_ptr(), int(ids.dtype == torch.int64)),
        *(features, batch, step, cuts, sizes.data_ptr()),
    )
    return int(found)


def _address(ids: Tensor, first: Tensor, second: Tensor, digits: bool) -> Tensor:
    """Row numbers (int64) of ``ids`` (int32 or int64) by two constants (int64), of the shape they broadcast to, which
    has three axes at most: hashes by seed and number of rows, or with ``digits`` those by divisor and base."""
    library = _library()
    shapes = [(*(1,) * (3 - one.dim()), *one.shape) for one in (ids, first, second)]
    shape = [next((size for size in sizes if size != 1), 1) for sizes in zip(*shapes, strict=True)]
    if any(size not in (1, whole) for one in shapes for size, whole in zip(one, shape, strict=True)):
        raise RuntimeError(f"shapes {shapes} cannot be broadcast")
    strides = [
        tuple(0 if size == 1 else stride for size, stride in zip(sizes, (*(0, 0, 0), *one.stride())[-3:], strict=True))
        for one, sizes in zip((ids, first, second), shapes, strict=True)
    ]
    rows = torch.empty(shape[3 - max(ids.dim(), first.dim(), second.dim()) :], dtype=torch.int64)
    asked = Address(
        *(ids.data_ptr(), int(ids.dtype == torch.int64), int(digits)),
        *((first.data_ptr(), second.data_ptr()), rows.data_ptr()),
        *(tuple(shape), strides[0], (*strides[1], *strides[2])),
    )
    library.address(library.level, torch.get_num_threads(), asked)
    return rows


def _address_fake(ids: Tensor, first: Tensor, second: Tensor, digits: bool) -> Tensor:
    return ids.new_empty(torch.broadcast_shapes(ids.shape, first.shape, second.shape), dtype=torch.int64)


def _read_rows(
    out: Tensor,
    kept: Tensor | None,
    slots: Sequence[int],
    store: Tensor,
    lanes: Tensor,
    grids: Tensor,
    batch: int,
    rows: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    ids: Sequence[Tensor],
    features: Sequence[int],
    numberings: Sequence[int],
    constants: Sequence[Tensor | None],
    stream: bool,
) -> int:
    """Write the vectors of the pooled rows to ``out [B, V, W]`` (float32 or bfloat16, contiguous within a sample), and
    the rows to ``kept [B, L, W]``, which slots that are alone do not take; with ``stream`` past the caches.

    With ``ids`` the int32 ``rows`` are made first, and written. Those of each source are ``[F, B]``, contiguous within
    a feature, or of bags ``[N]``, and of so many features; its numbering is one of ``NUMBERINGS``, and its constants,
    if any, ``[2, F, S]``.

    Returns:
        -1; or, with nothing read, the first occurrence whose row its table does not have, or -2 - bag where offsets do
        not rise from 0 to M.
    """
    library = _library()
    asked = _request(store, lanes, grids, batch, rows, offsets, weights)
    bf16 = out.dtype == torch.bfloat16
    sources = [_source(*one) for one in zip(ids, features, numberings, constants, strict=True)]
    made = sum(source.features * source.slots for source in sources)
    if sources and (made != lanes.shape[1] or rows.dtype != torch.int32):
        raise RuntimeError(f"sources are of all {lanes.shape[1]} lanes, and make int32: got {made}, {rows.dtype}")
    found = library.read(
        *(library.level, torch.get_num_threads(), TYPES[store.dtype], asked, Slots(*slots)),
        *((Source * len(sources))(*sources), len(sources), out.data_ptr(), out.stride(0), int(bf16)),
        *(None if kept is None else kept.data_ptr(), int(stream)),
    )
    if found == NO_MEMORY:
        raise MemoryError("no memory to number and combine rows in")
    return int(found)


def _update_rows(
    store: Tensor,
    state: Tensor,
    lanes: Tensor,
    grids: Tensor,
    order: Tensor,
    bounds: Tensor,
    batch: int,
    rows: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Sequence[int],
    kept: Tensor | None,
    gradient: Tensor,
    rule: str,
    lr: float,
    eps: float,
    betas: list[float],
    step: int,
) -> int:
    """Update every row once by the sum of its gradients, from ``gradient [B, V, W]`` of the vectors.

    ``kept [B, L, W]`` are the rows as they were read, which the gradients of products are made with.

    ``order [L]`` are the lanes, table by table; ``bounds [T + 1]`` where those of each table begin; ``state [n, S]``.
    ``betas [2]`` are what lazy Adam keeps of its moments, and for it ``lr`` is corrected for their bias.

    Returns:
        As ``read_rows``, with no row changed.
    """
    library = _library()
    asked = _request(store, lanes, grids, batch, rows, offsets, weights)
    found = library.update(
        *(library.level, torch.get_num_threads(), TYPES[store.dtype], asked, Slots(*slots)),
        *(None if kept is None else kept.data_ptr(), store.data_ptr(), state.data_ptr(), gradient.data_ptr()),
        *(RULES[rule], -lr, eps, *(1 - beta for beta in betas), step),
        *(lanes.data_ptr() + 2 * 8 * lanes.shape[1], order.data_ptr(), bounds.data_ptr(), bounds.numel() - 1),
    )
    if found == NO_MEMORY:
        raise MemoryError("no memory to sum gradients in: some rows may have been updated, and others not")
    return int(found)


def _combine(out: Tensor, slots: Tensor, gradient: Tensor | None, products: bool) -> None:
    """Write the sums or products over the slots of ``slots [..., S, W]`` to ``out [..., W]``; or, of the ``gradient
    [..., W]`` of products, the gradients of the slots to ``out [..., S, W]``. All are contiguous float32."""
    library = _library()
    number, width = slots.shape[-2:]
    asked = Combination(
        *(slots.data_ptr(), None if gradient is None else gradient.data_ptr(), out.data_ptr()),
        *(int(products), slots.numel() // max(number * width, 1), width, number),
    )
    library.combine(library.level, torch.get_num_threads(), asked)


def _multiply_pairs(first: Tensor | None, others: Tensor, padding: int) -> Tensor:
    """Rows of the vector of ``first [B, D]``, if there are any; the products of all pairs of it and ``others
    [B, F, D]``, the lower triangle of the Gram matrix, row by row; and zeros. All are float32; it has a gradient."""
    own, rest = None if first is None else first.contiguous(), others.contiguous()
    out = _PRODUCTS.take(len(rest), _columns(first, others, padding))
    _pairs(out, own, rest, None)
    return out


def _columns(first: Tensor | None, others: Tensor, padding: int) -> int:
    vectors = others.shape[1] + (first is not None)
    return (0 if first is None else others.shape[2]) + vectors * (vectors - 1) // 2 + padding


def _multiply_pairs_back(gradient: Tensor, first: Tensor | None, others: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of ``first``, empty where there are none, and of ``others``."""
    own, rest = None if first is None else first.contiguous(), others.contiguous()
    of_first = others.new_empty(0) if own is None else torch.empty_like(own)
    of_others, gradient = _PRODUCTS.take(*rest.shape), gradient.contiguous()
    where = PairsGradient(gradient.data_ptr(), None if own is None else of_first.data_ptr(), of_others.data_ptr())
    _pairs(gradient, own, rest, where)
    return of_first, of_others


def _keep_factors(ctx: Any, inputs: tuple[Tensor | None, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gradients_of_factors(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
    first, others = ctx.saved_tensors
    of_first, of_others = multiply_pairs_back(gradient.to(torch.float32), first, others)
    return None if first is None else of_first, of_others, None


def _no_second_gradients(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError("products of pairs have gradients, and no gradients of these, by the native kernels")


def _pairs(rows: Tensor, first: Tensor | None, others: Tensor, by: PairsGradient | None) -> None:
    library = _library()
    batch, count, width = others.shape
    asked = Pairs(
        *(None if first is None else first.data_ptr(), others.data_ptr(), rows.data_ptr()),
        *(batch, count, width, rows.shape[1]),
    )
    if not library.pairs(library.level, torch.get_num_threads(), asked, by):
        raise MemoryError("no memory to multiply pairs of vectors in")


def _request(
    store: Tensor,
    lanes: Tensor,
    grids: Tensor,
    batch: int,
    rows: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
) -> Request:
    count = lanes.shape[1]
    starts, scales = lanes.data_ptr(), grids.data_ptr()
    return Request(
        *(store.data_ptr(), starts, starts + 8 * count, scales, scales + 4 * count),
        *(count, batch, store.shape[1]),
        *(rows.data_ptr(), int(rows.dtype == torch.int64), rows.numel()),
        *(None if one is None else one.data_ptr() for one in (offsets, weights)),
    )


def _source(ids: Tensor, features: int, numbering: int, constants: Tensor | None) -> Source:
    where, slots = (None, 1) if constants is None else (constants.data_ptr(), constants.shape[2])
    if constants is not None and constants.shape[:2] != (2, features):
        raise RuntimeError(f"constants are [2, F, S] with F = {features}, got {list(constants.shape)}")
    step = ids.stride(0) if ids.dim() == 2 and ids.numel() else 0
    wide = int(ids.dtype == torch.int64)
    return Source(ids.data_ptr(), wide, ids.numel(), step, numbering, where, features, slots)


def _library() -> Library:
    library = load()
    if isinstance(library, str):
        raise RuntimeError(library)
    return library


_NAMESPACE.impl("first_outside", _first_outside, "CPU")
_NAMESPACE.impl("address", _address, "CPU")
_NAMESPACE.impl("read_rows", _read_rows, "CPU")
_NAMESPACE.impl("update_rows", _update_rows, "CPU")
_NAMESPACE.impl("combine", _combine, "CPU")
_NAMESPACE.impl("multiply_pairs", _multiply_pairs, "CPU")
_NAMESPACE.impl("multiply_pairs_back", _multiply_pairs_back, "CPU")
torch.library.register_fake("recsys_embed::address", _address_fake, lib=_NAMESPACE)
for _checking in ("first_outside", "read_rows", "update_rows"):
    torch.library.register_fake(f"recsys_embed::{_checking}", lambda *args: FINE, lib=_NAMESPACE)
torch.library.register_fake("recsys_embed::combine", lambda *args: None, lib=_NAMESPACE)
torch.library.register_fake(
    "recsys_embed::multiply_pairs",
    lambda first, others, padding: others.new_empty(others.shape[0], _columns(first, others, padding)),
    lib=_NAMESPACE,
)
torch.library.register_fake(
    "recsys_embed::multiply_pairs_back",
    lambda gradient, first, others: (
        others.new_empty(0) if first is None else first.new_empty(first.shape),
        others.new_empty(others.shape),
    ),
    lib=_NAMESPACE,
)
torch.library.register_autograd(
    "recsys_embed::multiply_pairs", _gradients_of_factors, setup_context=_keep_factors, lib=_NAMESPACE
)
torch.library.register_autograd("recsys_embed::multiply_pairs_back", _no_second_gradients, lib=_NAMESPACE)

first_outside = torch.ops.recsys_embed.first_outside.default
address = torch.ops.recsys_embed.address.default
read_rows = torch.ops.recsys_embed.read_rows.default
update_rows = torch.ops.recsys_embed.update_rows.default
combine = torch.ops.recsys_embed.combine.default
multiply_pairs = torch.ops.recsys_embed.multiply_pairs.default
multiply_pairs_back = torch.ops.recsys_embed.multiply_pairs_back.default
