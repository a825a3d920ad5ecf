"""The tables of one width and one stored type, one below the other in one tensor.

At first the weights are a float32 parameter, whatever the storage; :meth:`Store.hold` turns them into a buffer of the
stored type. Rows are numbered through the whole store; ``owners`` say which table a row is of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_embed.embeddings.base import TableSpec
from recsys_embed.errors import ConfigError, DataError
from recsys_embed.tables.base import INIT_BLOCK, draw
from recsys_embed.tables.gather import gather
from recsys_embed.tables.pages import advise
from recsys_embed.tables.rounding import TORCH_TYPES, add, dequantise, is_integer, nearest, noise_of, noise_seed
from recsys_embed.tables.sums import add_rows


class Store(nn.Module):
    """Weights ``[all rows, width]`` and, once held, optimizer state ``[all rows, state width]`` (float32)."""

    weights: Tensor
    state: Tensor

    def __init__(self, specs: Sequence[TableSpec], seed: int, *, device: str | None = None) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.dtype = TORCH_TYPES[specs[0].storage.dtype]
        self.owner = {spec.name: place for place, spec in enumerate(specs)}
        ends = torch.tensor([spec.rows for spec in specs]).cumsum(0)
        self.starts: list[int] = [0, *ends.tolist()[:-1]]
        weights = advise(torch.empty(int(ends[-1]), specs[0].width, device=device))
        for spec, start in zip(specs, self.starts, strict=True):
            if not weights.is_meta:
                draw(weights[start : start + spec.rows], spec, seed)
        self.weights = nn.Parameter(weights)
        # Not buffers: `module.half()` must not round them. They follow the weights to their device when they are used.
        self._constants = {
            "ends": ends,
            "starts": torch.tensor(self.starts),
            "scale": torch.tensor([spec.storage.scale for spec in specs], dtype=torch.float32),
            "midpoint": torch.tensor([spec.storage.midpoint for spec in specs], dtype=torch.float32),
            "noise": torch.tensor([noise_seed(spec.name, seed) for spec in specs]),
        }

    @property
    def held(self) -> bool:
        """Whether the weights are a buffer of the stored type, and not a parameter."""
        return not isinstance(self.weights, nn.Parameter)

    @property
    def plain(self) -> bool:
        """Whether the weights lie there as they are read."""
        return not self.held or self.dtype == torch.float32

    def hold(self, state_width: int) -> None:
        """Store the weights, rounded to nearest, and state of zeros beside them."""
        weights = self.weights.detach()
        if self.dtype != torch.float32:
            weights = advise(torch.empty_like(weights, dtype=self.dtype))
            for spec, start in zip(self.specs, self.starts, strict=True):
                for block in range(start, start + spec.rows, INIT_BLOCK):  # no second copy of a large table in float
                    part = slice(block, min(block + INIT_BLOCK, start + spec.rows))
                    weights[part] = self._converted(spec.name, self.weights[part], self.dtype)
        self._take(weights, state_width)

    def hold_zeros(self) -> None:
        """Store zeros, and no state: what is loaded next was then never held in another type."""
        self._take(torch.zeros(self.weights.shape, dtype=self.dtype), 0)

    def _take(self, weights: Tensor, state_width: int) -> None:
        """Hold stored weights in the place of the parameter."""
        del self.weights
        self.register_buffer("weights", weights)
        self.register_buffer(
            "state", advise(weights.new_empty(weights.shape[0], state_width, dtype=torch.float32)).zero_()
        )

    # --- rows ------------------------------------------------------------------------------------------------

    def read(self, rows: Tensor, owners: Tensor) -> Tensor:
        """Weights ``[..., width]`` of the rows; ``owners`` broadcast to them. Connected to a parameter."""
        read = gather(self.weights, rows)
        return self._guarded(read) if self.plain else dequantise(read, *self._of(owners))

    def read_bags(self, rows: Tensor, owners: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        """Sums ``[bags, width]`` of the rows ``[M]``, perhaps weighted; the last offset is M."""
        source = self.weights
        if not self.plain:
            source, rows = self.read(rows, owners), torch.arange(rows.numel(), dtype=rows.dtype, device=rows.device)
        weights = None if weights is None else weights.to(source.dtype)
        starts = offsets[:-1].to(rows.dtype)
        return self._guarded(F.embedding_bag(rows, source, starts, mode="sum", per_sample_weights=weights))

    def add(self, rows: Tensor, direction: Tensor, rate: float, step: int) -> None:
        """Add ``rate * direction`` to the distinct rows ``[n]``: exactly, or rounded by the noise of the step."""
        if self.plain:
            add_rows(self.weights, rows, direction, rate)
            return
        owners = torch.bucketize(rows, self._constant("ends"), right=True)
        logical = rows - self._constant("starts")[owners]
        noise = noise_of(self._constant("noise")[owners], logical, direction.shape[1], step)
        scale, _ = self._of(owners)
        self.weights[rows] = add(gather(self.weights, rows), direction * rate, noise, scale)

    # --- tables ----------------------------------------------------------------------------------------------

    def stored(self, name: str) -> Tensor:
        """The table as it is held: a view."""
        return self._slice(self.weights, name)

    def get(self, name: str) -> Tensor:
        """The weights of a table: a view, or a dequantised copy."""
        stored = self.stored(name)
        return stored if self.plain else dequantise(stored, *self._of(torch.tensor([self.owner[name]])))

    def put(self, name: str, weights: Tensor) -> None:
        """Weights that are float, or integers as this table stores them.

        Raises:
            DataError: weights that are not a number, where integers are held.
        """
        self.stored(name).detach().copy_(self._converted(name, weights, self.weights.dtype))

    def rows_of(self, name: str, rows: Tensor) -> Tensor:
        """A copy of the weights of logical rows ``[n]``."""
        return self.read(rows + self.starts[self.owner[name]], torch.tensor([self.owner[name]])).detach()

    def put_rows(self, name: str, rows: Tensor, weights: Tensor) -> None:
        """As :meth:`put`, of logical rows ``[n]``."""
        stored = self.stored(name).detach()
        stored[rows] = self._converted(name, weights, stored.dtype)

    def state_of(self, name: str) -> Tensor:
        """The state of a table: a view."""
        return self._slice(self.state, name)

    def _converted(self, name: str, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """Weights of a table as ``dtype``: integers are of its grid, and nothing is done to what is so already."""
        weights = weights.detach().to(self.weights.device)
        if weights.dtype == dtype:
            return weights
        scale, midpoint = self._of(torch.tensor([self.owner[name]]))
        if not is_integer(dtype):
            floats = dequantise(weights, scale, midpoint) if is_integer(weights.dtype) else weights
            return nearest(floats, dtype, scale, midpoint)
        if bool(torch.isnan(weights).any()):
            raise DataError(f"table {name!r} holds integers, and these weights are not all numbers")
        return nearest(weights.to(torch.float32), dtype, scale, midpoint)

    # --- within ----------------------------------------------------------------------------------------------

    def _slice(self, tensor: Tensor, name: str) -> Tensor:
        place = self.owner[name]
        return tensor[self.starts[place] :][: self.specs[place].rows]

    def _constant(self, name: str) -> Tensor:
        if self._constants[name].device != self.weights.device:
            self._constants[name] = self._constants[name].to(self.weights.device)
        return self._constants[name]

    def _of(self, owners: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and midpoints of tables, with an axis for the width."""
        owners = owners.to(self.weights.device)
        return self._constant("scale")[owners].unsqueeze(-1), self._constant("midpoint")[owners].unsqueeze(-1)

    def _guarded(self, read: Tensor) -> Tensor:
        """A parameter stands in for integers or halves only until it is trained."""
        if read.requires_grad and self.dtype != torch.float32:
            read.register_hook(self._refuse)
        return read

    def _refuse(self, gradient: Tensor) -> None:
        name, dtype = self.specs[0].name, self.specs[0].storage.dtype
        raise ConfigError(
            f"table {name!r} is stored as {dtype}, which only a tables optimizer can train: call optimizer() first",
            path="embedding.strategy",
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Store:
        if self.held and self.dtype != torch.float32:
            there = torch.zeros(0, device=self.weights.device)
            if fn(there).dtype != there.dtype:
                dtype = self.specs[0].storage.dtype
                raise ConfigError(f"tables are stored as {dtype}: change the layer's type before they are held")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    # The tables are saved under their names by whoever owns the store.

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:
        pass

    def _load_from_state_dict(self, *args: object) -> None:
        pass
