"""The dense halves: what becomes of vectors ``[B, F, D]`` and numbers ``[B, 13]``; logits ``[B]``. In plain PyTorch.

``dlrm`` and ``dcn_v2`` are layer for layer those of this project with these sizes, which a test compares.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

FEATURES, NUMERIC = 26, 13
HIDDEN = (256, 128)
BOTTOM, CROSS_LAYERS = (64,), 2


def build(name: str, dim: int, precision: str = "fp32") -> nn.Module:
    """A model by its name, in ``bf16``: matrix products by autocast, weights and logits in fp32; or in fp32, whose
    products are as torch is set (``common.train_by_hand``).

    It begins the same in every contender, whatever has been drawn for the tables.
    """
    torch.manual_seed(0)
    half = MODELS[name](dim)
    return Autocast(half) if precision == "bf16" else half


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers, each followed by ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class DeepFM(nn.Module):
    """Products of all pairs of vectors, a network on vectors and numbers, and a linear part on the numbers.

    DIFF from Guo et al., arXiv:1703.04247: no first-order weight of each id, which would be another table of width 1
    that every library stores in its own way. It is left out of all.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(NUMERIC, 1)
        self.deep = nn.Sequential(mlp(FEATURES * dim + NUMERIC, *HIDDEN), nn.Linear(HIDDEN[-1], 1))

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        pairs = (vectors.sum(1).square() - vectors.square().sum(1)).sum(1) / 2
        deep = self.deep(torch.cat((vectors.flatten(1), dense), 1))
        return pairs + (deep + self.linear(dense)).squeeze(1)


class DLRM(nn.Module):
    """Dot products of all pairs of vectors, one of them made of the numbers, and a network on them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bottom = mlp(NUMERIC, *BOTTOM, dim)
        rows, columns = torch.tril_indices(FEATURES + 1, FEATURES + 1, offset=-1)
        self.register_buffer("pairs", rows * (FEATURES + 1) + columns, persistent=False)
        self.top = mlp(len(rows) + dim, *HIDDEN)
        self.logit = nn.Linear(HIDDEN[-1], 1)

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        own = self.bottom(dense)
        every = torch.cat((own.unsqueeze(1).to(vectors.dtype), vectors), 1)
        products = torch.bmm(every, every.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        return self.logit(self.top(torch.cat((own, products), 1))).squeeze(1)


class DCNv2(nn.Module):
    """Two cross layers, and a network on what they give."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        width = FEATURES * dim + NUMERIC
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(CROSS_LAYERS))
        self.deep = mlp(width, *HIDDEN)
        self.logit = nn.Linear(HIDDEN[-1], 1)

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        x0 = x = torch.cat((vectors.flatten(1), dense), 1)
        for layer in self.cross:
            x = x0 * layer(x) + x
        return self.logit(self.deep(x)).squeeze(1)


class Autocast(nn.Module):
    """A model whose matrix products are in bf16."""

    def __init__(self, half: nn.Module) -> None:
        super().__init__()
        self.inner = half

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(vectors, dense).float()


MODELS = {"deepfm": DeepFM, "dlrm": DLRM, "dcn_v2": DCNv2}
