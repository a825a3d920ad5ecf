"""Equal tuning: every contender gets the same list of settings to try, and the one with the best validation AUC wins.

A contender is a strategy at a budget under one setting of the epochs; full tables are contenders like the others. The
list is drawn once from the declared space, so that no contender's trials depend on another's, or on an outcome: trials
can be run in any order and by any number of processes, and more of them extend the list. The test split is not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from recsys_embed.config import Config, TuningConfig
from recsys_embed.errors import ConfigError
from recsys_embed.report.run import Cell

OPTIMIZER = ("tables_lr", "dense_lr")
"""What is tuned of ``training.optimizer``; ``decay`` is the embedding's."""


def proposals(config: Config) -> list[dict[str, float]]:
    """The ``study.tuning.trials`` settings to try: those configured, then points of a scrambled Sobol sequence.

    With those configured among them, nothing is chosen that validation finds worse. The sequence covers the space
    evenly from its first points on, whatever their number. Four significant digits each.

    Raises:
        ConfigError: SciPy is not installed; names the extra.
    """
    try:
        from scipy.stats import qmc
    except ImportError as error:
        raise ConfigError(
            "study.tuning needs SciPy, which the extra 'search' brings: pip install 'recsys-embed[search]'",
            path="study.tuning",
        ) from error
    space, optimizer = config.study.tuning, config.training.optimizer
    assert space is not None
    configured = {name: getattr(optimizer, name) for name in OPTIMIZER} | {"decay": config.embedding.decay}
    names = [name for name in configured if getattr(space, name) is not None]
    drawn = space.trials - 1
    points = qmc.Sobol(len(names), rng=space.seed).random_base2(drawn.bit_length())[:drawn].tolist()
    return [
        {name: configured[name] for name in names},
        *({name: _value(space, name, place) for name, place in zip(names, point, strict=True)} for point in points),
    ]


def _value(space: TuningConfig, name: str, place: float) -> float:
    """The value at a place in [0, 1) of a setting's range."""
    if name == "decay":
        if place < space.no_decay:
            return 0.0
        place = (place - space.no_decay) / (1 - space.no_decay)
    low, high = getattr(space, name)
    return float(min(max(float(f"{low * (high / low) ** place:.4g}"), low), high))


@dataclass(frozen=True, eq=False)
class Contender:
    """What is tuned: ``base`` under each of ``values`` is a trial. Nothing is tried where no size fits the budget."""

    base: Cell
    space: TuningConfig
    values: tuple[dict[str, float], ...]

    @property
    def epochs(self) -> int:
        """The most epochs of a trial."""
        return self.base.config.training.epochs

    @cached_property
    def trials(self) -> list[Cell]:
        """The trials, in the order of the proposals."""
        return [Cell(_with(self.base.config, values), self.base.budget) for values in self.values]

    def tuned(self, seeds: Iterable[int], best: int | None) -> list[Cell]:
        """The runs with the settings of the trial ``best``; with the user's where none was tried or ended well."""
        values = {} if best is None else self.values[best]
        tuning = {
            "epochs": self.epochs,
            "trial": None if best is None else best + 1,
            "trials": len(self.values),
            "values": values,
            "seed": self.space.seed,
            "space": self.space.model_dump(mode="json", exclude={"trials", "seed"}, exclude_none=True),
        }
        return [Cell(seeded(_with(self.base.config, values), seed), self.base.budget, tuning) for seed in seeds]


def contenders(config: Config, cells: Iterable[Cell], *, infeasible: Iterable[Cell] = ()) -> list[Contender]:
    """Every strategy and budget of ``cells``, each with every setting of the epochs.

    Args:
        config: that of the study, with ``study.tuning``.
        cells: one per strategy and budget, with the seed that all trials have.
        infeasible: those of them that get no trials.
    """
    space = config.study.tuning
    assert space is not None
    values, without = tuple(proposals(config)), set(infeasible)
    return [
        Contender(Cell(_with(cell.config, {}, epochs=epochs), cell.budget), space, () if cell in without else values)
        for cell in cells
        for epochs in space.epochs
    ]


class Tuning:
    """The trials of all contenders, and what became of those that are done.

    Trials that are equal, in a space of few points, are one training.
    """

    def __init__(self, contenders: Sequence[Contender], fingerprint: str) -> None:
        self._contenders = contenders
        self._names = {trial: trial.digest(fingerprint) for one in contenders for trial in one.trials}
        self._trials = {name: trial for trial, name in self._names.items()}
        self._documents: dict[str, Mapping[str, Any]] = {}

    @property
    def trials(self) -> list[Cell]:
        """The trainings to do."""
        return list(self._trials.values())

    @property
    def count(self) -> int:
        """How many of them are done."""
        return len(self._documents)

    def todo(self) -> list[Cell]:
        """Those that are not done."""
        return [trial for name, trial in self._trials.items() if name not in self._documents]

    def add(self, trial: Cell, document: Mapping[str, Any]) -> None:
        """A trial is done."""
        self._documents[self._names[trial]] = document

    def rows(self) -> list[dict[str, Any]]:
        """What ``trials.csv`` holds: a row for each trial that is done, the best of a finished contender marked."""
        rows = []
        for one in self._contenders:
            found = [self._documents.get(self._names[trial]) for trial in one.trials]
            best = None if None in found else best_of([document for document in found if document is not None])
            for place, (values, document) in enumerate(zip(one.values, found, strict=True)):
                if document is not None:
                    told = {"epochs": one.epochs, "trial": place + 1, "chosen": place == best}
                    rows.append({**document["row"], **told, **values})
        return rows

    def chosen(self, seeds: Sequence[int]) -> dict[Cell, str]:
        """The runs with the best settings of every contender, each with why it cannot be had, or with ""."""
        out: dict[Cell, str] = {}
        for one in self._contenders:
            found = [self._documents[self._names[trial]] for trial in one.trials]
            best = best_of(found)
            out |= dict.fromkeys(one.tuned(seeds, best), _lost(found) if found and best is None else "")
        return out


def best_of(documents: Sequence[Mapping[str, Any]]) -> int | None:
    """The place of the trial with the highest validation AUC, the first of equals; None where none ended well."""
    aucs = {
        place: document["row"]["val_auc"]
        for place, document in enumerate(documents)
        if document["row"]["status"] == "ok" and document["row"]["val_auc"] is not None
    }
    return max(aucs, key=lambda place: (aucs[place], -place)) if aucs else None


def _lost(documents: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong where no trial ended well."""
    first = documents[0]["row"]
    return f"none of {len(documents)} trials ended well; the first {first['status']}: {first['error']}"


def _with(config: Config, values: Mapping[str, float], *, epochs: int | None = None) -> Config:
    """A config with other settings of what is tuned."""
    training = config.training
    optimizer = training.optimizer.model_copy(update={name: values[name] for name in OPTIMIZER if name in values})
    told = {"epochs": training.epochs if epochs is None else epochs, "optimizer": optimizer}
    embedding = config.embedding.model_copy(update={"decay": values.get("decay", config.embedding.decay)})
    return config.model_copy(update={"training": training.model_copy(update=told), "embedding": embedding})


def seeded(config: Config, seed: int) -> Config:
    """A config with another seed, as in an untuned study."""
    changes = {name: getattr(config, name).model_copy(update={"seed": seed}) for name in ("training", "embedding")}
    return config.model_copy(update=changes)
