"""Clean data of several kinds: nothing in them is worth a warning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from recsys_embed.data import planted

ROWS = 4_000


def _zipf(rng: np.random.Generator, cardinality: int, rows: int = ROWS) -> np.ndarray:
    chance = np.arange(1, cardinality + 1) ** -0.9
    return rng.choice(rng.permutation(cardinality), rows, p=chance / chance.sum())


def _label(rng: np.random.Generator, *codes: np.ndarray, strength: float = 1.0) -> np.ndarray:
    logit = sum(strength * rng.normal(size=int(code.max()) + 1)[code] for code in codes)
    return (rng.random(len(codes[0])) < 1 / (1 + np.exp(-np.asarray(logit)))).astype(int)


def clicks(seed: int) -> pd.DataFrame:
    """Ids as digits, as hashes and as text, tags, and a price."""
    rng = np.random.default_rng(seed)
    user, item, site, city = (_zipf(rng, n) for n in (3_000, 800, 60, 12))
    price = rng.lognormal(2, 1, ROWS).round(2)
    return pd.DataFrame(
        {
            "click": _label(rng, user, item, site),
            "user_id": user + 10_000_000,
            "item": [f"{(one * 2_654_435_761) % 2**32:08x}" for one in item],
            "site": [f"www.site-{one}.com" for one in site],
            "city": np.array(["Zürich", "New York", "St. Gallen", "Łódź", *"abcdefgh"])[city],
            "tags": ["|".join(f"t{n}" for n in rng.integers(0, 15, rng.integers(1, 4))) for _ in range(ROWS)],
            "hour": rng.integers(0, 24, ROWS),
            "price": price,
        }
    )


def criteo(seed: int) -> pd.DataFrame:
    """Counts with blanks, and hashes, some of them mostly rare."""
    rng = np.random.default_rng(seed)
    codes = {f"C{i}": _zipf(rng, n) for i, n in enumerate((1_400, 550, 300, 20, 4, 3_000))}
    frame = pd.DataFrame({"label": _label(rng, codes["C1"], codes["C2"], strength=0.7)})
    for i in range(5):
        counts = np.minimum(rng.pareto(1, ROWS) * 3, 5_000).astype(int) - (3 if i == 1 else 0)
        frame[f"I{i}"] = pd.array(counts, "Int64")
        frame.loc[rng.random(ROWS) < 0.15 * i, f"I{i}"] = pd.NA
    for name, code in codes.items():
        frame[name] = [f"{(one * 40_503 + 7) % 2**32:08x}" for one in code]
        frame.loc[rng.random(ROWS) < 0.1, name] = None
    return frame


def survey(seed: int) -> pd.DataFrame:
    """People: words, amounts in whole numbers, a label in words."""
    rng = np.random.default_rng(seed)
    job, status, country = (_zipf(rng, n) for n in (15, 6, 40))
    age = rng.integers(17, 91, ROWS)
    answer = _label(rng, job, status, age)
    return pd.DataFrame(
        {
            "age": age,
            "job": np.array([f"Exec-managerial {one}" for one in range(15)])[job],
            "status": np.array(["Never-married", "Husband", "Smith, John", "a b c", "?", "None"])[status],
            "weekly_hours": rng.integers(1, 99, ROWS),
            "capital-gain": np.where(rng.random(ROWS) < 0.9, 0, rng.integers(100, 99_999, ROWS)),
            "sample_weight": rng.integers(12_000, 1_500_000, ROWS) // 50 * 50,
            "country": [f"country {one}" for one in country],
            "zip": [f"{one:05d}" for one in _zipf(rng, 900)],
            "subscribed": np.where(answer == 1, "yes", "no"),
        }
    )


def ratings(seed: int) -> pd.DataFrame:
    """Stars from 1 to 5, in the order of the users."""
    rng = np.random.default_rng(seed)
    user, movie = np.sort(_zipf(rng, 600)), _zipf(rng, 400)
    genres = [
        "|".join(rng.choice(["Action", "Children's", "Film-Noir", "Sci-Fi"], n, False)) for n in (1, 2, 2, 3) * 100
    ]
    quality = rng.normal(size=600)[user] + rng.normal(size=400)[movie] + rng.normal(size=ROWS)
    return pd.DataFrame(
        {
            "userId": user,
            "movieId": movie,
            "rating": np.clip(np.round(3.4 + quality), 1, 5).astype(int),
            "genres": np.array(genres)[movie],
        }
    )


def generated(seed: int) -> pd.DataFrame:
    """The package's own planted data."""
    return planted(rows=ROWS, cardinalities=(1_000, 500, 200, 50, 10), seed=seed)[0]


CLEAN: dict[str, Callable[[int], pd.DataFrame]] = {
    one.__name__: one for one in (clicks, criteo, survey, ratings, generated)
}


def shop(seed: int) -> pd.DataFrame:
    """The README's example, in which several things are worth a warning."""
    rng = np.random.default_rng(seed)
    user, item = _zipf(rng, 3_000), _zipf(rng, 800)
    kind = item % 7
    clicked = _label(rng, user, item, kind)
    return pd.DataFrame(
        {
            "session": [f"{(n * 2_654_435_761) % 2**32:08x}" for n in range(ROWS)],
            "time": 1_704_067_200 + np.sort(rng.integers(0, 30 * 86_400, ROWS)),
            "user": user + 10_000_000,
            "item": [f"{(one * 2_654_435_761) % 2**32:08x}" for one in item],
            "kind": np.array(["shoes", "shirts", "hats", "coats", "socks", "bags", "belts"])[kind],
            "kind_id": 100 + 7 * kind,
            "tags": ["|".join(f"t{n}" for n in rng.integers(0, 15, rng.integers(1, 4))) for _ in range(ROWS)],
            "age": pd.array(np.clip(rng.normal(40, 12, ROWS).round(), 16, 90), "Int64"),
            "price": rng.lognormal(2, 1, ROWS).round(2),
            "country": "CH",
            "seconds_on_page": np.where(clicked == 1, rng.integers(1, 300, ROWS), 0),
            "clicked": clicked,
        }
    )
