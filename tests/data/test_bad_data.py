"""Bad data, one case an id: the exact place in the error, the exact counts where rows are skipped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

import recsys_embed.data
from bench.injections.bad_data import play
from bench.injections.data_cases import CASES, Case, documented, schema, table
from recsys_embed.data import counting, prepare
from recsys_embed.errors import DataError


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_data_is_named_skipped_or_read_as_it_stands(case: Case, tmp_path: Path) -> None:
    assert play(case, tmp_path) == []


def test_the_cases_are_those_of_the_document() -> None:
    """After a change: ``python -c "from bench.injections.data_cases import documented; print(documented())"``."""
    assert len({case.name for case in CASES}) == len(CASES) > 40
    document = Path(recsys_embed.data.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert document.endswith(f"\n\n{documented()}\n")


def test_more_ids_than_32_bits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "LARGEST", 5)
    with pytest.raises(DataError, match="has 6 ids, and 32 bits hold 5") as caught:
        prepare(table(), schema())
    assert caught.value.column == "user"
    prepare(table(), schema(max_vocabulary=4))


def test_a_file_that_would_be_in_two_splits(kit: SimpleNamespace, tmp_path: Path) -> None:
    path = kit.write(kit.table(), tmp_path / "rows.csv")
    (tmp_path / "again.csv").symlink_to(path)
    files = {
        "train": str(path),
        "val": str(kit.write(kit.table(), tmp_path / "v.csv")),
        "test": str(tmp_path / "again.csv"),
    }
    tree = kit.config(path).model_dump(exclude={"path", "split"})
    config = type(kit.config(path)).model_validate({**tree, "split": {"files": files}})
    with pytest.raises(DataError, match="its rows would be in 'train' and in 'test'") as caught:
        prepare(config, tmp_path / "out")
    assert caught.value.file == files["test"]


def test_a_number_is_no_name_of_a_column() -> None:
    frame = pd.DataFrame({1: ["a"], "label": ["1"]})
    with pytest.raises(DataError, match="there is no such column; there are int 1, label"):
        prepare(frame, {"categorical": ["1"]})
