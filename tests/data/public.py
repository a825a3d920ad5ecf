"""Small files in the public formats, and the slow and plain way to read each: with `str.split` and `csv`."""

from __future__ import annotations

import csv
import gzip
import io
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, str]]
CRITEO = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]


@dataclass(frozen=True)
class Example:
    """A data set on the disk: its ``data`` table, and what the plain way finds in it, empty where missing."""

    data: dict[str, object]
    rows: Rows

    @property
    def path(self) -> str:
        return str(self.data["path"])


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def packed(data: bytes, name: str) -> bytes:
    """As the name says."""
    return zstd(data) if name.endswith(".zst") else gzip.compress(data, mtime=0) if name.endswith(".gz") else data


def criteo_text(rows: int, seed: int = 0, *, labels: bool = True) -> str:
    """A category may hold what CSV would take for a quote; cells are missing; I2 is sometimes -1."""
    draw, lines = random.Random(seed), []
    for i in range(rows):
        numbers = [str(draw.randrange(-1, 50)) if draw.random() < 0.8 else "" for _ in range(13)]
        words = [draw.choice(["68fd1e64", "80e26c9b", '"', "", f"{draw.randrange(30):08x}"]) for _ in range(26)]
        label = i % 2 if draw.random() < 0.2 else int(words[0] == "68fd1e64")
        lines.append("\t".join([str(label), *numbers, *words][0 if labels else 1 :]))
    return "\n".join(lines) + "\n"


def criteo_rows(text: str) -> Rows:
    names = CRITEO if text.split("\n")[0].count("\t") == 39 else CRITEO[1:]
    return [dict(zip(names, line.split("\t"), strict=True)) for line in text.split("\n") if line]


def criteo(folder: Path, name: str = "train.txt") -> Example:
    text = criteo_text(300)
    (folder / name).write_bytes(packed(text.encode(), name))
    return Example({"path": str(folder / name), "format": "criteo"}, criteo_rows(text))


def criteo_days(folder: Path) -> Example:
    """Days of the 1 TB set, of which the tenth comes after the second."""
    rows: Rows = []
    for day in (0, 1, 2, 10):
        text = criteo_text(80, seed=day)
        (folder / f"day_{day}.gz").write_bytes(gzip.compress(text.encode()))
        rows += criteo_rows(text)
    (folder / "readme.txt").write_text("about the days\n")
    return Example({"path": str(folder), "format": "criteo"}, rows)


def avazu(folder: Path) -> Example:
    draw = random.Random(1)
    names = "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,"
    names += "device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
    lines = [names]
    for i in range(300):
        hour = f"1410{draw.randrange(21, 31)}{draw.randrange(24):02}"
        cells = [f"{draw.randrange(12):08x}" for _ in range(21)]
        click = i % 2 if draw.random() < 0.2 else int(cells[2] < "00000006")
        lines.append(",".join([str(10**19 + i), str(click), hour, *cells]))
    text = "\r\n".join(lines) + "\r\n"
    (folder / "train.gz").write_bytes(gzip.compress(text.encode()))
    days = {
        21: "Tue",
        22: "Wed",
        23: "Thu",
        24: "Fri",
        25: "Sat",
        26: "Sun",
        27: "Mon",
        28: "Tue",
        29: "Wed",
        30: "Thu",
    }
    rows = list(csv.DictReader(io.StringIO(text)))
    for row in rows:
        row |= {"hour_of_day": str(int(row["hour"][6:])), "weekday": days[int(row["hour"][4:6])]}
    (folder / "test.gz").write_bytes(gzip.compress(b"id,hour\r\n1,14103100\r\n"))
    return Example({"path": str(folder), "format": "avazu"}, rows)


def movielens_1m(folder: Path) -> Example:
    draw = random.Random(2)
    genres = ["Action", "Comedy", "Children's", "Film-Noir"]
    users = [f"{u}::{'FM'[u % 2]}::{[1, 18, 25][u % 3]}::{u % 5}::{10000 + u}" for u in range(1, 31)]
    movies = [f"{m}::Été: part {m} (1995)::{'|'.join(draw.sample(genres, 1 + m % 3))}" for m in range(1, 21)]
    ratings = []
    for i in range(400):
        user, movie = draw.randrange(1, 31), draw.randrange(1, 21)
        rating = draw.randrange(1, 6) if draw.random() < 0.2 else 1 + 4 * ((user + movie) % 2)
        ratings.append(f"{user}::{movie}::{rating}::{978300760 + i}")
    for name, lines in (("ratings", ratings), ("users", users), ("movies", movies)):
        (folder / f"{name}.dat").write_bytes(("\n".join(lines) + "\n").encode("latin-1"))
    of_user = {line.split("::")[0]: line.split("::")[1:] for line in users}
    of_movie = {line.split("::")[0]: line.split("::")[1:] for line in movies}
    names = ["user_id", "movie_id", "rating", "timestamp", "gender", "age", "occupation", "zip", "title", "genres"]
    rows = []
    for line in ratings:
        cells = line.split("::")
        rows.append(dict(zip(names, [*cells, *of_user[cells[0]], *of_movie[cells[1]]], strict=True)))
    return Example({"path": str(folder), "format": "movielens_1m"}, rows)


def movielens_25m(folder: Path) -> Example:
    draw = random.Random(3)
    movies = "movieId,title,genres\r\n"
    for m in range(1, 21):
        movies += f'{m},"Film, The ""{m}th"" (2001)",{"Drama|War" if m % 2 else "(no genres listed)"}\r\n'
    ratings = "userId,movieId,rating,timestamp\r\n"
    for i in range(400):
        user, movie = draw.randrange(1, 31), draw.randrange(1, 21)
        rating = draw.randrange(1, 11) / 2 if draw.random() < 0.2 else 0.5 + 4.5 * (movie % 2)
        ratings += f"{user},{movie},{rating},{1147880044 + i}\r\n"
    (folder / "ratings.csv").write_bytes(ratings.encode())
    (folder / "movies.csv").write_bytes(movies.encode())
    (folder / "tags.csv").write_bytes(b"userId,movieId,tag,timestamp\r\n1,1,classic,1439472355\r\n")
    known = {row["movieId"]: row for row in csv.DictReader(io.StringIO(movies))}
    rows = [{**row, **known[row["movieId"]]} for row in csv.DictReader(io.StringIO(ratings))]
    return Example({"path": str(folder), "format": "movielens_25m"}, rows)


def zipped(example: Example, archive: Path, under: str) -> Example:
    """The same data set in an archive, as GroupLens packs it."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.mkdir(under)
        for one in sorted(Path(example.path).iterdir()):
            file.write(one, f"{under}/{one.name}")
    return Example({**example.data, "path": str(archive)}, example.rows)


def movielens_1m_zip(folder: Path) -> Example:
    (folder / "plain").mkdir()
    return zipped(movielens_1m(folder / "plain"), folder / "ml-1m.zip", "ml-1m")


def movielens_25m_zip(folder: Path) -> Example:
    (folder / "plain").mkdir()
    return zipped(movielens_25m(folder / "plain"), folder / "ml-25m.zip", "ml-25m")


def libsvm(folder: Path) -> Example:
    """Bags of indices, and index 900 with a number of its own."""
    draw, lines, rows = random.Random(4), ["# made for a test", ""], []
    for i in range(300):
        bag = sorted(draw.sample(range(1, 21), draw.randrange(0, 4)))
        label = i % 2 if draw.random() < 0.2 else int(any(index < 8 for index in bag))
        number = draw.choice(["", "0.25", "-3", "1", "1e2"])
        tokens = [*(f"{index}:{draw.choice(['1', '1.0'])}" for index in bag), *([f"900:{number}"] if number else [])]
        lines.append("  ".join([f"{2 * label - 1:+d}", *tokens, *(["# why"] if i % 50 == 0 else [])]))
        rows.append({"label": f"{2 * label - 1:+d}", "features": " ".join(map(str, bag)), "value_900": number or "0"})
    (folder / "rows.libsvm").write_text("\n".join(lines))
    data = {"path": str(folder / "rows.libsvm"), "format": "libsvm", "numeric": ["value_900"]}
    return Example(data, rows)


def libffm(folder: Path) -> Example:
    """Three fields; the third holds several indices, zeros among them; indices of fields 0 and 1 are the same."""
    draw, lines, rows = random.Random(5), [], []
    for i in range(300):
        one, two, bag = draw.randrange(9), draw.randrange(9), sorted(draw.sample(range(50, 60), draw.randrange(3)))
        label = i % 2 if draw.random() < 0.2 else int(one < 4)
        tokens = [f"0:{one}:1", f"1:{two}:1", *(f"12:{index}:1" for index in bag), "12:99:0"]
        lines.append("\t".join([str(label), *tokens]))
        rows.append(
            {
                "label": str(label),
                "features": " ".join([f"0:{one}", f"1:{two}", *(f"12:{index}" for index in bag)]),
                "field_0": str(one),
                "field_1": str(two),
                "field_12": " ".join(map(str, bag)),
            }
        )
    (folder / "rows.ffm").write_text("\n".join(lines) + "\n")
    return Example({"path": str(folder / "rows.ffm"), "format": "libsvm"}, rows)


def plain_rows() -> Rows:
    draw = random.Random(6)
    rows = []
    for i in range(300):
        user = draw.randrange(20)
        click = i % 2 if draw.random() < 0.2 else int(user < 10)
        rows.append({"click": str(click), "user": f"u{user}", "said": draw.choice(["NA", 'a "b"', "x,y", "", "z\nz"])})
    return rows


PLAIN = {"label": "click", "categorical": ["user", "said"]}


def csv_bytes(rows: Rows) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def csv_zst(folder: Path) -> Example:
    rows = plain_rows()
    (folder / "rows.csv.zst").write_bytes(zstd(csv_bytes(rows)))
    return Example({"path": str(folder / "rows.csv.zst"), **PLAIN}, rows)


def csv_zip(folder: Path) -> Example:
    """Members of several kinds are read one after the other, in the order of their names."""
    rows = plain_rows()
    with zipfile.ZipFile(folder / "rows.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("b.csv.gz", gzip.compress(csv_bytes(rows[100:200])))
        file.writestr("a.csv", csv_bytes(rows[:100]))
        file.writestr("c.csv.zst", zstd(csv_bytes(rows[200:])))
        file.writestr("notes.md", "not data")
    return Example({"path": str(folder / "rows.zip"), **PLAIN}, rows)


def parquet_folder(folder: Path) -> Example:
    rows = plain_rows()
    for i, part in enumerate((rows[:150], rows[150:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"part-{i}.parquet")
    return Example({"path": str(folder), **PLAIN}, rows)


EXAMPLES: dict[str, Callable[[Path], Example]] = {
    "criteo": criteo,
    "criteo gz": lambda folder: criteo(folder, "train.txt.gz"),
    "criteo zst": lambda folder: criteo(folder, "train.txt.zst"),
    "criteo days": criteo_days,
    "avazu": avazu,
    "movielens_1m": movielens_1m,
    "movielens_1m zip": movielens_1m_zip,
    "movielens_25m": movielens_25m,
    "movielens_25m zip": movielens_25m_zip,
    "libsvm": libsvm,
    "libffm": libffm,
    "csv zst": csv_zst,
    "csv zip": csv_zip,
    "parquet folder": parquet_folder,
}
