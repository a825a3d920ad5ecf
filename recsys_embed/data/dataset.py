"""An encoded data set on the disk, opened without reading it into memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys_embed.data.bags import Bag
from recsys_embed.data.columns import Columns
from recsys_embed.data.distances import UNSEEN, Drift
from recsys_embed.data.encoder import Encoder
from recsys_embed.data.renewal import Renewal, load_reset, reset_file
from recsys_embed.data.sketch import FrequencySketch, sketch_file
from recsys_embed.data.split import SPLITS
from recsys_embed.data.stored import StoredRows
from recsys_embed.errors import CheckpointError
from recsys_embed.features import Feature
from recsys_embed.files import verify_manifest
from recsys_embed.share import WHOLE, Share

if TYPE_CHECKING:
    from recsys_embed.data.batches import Batch

_ROWS = 1 << 16  # read at once


class EncodedDataset:
    """Train, validation and test rows as ids and scaled numbers. Made by :func:`prepare`, or by :meth:`open`."""

    def __init__(self, path: Path, schema: dict[str, Any]) -> None:
        self.path = path
        self.schema = schema
        self.name: str = schema["name"]
        self.fingerprint: str = schema["fingerprint"]
        self.bayes: dict[str, float] | None = schema["bayes"]
        self.encoder = Encoder.load(path / "encoder")
        self._stored: dict[str, StoredRows] = {}

    @classmethod
    def open(cls, path: str | Path) -> EncodedDataset:
        """Open a folder and check every file in it.

        Raises:
            CheckpointError: a file is missing, cut short or changed; it is named.
        """
        folder = Path(path)
        verify_manifest(folder)
        return cls(folder, read_schema(folder))

    @property
    def features(self) -> tuple[Feature, ...]:
        """Categorical, then multi-valued features, with cardinalities and training frequencies where there is a
        vocabulary."""
        return self.encoder.features

    @property
    def dense(self) -> tuple[str, ...]:
        """Dense columns: scaled numbers, then the flags of those that are sometimes missing."""
        return self.encoder.dense

    def vocabulary_bytes(self) -> dict[str, int]:
        """Bytes of each vocabulary's file, strings and their counts, by its name; an exported model has the same."""
        return {name: (self.path / "encoder" / file).stat().st_size for name, file in self.encoder.files.items()}

    def rows(self, split: str) -> int:
        """The number of rows of ``train``, ``val`` or ``test``."""
        return int(self.schema["rows"][_known(split)])

    def labels(self, split: str) -> np.ndarray:
        """Labels ``[rows]`` float32, in file order; mapped from the disk, so read-only."""
        return self.columns(split).label

    def weights(self, split: str) -> np.ndarray | None:
        """What each row counts, ``[rows]`` float32 as :meth:`labels`; None where no column says so."""
        return self.columns(split).weight

    def columns(self, split: str) -> Columns:
        """All columns of a split, mapped from the disk, so read-only."""
        return self.rows_of(split).whole()

    def rows_of(self, split: str) -> StoredRows:
        """The rows of a split, to be read in runs."""
        if split not in self._stored:
            self._stored[split] = StoredRows(self.path / f"{_known(split)}.arrow", len(self.features))
        return self._stored[split]

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        start: int = 0,
        share: Share = WHOLE,
        memory: int | None = None,
    ) -> Iterator[Batch]:
        """All rows once, in file order, or shuffled; the last batch may be short.

        A split of more than ``memory`` bytes is shuffled by blocks, which are read as they are needed; see
        :func:`recsys_embed.data.loader.batches`. The first ``start`` batches are left out without reading them.
        """
        from recsys_embed.data.loader import batches  # torch

        return batches(self.rows_of(split), batch_size, shuffle_seed, start, share, memory)

    def buckets(self, split: str) -> np.ndarray:
        """How well training knows each row, ``[rows]`` int8: 0 head, 1 torso, 2 tail, 3 unseen.

        A row is unseen when any of its single-valued ids is 0, or is a hash that never occurred in training. The
        others are cut in thirds by the training frequency of their rarest single-valued id; rows of one frequency stay
        together, where the middle one falls. Frequencies of hashes are estimates, see :meth:`frequencies`.
        """
        rows = self.rows_of(split)
        rarest = np.full(len(rows), np.iinfo(np.int64).max)
        unseen = np.zeros(len(rows), bool)
        for begin in range(0, len(rows), _ROWS):
            part = slice(begin, min(begin + _ROWS, len(rows)))
            for feature, ids in zip(self.features, rows.read(part.start, part.stop).ids, strict=True):
                if not isinstance(ids, Bag):
                    counts = self.frequencies(feature, ids)
                    np.minimum(rarest[part], counts, out=rarest[part])
                    unseen[part] |= (ids == 0) | (counts == 0)
        buckets = np.full(len(rows), UNSEEN, np.int8)
        _, group, sizes = np.unique(-rarest[~unseen], return_inverse=True, return_counts=True)
        middle = np.cumsum(sizes) - sizes / 2
        buckets[~unseen] = np.floor(3 * middle / max(sizes.sum(), 1)).astype(np.int8)[group]
        return buckets

    @property
    def unseen(self) -> dict[str, dict[str, float]]:
        """By split, of each feature's occurrences the share with id 0: missing, unseen in training or too rare; of a
        hashed one, missing. 0 where there are none. Counted when the rows were encoded; empty where an earlier version
        did that."""
        shares: dict[str, dict[str, float]] = self.schema.get("unseen", {})
        return shares

    def frequencies(self, feature: Feature, ids: np.ndarray) -> np.ndarray:
        """How often ids ``[n]`` of a feature occur in training; where it is hashed, as its sketch estimates: never less
        than that, and 0 is exact.

        Where the rows continue others these are the occurrences of all nights, but of a hashed feature those of the
        day."""
        if feature.hashed:
            return self._sketches[feature.vocab].estimate(ids)
        if feature.vocab in self.encoder.histories:
            return np.asarray(self.encoder.histories[feature.vocab].life.count[ids])
        assert feature.counts is not None
        return np.asarray(feature.counts[ids])

    @cached_property
    def _sketches(self) -> dict[str, FrequencySketch]:
        files = enumerate(self.encoder.hashes)
        return {name: FrequencySketch.load(self.path / sketch_file(place)) for place, name in files}

    @property
    def hashed(self) -> dict[str, dict[str, float]]:
        """How much is known of the frequencies of each hashed vocabulary; see ``data/sketch.py``, ``described``."""
        known: dict[str, dict[str, float]] = self.schema.get("hashed", {})
        return known

    @property
    def renewals(self) -> dict[str, Renewal]:
        """What the night did to each vocabulary, by its name; none where the rows continue nothing."""
        return self._renewals

    @property
    def drift(self) -> dict[str, Drift]:
        """How the day differs from those before, and its splits from each other, by feature; see
        :func:`recsys_embed.data.drift.drift`. None where the rows continue nothing."""
        return {name: Drift.of(tree) for name, tree in self.schema.get("drift", {}).items()}

    @cached_property
    def _renewals(self) -> dict[str, Renewal]:
        trees: dict[str, dict[str, Any]] = self.schema.get("renewals", {})
        return {
            name: Renewal(**tree, reset=load_reset(self.path / reset_file(place)))
            for place, (name, tree) in enumerate(trees.items())
        }

    @property
    def inputs(self) -> dict[str, Any]:
        """What the data set was made from: config and source files."""
        inputs: dict[str, Any] = self.schema["inputs"]
        return inputs


def read_schema(folder: Path) -> dict[str, Any]:
    """The schema of an encoded data set.

    Raises:
        CheckpointError: there is none.
    """
    path = folder / "schema.json"
    try:
        schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kinds: dict[str, type | tuple[type, ...]] = {
            "name": str,
            "fingerprint": str,
            "bayes": (dict, type(None)),
            "inputs": dict,
            "rows": dict,
        }
        wrong = [key for key, kind in kinds.items() if not isinstance(schema[key], kind)]
        wrong += [f"rows.{split}" for split in SPLITS if not isinstance(schema["rows"][split], int)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error
    if wrong:
        raise CheckpointError(f"{path}: {wrong[0]} is not what was written", file=str(path))
    return schema


def _known(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"a split is one of {', '.join(SPLITS)}, got {split!r}")
    return split
