"""Trials that are drawn, trained, stopped, interrupted and shared: what is done once, and what is the same."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState

from bench.injections.forks import on_ranks
from recsys_embed import jobs, prepare, ranks
from recsys_embed.config import Config, parse_config
from recsys_embed.data import EncodedDataset
from recsys_embed.errors import CheckpointError, ConfigError, DivergedError
from recsys_embed.files import try_lock
from recsys_embed.report import judge
from recsys_embed.report.run import RUNS, Cell
from recsys_embed.search import trials as trials_module
from recsys_embed.search.samplers import open_study
from recsys_embed.search.slots import FIRST, SLOT, fill, standing, take
from recsys_embed.search.space import Space
from recsys_embed.search.table import read_search
from recsys_embed.search.trials import ROW, RUN, SAME, Trials, proposed

SEARCH = {"methods": ["random"], "trials": 4, "seeds": [0], "pruner": "none", "storage": "journal"}
APART = {"tables_lr": [0.01, 0.1]}
"""What is drawn besides widths, so that no proposal rounds to an earlier one."""
NAMES = {"random": "random", "gp": "optuna", "tpe": "optuna"}


def config_of(**search: Any) -> Config:
    return parse_config(
        {
            "data": {"planted": {"rows": 1000, "cardinalities": [40, 10]}},
            "model": {"name": "dlrm", "dim": 4, "top": [4]},
            "embedding": {"budget": 0.5},
            "training": {"batch_size": 200, "epochs": 3, "patience": 3, "threads": 1, "precision": "fp32"},
            "search": {**SEARCH, **search},
            "tracking": {"enabled": False},
        }
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> EncodedDataset:
    return prepare(config_of().data, tmp_path_factory.mktemp("planted") / "data")


class Judge:
    """In place of a training: a curve that depends on the config alone, and a count of those asked for."""

    def __init__(self, epochs: int = 3) -> None:
        self.epochs, self.asked = epochs, list[str]()
        self.during: Callable[[int, int], None] = lambda number, epoch: None
        """Called with the number of the training, from 1, and the epoch."""

    def auc(self, run: str) -> float:
        return 0.5 + int(run, 16) % 1000 / 4000

    def __call__(
        self, cell: Cell, dataset: EncodedDataset, out: Path, *, on_epoch: Callable[[dict[str, Any]], None], **_: Any
    ) -> dict[str, Any]:
        run = cell.digest(dataset.fingerprint)
        self.asked.append(run)
        history = []
        for epoch in range(1, self.epochs + 1):
            line = {"epoch": epoch, "val_auc": self.auc(run) * epoch / self.epochs, "samples_seen": 100 * epoch}
            history.append(line)
            on_epoch(dict(line))
            self.during(len(self.asked), epoch)
        row = {"status": "ok", "val_auc": self.auc(run), "serve_bytes": 7, "samples_seen": 300, "epochs": self.epochs}
        return {"row": row, "history": history, "measured": {}}


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Judge:
    fake = Judge()
    monkeypatch.setattr(trials_module, "judge_cell", fake)
    return fake


def studied(config: Config, dataset: EncodedDataset, out: Path) -> optuna.Study:
    """The study, without its trials."""
    return open_study(config, config.search.methods[0], dataset.fingerprint, out)


def tried(config: Config, dataset: EncodedDataset, out: Path) -> optuna.Study:
    """All trials of the config's one method."""
    study = studied(config, dataset, out)
    space = Space.of(config, dataset.features)
    Trials(config, config.search.methods[0], space, dataset, out, study, progress=False).run()
    return study


def slots_of(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trial that counts of each slot, in their order."""
    return [trial for _, trial in sorted(standing(study).items())]


# --- what is trained, and how often --------------------------------------------------------------------------


def test_proposals_that_round_to_one_configuration_are_trained_once(
    dataset: EncodedDataset, judged: Judge, tmp_path: Path
) -> None:
    study = tried(config_of(trials=16), dataset, tmp_path)
    found = slots_of(study)
    assert len(found) == len(study.trials) == 16
    assert len({tuple(trial.params.values()) for trial in found}) == 16
    assert Counter(judged.asked) == Counter({trial.user_attrs[RUN] for trial in found})
    twins = [trial for trial in found if SAME in trial.user_attrs]
    assert len(twins) == 16 - len(judged.asked) > 0
    for trial in twins:
        first = study.trials[trial.user_attrs[SAME]]
        assert SAME not in first.user_attrs
        assert first.user_attrs[RUN] == trial.user_attrs[RUN]
        assert first.values == trial.values
        assert trial.user_attrs[ROW] == {**first.user_attrs[ROW], "samples_seen": 0, "wall_seconds": 0.0}


def test_a_search_that_is_done_trains_nothing_and_one_that_is_extended_the_rest(
    dataset: EncodedDataset, judged: Judge, tmp_path: Path
) -> None:
    before = tried(config_of(), dataset, tmp_path).trials
    asked = len(judged.asked)
    assert tried(config_of(), dataset, tmp_path).trials == before
    assert len(judged.asked) == asked
    after = tried(config_of(trials=6), dataset, tmp_path).trials
    assert after[:4] == before
    assert len(after) == 6


def test_trials_that_fall_behind_are_stopped_and_counted(
    dataset: EncodedDataset, judged: Judge, tmp_path: Path
) -> None:
    study = tried(config_of(trials=14, pruner="median", **APART), dataset, tmp_path)
    found = slots_of(study)
    states = Counter(trial.state for trial in found)
    assert sum(states.values()) == states[TrialState.COMPLETE] + states[TrialState.PRUNED] == len(study.trials) == 14
    pruned = [one for one in found if one.state == TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        lines = trial.user_attrs[ROW]["history"]
        assert trial.user_attrs[ROW]["status"] == "pruned"
        assert trial.user_attrs[ROW]["val_auc"] == max(lines.values())
        assert {str(epoch): auc for epoch, auc in trial.intermediate_values.items()} == lines
        assert len(lines) < judged.epochs


def test_another_config_is_refused_by_name_and_another_count_is_not(
    dataset: EncodedDataset, judged: Judge, tmp_path: Path
) -> None:
    tried(config_of(trials=1), dataset, tmp_path)
    for other in (config_of(seed=1), config_of(blocks=2)):
        with pytest.raises(ConfigError, match="another config") as caught:
            tried(other, dataset, tmp_path)
        assert caught.value.path == "search.storage"
    with pytest.raises(ConfigError, match="another config"):
        open_study(config_of(), "random", "other data", tmp_path)
    tried(config_of(trials=2, grace_seconds=9, workers=1, seeds=[1]), dataset, tmp_path)


# --- interrupted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_an_interrupted_search_proposes_what_it_would_have(
    dataset: EncodedDataset, judged: Judge, tmp_path: Path, sampler: str
) -> None:
    """Ctrl-C in three trials, one of them after the first draws, which are random with all samplers."""
    config = config_of(methods=[NAMES[sampler]], sampler=sampler, trials=14, **APART)
    straight = [trial.params for trial in slots_of(tried(config, dataset, tmp_path / "straight"))]
    judged.asked.clear()
    stops = iter([2, 4, 11])

    def stop(number: int, epoch: int) -> None:
        if number == stops_at[0] and epoch == 1:
            stops_at[0] = next(stops, 0)
            raise KeyboardInterrupt

    stops_at, interrupts = [next(stops)], 0
    judged.during = stop
    while True:
        try:
            study = tried(config, dataset, tmp_path / "stopped")
            break
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == 3
    assert [trial.params for trial in slots_of(study)] == straight
    assert len(study.trials) == 14 + 3


def test_a_trial_that_is_gone_on_with_tells_all_of_its_epochs(
    dataset: EncodedDataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is interrupted in its second epoch, and takes up its checkpoint: the study is that of a search never was."""
    config = config_of(trials=2, **APART)
    straight = slots_of(tried(config, dataset, tmp_path / "straight"))
    report, reports = optuna.Trial.report, list[int]()

    def interrupted(self: optuna.Trial, value: float, step: int) -> None:
        report(self, value, step)
        reports.append(step)
        if len(reports) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(optuna.Trial, "report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tried(config, dataset, tmp_path / "stopped")
    resumed = slots_of(tried(config, dataset, tmp_path / "stopped"))
    for one, other in zip(straight, resumed, strict=True):
        assert one.params == other.params
        assert one.values == other.values
        assert one.intermediate_values == other.intermediate_values
        assert sorted(one.intermediate_values) == [1, 2, 3]
        assert other.user_attrs[ROW]["history"] == one.user_attrs[ROW]["history"]
    # One that was trained whole, and whose process died before it told the study.
    again = slots_of(tried(config.model_copy(), dataset, moved(tmp_path / "stopped", tmp_path / "moved")))
    assert [one.intermediate_values for one in again] == [one.intermediate_values for one in straight]


def moved(old: Path, new: Path) -> Path:
    """The runs of a search, without its study."""
    new.mkdir()
    (old / RUNS).rename(new / RUNS)
    return new


def test_a_storage_that_takes_no_report_fails_no_trial(
    dataset: EncodedDataset, judged: Judge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def away(*_: object) -> None:
        raise optuna.exceptions.StorageInternalError("database is locked")

    monkeypatch.setattr(optuna.Trial, "report", away)
    study = tried(config_of(trials=2, pruner="median", **APART), dataset, tmp_path)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2


def test_a_storage_that_takes_no_result_is_named_and_the_trial_tried_again(
    judged: Judge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = config_of(trials=2)
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "set_user_attr", refusing(ROW, optuna.Trial.set_user_attr))
        with pytest.raises(CheckpointError, match=r"trials.journal: .* is away; the same command"):
            jobs.search(config, tmp_path, progress=False)
    study = tried(config, EncodedDataset.open(tmp_path / "data"), tmp_path)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[0].params == study.trials[1].params


def refusing(name: str, method: Callable[..., None]) -> Callable[..., None]:
    def set_user_attr(self: optuna.Trial, key: str, value: object) -> None:
        if key == name:
            raise optuna.exceptions.StorageInternalError("no") from OSError("the database is away")
        method(self, key, value)

    return set_user_attr


# --- several workers -----------------------------------------------------------------------------------------


def test_a_run_that_another_worker_is_at_is_waited_for(dataset: EncodedDataset, judged: Judge, tmp_path: Path) -> None:
    """The other one proposes the same; it holds the run, and tells that it does only when it is done."""
    config = config_of(trials=2)
    space, mine, others = Space.of(config, dataset.features), *(studied(config, dataset, tmp_path) for _ in range(2))
    asked = mine.ask()
    proposed(config, space, "random", asked)
    mine.tell(asked, state=TrialState.FAIL)
    mine.set_user_attr(FIRST, [asked.params, asked.params])
    fill(others, 2, trials_module.Pace())
    rival = take(others, 2, lambda slot: None)
    assert rival is not None
    run = Cell(proposed(config, space, "random", rival)[0]).digest(dataset.fingerprint)
    folder = tmp_path / RUNS / run
    folder.mkdir(parents=True)
    descriptor = os.open(folder / ".turn", os.O_RDWR | os.O_CREAT)
    assert try_lock(descriptor)

    def end() -> None:
        rival.set_user_attr(RUN, run)
        rival.set_user_attr(ROW, {"status": "ok", "val_auc": 0.625, "serve_bytes": 7})
        others.tell(rival, 0.625)
        os.close(descriptor)

    timer = threading.Timer(0.5, end)
    timer.start()
    Trials(config, "random", space, dataset, tmp_path, mine, progress=False).run()
    timer.join()
    assert judged.asked == []
    found = slots_of(mine)
    assert [trial.values for trial in found] == [[0.625], [0.625]]
    assert found[1].user_attrs[SAME] == rival.number


@pytest.mark.parametrize("moment", ["drawing", "training", "telling"])
def test_a_worker_whose_trial_was_given_up_goes_on(
    dataset: EncodedDataset, judged: Judge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moment: str
) -> None:
    """Another one took it for dead; both do their part in the end, and no slot counts twice."""
    config = config_of(trials=3)
    study, given_up = studied(config, dataset, tmp_path), list[int]()

    def give_up() -> None:
        if not given_up:
            (trial,) = study.get_trials(states=(TrialState.RUNNING,))
            study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
            given_up.append(trial.number)

    if moment == "training":
        judged.during = lambda number, epoch: give_up()
    target, name = {"drawing": (trials_module, "proposed"), "telling": (optuna.Study, "tell")}.get(moment, (None, ""))
    if target is not None:
        method = getattr(target, name)

        def first(*arguments: Any, **options: Any) -> Any:
            if moment == "telling":
                give_up()
                return method(*arguments, **options)
            found = method(*arguments, **options)
            give_up()
            return found

        monkeypatch.setattr(target, name, first)
    tried(config, dataset, tmp_path)
    assert given_up == [0]
    ended = [one for one in study.trials if one.state == TrialState.COMPLETE]
    assert sorted(one.user_attrs[SLOT] for one in ended) == [0, 1, 2]


def ranked(folder: Path, out: Path) -> dict[str, Any]:
    """On each rank: what was trained for how many epochs, and on the first one the trials."""
    judge_ = Judge()
    trials_module.judge_cell = judge_  # type: ignore[assignment]
    seen: list[tuple[str, int]] = []
    judge_.during = lambda number, epoch: seen.append((judge_.asked[-1], epoch))
    config, dataset = config_of(trials=12, pruner="median", **APART), EncodedDataset.open(folder)
    study = studied(config, dataset, out) if ranks.own() == 0 else None
    if study is not None:
        _give_up_the_first_two(study)
    Trials(config, "random", Space.of(config, dataset.features), dataset, out, study, progress=False).run()
    states = [] if study is None else [(one.user_attrs[SLOT], one.state.name) for one in study.trials]
    return {"asked": judge_.asked, "seen": seen, "states": states}


def _give_up_the_first_two(study: optuna.Study) -> None:
    """Another worker takes one trial for dead when it is drawn, and one when the first rank looks for a twin."""
    given_up = list[str]()

    def before(moment: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if moment not in given_up and len(given_up) == ("drawing", "looking").index(moment):
                given_up.append(moment)
                (trial,) = study.get_trials(states=(TrialState.RUNNING,))
                study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
            return method(*arguments, **options)

        return call

    trials_module.proposed = before("drawing", trials_module.proposed)
    Trials._lead = before("looking", Trials._lead)  # type: ignore[method-assign]


@pytest.mark.slow
def test_ranks_train_and_stop_together(dataset: EncodedDataset, tmp_path: Path) -> None:
    first, other = on_ranks(2, ranked, dataset.path, tmp_path)
    assert (first.code, first.error, other.code, other.error) == (0, "", 0, ""), (first.text, other.text)
    assert first.value["asked"] == other.value["asked"]
    assert first.value["seen"] == other.value["seen"]
    assert [slot for slot, _ in first.value["states"]] == [0, 0, 0, *range(1, 12)]
    states = Counter(state for _, state in first.value["states"])
    assert states["COMPLETE"] + states["PRUNED"] == 12
    assert states["FAIL"] == 2
    assert states["PRUNED"] > 0


# --- the job -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, jobs.Search]:
    """A search in which the second training fails and the fourth diverges."""
    out, fit, calls = tmp_path_factory.mktemp("search"), judge.fit, list[int]()

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        if len(calls) == 4:
            raise DivergedError("the loss is nan")
        return fit(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "fit", failing)
        found = jobs.search(failing_config(), out, progress=False)
    return out, found


def failing_config() -> Config:
    return config_of(trials=5, storage="sqlite", **APART)


def test_a_trial_that_fails_is_a_row_and_a_code(done: tuple[Path, jobs.Search]) -> None:
    out, found = done
    rows = read_search(out)
    assert found.exit_code == 4
    assert list(rows["status"]) == ["ok", "failed", "ok", "diverged", "ok"]
    assert list(rows["trial"]) == [1, 2, 3, 4, 5]
    assert rows["error"].tolist()[1::2] == ["RuntimeError: no memory", "DivergedError: the loss is nan"]
    assert rows["params"].map(bool).all()
    assert found.best is not None


def test_plain_optuna_shows_the_same_trials(done: tuple[Path, jobs.Search]) -> None:
    out, _ = done
    study = optuna.load_study(study_name="recsys_embed/random", storage=f"sqlite:///{out / 'trials.db'}")
    rows = read_search(out)
    assert [one.params for one in study.trials] == [json.loads(text) for text in rows["params"]]
    assert [one.state.name for one in study.trials] == ["COMPLETE", "FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    values = [None if one.value is None else float(one.value) for one in study.trials]
    assert values == [None if pd.isna(auc) else auc for auc in rows["val_auc"]]
    assert study.best_value == rows["val_auc"].max()
    histories = [{str(epoch): auc for epoch, auc in one.intermediate_values.items()} for one in study.trials]
    assert histories == [json.loads(text or "{}") for text in rows["history"]]


def test_what_failed_by_itself_is_not_tried_again(done: tuple[Path, jobs.Search]) -> None:
    out, found = done
    before = (out / "search.csv").read_bytes()
    assert jobs.search(failing_config(), out, progress=False).exit_code == found.exit_code == 4
    assert (out / "search.csv").read_bytes() == before


def test_an_interrupted_search_writes_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second training is stopped in its second epoch, and goes on from its checkpoint."""
    tables = []
    for name, stops in (("straight", 0), ("stopped", 5)):
        report, reports = optuna.Trial.report, list[int]()

        def interrupted(
            self: optuna.Trial,
            value: float,
            step: int,
            stops: int = stops,
            reports: list[int] = reports,
            report: Callable[..., None] = report,
        ) -> None:
            report(self, value, step)
            reports.append(step)
            if len(reports) == stops:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(optuna.Trial, "report", interrupted)
            with pytest.raises(KeyboardInterrupt) if stops else contextlib.nullcontext():
                jobs.search(config_of(trials=3, methods=["optuna"], **APART), tmp_path / name, progress=False)
        jobs.search(config_of(trials=3, methods=["optuna"], **APART), tmp_path / name, progress=False)
        tables.append(read_search(tmp_path / name).drop(columns="wall_seconds"))
    pd.testing.assert_frame_equal(*tables)
