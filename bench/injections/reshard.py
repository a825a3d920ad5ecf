"""F10: a checkpoint of any number of ranks is taken up by any other number, row for row.

Ranks write known rows, sums and dense weights; other ranks read them into models that began elsewhere. Tables are one,
two or five, cut by row or whole on one rank each, so that ranks are left without a shard. Nothing may differ by a bit.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from bench.injections.forks import on_ranks
from bench.injections.tally import Scale, Tally
from recsys_embed import EmbeddingLayer, Feature, ranks
from recsys_embed.config import DCNv2Config, OptimizerConfig, ShardingConfig, TrainingConfig
from recsys_embed.models import build_model
from recsys_embed.recommender import Recommender
from recsys_embed.training.course import Place
from recsys_embed.training.optimizers import Optimizers
from recsys_embed.training.saving import Checkpoints

SIZES = (7, 10, 50, 13, 100)
"""Rows of tables; up to four ranks each get some of them where they are cut by row."""

CASES = [(tables, kind, rule) for tables in (1, 2, 5) for kind, rule in (("row_wise", "adagrad"),
         ("table_wise", "rowwise_adagrad"))]  # fmt: skip


def inject(scale: Scale, folder: Path) -> Tally:
    """Every case saved by 1 to 3 ranks and loaded by 1 to 4; where quick, by 1 or 3 and by 1, 2 or 4."""
    tally = Tally()
    if importlib.util.find_spec("torchrec") is None:
        tally.gaps.append("TorchRec, which tables on several ranks need, is not installed")
        return tally
    savers, loaders = ((1, 2, 3), (1, 2, 3, 4)) if scale.name == "full" else ((1, 3), (1, 2, 4))
    for count in savers:
        for told in on_ranks(count, _save, folder / str(count)):
            if told.code or told.error:
                tally.breach(f"{count} ranks cannot save: {told.error or told.code}: {told.text}")
    for count in loaders:
        for rank, told in enumerate(on_ranks(count, _load, [folder / str(one) for one in savers])):
            if told.value is None:
                tally.breach(f"{count} ranks cannot load: {told.error or told.code}: {told.text}")
                continue
            for place, difference in told.value:
                tally.injected += rank == 0
                tally.recovered += rank == 0 and not difference
                if difference:
                    tally.silent += 1
                    tally.breach(f"{place}, loaded by {count}: on rank {rank}, {difference}")
    return tally


def _save(folder: Path) -> None:
    for tables, kind, rule in CASES:
        model, optimizers = _built(tables, kind, rule, seed=0)
        there = model.embedding.tables
        for name in there.specs:
            there.put(name, _known(there.get(name), name))
            there.put_state(name, _known(there.get_state(name), name).abs())
        with torch.no_grad():
            for parameter in model.interaction.parameters():
                parameter.fill_(0.5)
        Checkpoints(folder / f"{tables}-{kind}", {}, keep=2).save(model, optimizers, Place(step=1), {"cares": "yes"})


def _load(folders: list[Path]) -> list[tuple[str, str]]:
    """What differs after every checkpoint that was taken up; nothing where it is empty."""
    told = []
    for folder in folders:
        for tables, kind, rule in CASES:
            model, optimizers = _built(tables, kind, rule, seed=1)
            checkpoints = Checkpoints(folder / f"{tables}-{kind}", {}, keep=2)
            found = checkpoints.newest()
            assert found is not None
            _, meta = checkpoints.restore(found, model, optimizers)
            there, differs = model.embedding.tables, []
            for name in there.specs:
                weights, state = there.get(name), there.get_state(name)
                differs += [f"weights of {name}"] * (not torch.equal(weights, _known(weights, name)))
                differs += [f"state of {name}"] * (not torch.equal(state, _known(state, name).abs()))
            differs += ["dense"] * any(bool((one != 0.5).any()) for one in model.interaction.parameters())
            differs += ["what the caller saved"] * (meta != {"cares": "yes"})
            told.append((f"{tables} tables {kind}, saved by {folder.name}", ", ".join(differs)))
    return told


def _built(tables: int, kind: str, rule: str, *, seed: int) -> tuple[Recommender, Optimizers]:
    features = [Feature(f"t{number}", SIZES[number]) for number in range(tables)]
    sharding = ShardingConfig.model_validate({"placement": {"*": kind}, "replicate_below": 0})
    backend = "sharded" if ranks.count() > 1 else "reference"
    layer = EmbeddingLayer(features, 6, seed=seed, backend=backend, sharding=sharding)
    torch.manual_seed(seed)
    dense = build_model(DCNv2Config(dim=6, hidden=(4,)), num_features=tables, num_dense=0)
    model = Recommender(layer, dense)
    return model, Optimizers(model, TrainingConfig(optimizer=OptimizerConfig.model_validate({"tables": rule})))


def _known(like: Tensor, name: str) -> Tensor:
    """Numbers that are the same everywhere, of a shape."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(int(name[1:]) + like.shape[1]))
