"""Lazy Adam against torch's, and where it is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recsys_embed import ConfigError, EmbeddingLayer, Feature, jobs, ranks
from recsys_embed.config import ShardingConfig, parse_config
from recsys_embed.sharding import place
from recsys_embed.tables.base import UpdateRule
from tests.backends import EVERY

BACKENDS = [backend for backend in EVERY if backend != "fused"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", [1, 4, 17, 64])
def test_training_equals_torchs_sparse_adam(backend: str, dim: int):
    """Ids that come often, seldom and never, twice in a batch and not at all; the rate changes on the way."""
    ours = EmbeddingLayer([Feature("x", 50)], dim, backend=backend)
    theirs = nn.Embedding(50, dim, sparse=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(ours.tables.get("x"))
    optimizers = [ours.optimizer("lazy_adam", lr=0.05), torch.optim.SparseAdam(theirs.parameters(), lr=0.05)]
    generator = torch.Generator().manual_seed(dim)
    for step in range(60):
        ids = (torch.rand(20, generator=generator) ** 3 * 48).long()
        target = torch.randn(20, dim, generator=generator)
        for vectors, optimizer in zip((ours(ids.unsqueeze(0))[:, 0], theirs(ids)), optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = 0.05 if step < 30 else 0.01
            (vectors - target).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours.tables.get("x").double(), theirs.weight.detach(), rtol=1e-4, atol=1e-4)
    moments = torch.cat([optimizers[1].state[theirs.weight][key] for key in ("exp_avg", "exp_avg_sq")], 1)
    torch.testing.assert_close(
        optimizers[0].state_dict()["state"]["x"]["moments"].double(), moments, rtol=1e-4, atol=1e-5
    )
    assert not ours.tables.get_state("x")[48:].any()


@pytest.mark.parametrize("first", BACKENDS)
@pytest.mark.parametrize("second", BACKENDS)
def test_training_goes_on_from_its_state(first: str, second: str):
    def steps(layer: EmbeddingLayer, optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            layer(torch.randint(0, 30, (1, 10), generator=generator)).square().sum().backward()
            optimizer.step()

    whole, one, other = (EmbeddingLayer([Feature("x", 30)], 8, backend=name) for name in (first, first, second))
    whole_optimizer, its = whole.optimizer("lazy_adam", lr=0.1), one.optimizer("lazy_adam", lr=0.1)
    for layer, optimizer in ((whole, whole_optimizer), (one, its)):
        steps(layer, optimizer, 5, 0)
    again = other.optimizer("lazy_adam", lr=0.1)
    other.load_state_dict(one.state_dict())
    again.load_state_dict(its.state_dict())
    for layer, optimizer in ((whole, whole_optimizer), (other, again)):
        steps(layer, optimizer, 5, 1)
    torch.testing.assert_close(
        whole.tables.get("x"), other.tables.get("x"), rtol=0, atol=0 if first == second else 1e-6
    )


@pytest.mark.parametrize("backend", ["fused", "sharded"])
def test_a_back_end_without_it_is_named_before_training(backend: str):
    tree = {
        "data": {"path": "rows.csv", "categorical": ["x"]},
        "embedding": {"backend": backend},
        "training": {"optimizer": {"tables": "lazy_adam"}},
    }
    with pytest.raises(ConfigError, match=f"'lazy_adam' cannot be had of embedding.backend = '{backend}'"):
        parse_config(tree)


@pytest.mark.parametrize(
    "job",
    [jobs.train, jobs.search, lambda config, out: jobs.plan(config, out, world_size=2)],
    ids=["train", "search", "plan"],
)
def test_ranks_refuse_it_before_anything_is_prepared(
    job: Callable[[Any, Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ranks, "count", lambda: 2)
    (tmp_path / "rows.csv").write_text("x,label\n1,0\n2,1\n")
    tree = {
        "data": {"path": str(tmp_path / "rows.csv"), "categorical": ["x"], "label": "label"},
        "embedding": {"budget": 0.5},
        "training": {"optimizer": {"tables": "lazy_adam"}},
    }
    with pytest.raises(ConfigError, match="cannot be trained by 'lazy_adam'"):
        job(parse_config(tree), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_it_cannot_be_sharded():
    with pytest.raises(ConfigError, match="cannot be trained by 'lazy_adam'") as caught:
        place([], [], ShardingConfig(), UpdateRule("lazy_adam"), world_size=2, device_type="cpu")
    assert caught.value.path == "training.optimizer.tables"
