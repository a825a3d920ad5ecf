"""What prediction takes from the data is a function of the training rows alone, whatever the features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from recsys_embed.config import DataConfig
from recsys_embed.data import prepare

Frames = dict[str, pd.DataFrame]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "limits": {"min_count": 2, "columns": {"user": {"max_vocabulary": 5}, "city": {"missing": "own"}}},
    "derived": {"crosses": {"both": ["user", "city"]}, "buckets": {"price": 4}, "numeric": {"price": "log"}},
    "shared": {"vocabulary": {"city": "user"}},
}


def fewer(parts: Frames) -> Frames:
    """Of validation and test two rows each."""
    return {**parts, "val": parts["val"].head(2), "test": parts["test"].head(2)}


def other(parts: Frames) -> Frames:
    """New values, extreme numbers, turned labels."""
    new = {"user": "new", "city": "01", "tags": "t1|new", "price": "1e9"}
    turned = {name: parts[name].assign(**new, clicked=1 - parts[name].clicked.astype(int)) for name in ("val", "test")}
    return {**parts, **{name: frame.astype(str) for name, frame in turned.items()}}


def again(parts: Frames) -> Frames:
    """Training rows as test rows, and validation ones too."""
    return {**parts, "val": parts["train"], "test": pd.concat([parts["test"], parts["train"], parts["train"]])}


def state(
    kit: SimpleNamespace, parts: Frames, folder: Path, by_file: bool, options: dict[str, Any]
) -> dict[str, bytes]:
    """The bytes of the encoder's files."""
    folder.mkdir()
    if by_file:
        files = {name: str(kit.write(frame, folder / f"{name}.csv")) for name, frame in parts.items()}
        tree = kit.config(folder, **options).model_dump(exclude={"path", "split"})
        config = DataConfig.model_validate({**tree, "split": {"files": files}})
    else:
        whole = pd.concat([frame.assign(part=name) for name, frame in parts.items()])
        config = kit.config(kit.write(whole, folder / "rows.csv"), **options)
    prepare(config, folder / "out", workers=1)
    return {path.name: path.read_bytes() for path in sorted((folder / "out" / "encoder").iterdir())}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("by_file", [False, True], ids=["column", "files"])
def test_held_out_rows_change_no_byte_of_the_encoder(
    kit: SimpleNamespace, tmp_path: Path, by_file: bool, options: dict[str, Any]
) -> None:
    table = kit.table()
    parts = {name: table[table.part == name] for name in ("train", "val", "test")}
    changes: list[Callable[[Frames], Frames]] = [fewer, other, again]
    before = state(kit, parts, tmp_path / "before", by_file, options)
    assert len(before) >= 3
    for change in changes:
        assert state(kit, change(parts), tmp_path / change.__name__, by_file, options) == before
    fewer_users = {**parts, "train": parts["train"].assign(user="u1")}
    assert state(kit, fewer_users, tmp_path / "trained", by_file, options) != before
