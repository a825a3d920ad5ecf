"""The model compiled by ``torch.compile`` while it is trained.

Compiled is what the embedding layer hands its vectors to, so that any strategy and back end will do, and for batches of
one size: an epoch's last one, where it is short, is computed as it comes. So is every evaluation, since that is what is
served. Dropout draws what it would draw anyway.

Shapes: B samples of a batch, F features, D width of a vector, n dense columns.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from recsys_embed import ranks
from recsys_embed.chatter import quiet
from recsys_embed.errors import ConfigError
from recsys_embed.recommender import Recommender

_LOG = logging.getLogger("recsys_embed")
_OPTIONS: dict[str, Any] = {
    "fallback_random": True,
    "compile_threads": 1,
}  # eager's random numbers; no workers that stay


class Compiled:
    """A model's ``forward(vectors [B, F, D], dense [B, n]) → logits [B]``, compiled for B = ``size``.

    ``seconds``: what compiling took, which the first batch of that size has to wait for.
    """

    def __init__(self, interaction: nn.Module, size: int) -> None:
        self.seconds = 0.0
        self._interaction, self._size = interaction, size

        def forward(vectors: Tensor, dense: Tensor) -> Tensor:
            logits: Tensor = interaction(vectors, dense)
            return logits

        self._compiled = torch.compile(forward, fullgraph=True, dynamic=False, options=_OPTIONS)

    def __call__(self, vectors: Tensor, dense: Tensor) -> Tensor:
        """Logits of any batch.

        Raises:
            ConfigError: torch cannot compile the model, or not on this machine.
        """
        if len(dense) != self._size:
            logits: Tensor = self._interaction(vectors, dense)
            return logits
        vectors = vectors.contiguous()
        if not self.seconds:
            self._compile(vectors.detach().requires_grad_(vectors.requires_grad), dense)
        return self._compiled(vectors, dense)

    def _compile(self, vectors: Tensor, dense: Tensor) -> None:
        """Run forward and backward once; buffers and random numbers stay as they were."""
        began = time.perf_counter()
        buffers = [(buffer, buffer.clone()) for buffer in self._interaction.buffers()]
        with torch.random.fork_rng([vectors.device] if vectors.device.type == "cuda" else []), quiet():
            from torch._dynamo.exc import TorchDynamoException  # which takes seconds to import

            try:
                total = self._compiled(vectors, dense).sum()
                torch.autograd.grad(total, list(self._interaction.parameters()), allow_unused=True)
            except TorchDynamoException as error:
                told = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
                if "ImportError" in told:
                    told += " (a compilation that was killed leaves such a file in torch's cache: remove it)"
                raise ConfigError(
                    f"training.compile = true, but torch cannot compile this model here: {told}",
                    path="training.compile",
                ) from error
        for buffer, before in buffers:
            buffer.copy_(before)
        self.seconds = time.perf_counter() - began
        if ranks.own() == 0:
            _LOG.info("compiled in %.1f s", self.seconds)


@contextlib.contextmanager
def compiled(model: Recommender, size: int) -> Iterator[Compiled]:
    """While the block runs, the model is compiled for batches of ``size`` samples when it is trained.

    All that torch has compiled is dropped at its end: a process may train more models than torch would compile.
    """
    made = Compiled(model.interaction, size)
    model.in_training = made
    try:
        yield made
    finally:
        model.in_training = None
        torch.compiler.reset()
