"""Damage at rest: a file is changed, the artifact is read, the file is put back."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path

from bench.injections.artifacts import MAKERS, Artifact, digest_dataset, fresh, make, schema, table
from bench.injections.tally import Tally
from recsys_embed.data import prepare
from recsys_embed.errors import CheckpointError, DataError, RecsysEmbedError
from recsys_embed.training import checkpoints

Damage = Callable[[bytes, random.Random], bytes]


def damage_everything(damage: Damage, times: int, folder: Path) -> Tally:
    """Damage each kind of artifact ``times`` times, its files in proportion to their bytes but none left out."""
    tally, draw = Tally(), random.Random(0)
    for kind in MAKERS:
        artifact = make(kind, fresh(folder / kind.replace(" ", "-")))
        whole = artifact.read()
        harmless = 0
        for turn in range(times):
            file = artifact.files[turn % len(artifact.files)] if turn % 2 else _by_size(artifact, draw)
            good = file.read_bytes()
            bad = damage(good, draw)
            if bad == good:
                continue
            file.write_bytes(bad)
            tally.injected += 1
            harmless += _read_damaged(artifact, file, whole, tally)
            file.write_bytes(good)
        if artifact.read() != whole:
            tally.breach(f"{kind}: the file that was put back reads otherwise")
        if harmless:
            tally.notes.append(f"{kind}: {harmless} of {times} changed no value that is read (such as gzip's header)")
    _fall_back(damage, tally, draw, times, folder)
    return tally


def _read_damaged(artifact: Artifact, file: Path, whole: str, tally: Tally) -> bool:
    """Read and count; True where the values are as they were."""
    place = f"{artifact.kind}, {file.name}"
    try:
        found = artifact.read()
    except (CheckpointError, DataError) as error:
        tally.detected += 1
        if error.file is None or not (Path(error.file) == file or Path(error.file) in [artifact.root, *file.parents]):
            # A file that another one describes: the one that disagrees is named, and lies in the same folder.
            inside = error.file is not None and artifact.root in Path(error.file).parents
            if not inside:
                tally.breach(f"{place}: the error does not name the file: {error}")
    except RecsysEmbedError as error:
        tally.detected += 1
        tally.breach(f"{place}: {type(error).__name__} names no file: {error}")
    except Exception as error:
        tally.breach(f"{place}: {type(error).__name__} is not ours: {error}")
    else:
        if found == whole:
            tally.recovered += 1
            return True
        tally.silent += 1
        tally.breach(f"{place}: other values, and no error")
    return False


def _fall_back(damage: Damage, tally: Tally, draw: random.Random, times: int, folder: Path) -> None:
    """Where there is something to go back to, that is what is found: an older checkpoint, the rows of a data set."""
    home = fresh(folder / "fall-back")
    for turn in range(3):
        newest = make("checkpoint", home, turn=turn)
    before = make("checkpoint", fresh(folder / "expected"), turn=1).read()
    for _ in range(times):
        with _damaged(_by_size(newest, draw), damage, draw) as fired, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tally.injected += fired
            found = checkpoints.newest(newest.root.parent)
            same = found is not None and make("checkpoint", folder / "expected", turn=1).read() == before
            if not fired:
                continue
            if found is not None and found.path == newest.root:
                tally.silent += 1
            elif same:
                tally.detected += 1
                tally.recovered += 1
            else:
                tally.lost += 1
    data, frame = fresh(folder / "rows") / "data", table(400)
    prepare(frame, schema(), data)
    for _ in range(max(1, times // 10)):
        dataset = prepare(frame, schema(), data)
        whole = digest_dataset(dataset)
        files = sorted(file for file in data.rglob("*") if file.is_file())
        with _damaged(draw.choice(files), damage, draw, restore=False) as fired:
            tally.injected += fired
            again = digest_dataset(prepare(frame, schema(), data))
            tally.detected += fired
            tally.recovered += fired and again == whole
            tally.silent += again != whole


class _damaged:
    def __init__(self, file: Path, damage: Damage, draw: random.Random, *, restore: bool = True) -> None:
        self._file, self._damage, self._draw, self._restore = file, damage, draw, restore

    def __enter__(self) -> bool:
        self._good = self._file.read_bytes()
        bad = self._damage(self._good, self._draw)
        self._file.write_bytes(bad)
        return bad != self._good

    def __exit__(self, *_: object) -> None:
        if self._restore:
            self._file.write_bytes(self._good)


def _by_size(artifact: Artifact, draw: random.Random) -> Path:
    return draw.choices(artifact.files, [file.stat().st_size + 1 for file in artifact.files])[0]
