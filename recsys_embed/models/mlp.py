"""The multilayer perceptron that the models end in, and the width that its input is given in training.

A product of float32 matrices on CPU is fastest where its widths are whole vectors of the processor: the gradient of an
input of 429 columns takes nearly twice the time of one of 432. So a model that is ``padded`` puts columns of zeros
behind its input while it is trained. They add nothing: weights, their gradients and what is saved keep their shapes.
``bench/dense.py`` measures what that brings.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

MULTIPLE = 16
"""Floats in the widest vectors of a CPU, 512 bits."""


def padding(width: int) -> int:
    """How many columns are missing to the next multiple."""
    return -width % MULTIPLE


class PaddedLinear(nn.Linear):
    """A linear layer whose input may have columns of zeros behind its own."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs]`` or wider → ``[B, outputs]``."""
        more = x.shape[1] - self.in_features
        weight = functional.pad(self.weight, (0, more)) if more > 0 else self.weight
        return functional.linear(x, weight, self.bias)


def mlp(sizes: Sequence[int], *, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers ``sizes[0] → sizes[1] → …``, each followed by ReLU and, where it is not 0, dropout. The first one
    takes a padded input."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs) if layers else PaddedLinear(inputs, outputs), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)
