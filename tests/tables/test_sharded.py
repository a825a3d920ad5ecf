"""The sharded back end on 2 and 4 ranks of gloo, and of NCCL where there are GPUs, against one process with plain
tables on CPU."""

from __future__ import annotations

import datetime
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys_embed import ConfigError, DivergedError, EmbeddingLayer, Feature
from recsys_embed.config import ShardingConfig
from recsys_embed.ids import Ids
from recsys_embed.tables.base import UpdateRule
from recsys_embed.tables.fbgemm import OPTIMIZERS
from recsys_embed.tables.optimizer import TablesOptimizer
from recsys_embed.testing import BAGS, FEATURES, draw_ids
from tests.processes import on_processes

pytest.importorskip("torchrec", reason="the sharded back end needs TorchRec")

BATCH = 30
CUTS = {1: [0, 30], 2: [0, 11, 30], 4: [0, 9, 9, 29, 30]}
"""Where ranks cut a global batch: uneven, and one of four ranks has no sample."""

MIXED = {"user": "unified", "tag*": "compositional", "*": "full"}
SUMS = {"name": "compositional", "operation": "add"}
WIDTHS = {"user": {"name": "mixed_dimension", "width": (4, 0, 3)}, "*": "mixed_dimension"}


# --- spawning ------------------------------------------------------------------------------------------------


def work(rank: int, world: int, folder: str, names: Sequence[str], cuda: bool = False) -> None:
    """Run cases on one rank; rank 0 keeps what they return, and every rank its exception."""
    torch.set_num_threads(1)
    where = Path(folder)
    wait = datetime.timedelta(seconds=60)
    if cuda:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=f"file://{where}/init", rank=rank, world_size=world, timeout=wait
    )
    for name in names:
        try:
            found = (ON_CUDA if cuda else CASES)[name](rank, world)
        except Exception:
            (where / f"{name}-{rank}.error").write_text(traceback.format_exc())
            break
        kept = {key: tensor.cpu().contiguous() for key, tensor in found.items()}
        save_file(kept, where / f"{name}-{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Tensor]]:
    """What a case gave on a rank of a world; each world is spawned once, for all of its cases."""
    folders: dict[tuple[int, bool], Path] = {}

    def of(world: int, case: str, rank: int = 0, cuda: bool = False) -> dict[str, Tensor]:
        here = (world, cuda)
        if here not in folders:
            folders[here] = tmp_path_factory.mktemp(f"world{world}")
            names = [name for name in CASES if world == 2 or name in ON_FOUR]
            names = list(ON_CUDA) if cuda else names
            on_processes(work, (world, str(folders[here]), names, cuda), world)
        for error in sorted(folders[here].glob(f"{case}-*.error")):
            pytest.fail(f"{error.name}:\n{error.read_text()}")
        return load_file(folders[here] / f"{case}-{rank}.safetensors")

    return of


def samples(ids: Ids, first: int, last: int) -> Ids:
    """Some of a batch's samples."""
    if ids.offsets is None:
        return Ids(ids.values[:, first:last], ids.features)
    mine = torch.zeros(ids.features, ids.batch, dtype=torch.bool)
    mine[:, first:last] = True
    lengths = ids.offsets.diff()
    kept = lengths.view(ids.features, ids.batch)[:, first:last].reshape(-1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), kept.cumsum(0)])
    return Ids(ids.values[mine.view(-1).repeat_interleave(lengths)], ids.features, offsets)


def trained(
    rank: int,
    world: int,
    *,
    rule: str,
    features: Sequence[Feature] = FEATURES,
    placement: dict[str, str] | None = None,
    strategy: Any = "full",
    dim: int = 12,
    steps: int = 50,
    backend: str = "auto",
    accumulate: bool = False,
    below: int = 4096,
    device: str = "cpu",
    moved: bool = False,
) -> dict[str, Tensor]:
    """Tables and optimizer state after some steps towards fixed targets; a rank sees its share of each batch. Where
    they are ``moved``, a layer that is made halfway goes on with what another had come to, by way of main memory."""
    budget = None if strategy == "full" else 0.3
    sharding = ShardingConfig(placement=placement or {"*": "auto"}, replicate_below=below)

    def made() -> tuple[EmbeddingLayer, TablesOptimizer]:
        layer = EmbeddingLayer(
            features, dim, strategy=strategy, budget=budget, exact=(), backend=backend, sharding=sharding
        ).to(device)
        return layer, layer.optimizer(rule, lr=0.5 if rule == "sgd" else 0.05, reduce="sum")

    layer, optimizer = made()
    target = torch.randn(BATCH, len(features), dim, generator=torch.Generator().manual_seed(1)).to(device) / 10
    first, last = CUTS[world][rank : rank + 2]
    for step in range(steps):
        if moved and step == steps // 2:
            weights = {name: tensor.cpu() for name, tensor in layer.state_dict().items()}
            plain = optimizer.state_dict()
            state = {name: {"sum": one["sum"].cpu()} for name, one in plain["state"].items()}
            layer, optimizer = made()
            layer.load_state_dict(weights)
            optimizer.load_state_dict({**plain, "state": state})
        parts = [(first, (first + last) // 2), ((first + last) // 2, last)] if accumulate else [(first, last)]
        for begin, end in parts:
            ids = samples(draw_ids(features, BATCH, step), begin, end).to(layer.device)
            ((layer(ids) - target[begin:end]).square().sum() / BATCH).backward()
        optimizer.step()
    state = {f"state.{name}": one["sum"] for name, one in optimizer.state_dict()["state"].items()}
    return {**layer.state_dict(), **state}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        off = (found[name].double() - tensor.double()).abs().max() / tensor.double().abs().max()
        assert off <= tolerance, f"{name} is off by {off:.1e} of its largest"


# --- the same model ------------------------------------------------------------------------------------------

KINDS = ("table_wise", "row_wise", "column_wise", "data_parallel")
RUNS: dict[str, dict[str, Any]] = {
    **{f"sgd_{kind}": {"rule": "sgd", "placement": {"*": kind}} for kind in KINDS},
    **{f"adagrad_{kind}": {"rule": "adagrad", "placement": {"*": kind}, "steps": 20} for kind in KINDS},
    **{
        f"rowwise_{kind}": {"rule": "rowwise_adagrad", "placement": {"*": kind}, "steps": 20, "dim": 10}
        for kind in KINDS
        if kind != "column_wise"
    },
    "auto": {"rule": "rowwise_adagrad", "steps": 20},
    "mixed_lanes": {
        "rule": "rowwise_adagrad",
        "placement": {"user": "row_wise", "item": "data_parallel", "city": "table_wise"},
        "steps": 20,
    },
    "bags": {"rule": "adagrad", "features": BAGS, "strategy": MIXED, "steps": 20},
    "bags_row_wise": {"rule": "sgd", "features": BAGS, "placement": {"*": "row_wise"}, "below": 0},
    "non_linear": {"rule": "sgd", "features": BAGS, "strategy": "compositional", "steps": 20, "below": 0},
    "widths": {"rule": "adagrad", "strategy": WIDTHS, "steps": 20, "below": 0},
    "bags_of_widths": {"rule": "sgd", "features": BAGS, "strategy": WIDTHS, "steps": 20, "below": 0},
    "accumulated": {"rule": "rowwise_adagrad", "steps": 10, "accumulate": True},
    "products": {"rule": "adagrad", "strategy": "compositional", "steps": 10, "below": 0, "accumulate": True},
    "sums": {"rule": "adagrad", "strategy": SUMS, "steps": 10, "below": 0},
    "moved": {"rule": "rowwise_adagrad", "features": BAGS, "steps": 10, "moved": True, "dim": 10},
}
CUDA_RUNS: dict[str, dict[str, Any]] = {
    **{
        f"cuda_{strategy}_{rule}_{'bags' if features is BAGS else 'single'}": {
            "rule": rule,
            "strategy": strategy,
            "features": features,
            "steps": 20,
            "below": 0,
        }
        for strategy in ("full", "hash", "unified", "compositional")
        for rule in OPTIMIZERS
        for features in (FEATURES, BAGS)
    },
    **{f"cuda_{name}": options for name, options in RUNS.items()},
}


def run(name: str) -> Callable[[int, int], dict[str, Tensor]]:
    return lambda rank, world: trained(rank, world, **RUNS[name])


def run_on_cuda(name: str) -> Callable[[int, int], dict[str, Tensor]]:
    options = {**CUDA_RUNS[name], "backend": "sharded", "device": "cuda"}
    return lambda rank, world: trained(rank, world, **options)


CASES: dict[str, Callable[[int, int], dict[str, Tensor]]] = {name: run(name) for name in RUNS}
ON_CUDA = {name: run_on_cuda(name) for name in CUDA_RUNS}
ON_FOUR = {"initial", "mixed_lanes", "bags", "moved_rows", "not_finite", *(f"sgd_{kind}" for kind in KINDS)}
"""Spawns are slow: what may differ between two ranks and four; all else is held on two."""


@pytest.mark.parametrize(("name", "world"), [(n, w) for n in RUNS for w in (2, 4) if w == 2 or n in ON_FOUR])
def test_ranks_train_the_model_of_one_process(results: Callable[..., dict[str, Tensor]], name: str, world: int):
    expected = trained(0, 1, **{**RUNS[name], "backend": "reference", "moved": False})
    for rank in range(world):
        assert_same(results(world, name, rank), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CUDA_RUNS)
def test_gpus_train_the_model_of_one_cpu(results: Callable[..., dict[str, Tensor]], name: str):
    world = max(count for count in CUTS if count <= torch.cuda.device_count())
    expected = trained(0, 1, **{**CUDA_RUNS[name], "backend": "reference", "moved": False})
    for rank in range(world):
        assert_same(results(world, name, rank, cuda=True), expected)


# --- rows by name, and what is agreed ------------------------------------------------------------------------

SPREAD = {"user": "row_wise", "item": "table_wise", "city": "data_parallel"}


def case(function: Callable[[int, int], dict[str, Tensor]]) -> Callable[[int, int], dict[str, Tensor]]:
    """Run a function on every rank."""
    CASES[function.__name__] = function
    return function


def layer_of(**options: Any) -> EmbeddingLayer:
    sharding = ShardingConfig(placement=options.pop("placement", SPREAD), replicate_below=0)
    return EmbeddingLayer(FEATURES, 10, sharding=sharding, **options)


@case
def initial(rank: int, world: int) -> dict[str, Tensor]:
    """A layer whose back end is named allocates no table before it is sharded."""
    layer = layer_of(backend="sharded", seed=3)
    assert all(layer.tables.get(name).is_meta for name in layer.tables.specs)
    with pytest.raises(ConfigError, match=r"call it first"):
        layer(draw_ids(FEATURES, 4))
    layer.optimizer("adagrad", lr=0.1)
    return layer.state_dict()


def test_rows_are_a_function_of_seed_and_name_and_not_torchrecs_own(results: Callable[..., dict[str, Tensor]]):
    expected = EmbeddingLayer(FEATURES, 10, seed=3).state_dict()
    for world in (2, 4):
        for rank in range(world):
            found = results(world, "initial", rank)
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@case
def moved_rows(rank: int, world: int) -> dict[str, Tensor]:
    """Rows with their state, there and back, by every kind of placement."""
    from recsys_embed.embeddings.base import Rows

    layer = layer_of()
    layer.optimizer("rowwise_adagrad", lr=0.1)
    for name, spec in layer.tables.specs.items():
        rows = torch.tensor([0, 1, 17, spec.rows - 1])
        given = Rows(torch.arange(40.0).view(4, 10) - rank * 0, torch.arange(4.0).view(4, 1) + 0.5)
        layer.tables.put_rows(name, rows, given)
        found = layer.tables.get_rows(name, rows)
        torch.testing.assert_close(found.weights, given.weights, rtol=0, atol=0)
        torch.testing.assert_close(found.state, given.state)
        whole, state = layer.tables.get(name), layer.tables.get_state(name)
        torch.testing.assert_close(whole[rows], given.weights, rtol=0, atol=0)
        assert state.count_nonzero() == 4
        fresh = EmbeddingLayer(FEATURES, 10).tables.get(name)
        rest = torch.ones(spec.rows, dtype=torch.bool).index_fill(0, rows, False)
        assert torch.equal(whole[rest], fresh[rest])
        layer.tables.put(name, whole.flip(0))
        layer.tables.put_state(name, state.flip(0))
        assert torch.equal(layer.tables.get(name), whole.flip(0))
        torch.testing.assert_close(layer.tables.get_state(name), state.flip(0))
        layer.tables.reset(name, rows)
        torch.testing.assert_close(layer.tables.get(name)[rows], fresh[rows], rtol=0, atol=0)
        assert not layer.tables.get_state(name)[rows].any()
        assert torch.equal(layer.tables.get(name)[rest], whole.flip(0)[rest])
        longer = torch.cat([state, state])[: spec.rows // 2]
        with layer.tables.growing():
            layer.tables.restore(name, "weights", whole[: spec.rows // 2])
            layer.tables.restore(name, "state", longer)
        assert torch.equal(layer.tables.get(name)[: spec.rows // 2], whole[: spec.rows // 2])
        torch.testing.assert_close(layer.tables.get_state(name)[: spec.rows // 2], longer)
    return {}


def test_rows_move_with_their_state(results: Callable[..., dict[str, Tensor]]):
    for world in (2, 4):
        results(world, "moved_rows")


@case
def pruned(rank: int, world: int) -> dict[str, Tensor]:
    """Weights chosen, shrunk by thresholds where there are any, and trained on: over all ranks' rows as over one's."""
    found: dict[str, Tensor] = {}
    for strategy in ("dnis", "magnitude", "pep"):
        layer = layer_of(strategy=strategy, budget=0.3, exact=(), backend="reference" if world == 1 else "sharded")
        optimizer = layer.optimizer("sgd", lr=0.5, reduce="sum")
        own = layer.strategies[0]
        for _, parameter in own.named_parameters():
            draw = torch.Generator().manual_seed(1)
            torch.nn.init.uniform_(parameter, *((-5, -3) if strategy == "pep" else (0, 1)), generator=draw)
        layer.begin_stage(own.prunes_after)
        layer.end_stage()
        layer.begin_stage("retrain")
        first, last = CUTS[world][rank : rank + 2]
        ids = samples(draw_ids(FEATURES, BATCH), first, last)
        ((layer(ids) - 0.1).square().sum() / BATCH).backward()
        optimizer.step()
        found |= {f"{strategy}.{name}": one for name, one in layer.state_dict().items() if not name.endswith(".s")}
    return found


def test_ranks_prune_as_one_process(results: Callable[..., dict[str, Tensor]]):
    expected = pruned(0, 1)
    masks = [name for name in expected if name.endswith(".mask")]
    assert len(masks) == sum(bool((expected[name] == 0).any()) for name in masks) == 3
    for rank in range(2):
        found = results(2, "pruned", rank)
        assert all(torch.equal(found[name], expected[name]) for name in masks)
        assert_same(found, expected)


@case
def not_finite(rank: int, world: int) -> dict[str, Tensor]:
    """The last rank's gradient has a NaN: no rank changes a row, all name feature and rank, and training goes on."""
    layer = layer_of()
    optimizer = layer.optimizer("sgd", lr=1.0)
    before = layer.state_dict()
    factor = torch.ones(3, 1)
    if rank == world - 1:
        factor[1] = float("nan")
    (layer(draw_ids(FEATURES, 5)) * factor).sum().backward()
    with pytest.raises(DivergedError, match=rf"feature 'item' is not finite on rank {world - 1}") as caught:
        optimizer.step()
    assert caught.value.feature == "item"
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    optimizer.zero_grad()
    layer(draw_ids(FEATURES, 5)).sum().backward()
    optimizer.step()
    return {}


@case
def unequal_reads(rank: int, world: int) -> dict[str, Tensor]:
    """A rank whose loss leaves the vectors out would hang the others in the update."""
    layer = layer_of()
    optimizer = layer.optimizer("sgd", lr=1.0)
    vectors = layer(draw_ids(FEATURES, 5))
    if rank:
        vectors.sum().backward()
    with pytest.raises(ConfigError, match="have not made the same reads"):
        optimizer.step()
    return {}


def test_ranks_agree_before_any_row_changes(results: Callable[..., dict[str, Tensor]]):
    results(2, "not_finite"), results(4, "not_finite"), results(2, "unequal_reads")


@case
def as_ddp(rank: int, world: int) -> dict[str, Tensor]:
    """Each rank's loss is the mean over its own samples, as in a loop under DDP."""
    layer = layer_of()
    optimizer = layer.optimizer("sgd", lr=1.0)
    for step in range(5):
        mine = samples(draw_ids(FEATURES, 8 * world, step), 8 * rank, 8 * rank + 8)
        layer(mine).square().sum(dim=(1, 2)).mean().backward()
        optimizer.step()
    return layer.state_dict()


def test_means_of_ranks_are_averaged(results: Callable[..., dict[str, Tensor]]):
    layer = EmbeddingLayer(FEATURES, 10, backend="reference")
    optimizer = layer.optimizer("sgd", lr=1.0)
    for step in range(5):
        layer(draw_ids(FEATURES, 16, step)).square().sum(dim=(1, 2)).mean().backward()
        optimizer.step()
    assert_same(results(2, "as_ddp"), layer.state_dict())


@case
def turned_keys(rank: int, world: int) -> dict[str, Tensor]:
    """TorchRec's outputs come by rank: with tables dealt out in name order they are in another order than lanes."""
    from recsys_embed.tables.placement import table_wise
    from recsys_embed.tables.sharded import ShardedTables

    layer = EmbeddingLayer(FEATURES, 10)
    specs = list(layer.tables.specs.values())
    where = [table_wise(spec, place % world) for place, spec in enumerate(specs)]
    tables = ShardedTables(layer.tables, where, UpdateRule("sgd"), torch.device("cpu"))
    tables.set_lr(0.1)
    plain, ids = layer(draw_ids(FEATURES, 7, rank)).detach(), draw_ids(FEATURES, 7, rank)
    layer.tables = tables
    with torch.no_grad():
        assert torch.equal(layer(ids), plain)
    assert not tables._exchanges[0]._in_order
    return {}


@case
def nothing_at_all(rank: int, world: int) -> dict[str, Tensor]:
    """A batch that is empty on every rank reads and changes nothing."""
    layer = layer_of()
    optimizer = layer.optimizer("adagrad", lr=1.0)
    before = layer.state_dict()
    vectors = layer(torch.zeros(3, 0, dtype=torch.int64))
    assert vectors.shape == (0, 3, 10)
    vectors.sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    return {}


@case
def refused(rank: int, world: int) -> dict[str, Tensor]:
    """By name, on every rank, before anything is allocated."""
    with pytest.raises(ConfigError, match=r"the fused back end cannot hold tables for \d ranks"):
        layer_of(backend="fused").optimizer("sgd", lr=0.1)
    with pytest.raises(ConfigError, match=r"'user' cannot be column_wise with rowwise_adagrad"):
        layer_of(placement={"user": "column_wise"}).optimizer("rowwise_adagrad", lr=0.1)
    layer = layer_of()
    layer.optimizer("sgd", lr=0.1)
    with pytest.raises(ConfigError, match="sharded tables stay on cpu"):
        layer.double()
    small = EmbeddingLayer(FEATURES, 8, sharding=ShardingConfig(device_memory=1000))
    with pytest.raises(ConfigError, match="does not fit: table 'user'"):
        small.optimizer("sgd", lr=0.1)
    return {}


@pytest.mark.parametrize("name", ["turned_keys", "nothing_at_all", "refused"])
def test_on_every_rank(results: Callable[..., dict[str, Tensor]], name: str):
    results(2, name)


def test_sharding_needs_a_process_group():
    with pytest.raises(ConfigError, match="start the training with torchrun"):
        EmbeddingLayer(FEATURES, 8, backend="sharded").optimizer("sgd", lr=0.1)


def test_torchrec_has_one_door_and_its_quantiser_none():
    # `quantize_embeddings(dtype=torch.bfloat16)` ends the interpreter with SIGFPE: nothing here may reach it.
    import recsys_embed

    package = Path(recsys_embed.__file__).parent
    importers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "import torchrec" in path.read_text() or "from torchrec" in path.read_text()
    }
    assert importers == {"tables/sharded.py"}
    assert "torchrec.inference" not in (package / "tables" / "sharded.py").read_text()
