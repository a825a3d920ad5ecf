"""Between strategies and tables: which lanes a strategy's read takes, its bags as a request, and its rows back.

Shapes: F features of a strategy, B samples, N id occurrences, S slots, W width, L lanes of a group.

Lanes of a strategy lie next to each other in their group: feature by feature where it is single-valued (so that the
rows ``[B, F*S, W]`` are ``[B, F, S, W]`` without a copy), slot by slot where some feature is multi-valued (so that
one slot's bags are the batch's bags).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from recsys_embed.embeddings.base import Lookup, Strategy, TableSpec
from recsys_embed.embeddings.index_maps import RowNumbers, in_lanes
from recsys_embed.features import Feature
from recsys_embed.ids import offsets_of
from recsys_embed.pooling import occurrence_weights, pool_occurrences
from recsys_embed.tables.base import Group, Request, Tables
from recsys_embed.tables.source import Source


@dataclass(frozen=True)
class Part:
    """One strategy's place in the layer."""

    strategy: Strategy
    features: tuple[int, ...]  # positions in layer order
    jagged: bool  # some feature is multi-valued
    pooled: bool  # bags are summed in the read
    reads: tuple[ReadPlace, ...]


@dataclass(frozen=True)
class ReadPlace:
    """Where a strategy's read lies in its group: its vectors there, ``slots`` for each id; one where they are combined
    already."""

    name: str
    group: int
    vectors: slice
    slots: int


def lay_out(
    strategies: Iterable[nn.Module], features: Sequence[Feature], *, decay: bool
) -> tuple[list[Part], list[Group]]:
    """Give every read its lanes in a group: one group for each width, stored type, whether bags are pooled, and how the
    rows of an id's slots are combined; where slots lie apart, a group to each strategy."""
    positions = {feature.name: place for place, feature in enumerate(features)}
    shared: dict[tuple[object, ...], int] = {}
    groups: list[Group] = []
    parts = []
    for number, strategy in enumerate(strategies):
        assert isinstance(strategy, Strategy)
        jagged = any(feature.multi_valued for feature in strategy.features)
        penalised = decay or type(strategy).penalty is not Strategy.penalty
        rows_are_seen = penalised or strategy.observes
        pooled = not jagged or (strategy.linear and not rows_are_seen)
        specs = {spec.name: spec for spec in strategy.stored_tables()}
        places = []
        for name, homes in strategy.reads().items():
            slots = len(homes[0])
            order = (
                [homes[f][s] for s in range(slots) for f in range(len(homes))]
                if jagged
                else [home for row in homes for home in row]
            )
            width, dtype = specs[order[0]].width, specs[order[0]].storage.dtype
            combination = None if rows_are_seen or slots == 1 else strategy.combination
            together = slots if combination else 1
            apart = jagged and combination is not None
            key = (width, dtype, pooled, combination, together, number if apart else None)
            if key not in shared:
                shared[key] = len(groups)
                groups.append(Group((), width, combination, together, apart))
            group = groups[shared[key]]
            start, end = group.vectors, group.vectors + len(order) // together
            groups[shared[key]] = replace(group, lanes=group.lanes + tuple(order))
            places.append(ReadPlace(name, shared[key], slice(start, end), slots // together))
        places_of = tuple(positions[feature.name] for feature in strategy.features)
        parts.append(Part(strategy, places_of, jagged, pooled, tuple(places)))
    return parts, groups


def specs_of(strategies: Iterable[nn.Module]) -> list[TableSpec]:
    """The tables of the strategies, as they are stored."""
    return [spec for one in strategies if isinstance(one, Strategy) for spec in one.stored_tables()]


def request_of(part: Part, lookup: Lookup, place: ReadPlace, tables: Tables) -> Request:
    """The bags that a strategy's read asks for, in the order of its lanes; with absent rows where tables take them."""
    slots = place.slots * tables.groups[place.group].slots
    request = _bags_of(part, lookup, place.name, slots)
    return request.without_absent() if part.strategy.absent and not tables.takes_absent else request


def _bags_of(part: Part, lookup: Lookup, name: str, slots: int) -> Request:
    ids, rows = lookup.ids, lookup.rows
    source = rows.source(name) if isinstance(rows, RowNumbers) else None
    if source is None:
        source = Source.of(in_lanes(rows[name], jagged=part.jagged), ids.features * slots)
    if not part.jagged:
        return Request([source], ids.batch)
    assert ids.offsets is not None
    count, device = ids.values.numel(), ids.values.device
    if part.pooled:
        offsets, batch, weights = ids.offsets, ids.batch, occurrence_weights(part.strategy.features, ids)
    else:
        # Every occurrence is a bag of its own; features with fewer occurrences end in empty bags.
        counts = torch.tensor(ids.bounds(), device=device).diff()
        batch = int(counts.max()) if counts.numel() else 0
        offsets, weights = offsets_of(torch.arange(batch, device=device) < counts.unsqueeze(1)), None
    shifts = torch.arange(slots, device=device).unsqueeze(1) * count
    ends = torch.full((1,), slots * count, dtype=offsets.dtype, device=device)
    offsets = torch.cat([(offsets[:-1] + shifts).view(-1), ends])
    return Request([source], batch, offsets, None if weights is None else weights.repeat(slots))


def rows_of(part: Part, lookup: Lookup, read: Tensor, place: ReadPlace) -> Tensor:
    """Rows ``[B, F, S, W]``, or ``[N, S, W]`` per occurrence, from what a strategy read, ``[B, F*S, W]``."""
    features = len(part.features)
    if not part.jagged:
        return read.view(read.shape[0], features, place.slots, read.shape[2])
    lanes = read.view(read.shape[0], place.slots, features, read.shape[2])
    if part.pooled:
        return lanes.transpose(1, 2)
    bounds = torch.tensor(lookup.ids.bounds(), device=read.device)
    feature = torch.arange(features, device=read.device).repeat_interleave(bounds.diff())
    position = torch.arange(feature.numel(), device=read.device) - bounds[feature]
    return lanes[position, :, feature]


def pool(part: Part, lookup: Lookup, vectors: Tensor) -> Tensor:
    """Vectors ``[B, F, D]``: bags that were not pooled in the read are summed here."""
    return vectors if part.pooled else pool_occurrences(part.strategy.features, lookup.ids, vectors)


def join(requests: Sequence[Request]) -> Request:
    """The lanes of several strategies side by side in one request."""
    batch = requests[0].batch
    if all(request.offsets is None for request in requests):
        return Request([source for request in requests for source in request.sources], batch)
    # Strategies read per occurrence may ask for different numbers of bags: the shorter end in empty ones.
    batch = max(request.batch for request in requests)
    requests = [request.with_offsets() for request in requests]
    lengths = []
    for request in requests:
        assert request.offsets is not None
        each = request.offsets.diff().view(request.lanes, request.batch)
        lengths.append(torch.nn.functional.pad(each, (0, batch - request.batch)))
    weighted = any(request.weights is not None for request in requests)
    weights = torch.cat([request.factors() for request in requests]) if weighted else None
    sources = [source for request in requests for source in request.sources]
    return Request(sources, batch, offsets_of(torch.cat(lengths)), weights)
