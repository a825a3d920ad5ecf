"""The model as a program of torch.export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recsys_embed.config import CafeConfig, parse_config
from recsys_embed.errors import ConfigError
from recsys_embed.features import Feature
from recsys_embed.ids import Ids
from recsys_embed.program import ServedModel, save_program
from recsys_embed.recommender import Recommender, build_recommender
from recsys_embed.tables.rounding import TORCH_TYPES

FEATURES = (Feature("user", 1000), Feature("item", 300), Feature("city", 50))
DENSE = 2
CAFE = CafeConfig(threshold=1, every=1)  # promotes in the second step


def build(strategy: Any, features: tuple[Feature, ...] = FEATURES) -> Recommender:
    tree = {
        "data": {"planted": {}},
        "model": {"dim": 8, "hidden": [16]},
        "embedding": {"strategy": strategy, "budget": 0.5, "exact": []},
    }
    return build_recommender(parse_config(tree), features, DENSE)


@pytest.mark.parametrize(
    "strategy",
    [
        "full",
        "hash",
        "unified",
        "compositional",
        "robe",
        "dnis",
        "magnitude",
        "pep",
        {"user": "compositional", "*": "hash"},
        {"name": "compositional", "storage": "int8"},
        CAFE,
        "mixed_dimension",
        {"city": {"name": "mixed_dimension", "width": 0}, "*": {"name": "mixed_dimension", "width": [4, 2, 0]}},
    ],
    ids=str,
)
def test_a_saved_program_scores_as_the_model(tmp_path: Path, strategy: Any):
    model = build(strategy if strategy != "full" else {"user": "hash", "*": "full"})
    model.embedding.begin_stage(model.embedding.stages[0].name)
    optimizer = model.embedding.optimizer("sgd", lr=0.1)  # trained by whatever back end there is
    for _ in range(2):
        model.embedding(torch.arange(12).view(3, 4)).sum().backward()
        optimizer.step()
        model.embedding.after_step()
    path = save_program(model, DENSE, tmp_path / "model.pt2")
    program = torch.export.load(path).module()
    for samples in (1, 2, 17):
        ids = torch.stack([torch.randint(0, min(feature.size, samples), (samples,)) for feature in FEATURES])
        dense = torch.randn(samples, DENSE)
        with torch.no_grad():
            expected = torch.sigmoid(model.interaction(model.embedding(ids), dense))
        torch.testing.assert_close(program(ids, dense), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("storage", ["int8", "bf16"])
def test_a_program_holds_tables_as_they_are_stored(tmp_path: Path, storage: str):
    model = build({"name": "compositional", "storage": storage})
    model.embedding.optimizer("sgd", lr=0.1)
    program = torch.export.load(save_program(model, DENSE, tmp_path / "model.pt2"))
    held = [tensor for tensor in program.state_dict.values() if tensor.dtype == TORCH_TYPES[storage]]
    assert sum(tensor.nbytes for tensor in held) == model.embedding.plan.serve_bytes
    assert not any(
        name.startswith("embedding") and one.dtype == torch.float32 and one.numel()
        for name, one in program.state_dict.items()
    )


def test_an_id_out_of_range_is_the_unseen_one():
    served = ServedModel(build("hash"))
    dense = torch.zeros(3, DENSE)
    outside = torch.tensor([[-1, 1000, 2**40], [0, 0, 0], [5, 5, 5]])
    assert torch.equal(served(outside, dense), served(torch.tensor([[0], [0], [5]]).expand(3, 3), dense))


def test_the_model_is_left_as_it_was():
    model = build("hash")
    before = model.embedding(torch.zeros(3, 4, dtype=torch.int64))
    ServedModel(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model.embedding.lookup(Ids(torch.zeros(3, 4, dtype=torch.int64), 3)), before)


def test_what_cannot_be_traced_is_refused_by_name(tmp_path: Path):
    bags = build("hash", (Feature("user", 100), Feature("tags", 50, multi_valued=True)))
    with pytest.raises(ConfigError, match="'tags' is multi-valued"):
        save_program(bags, DENSE, tmp_path / "model.pt2")
    with pytest.raises(ConfigError, match=r"\.pt2"):
        save_program(build("hash"), DENSE, tmp_path / "model.bin")
    assert not list(tmp_path.iterdir())
