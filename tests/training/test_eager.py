"""Optimizers without torch's compiler do what torch's do, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from recsys_embed.eager import eager

KINDS: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1, "fused": True}),
    (torch.optim.Adam, {"lr": 0.01}),
    (torch.optim.Adagrad, {"lr": 0.1, "fused": True}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_same_updates_and_state_to_the_bit(kind: type[Optimizer], options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(size, generator=generator) for size in (3, 70, 1)]
    made: list[tuple[list[torch.nn.Parameter], Optimizer]] = []
    for one in (kind, eager(kind)):
        weights = [torch.nn.Parameter(value.clone()) for value in values]
        optimizer: Any = one([{"params": weights[:2]}], **options)
        optimizer.add_param_group({"params": weights[2:], "lr": 0.5})
        made.append((weights, optimizer))
    gradients = [[torch.randn(value.shape, generator=generator) for value in values] for _ in range(6)]
    for turn, given in enumerate(gradients):
        for weights, optimizer in made:
            for weight, gradient in zip(weights, given, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
            optimizer.zero_grad()
            assert all(weight.grad is None for weight in weights)
        (expected, by_torch), (found, ours) = made
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        if turn == 2:  # each goes on with the other's state
            states = by_torch.state_dict(), ours.state_dict()
            by_torch.load_state_dict(states[1])
            ours.load_state_dict(states[0])
    assert str(made[0][1].state_dict()) == str(made[1][1].state_dict())


def test_hooks_and_schedulers_see_its_steps() -> None:
    weight, seen = torch.nn.Parameter(torch.ones(2)), []
    optimizer: Any = eager(torch.optim.SGD)([weight], lr=1.0)
    optimizer.register_step_post_hook(lambda *_: seen.append(weight.tolist()))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for _ in range(2):
        weight.grad = torch.ones(2)
        optimizer.step()
        schedule.step()
    assert seen == [[0.0, 0.0], [-0.5, -0.5]]
