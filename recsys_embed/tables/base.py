"""Where rows live: the contract of a table back end.

Shapes: L lanes, B samples, W width. A lane is one (feature, slot) pair; lanes of one width that are read together form
a group. Every read is a pooled read of bags, ``[L, B]`` bags of row numbers; a single-valued lookup is a bag of one::

    rows [L, B]                        a matrix: every bag holds one row
    rows [M], offsets [L*B + 1]        jagged, lane-major; perhaps weights [M]

and gives ``[B, L, W]``, the memory order in which a sample's vectors lie side by side. Where a group combines the
rows of an id's slots, what everybody else sees are the vectors that come of it, ``[B, V, W]``.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from recsys_embed import ranks
from recsys_embed.embeddings.base import Rows, TableSpec
from recsys_embed.errors import DataError
from recsys_embed.ids import offsets_of
from recsys_embed.seeds import seed_of
from recsys_embed.tables.combination import Combination, combined, product_gradient
from recsys_embed.tables.rounding import TORCH_TYPES, dequantise
from recsys_embed.tables.source import Source

RULES = ("sgd", "adagrad", "rowwise_adagrad", "lazy_adam")
"""Optimizers of tables."""

INIT_BLOCK = 65_536
"""Initial weights are drawn in blocks of this many rows, each with a seed of its own."""


Part = Literal["weights", "state"]
"""What a row consists of: its weights, and the optimizer state that belongs to it."""


@dataclass(frozen=True)
class Group:
    """Lanes read together: the table of each lane, and their common width.

    With a ``combination``, every ``slots`` lanes are the slots of one id, whose rows are combined to one vector: lanes
    that lie side by side, or ``apart``, slot by slot. Then there are V = L / S vectors of a sample, and V = L without.
    """

    lanes: tuple[str, ...]
    width: int
    combination: Combination | None = None
    slots: int = 1
    apart: bool = False

    def __post_init__(self) -> None:
        assert (self.combination is None) == (self.slots == 1)
        assert len(self.lanes) % self.slots == 0

    @property
    def vectors(self) -> int:
        """V."""
        return len(self.lanes) // self.slots

    def by_slot(self, rows: Tensor) -> Tensor:
        """A view of rows ``[B, L, W]`` as ``[B, V, S, W]``."""
        if self.apart:
            return rows.view(rows.shape[0], self.slots, self.vectors, self.width).transpose(1, 2)
        return rows.view(rows.shape[0], self.vectors, self.slots, self.width)

    def combined(self, rows: Tensor) -> Tensor:
        """The vectors ``[B, V, W]`` of rows ``[B, L, W]``: the rows themselves without a combination."""
        return rows if self.combination is None else combined(self.by_slot(rows), self.combination)

    def gradient_of_rows(self, rows: Tensor | None, gradient: Tensor) -> Tensor:
        """``[B, L, W]``, by the gradient ``[B, V, W]`` of the vectors; ``rows`` as they were read are needed for
        products alone."""
        if self.combination is None:
            return gradient
        if self.combination == "sum":
            shape = (gradient.shape[0], self.vectors, self.slots, self.width)
            spread = gradient.unsqueeze(2).expand(shape)
        else:
            assert rows is not None
            spread = product_gradient(self.by_slot(rows), gradient)
        return (spread.transpose(1, 2) if self.apart else spread).flatten(1, 2)


class Request:
    """The bags to read for one group; see the module's shapes. Row numbers count within each lane's table; an
    absent row, -1, is only for tables that take it (:attr:`Tables.takes_absent`).

    Args:
        rows: row numbers, or what a read can make them of: the sources of all lanes, one after another.
        batch: B.
        offsets: of bags, ``[L*B + 1]``.
        weights: of bags, ``[M]``.
        lanes: L, which the offsets of no bags do not tell.
    """

    def __init__(
        self,
        rows: Tensor | Sequence[Source],
        batch: int,
        offsets: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        lanes: int | None = None,
    ) -> None:
        self.batch, self.offsets, self.weights = batch, offsets, weights
        self._rows: Tensor | None = None
        if isinstance(rows, Tensor):
            bags = 0 if offsets is None else offsets.numel() - 1
            self.lanes = lanes if lanes is not None else len(rows) if offsets is None else bags // max(batch, 1)
            self.keep(rows)
        else:
            self.sources, self.lanes = list(rows), sum(source.lanes for source in rows)
            if len(self.sources) == 1 and self.sources[0].numbering == "as_they_are":
                self.keep(self.sources[0].rows())

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the row numbers."""
        if self.offsets is not None:
            return (sum(one.ids.numel() * one.slots for one in self.sources),)
        return (self.lanes, self.batch)

    @property
    def made(self) -> bool:
        """Whether row numbers are there already."""
        return self._rows is not None

    @property
    def rows(self) -> Tensor:
        """Row numbers, ``[L, B]`` or ``[M]``; made now where no read has :meth:`keep` them."""
        if self._rows is None:
            made = [one.rows() for one in self.sources]
            return self.keep(made[0] if len(made) == 1 else torch.cat(made))
        return self._rows

    def keep(self, rows: Tensor) -> Tensor:
        """Take up the row numbers that a read has made, in place of the sources; returns them."""
        self._rows, self.sources = rows, [Source.of(rows, self.lanes)]
        return rows

    def jagged(self) -> tuple[Tensor, Tensor]:
        """Flat rows ``[M]`` and offsets ``[L*B + 1]``, also of a matrix."""
        if self.offsets is not None:
            return self.rows, self.offsets
        flat = self.rows.reshape(-1)
        return flat, torch.arange(flat.numel() + 1, device=flat.device)

    def with_offsets(self) -> Request:
        """The same bags, with offsets also where each holds one row."""
        if self.offsets is not None:
            return self
        offsets = torch.arange(self.lanes * self.batch + 1, device=self.sources[0].ids.device)
        if all(source.slots == 1 for source in self.sources):
            return Request([source.flat() for source in self.sources], self.batch, offsets)
        return Request(self.rows.reshape(-1), self.batch, offsets, lanes=self.lanes)

    def factors(self) -> Tensor:
        """The weights of bags ``[M]``, ones where there are none."""
        if self.weights is not None:
            return self.weights
        return torch.ones(math.prod(self.shape), device=self.sources[0].ids.device)

    def without_absent(self) -> Request:
        """The same bags without their rows -1."""
        rows, offsets = self.jagged()
        present = rows >= 0
        weights = None if self.weights is None else self.weights[present]
        offsets = offsets_of(present.to(torch.int64))[offsets]
        return Request(rows[present], self.batch, offsets, weights, lanes=self.lanes)

    @staticmethod
    def concat(requests: Sequence[Request], lanes: int) -> Request:
        """One request with the samples of several, in their order."""
        if len(requests) == 1:
            return requests[0]
        batch = sum(request.batch for request in requests)
        if all(request.offsets is None for request in requests):
            return Request(torch.cat([request.rows for request in requests], dim=1), batch)
        flats = [request.jagged() for request in requests]
        lengths = torch.cat(
            [offsets.diff().view(lanes, r.batch) for (_, offsets), r in zip(flats, requests, strict=True)], dim=1
        )
        cuts = [
            offsets[:: request.batch].tolist() if request.batch else [0] * (lanes + 1)
            for (_, offsets), request in zip(flats, requests, strict=True)
        ]

        def by_lane(parts: Sequence[Tensor]) -> Tensor:
            return torch.cat(
                [p[cut[lane] : cut[lane + 1]] for lane in range(lanes) for p, cut in zip(parts, cuts, strict=True)]
            )

        weights = None
        if any(request.weights is not None for request in requests):
            weights = by_lane([request.factors() for request in requests])
        return Request(by_lane([rows for rows, _ in flats]), batch, offsets_of(lengths), weights)


@dataclass(frozen=True)
class UpdateRule:
    """The optimizer of the tables, one of :data:`RULES`.

    Row-wise Adagrad keeps one sum a row, of the squared gradient's mean over the logical width. Lazy Adam is
    ``torch.optim.SparseAdam``: the moments of a row decay only in steps that read it, and their bias is corrected by
    the steps of all rows; its state is the first moments of a row, then the second ones.
    """

    name: str
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)

    def state_width(self, width: int) -> int:
        """Floats of state a row: what it adds to the bytes of training and of a checkpoint."""
        return {"sgd": 0, "adagrad": width, "rowwise_adagrad": 1, "lazy_adam": 2 * width}[self.name]

    def rate(self, lr: float, step: int) -> float:
        """What a row's direction is multiplied by in the ``step``-th step, from 1."""
        if self.name != "lazy_adam":
            return lr
        first, second = (1 - beta**step for beta in self.betas)
        return lr * math.sqrt(second) / first


class Tables(nn.Module, ABC):
    """Stores the tables of one layer. ``rule`` is ``None`` while the tables are ordinary parameters, or only read.

    ``state_dict`` holds ``<name>`` with the logical ``[rows, width]`` weights, on every back end: of the stored type
    once a rule trains them or they are frozen, float32 before. Either can be loaded, before or after.
    """

    rule: UpdateRule | None = None
    steps: int = 0
    """Steps of the tables optimizer so far; rounding noise is a function of it."""
    _dealt: bool = False
    _growing: bool = False

    def __init__(self, specs: Sequence[TableSpec], groups: Sequence[Group], seed: int) -> None:
        super().__init__()
        self.specs = {spec.name: spec for spec in specs}
        self.groups = tuple(groups)
        self.seed = seed

    @property
    def takes_absent(self) -> bool:
        """Whether requests may ask for rows -1, which read as zeros and are never updated."""
        return False

    @abstractmethod
    def read(self, group: int, request: Request) -> Tensor:
        """Pooled rows ``[B, L, W]``, connected to whatever the back end needs for :meth:`update`."""

    @abstractmethod
    def set_lr(self, lr: float) -> None:
        """The learning rate of the updates, and of the reads, that follow."""

    @abstractmethod
    def update(self, group: int, request: Request, read: Tensor | None, gradient: Tensor) -> None:
        """Update the rows of ``request`` once, with the gradient ``[B, L, W]`` of what was read.

        ``read`` is what :meth:`read` gave for this very request at the present learning rate, if it is at hand.
        """

    def read_vectors(self, group: int, request: Request) -> Tensor:
        """The vectors ``[B, V, W]`` of :meth:`read`'s rows, connected as these are."""
        return self.groups[group].combined(self.read(group, request))

    def read_to_train(self, group: int, request: Request) -> tuple[Tensor | None, Tensor]:
        """What :meth:`update_by_vectors` needs of the rows that were read, and their vectors ``[B, V, W]``."""
        rows = self.read(group, request)
        return rows, self.groups[group].combined(rows.detach())

    def update_by_vectors(
        self, group: int, request: Request, read: Tensor | None, rows: Tensor | None, gradient: Tensor
    ) -> None:
        """:meth:`update`, with the gradient ``[B, V, W]`` of the vectors.

        ``rows`` are what :meth:`read_to_train` gave, samples side by side; ``read`` is None, or the same, as
        :meth:`update` takes it.
        """
        self.update(group, request, read, self.groups[group].gradient_of_rows(rows, gradient))

    @abstractmethod
    def get(self, name: str) -> Tensor:
        """The logical ``[rows, width]`` weights of a table, dequantised; a view or a copy."""

    def stored(self, name: str) -> Tensor:
        """The logical ``[rows, width]`` weights of a table, of the type they are held in; a view or a copy."""
        return self.get(name)

    def share(self, name: str, part: Part) -> Tensor:
        """This rank's share of the logical rows of a table, as :meth:`stored` or :meth:`get_state` have them."""
        first, last = ranks.share().of(self.specs[name].rows)
        return self._whole(name, part)[first:last]

    def put_share(self, name: str, part: Part, rows: Tensor) -> None:
        """Replace the rows of a table by the shares of all ranks."""
        self._put_whole(name, part, ranks.gathered(rows.contiguous()))

    @contextlib.contextmanager
    def dealt(self) -> Iterator[None]:
        """While it lasts, the state dicts of the tables and of their optimizer hold this rank's share of the rows of
        each table, and take the same: no rank then needs room for a whole table."""
        self._dealt = True
        try:
            yield
        finally:
            self._dealt = False

    @contextlib.contextmanager
    def growing(self) -> Iterator[None]:
        """While it lasts, the state dicts that the tables and their optimizer take may be those of tables with fewer
        rows, from before they grew: the rows beyond stay as they are."""
        self._growing = True
        try:
            yield
        finally:
            self._growing = False

    @property
    def grows(self) -> bool:
        """Whether it lasts."""
        return self._growing

    def saved(self, name: str, part: Part) -> Tensor:
        """What a state dict holds of a table: all rows, or this rank's share; see :meth:`dealt`."""
        return self.share(name, part) if self._dealt else self._whole(name, part)

    def restore(self, name: str, part: Part, rows: Tensor) -> None:
        """Take up what :meth:`saved` gave; see :meth:`growing`."""
        if self._growing and rows.shape[0] < self.specs[name].rows:
            rows = self._continued(name, part, rows.to(self.device))
        (self.put_share if self._dealt else self._put_whole)(name, part, rows)

    def _continued(self, name: str, part: Part, first: Tensor) -> Tensor:
        """All rows of a table: the first ones as given, the others as they are."""
        own = self._whole(name, part)
        if own.dtype != first.dtype:  # only weights are stored in several types
            storage = self.specs[name].storage
            own, first = self.get(name), dequantise(first, storage.scale, storage.midpoint)
        return torch.cat([first, own.detach()[first.shape[0] :]])

    def _whole(self, name: str, part: Part) -> Tensor:
        return self.stored(name) if part == "weights" else self.get_state(name)

    def _put_whole(self, name: str, part: Part, rows: Tensor) -> None:
        (self.put if part == "weights" else self.put_state)(name, rows)

    @abstractmethod
    def put(self, name: str, weights: Tensor) -> None:
        """Replace the weights of a table by floats, or by integers as its storage has them."""

    @abstractmethod
    def get_state(self, name: str) -> Tensor:
        """The optimizer state of a table: ``[rows, state width]``."""

    @abstractmethod
    def put_state(self, name: str, state: Tensor) -> None:
        """Replace the optimizer state of a table."""

    @abstractmethod
    def get_rows(self, name: str, rows: Tensor) -> Rows:
        """Copies of some rows ``[n]``, with their optimizer state."""

    @abstractmethod
    def put_rows(self, name: str, rows: Tensor, values: Rows) -> None:
        """Replace distinct rows ``[n]``, and their optimizer state."""

    def reset(self, name: str, rows: Tensor) -> None:
        """Put distinct rows ``[n]`` back to their initial weights, with no optimizer state; all ranks call."""
        rows = rows.to(self.device, torch.int64)
        weights = initial_rows(self.specs[name], self.seed, rows.cpu()).to(self.device)
        width = 0 if self.rule is None else self.rule.state_width(weights.shape[1])
        self.put_rows(name, rows, Rows(weights, weights.new_zeros(len(rows), width)))

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where reads are made."""

    @abstractmethod
    def padded_width(self, width: int) -> int:
        """Floats a row of this width takes in memory."""

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        for name in self.specs:
            weights = self.saved(name, "weights")
            destination[prefix + name] = weights if keep_vars else weights.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: object,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, spec in self.specs.items():
            weights = state_dict.get(prefix + name)
            first, last = ranks.share().of(spec.rows) if self._dealt else (0, spec.rows)
            if weights is None:
                missing_keys.append(prefix + name)
            elif tuple(weights.shape) != (self._taken(weights, last - first), spec.width):
                error_msgs.append(
                    f"size mismatch for {prefix + name}: copying {tuple(weights.shape)} "
                    f"into a table of {(last - first, spec.width)}."
                )
            elif not weights.is_floating_point() and weights.dtype != TORCH_TYPES[spec.storage.dtype]:
                error_msgs.append(
                    f"{prefix + name} is {weights.dtype}, and the table is stored as {spec.storage.dtype}."
                )
            else:
                try:
                    with torch.no_grad():
                        self.restore(name, "weights", weights)
                except DataError as error:
                    error_msgs.append(f"{prefix + name}: {error}.")
        known = {prefix + name for name in self.specs}
        unexpected_keys.extend(key for key in state_dict if key.startswith(prefix) and key not in known)

    def _taken(self, given: Tensor, rows: int) -> int:
        """How many rows a state dict must have: all, or while the tables grow as many as it has of them."""
        return min(given.shape[0], rows) if self._growing else rows


def row_blocks(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Rows block by block: the first row of each, and a view of it."""
    for start in range(0, rows.shape[0], INIT_BLOCK):
        yield start, rows[start : start + INIT_BLOCK]


def draw(weights: Tensor, spec: TableSpec, seed: int) -> None:
    """Fill ``weights [rows, width]`` in place; see :func:`initial_blocks`."""
    for start, part in initial_blocks(spec, seed):
        weights[start : start + part.shape[0]] = part


def initial_blocks(spec: TableSpec, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Initial weights, a function of (seed, table name, row) and nothing else: the first row of each block, and its
    weights."""
    for block, start in enumerate(range(0, spec.rows, INIT_BLOCK)):
        yield start, _drawn(spec, seed, block, min(INIT_BLOCK, spec.rows - start))


def initial_rows(spec: TableSpec, seed: int, rows: Tensor) -> Tensor:
    """The initial weights ``[n, width]`` of some rows ``[n]``, on CPU."""
    weights = torch.empty(len(rows), spec.width)
    blocks = rows.div(INIT_BLOCK, rounding_mode="floor")
    for block in blocks.unique().tolist():
        here = blocks == block
        places = rows[here] - block * INIT_BLOCK
        weights[here] = _drawn(spec, seed, block, int(places.max()) + 1)[places]
    return weights


def _drawn(spec: TableSpec, seed: int, block: int, rows: int) -> Tensor:
    """The first rows of a block. Uniform numbers are drawn one by one: fewer of them are the first of more, so that
    a table that grows has the rows of one that was born large."""
    generator = torch.Generator().manual_seed(seed_of(spec.name, block, seed) % 2**63)
    return torch.empty(rows, spec.width).uniform_(spec.init.low, spec.init.high, generator=generator)
