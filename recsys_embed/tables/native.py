"""The native back end: our own C++ on CPU, for every stored type and optimizer; see :mod:`recsys_embed.native`.

A read and an update are one operator call each for all lanes of a group. Results are the same to the bit for any number
of threads (those of torch) and any instruction set; rounding noise is that of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from recsys_embed.embeddings.base import TableSpec
from recsys_embed.native.library import ALONE, load
from recsys_embed.tables.base import Request, UpdateRule
from recsys_embed.tables.fbgemm import refuse_to_move
from recsys_embed.tables.native_reads import NativeReads
from recsys_embed.tables.stored import StoredTables

MOST_ROWS = 2**31 - 1
"""Of a table."""


class NativeTables(StoredTables):
    """Takes over the stores of ``source``, into their stored form."""

    def __init__(self, source: StoredTables, rule: UpdateRule) -> None:
        super().__init__(list(source.specs.values()), source.groups, source.seed, source.stores)
        self.rule = rule
        for store in self._all():
            store.hold(rule.state_width(store.weights.shape[1]))
        self._reads = NativeReads(self.specs, self.groups, self._group_stores(), self.seed)

    @property
    def takes_absent(self) -> bool:
        """They do."""
        return True

    def read(self, group: int, request: Request) -> Tensor:
        """One operator call, into memory that is used again once nobody holds it.

        Raises:
            DataError: a row that its table does not have, with the table; or offsets that do not rise.
        """
        return self._reads.read(group, request)

    def read_vectors(self, group: int, request: Request) -> Tensor:
        """One operator call as well: rows that are combined are written nowhere.

        Raises:
            DataError: as :meth:`read`.
        """
        return self._reads.read_vectors(group, request)

    def read_to_train(self, group: int, request: Request) -> tuple[Tensor | None, Tensor]:
        """One operator call; it gives the rows as well where vectors are products.

        Raises:
            DataError: as :meth:`read`.
        """
        return self._reads.read_to_train(group, request)

    def read_into(self, out: Tensor, group: int, request: Request) -> Tensor:
        """:meth:`read_vectors` into float32 or bfloat16 memory of the caller's, ``[B, V, W]``, where a sample's vectors
        lie side by side, and samples perhaps apart; returns it.

        Raises:
            DataError: as :meth:`read`.
            ValueError: ``out`` is other memory than that.
        """
        return self._reads.read_into(out, group, request)

    def update(self, group: int, request: Request, read: Tensor | None, gradient: Tensor) -> None:
        """Duplicates are summed exactly, in the order of occurrence; then each row is updated once.

        Raises:
            DataError: as :meth:`read`; no row has been touched.
        """
        self._update(group, request, ALONE, None, gradient)

    def update_by_vectors(
        self, group: int, request: Request, read: Tensor | None, rows: Tensor | None, gradient: Tensor
    ) -> None:
        """The same; the gradients of rows that were combined are made on the way, and written nowhere.

        Raises:
            DataError: as :meth:`read`; no row has been touched.
        """
        kept = rows.contiguous() if rows is not None and self.groups[group].combination == "product" else None
        self._update(group, request, self._reads.lanes[group].slots, kept, gradient)

    def _update(
        self, group: int, request: Request, slots: tuple[int, int, int], kept: Tensor | None, gradient: Tensor
    ) -> None:
        from recsys_embed.native.ops import FINE, update_rows

        assert self.rule is not None
        here, store = self._reads.lanes[group], self._group_store(group)
        lanes, width = len(self.groups[group].lanes), self.groups[group].width
        assert gradient.shape == (request.batch, lanes // slots[0], width)
        assert (slots[2] == 0) == (kept is None)
        assert kept is None or (kept.shape == (request.batch, lanes, width) and kept.dtype == torch.float32)
        bad = update_rows(
            *(store.weights, store.state, here.lanes, here.grids, here.order, here.bounds, request.batch),
            *self._reads.bags(group, request, request.rows),
            *(slots, kept),
            *(gradient.detach().to(torch.float32).contiguous(), self.rule.name, self.rule.rate(self._lr, self.steps)),
            *(self.rule.eps, list(self.rule.betas), self.steps),
        )
        if bad != FINE:
            raise self._reads.refused(group, request, bad)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NativeTables:
        refuse_to_move("native", fn, self.device)
        super()._apply(fn, recurse)
        return self


def refusal(device: torch.device, specs: Iterable[TableSpec]) -> str | None:
    """Why the native back end cannot hold these tables on this device, or ``None``."""
    if device.type != "cpu":
        return f"it runs on CPU, and not on {device.type}"
    library = load()
    if isinstance(library, str):
        return library
    for spec in specs:
        if spec.rows > MOST_ROWS:
            return f"table {spec.name!r} has {spec.rows} rows, and it numbers {MOST_ROWS} at most"
    return None
