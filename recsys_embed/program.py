"""A trained model as one program of torch.export, for servers that run PyTorch without this package.

    ids [F, B] int64, dense [B, n] float32 -> probabilities [B] float32

with any number of samples B. Ids are encoded ones (:class:`recsys_embed.data.Encoder`); one outside its feature's range
is the unseen id 0, as a program cannot raise.
"""

from __future__ import annotations

import copy
import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from recsys_embed.embeddings.base import name_of
from recsys_embed.errors import ConfigError
from recsys_embed.files import atomic_write
from recsys_embed.ids import Ids
from recsys_embed.recommender import Recommender


class ServedModel(nn.Module):
    """Encoded columns in, probabilities out; no data-dependent branch."""

    sizes: Tensor

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        # A copy carries ordinary tensors, whatever back end trained the tables; frozen, it has their stored form.
        twin = copy.deepcopy(model).eval().requires_grad_(False)
        twin.embedding.freeze()
        self.embedding, self.interaction, self.shift = twin.embedding, twin.interaction, twin.shift
        sizes = torch.tensor([[feature.limit] for feature in twin.embedding.features])
        self.register_buffer("sizes", sizes, persistent=False)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        """Probabilities ``[B]``."""
        known = torch.where((ids >= 0) & (ids < self.sizes), ids, 0)
        vectors = self.embedding.lookup(Ids(known, known.shape[0]))
        logits: Tensor = self.interaction(vectors, dense)
        return torch.sigmoid(logits + self.shift)


def to_program(model: Recommender, num_dense: int) -> ExportedProgram:
    """Trace a trained model, with a dynamic batch.

    Raises:
        ConfigError: a feature is multi-valued (its bags have lengths that depend on the data), or torch.export cannot
            trace a strategy; names it.
    """
    features = model.embedding.features
    for feature in features:
        if feature.multi_valued:
            raise ConfigError(
                f"feature {feature.name!r} is multi-valued: the lengths of its bags depend on the data, which a traced "
                "program cannot follow; serve this model with recsys_embed.load"
            )
    samples = Dim("samples")
    # Two samples: torch.export takes a dimension of one as a constant.
    example = (torch.zeros(len(features), 2, dtype=torch.int64), torch.zeros(2, num_dense))
    try:
        with torch.no_grad():
            return torch.export.export(ServedModel(model), example, dynamic_shapes=({1: samples}, {0: samples}))
    except Exception as error:  # torch.export documents no common type
        names = ", ".join(dict.fromkeys(name_of(one) for one in model.embedding.strategies))
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"torch.export cannot trace this model ({names}): {reason}") from error


def save_program(model: Recommender, num_dense: int, out: str | Path) -> Path:
    """Write :func:`to_program` to a ``.pt2`` file, whole or not at all.

    ``torch.export.load`` reads it, without this package. It is torch's own format, and the one file we write with a
    pickle in it (of ``None``, where example inputs could be): no command of ours reads it back.

    Raises:
        ConfigError: the model cannot be traced, or the name does not end in ``.pt2``.
    """
    path = Path(out)
    if path.suffix != ".pt2":
        raise ConfigError(f"a program is written to a .pt2 file, got {path.name!r}")
    program = to_program(model, num_dense)
    program.example_inputs = None
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    atomic_write(path, buffer.getvalue())
    return path
