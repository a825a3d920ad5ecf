"""Values that are forgotten: gone from ids, from what waits, from crosses, and from every file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recsys_embed.config import DataConfig, GrowthConfig
from recsys_embed.data import EncodedDataset, Encoder, continue_data, prepare
from recsys_embed.data.forgetting import Removal, forget
from recsys_embed.errors import DataError

CONFIG = DataConfig.model_validate(
    {
        "path": "frame",
        "label": "clicked",
        "categorical": ["user", "friend", "city", "ip"],
        "crosses": {"where": ["user", "city"], "shop": ["store", "city"]},
        "vocabulary": {"friend": "user"},
        "columns": {"ip": {"raw_hash": True}},
        "split": {"column": "part"},
    }
)


def rows(users: list[str], cities: list[str]) -> pd.DataFrame:
    size = 12 * len(users) * len(cities)
    return pd.DataFrame(
        {
            "clicked": [str(i // 6 % 2) for i in range(size)],
            "part": np.resize(["train", "train", "train", "train", "val", "test"], size),
            "user": np.resize(np.repeat(users, 12), size),
            "friend": np.resize(["f1", "f2"], size),
            "city": np.repeat(cities, size // len(cities)),
            "store": np.resize(["s1", "s2"], size),
            "ip": np.resize(["x", "y"], size),
        }
    )


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> list[EncodedDataset]:
    """A day, and one whose values need more occurrences than its new ones have."""
    folder = tmp_path_factory.mktemp("forget")
    first = rows(["anna", "bob", "s\x1fe\x1ecret"], ["Bonn", "annaberg"])
    one = prepare(CONFIG, folder / "one", frame=first)
    second = rows(["anna", "zoe"], ["Bonn", "Ulm"])
    growth = GrowthConfig(admit_count=20)
    two = continue_data(CONFIG, one.path / "encoder", folder / "two", growth=growth, frame=second)
    return [one, two]


def words(encoder: Encoder, name: str) -> list[str | None]:
    found: list[str | None] = encoder.vocabularies[name].values.to_pylist()
    return found


@pytest.mark.parametrize("night", [0, 1])
@pytest.mark.parametrize("name", ["user", "friend"])
def test_a_value_is_in_no_file_and_its_id_is_a_hole(
    nights: list[EncodedDataset], tmp_path: Path, night: int, name: str
) -> None:
    old = nights[night].encoder
    found = forget(old, [(name, "bob")])
    found.encoder.save(tmp_path)
    for file in tmp_path.iterdir():
        assert b"bob" not in file.read_bytes()
    encoder = Encoder.load(tmp_path)
    (removal,) = found.became
    assert (removal.was, removal.vocabulary, removal.crossed) == ("known", "user", 2)
    assert removal.count == 16  # train rows of two cities
    assert removal.id == words(old, "user").index("bob") + 1
    assert found.renewals["user"].reset.tolist() == [removal.id]
    crossed = [i for i, word in enumerate(words(old, "where"), 1) if word is not None and "bob" in word]
    assert found.renewals["where"].reset.tolist() == crossed
    assert len(crossed) == 2
    assert found.renewals.keys() == {"user", "where"}
    for vocabulary in old.vocabularies:
        gone = found.renewals[vocabulary].reset.tolist() if vocabulary in found.renewals else []
        kept = [None if i in gone else word for i, word in enumerate(words(old, vocabulary), 1)]
        assert words(encoder, vocabulary) == kept
    assert [f.size for f in encoder.features if not f.hashed] == [f.size for f in old.features if not f.hashed]
    frame = rows(["bob"], ["Bonn"]).head(1)
    ids = encoder.encode(frame).ids.values[:, 0].tolist()
    places = {feature.name: ids[i] for i, feature in enumerate(encoder.features)}
    assert (places["user"], places["where"]) == (0, 0)
    assert places["city"] > 0


def test_what_waits_and_what_is_escaped_is_forgotten(nights: list[EncodedDataset], tmp_path: Path) -> None:
    old = nights[1].encoder
    assert "zoe" not in words(old, "user")  # eight rows of each city: sixteen, and of each cross eight
    found = forget(
        old, [("user", "zoe"), ("user", "s\x1fe\x1ecret"), ("store", "s1"), ("ip", "x"), ("city", "nowhere")]
    )
    assert [(one.was, one.crossed) for one in found.became] == [
        ("pending", 2), ("known", 2), ("crossed", 3), ("hashed", 0), ("absent", 0),
    ]  # fmt: skip
    found.encoder.save(tmp_path)
    for file in tmp_path.iterdir():
        data = file.read_bytes()
        assert not any(word in data for word in (b"zoe", b"cret", b"s1"))
    assert "annaberg" in words(found.encoder, "city")


def test_one_who_is_forgotten_comes_again_as_never_seen(nights: list[EncodedDataset], tmp_path: Path) -> None:
    found = forget(nights[0].encoder, [("user", "bob"), ("user", "bob")])
    assert len(found.became) == 1
    found.encoder.save(tmp_path / "encoder")
    day = rows(["bob", "anna"], ["Bonn"])
    again = continue_data(CONFIG, tmp_path / "encoder", tmp_path / "out", growth=GrowthConfig(), frame=day)
    account, (removal,) = again.renewals["user"], found.became
    assert words(again.encoder, "user")[removal.id - 1] == "bob"  # type: ignore[operator]
    assert (account.admitted, account.reset.tolist()) == (1, [removal.id])
    life = again.encoder.histories["user"].life
    assert (life.admitted[removal.id], life.count[removal.id]) == (1, 8)
    total = sum(int((frame.part == "train").sum()) for frame in (day, rows(["anna"] * 3, ["Bonn"] * 2)))
    assert life.count.sum() == 2 * total  # users and friends


def test_an_unknown_name_is_an_error(nights: list[EncodedDataset]) -> None:
    with pytest.raises(DataError, match="no such feature; there are user") as caught:
        forget(nights[0].encoder, [("usr", "bob")])
    assert caught.value.value == "usr"


def test_nothing_found_changes_nothing(nights: list[EncodedDataset]) -> None:
    encoder = nights[1].encoder
    found = forget(encoder, [("city", "Atlantis")])
    assert found.became == (Removal("city", "Atlantis", "city", "absent", None, 0, 0),)
    assert found.renewals == {}
    for name, vocabulary in encoder.vocabularies.items():
        assert found.encoder.vocabularies[name] is vocabulary
