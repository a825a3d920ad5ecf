"""torch's optimizers without torch's compiler, which the first method of any of them loads: seconds, for nothing here.

They are marked for it: it is not to trace their bookkeeping, and it breaks its graph around an update. Nobody compiles
a step of the trainer, so the methods under the marks are called as they are, and do the same to the bit.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.optim import Optimizer

_BOOKKEEPING = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def eager(kind: type[Optimizer]) -> type[Optimizer]:
    """A class of optimizers without the marks. Gradients through an update (``differentiable``) are not for it.

    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> sgd = eager(torch.optim.SGD)([weight], lr=0.1)
    >>> weight.grad = torch.tensor([2.0])
    >>> sgd.step()
    >>> weight.tolist()
    [0.800000011920929]
    """
    methods: dict[str, Any] = {name: unmarked(getattr(kind, name)) for name in _BOOKKEEPING}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(unmarked(kind.step))})


def unmarked(method: Any) -> Any:
    """The method under its marks."""
    return inspect.unwrap(method)
