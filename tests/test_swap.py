"""Swapping the embeddings of a user's own model."""

import pytest
import torch
from torch import nn

from recsys_embed import ConfigError, Embedding, EmbeddingBag, swap_embeddings


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(30_000, 8)
        self.side = nn.ModuleDict({"tags": nn.EmbeddingBag(20_000, 8, mode="sum"), "city": nn.Embedding(50, 8)})
        self.head = nn.Linear(24, 1)

    def forward(self, user: torch.Tensor, tags: torch.Tensor, city: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.user(user), self.side["tags"](tags), self.side["city"](city)], dim=1))


def test_a_swapped_model_trains_and_is_within_budget():
    model = Ranker()
    changes = swap_embeddings(model, strategy="unified", budget="160KB")
    assert changes["module"].tolist() == ["user", "side.tags"]
    assert changes["bytes_before"].tolist() == [30_000 * 32, 20_000 * 32]
    assert 0.98 * 160_000 <= changes["bytes_after"].sum() <= 160_000
    assert isinstance(model.user, Embedding)
    assert isinstance(model.side["tags"], EmbeddingBag)
    assert type(model.side["city"]) is nn.Embedding
    g = torch.Generator().manual_seed(0)
    batch = (
        torch.randint(30_000, (64,), generator=g),
        torch.randint(20_000, (64, 3), generator=g),
        torch.zeros(64).long(),
    )
    label = torch.rand(64, generator=g).round()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(*batch).view(-1), label)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    model.load_state_dict(model.state_dict())


def test_patterns_match_module_names():
    model = Ranker()
    swap_embeddings(model, strategy={"side.*": "hash", "*": "compositional"}, budget=0.1)
    assert sorted(name for name in model.state_dict() if "layer" in name) == [
        "side.tags.layer.tables.side.tags",
        "user.layer.tables.user.0",
        "user.layer.tables.user.1",
    ]


def test_refusals_name_the_module_and_change_nothing():
    def refused(change, message: str) -> None:
        model = Ranker()
        change(model)
        before = dict(model.named_modules())
        with pytest.raises(ConfigError, match=message):
            swap_embeddings(model, budget=0.1)
        assert dict(model.named_modules()) == before

    def tie(model: Ranker) -> None:
        model.out = nn.Linear(8, 30_000, bias=False)
        model.out.weight = model.user.weight

    def option(name: str, value: object):
        return lambda model: setattr(model.user, name, value)

    refused(tie, r"'user' shares its weights \(user.weight, out.weight\)")
    refused(option("padding_idx", 0), "'user' uses padding_idx = 0")
    refused(option("max_norm", 1.0), r"'user' uses max_norm = 1\.0")
    refused(lambda model: setattr(model.side["tags"], "mode", "max"), "'side.tags' uses mode 'max'")
    refused(lambda model: (setattr(model, "user", None), setattr(model, "side", nn.ModuleDict())), "no nn.Embedding")
    with pytest.raises(ConfigError, match="itself an embedding"):
        swap_embeddings(nn.Embedding(30_000, 8), budget=0.1)
