"""Nights: a model that goes on with a new day, against training without a break, and what is decided and recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from typer.testing import CliRunner

from recsys_embed import ConfigError, jobs
from recsys_embed.cli import app
from recsys_embed.config import Config, GrowthConfig
from recsys_embed.data import EncodedDataset
from recsys_embed.data.continuation import continue_data
from recsys_embed.errors import CheckpointError
from recsys_embed.export import load
from recsys_embed.recommender import Recommender, build_recommender
from recsys_embed.report import run as run_module
from recsys_embed.training import trainer
from recsys_embed.training.feed import Feed
from recsys_embed.training.kept import go_on_from, kept
from recsys_embed.training.optimizers import Optimizers
from tests.nightly.days import FIRST, config_of, day, write

MORE = range(10, 55)
"""The users of the second day: ten of the first do not come, and fifteen are new."""


@pytest.fixture(scope="module")
def born(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Days, and models of the first of them."""
    folder = tmp_path_factory.mktemp("born")
    found = {name: write(folder, name, frame) for name, frame in DAYS.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, embedding in MODELS.items():
        found[name], _ = jobs.train(config_of(found["first"], **embedding), folder / name, progress=False)
    torch.set_num_threads(threads)
    return found


DAYS = {"first": day(1), "same": day(2), "second": day(3, MORE), "third": day(4, range(200, 240))}
MODELS: dict[str, dict[str, Any]] = {
    "full": {},
    "int8": {"strategy": {"name": "full", "storage": "int8"}},
    "hash": {"strategy": "hash", "budget": 0.5, "exact": ["item"]},
    "adam": {"tables": "adam"},
    "lazy_adam": {"tables": "lazy_adam"},
    "narrow": {"strategy": {"name": "mixed_dimension", "width": 2}, "exact": []},
    "staged": {"strategy": {"name": "magnitude", "warm_up_epochs": 1}, "budget": 0.5, "exact": []},
}


def night(born: dict[str, Path], model: str, data: str, out: Path, *overrides: str, **options: Any) -> jobs.Night:
    return jobs.continue_training(born[model], born[data], out, overrides=overrides, progress=False, **options)


def state_of(model: Path) -> dict[str, Tensor]:
    return kept(model).tensors


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def ids_of(model: Path, values: list[str], vocabulary: str = "user") -> Tensor:
    import pyarrow as pa

    return torch.from_numpy(load(model).encoder.vocabularies[vocabulary].encode(pa.array(values))).long()


def ran(config: Config, dataset: EncodedDataset, model: Recommender, optimizers: Optimizers) -> None:
    """An epoch by hand."""
    feed = Feed(dataset, config.training.batch_size, config.training.seed, torch.device("cpu"), 10**9)
    model.train()
    for batch in feed.train(1, 0):
        trainer.step(model, batch, optimizers, model.embedding.stages[0].steps[0])


# --- training goes on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["full", "int8", "hash", "adam"])
def test_a_night_without_new_ids_is_training_that_never_stopped(
    born: dict[str, Path], model: str, tmp_path: Path
) -> None:
    config = config_of(born["first"], **MODELS[model])
    first = EncodedDataset.open(born[model].parent / "data")
    whole = build_recommender(config, first.features, len(first.dense))
    optimizers = Optimizers(whole, config.training)
    done = night(born, model, "same", tmp_path / "night")
    for dataset in (first, EncodedDataset.open(tmp_path / "night" / "data")):
        ran(config, dataset, whole, optimizers)
    tensors, by_row, plain = optimizers.state()
    expected = {f"model.{name}": tensor for name, tensor in whole.state_dict().items()}
    expected |= {f"optimizer.{name}": tensor for name, tensor in {**tensors, **by_row}.items()}
    found = {name: tensor for name, tensor in state_of(done.model).items() if not name.startswith("rng.")}
    assert same(found, expected)
    assert kept(done.model).meta["optimizers"]["steps"] == plain["steps"]
    assert kept(done.model).meta["layer_steps"] == kept(born[model]).meta["layer_steps"] * 2


@pytest.mark.parametrize("model", ["full", "int8", "adam", "lazy_adam"])
@pytest.mark.parametrize("cap", [None, 48])
def test_a_night_begins_with_the_rows_there_were_and_rows_never_seen(
    born: dict[str, Path], model: str, cap: int | None, tmp_path: Path
) -> None:
    """Also in the place of a value that made room."""
    config = config_of(born["second"], **MODELS[model])
    growth = GrowthConfig(max_ids=cap)
    dataset = continue_data(config.data, born[model] / "encoder", tmp_path / "data", growth=growth)
    went_on, fresh = (build_recommender(config, dataset.features, len(dataset.dense)) for _ in range(2))
    state = kept(born[model])
    optimizers = Optimizers(went_on, config.training)
    go_on_from(state, went_on, optimizers)
    for name, renewal in dataset.renewals.items():
        ids = torch.tensor(renewal.reset)
        assert went_on.embedding.reset(name, ids)
        optimizers.reset_rows(name, ids)
    nobody = Optimizers(fresh, config.training)
    renewal = dataset.renewals["user"]
    assert renewal.after == (cap or 56)
    assert len(renewal.reset) == (0 if cap is None else 8)
    old = torch.arange(renewal.before)
    kept_rows = old[~torch.isin(old, torch.tensor(renewal.reset))]
    new = torch.cat([torch.tensor(renewal.reset), torch.arange(renewal.before, renewal.after)])
    rows = {name for name in state.tensors if ".user" in name}
    assert rows == {"model.embedding.tables.user"} | (
        {"optimizer.rows.user.exp_avg", "optimizer.rows.user.exp_avg_sq"}
        if model == "adam"
        else {f"optimizer.tables.user.{'moments' if model == 'lazy_adam' else 'sum'}"}
    )
    for name in rows:
        now, never = rows_called(name, went_on, optimizers), rows_called(name, fresh, nobody)
        before = state.tensors[name]
        assert torch.equal(now[kept_rows], before[kept_rows])
        assert torch.equal(now[new], torch.zeros_like(now[new]) if never is None else never[new])
        assert before[kept_rows].any()


def rows_called(name: str, model: Recommender, optimizers: Optimizers) -> Any:
    """What a checkpoint would have under a name; None where an optimizer has no state yet."""
    tensors, by_row, _ = optimizers.state()
    own = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    return (own | {f"optimizer.{key}": tensor for key, tensor in {**tensors, **by_row}.items()}).get(name)


def test_rows_that_a_night_does_not_read_stay_with_their_state(born: dict[str, Path], tmp_path: Path) -> None:
    done = night(born, "full", "second", tmp_path / "night")
    away = ids_of(born["full"], [f"u{one}" for one in range(10)])
    seen = ids_of(born["full"], [f"u{one}" for one in range(10, 40)])
    before, after = state_of(born["full"]), state_of(done.model)
    for name in ("model.embedding.tables.user", "optimizer.tables.user.sum"):
        assert torch.equal(after[name][away], before[name][away])
        assert not torch.equal(after[name][seen], before[name][seen])
    assert torch.equal(ids_of(done.model, [f"u{one}" for one in FIRST]), ids_of(born["full"], [f"u{o}" for o in FIRST]))
    assert len(after["model.embedding.tables.user"]) == 56
    assert load(done.model).model.embedding.tables.get("user").shape == (56, 4)


def test_nights_follow_nights(born: dict[str, Path], tmp_path: Path) -> None:
    first = night(born, "full", "second", tmp_path / "1")
    second = jobs.continue_training(first.model, born["third"], tmp_path / "2", progress=False)
    told = second.record["vocabularies"]["user"]
    assert (told["born"], told["before"], told["admitted"], told["cardinality"]) == (41, 56, 40, 96)
    assert load(second.model).model.embedding.features[0].born == 41
    scores = load(second.model).predict(DAYS["third"])
    assert scores.between(0, 1).all()


def test_a_night_may_run_on_another_back_end(born: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("fbgemm_gpu", reason="the fused back end needs FBGEMM")
    nights = [
        night(born, "full", "second", tmp_path / backend, f"embedding.backend='{backend}'", "growth.max_ids=48")
        for backend in ("reference", "fused")
    ]
    one, other = (state_of(done.model) for done in nights)
    for name in ("model.embedding.tables.user", "optimizer.tables.user.sum"):
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)
    away = ids_of(nights[1].model, [f"u{user}" for user in FIRST if user >= 10])
    assert torch.equal(ids_of(nights[0].model, [f"u{user}" for user in FIRST if user >= 10]), away)


def test_hashes_and_their_sizes_stay(born: dict[str, Path], tmp_path: Path) -> None:
    done = night(born, "hash", "second", tmp_path / "night", "growth.max_ids=55")
    old, new = (load(one).model.embedding for one in (born["hash"], done.model))
    assert {name: spec.rows for name, spec in old.tables.specs.items()} == {
        name: spec.rows for name, spec in new.tables.specs.items()
    }
    assert (old.features[0].size, new.features[0].size) == (41, 55)
    for one, other in zip(old.strategies, new.strategies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))
    told = done.record["vocabularies"]
    assert (told["user"]["reset"], told["user"]["rows"], told["item"]["rows"]) == (1, "shared", None)


def test_raw_hashes_go_on_without_any_vocabulary(tmp_path: Path) -> None:
    first, second = write(tmp_path, "a", day(1)), write(tmp_path, "b", day(3, MORE))
    config = config_of(first, "data.raw_hash=true", strategy="hash", budget="2KB")
    model, _ = jobs.train(config, tmp_path / "born", progress=False)
    done = jobs.continue_training(model, second, tmp_path / "night", progress=False)
    assert done.record["vocabularies"] == {}
    assert load(done.model).predict(DAYS["second"]).between(0, 1).all()


# --- what is decided -------------------------------------------------------------------------------------------


def test_both_models_are_judged_on_the_rows_of_the_day(born: dict[str, Path], tmp_path: Path) -> None:
    """The champion as by its own encoder on raw rows, also where ids were given to other values."""
    done = night(born, "full", "second", tmp_path / "night", "growth.max_ids=48")
    rows = DAYS["second"][DAYS["second"]["part"] == "val"]
    assert done.record["vocabularies"]["user"]["reset"] == 8
    for name, model in (("champion", born["full"]), ("new", done.model)):
        scores = load(model).predict(rows)
        assert done.record["scores"]["val_auc"][name] == pytest.approx(roc_auc_score(rows["clicked"], scores), abs=1e-6)


def test_whether_it_is_promoted_is_what_the_condition_says(born: dict[str, Path], tmp_path: Path) -> None:
    always = night(born, "full", "second", tmp_path / "always")
    assert always.record["promoted"]
    assert always.record["champion"] == str(always.model)
    better = always.record["scores"]["val_auc"]
    gain = better["new"] - better["champion"]
    for name, text, promoted in (
        ("yes", f"val_auc >= champion + {gain - 1e-9:.12f}" if gain > 0 else "val_auc >= champion - 1", True),
        ("no", "val_auc >= champion + 1", False),
    ):
        done = night(born, "full", "second", tmp_path / name, promote_if=text)
        assert done.record["promoted"] is promoted
        assert done.record["champion"] == str(done.model if promoted else born["full"])
        assert done.record["promote_if"] == text
        assert same(state_of(done.model), state_of(always.model))  # deciding changes nothing


def test_the_command_prints_the_record_last_and_does_nothing_again(born: dict[str, Path], tmp_path: Path) -> None:
    line = ["train", "--continue", str(born["full"]), "--data", str(born["second"]), "--out", str(tmp_path / "n")]
    line += ["--promote-if", "val_auc >= champion - 0.5 and test_logloss < 5", "--quiet"]
    first = CliRunner().invoke(app, line)
    assert first.exit_code == 0, first.stderr
    record = json.loads(first.stdout.splitlines()[-1])
    assert record == json.loads((tmp_path / "n" / "decision.json").read_text())
    assert record["vocabularies"]["user"] == {
        "known": 40, "admitted": 15, "expired": 0, "evicted": 0, "forgotten": 0, "pending": 0, "dropped": 0, "born": 41,
        "before": 41, "cardinality": 56, "reset": 0, "rows": None,
    }  # fmt: skip
    assert record["rows"] == {split: int((DAYS["second"]["part"] == split).sum()) for split in ("train", "val", "test")}
    assert record["mlflow"] == {
        "run_id": None, "champion": {"alias": "champion", "model": "recsys_embed", "moved": False,
                                     "why": "tracking.enabled is false"},
    }  # fmt: skip
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "n").rglob("*") if file.is_file()}
    again = CliRunner().invoke(app, [*line, "--json"])
    assert again.stdout.splitlines() == [first.stdout.splitlines()[-1]]
    assert written == {file: file.stat().st_mtime_ns for file in (tmp_path / "n").rglob("*") if file.is_file()}


def test_an_interrupted_night_goes_on_to_the_same_bits(
    born: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("training.epochs=2", "training.checkpoint_steps=1", "growth.max_ids=48")
    whole = night(born, "full", "second", tmp_path / "whole", *options)
    own, left = trainer.step, [3]

    def stopped(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return own(*args)

    monkeypatch.setattr(trainer, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        night(born, "full", "second", tmp_path / "night", *options)
    monkeypatch.setattr(trainer, "step", own)
    monkeypatch.setattr(run_module, "predict", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):  # again, after the last step
        night(born, "full", "second", tmp_path / "night", *options)
    assert not (tmp_path / "night" / "model").exists()
    monkeypatch.undo()
    done = night(born, "full", "second", tmp_path / "night", *options)
    assert same(state_of(done.model), state_of(whole.model))
    assert done.record["scores"] == whole.record["scores"]


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "overrides", "promote_if", "message"),
    [
        ("full", ["embedding.budget=0.5"], None, "--set embedding.budget=0.5: what a model was born with stays"),
        ("full", ["embedding.hash_seed=1"], None, "embedding.hash_seed"),
        ("full", ["model.dim=8"], None, "model.dim"),
        ("full", ["data.min_count=2"], None, "data.min_count"),
        ("full", ["training.optimizer.tables='sgd'"], None, "training.optimizer.tables = 'sgd'"),
        ("full", ["training.optimizer={dense='sgd'}"], None, "training.optimizer.dense = 'sgd'"),
        ("full", ["growth.max_ids=20"], None, "max_ids = 20"),
        ("full", [], "val_auc >= winner", "'winner'"),
        ("staged", [], None, "trains in stages (warm_up, retrain)"),
        ("narrow", [], None, "'mixed_dimension' cannot take new ids: widths"),
    ],
)
def test_what_cannot_be_continued_is_named_before_training(
    born: dict[str, Path], model: str, overrides: list[str], promote_if: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        night(born, model, "second", tmp_path / "n", *overrides, promote_if=promote_if)
    assert message in str(raised.value)
    assert not (tmp_path / "n" / "model").exists()


def test_strategies_of_fixed_size_go_on_while_they_need_no_more_ids(born: dict[str, Path], tmp_path: Path) -> None:
    done = night(born, "narrow", "same", tmp_path / "n")
    assert done.record["vocabularies"]["user"]["admitted"] == 0
    full = night(born, "narrow", "second", tmp_path / "m", "growth.max_ids=41")
    told = full.record["vocabularies"]["user"]
    assert told["evicted"] == told["admitted"] == told["reset"] >= 10
    assert (told["cardinality"], told["rows"]) == (41, "own")


def test_a_model_without_its_training_state_is_served_and_not_continued(born: dict[str, Path], tmp_path: Path) -> None:
    served = tmp_path / "model"
    shutil.copytree(born["full"], served, ignore=shutil.ignore_patterns("training"))
    assert load(served).predict(DAYS["first"]).equals(load(born["full"]).predict(DAYS["first"]))
    with pytest.raises(CheckpointError, match=r"training: the training state of this model is not there.*train"):
        jobs.continue_training(served, born["second"], tmp_path / "n", progress=False)


def test_damaged_training_state_is_named(born: dict[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(born["full"], model)
    (file,) = (model / "training").glob("*.safetensors")
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.unlink()
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match="safetensors"):
        jobs.continue_training(model, born["second"], tmp_path / "n", progress=False)


def test_training_state_of_another_model_is_refused(born: dict[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(born["full"], model, ignore=shutil.ignore_patterns("training"))
    shutil.copytree(born["hash"] / "training", model / "training")
    with pytest.raises(CheckpointError, match="is the training state of another model"):
        jobs.continue_training(model, born["second"], tmp_path / "n", progress=False)


def test_a_day_may_be_a_data_frame(born: dict[str, Path], tmp_path: Path) -> None:
    done = jobs.continue_training(born["full"], DAYS["second"], tmp_path / "frame", progress=False)
    file = night(born, "full", "second", tmp_path / "file")
    assert same(state_of(done.model), state_of(file.model))


def test_a_model_is_not_continued_into_itself(born: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="take another folder"):
        jobs.continue_training(born["full"], born["second"], born["full"].parent, progress=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "x.csv"],
        ["--continue", "m"],
        ["--promote-if", "val_auc > 0"],
        ["c.toml", "--continue", "m", "--data", "x"],
    ],
)
def test_options_that_go_together_are_given_together(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 2
    assert "give --continue MODEL together with --data NEW" in result.stderr


def test_several_processes_do_not_continue_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, ["train", "--continue", "m", "--data", "x.csv"])
    assert result.exit_code == 2
    assert "this command runs in one process" in result.stderr


def test_a_file_for_each_split_says_nothing_of_a_new_day(tmp_path: Path) -> None:
    first = day(1)
    files = {split: str(write(tmp_path, split, first[first["part"] == split])) for split in ("train", "val", "test")}
    tree = config_of(tmp_path).model_dump(mode="json")
    tree["data"] |= {"path": None, "split": {"files": files}}
    model, _ = jobs.train(Config.model_validate(tree), tmp_path / "born", progress=False)
    second = write(tmp_path, "second", day(3, MORE))
    with pytest.raises(ConfigError, match=r"--set data.split="):
        jobs.continue_training(model, second, tmp_path / "n", progress=False)
    split = ["data.split={column='part'}"]
    done = jobs.continue_training(model, second, tmp_path / "n", overrides=split, progress=False)
    assert done.record["rows"]["val"] == int((pd.read_parquet(second)["part"] == "val").sum())


# --- tracking --------------------------------------------------------------------------------------------------


def test_the_alias_moves_with_a_promotion_alone(
    quick_stores: None, born: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/own.db"
    options = ("tracking.enabled=true", f"tracking.uri='{uri}'", "tracking.log_model=true")
    first = night(born, "full", "second", tmp_path / "1", *options)
    client = MlflowClient(tracking_uri=uri)
    champion = client.get_model_version_by_alias("recsys_embed", "champion")
    assert first.record["mlflow"] == {
        "run_id": champion.run_id, "champion": {"alias": "champion", "model": "recsys_embed", "moved": True}
    }  # fmt: skip
    second = night(born, "full", "third", tmp_path / "2", *options, promote_if="val_auc > 2")
    assert second.record["mlflow"]["champion"] is None
    assert client.get_model_version_by_alias("recsys_embed", "champion").run_id == champion.run_id
    files = {file.path for file in client.list_artifacts(champion.run_id, "model/artifacts/model")}
    assert files
    assert not any("training" in file for file in files)


def test_a_server_that_is_away_is_said_and_holds_nobody_up(
    born: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    options = ("tracking.enabled=true", "tracking.uri='http://127.0.0.1:9'", "tracking.log_model=true")
    done = night(born, "full", "second", tmp_path / "1", *options)
    assert done.record["promoted"]
    told = done.record["mlflow"]
    assert told["run_id"].startswith("pending-")
    assert told["champion"]["moved"] is None
    assert told["champion"]["why"].endswith("entries wait for the server")
    waiting = "".join(file.read_text() for file in Path("mlflow-pending").rglob("*") if file.is_file())
    assert '"do": "champion"' in waiting


def test_the_days_are_planted(born: dict[str, Path]) -> None:
    assert set(DAYS["first"]["user"]) == {f"u{one}" for one in FIRST}
    assert np.isin([f"u{one}" for one in range(10)], DAYS["second"]["user"]).sum() == 0
