"""Planted data: rows whose true click probability is known, and with it the best AUC and logloss there can be.

Feature values follow a Zipf law, p(rank) ∝ rank^−exponent, under names that do not betray the rank. The logit of a
row is a bias, plus a main effect of every value, plus ⟨u, v⟩ of two values for every pair of neighbouring features
(0·1, 2·3, …: what a model must learn as an interaction), plus slopes of the numeric columns, plus noise that no
column explains. A bag has the mean effect of its values, an empty one none.

Every effect is centred and scaled under the law it is drawn with, so that all features matter alike whatever the
seed. Rare values have smaller effects, so that most of the variance can be learnt; and features of middling
cardinality, whose values are all seen often, matter as much as large ones: where these values collide, AUC is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recsys_embed.config import PlantedConfig, parse_config
from recsys_embed.data.bags import offsets_of, split_cells
from recsys_embed.data.values import column_of, to_text
from recsys_embed.data.vocabulary import Vocabulary

VERSION = 1
BLOCK = 65_536  # rows with a generator of their own: rows do not depend on how many are asked for, or at a time
SEPARATOR = "|"
LABEL = "label"
BIAS = -1.0
MAIN, PAIR, BAG, SLOPE = 0.5, 0.25, 0.3, 0.25  # deviations, in logits, of one effect
RANK = 2
LEARNABLE = 2e-4  # a value drawn more rarely than this has a smaller effect: few rows could teach it
BAG_VALUES, BAG_MEAN = 1_000, 2.0
MISSING = 0.05  # of numeric cells


@dataclass(frozen=True)
class Block:
    """Rows with their truth: ``logit [rows]`` without the noise, ``probability [rows]`` given all columns."""

    table: pa.Table
    logit: np.ndarray
    probability: np.ndarray


class _Law:
    """One feature: its values by rank, their probabilities and effects."""

    def __init__(self, name: str, cardinality: int, exponent: float, rng: np.random.Generator, effect: float) -> None:
        weights = np.arange(1, cardinality + 1, dtype=np.float64) ** -exponent
        self.name, self.chance = name, weights / weights.sum()
        self._edges = np.cumsum(self.chance)
        self._edges[-1] = 1.0
        width = len(f"{cardinality - 1:x}")
        self.values = pa.array([f"{name}-{n:0{width}x}" for n in rng.permutation(cardinality)])
        share = np.sqrt(self.chance / (self.chance + LEARNABLE))
        self.effect = effect * self._standard(share * rng.normal(size=(1, cardinality)))[0]
        self.factors = self._standard(share * rng.normal(size=(RANK, cardinality)))

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Ranks ``[count]``."""
        return np.searchsorted(self._edges, rng.random(count), side="right")

    def _standard(self, x: np.ndarray) -> np.ndarray:
        """Mean 0 and variance 1 under the law, row by row."""
        x = x - (x @ self.chance)[:, None]
        return np.asarray(x / np.maximum(np.sqrt(np.square(x) @ self.chance), 1e-9)[:, None])


class Planted:
    """The generator. ``categorical``, ``multi_valued`` and ``numeric`` name its columns, :data:`LABEL` the label."""

    def __init__(self, config: PlantedConfig) -> None:
        self.config = config
        self.categorical = tuple(f"c{i}" for i in range(len(config.cardinalities)))
        self.multi_valued = tuple(f"m{i}" for i in range(config.multi_valued))
        self.numeric = tuple(f"n{i}" for i in range(config.numeric))

    @cached_property
    def _laws(self) -> dict[str, _Law]:
        sizes = dict(zip(self.categorical, self.config.cardinalities, strict=True))
        sizes.update(dict.fromkeys(self.multi_valued, BAG_VALUES))
        return {
            name: _Law(name, size, self.config.exponent, self._rng(0, i), MAIN if name in self.categorical else BAG)
            for i, (name, size) in enumerate(sizes.items())
        }

    @cached_property
    def _slopes(self) -> dict[str, float]:
        return dict(zip(self.numeric, SLOPE * self._rng(1).choice([-1.0, 1.0], len(self.numeric)), strict=True))

    def blocks(self) -> Iterator[Block]:
        """All rows, in blocks of :data:`BLOCK`."""
        for number in range(0, self.config.rows, BLOCK):
            yield self._block(self._rng(2, number // BLOCK), min(BLOCK, self.config.rows - number))

    def logits(self, frame: pd.DataFrame) -> np.ndarray:
        """The true logits, without the noise, of rows that this generator has made: ``[rows]`` float64."""
        ranks: dict[str, np.ndarray] = {}
        cuts: dict[str, np.ndarray] = {}
        for name, law in self._laws.items():
            cells = to_text(column_of(frame[name]))
            if name in self.multi_valued:
                cells, cuts[name] = split_cells(cells, SEPARATOR)
            ranks[name] = Vocabulary(law.values, np.empty(0)).encode(cells) - 1
        return self._logits(ranks, cuts, {name: frame[name].to_numpy(np.float64) for name in self.numeric})

    def probability(self, logits: np.ndarray) -> np.ndarray:
        """P(label = 1), ``[rows]`` float64: the noise averaged out by Gauss-Hermite quadrature."""
        if not self.config.noise:
            return _sigmoid(logits)
        nodes, weights = np.polynomial.hermite_e.hermegauss(41)
        total = np.zeros_like(logits)
        for node, weight in zip(nodes, weights / weights.sum(), strict=True):
            total += weight * _sigmoid(logits + self.config.noise * node)
        return total

    def _block(self, rng: np.random.Generator, rows: int) -> Block:
        ranks: dict[str, np.ndarray] = {}
        cuts: dict[str, np.ndarray] = {}
        numbers: dict[str, np.ndarray] = {}
        cells: dict[str, pa.Array] = {}
        for name, law in self._laws.items():
            if name in self.multi_valued:  # always a whole block is drawn: fewer rows are its beginning
                cuts[name] = offsets_of(rng.poisson(BAG_MEAN, BLOCK))
                ranks[name] = law.draw(rng, int(cuts[name][-1]))
                cuts[name] = cuts[name][: rows + 1]
                ranks[name] = ranks[name][: cuts[name][-1]]
                lists = pa.ListArray.from_arrays(
                    pa.array(cuts[name], pa.int32()), law.values.take(pa.array(ranks[name]))
                )
                cells[name] = pc.binary_join(lists, SEPARATOR)
            else:
                ranks[name] = law.draw(rng, BLOCK)[:rows]
                cells[name] = law.values.take(pa.array(ranks[name]))
        for name in self.numeric:
            drawn = np.where(rng.random(BLOCK) < MISSING, np.nan, rng.normal(size=BLOCK))[:rows]
            numbers[name] = drawn
            cells[name] = pa.array(drawn, from_pandas=True)
        logit = self._logits(ranks, cuts, numbers)
        noisy = logit + self.config.noise * rng.normal(size=BLOCK)[:rows]
        label = (rng.random(BLOCK)[:rows] < _sigmoid(noisy)).astype(np.int8)
        return Block(pa.table({LABEL: label, **cells}), logit, self.probability(logit))

    def _logits(
        self, ranks: Mapping[str, np.ndarray], cuts: Mapping[str, np.ndarray], numbers: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        logit: np.ndarray = np.asarray(BIAS)
        for name in self.categorical:
            logit = logit + self._laws[name].effect[ranks[name]]
        for one, other in zip(self.categorical[::2], self.categorical[1::2], strict=False):
            u, v = self._laws[one].factors[:, ranks[one]], self._laws[other].factors[:, ranks[other]]
            logit = logit + PAIR / np.sqrt(RANK) * (u * v).sum(0)
        for name in self.multi_valued:
            sums = np.concatenate([[0.0], np.cumsum(self._laws[name].effect[ranks[name]])])
            lengths = np.diff(cuts[name])
            logit = logit + (sums[cuts[name][1:]] - sums[cuts[name][:-1]]) / np.maximum(lengths, 1)
        for name, slope in self._slopes.items():
            logit = logit + slope * np.nan_to_num(numbers[name])
        return logit

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, *key])


def planted(config: PlantedConfig | None = None, **options: Any) -> tuple[pd.DataFrame, dict[str, float]]:
    """Planted rows in memory, and the AUC and logloss that the true probabilities reach on them.

    ``options`` are the keys of ``data.planted`` (``rows``, ``cardinalities``, ``exponent``, ``multi_valued``,
    ``numeric``, ``noise``, ``seed``).

    >>> frame, bayes = planted(rows=1_000, cardinalities=(50, 20), multi_valued=0, numeric=0)
    >>> list(frame.columns), len(frame), sorted(bayes)
    (['label', 'c0', 'c1'], 1000, ['auc', 'logloss'])

    Raises:
        ConfigError: an unknown or impossible option.
    """
    if config is None:
        config = parse_config({"data": {"planted": options}}, source="planted").data.planted
        assert config is not None
    blocks = list(Planted(config).blocks())
    frame = pa.concat_tables([block.table for block in blocks]).to_pandas()
    return frame, bayes(frame[LABEL].to_numpy(), np.concatenate([block.probability for block in blocks]))


def bayes(labels: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """AUC (ties count half) and logloss of the true probabilities: the best that any model can expect."""
    positive = labels > 0.5
    distinct, group = np.unique(probability, return_inverse=True)
    below = np.bincount(group[~positive], minlength=len(distinct))
    wins = (np.cumsum(below) - below / 2)[group[positive]].sum()
    loss = -np.where(positive, np.log(probability), np.log1p(-probability)).mean()
    return {"auc": float(wins / (positive.sum() * (~positive).sum())), "logloss": float(loss)}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))
