"""F18: artifacts from a stranger. None runs code, none makes us write outside the folder it lies in.

The stranger knows our formats: manifests are rewritten to fit what was planted. Every file of every artifact is
replaced by a pickle, and by one in torch's zip, whose loading would make a folder; then come hostile cases one by one.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import recsys_embed
from bench.injections.artifacts import MAKERS, configured, fresh, make, schema, table
from bench.injections.tally import Scale, Tally
from recsys_embed.config import load_config, parse_config
from recsys_embed.data import EncodedDataset, Encoder, prepare
from recsys_embed.data.readers import read_frames
from recsys_embed.errors import RecsysEmbedError
from recsys_embed.export import export, load
from recsys_embed.files import MANIFEST, write_manifest
from recsys_embed.layer import EmbeddingLayer
from recsys_embed.recommender import build_recommender
from recsys_embed.report.results import predictions_path
from recsys_embed.training import checkpoints

FORBIDDEN = re.compile(
    r"pickle\.loads?\(|torch\.load\(|(?<![.\w])(?:eval|exec)\(|yaml\.(?:unsafe_)?load\(|extractall\(|shell=True|os\.system"
)


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        """What ``pickle.load`` would call."""
        return os.mkdir, (str(self.canary),)


def inject(scale: Scale, folder: Path) -> Tally:
    """Every planted pickle and every hostile artifact, each once; they are the same at all scales."""
    tally, canary = Tally(), folder / "executed"
    _arm(canary, tally)
    for kind in MAKERS:
        _plant(kind, fresh(folder / "planted"), canary, tally)
    for name, attack in _attacks(fresh(folder / "attacks"), canary):
        _one(name, attack, folder, canary, tally)
    _source(tally)
    return tally


def _arm(canary: Path, tally: Tally) -> None:
    """The bomb goes off where it can: otherwise nothing below would mean anything."""
    pickle.loads(pickle.dumps(Bomb(canary)))
    if not canary.exists():
        tally.breach("the planted pickle does nothing even when it is loaded")
    else:
        canary.rmdir()


def _plant(kind: str, folder: Path, canary: Path, tally: Tally) -> None:
    plain = pickle.dumps(Bomb(canary))
    zipped = io.BytesIO()
    torch.save({"x": Bomb(canary)}, zipped)
    artifact = make(kind, folder)
    for file in artifact.files:
        whole = file.read_bytes()
        kept = {one: one.read_bytes() for one in artifact.files}
        for payload in (plain, zipped.getvalue()):
            file.write_bytes(payload)
            if artifact.root.is_dir() and file.name != MANIFEST:
                write_manifest(artifact.root)
            _one(f"pickle as {kind}, {file.name}", artifact.read, folder, canary, tally, refused=True)
            for one, data in kept.items():
                one.write_bytes(data)
        assert file.read_bytes() == whole


def _one(
    name: str, attack: Callable[[], object], folder: Path, canary: Path, tally: Tally, *, refused: bool = False
) -> None:
    outside = folder.parent / "escaped"
    tally.injected += 1
    try:
        attack()
    except RecsysEmbedError:
        tally.detected += 1
    except Exception as error:
        tally.breach(f"{name}: {type(error).__name__} is not ours: {str(error)[:150]}")
    else:
        tally.recovered += not refused
        if refused:
            tally.silent += 1
            tally.breach(f"{name}: was taken")
    for trace in (canary, outside):
        if trace.exists():
            tally.silent += 1
            tally.breach(f"{name}: {'code was executed' if trace == canary else 'a file was written outside'}")
            shutil.rmtree(trace, ignore_errors=True)


def _attacks(home: Path, canary: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    call = f"__import__('os').mkdir({str(canary)!r})"
    escape = os.path.relpath(home.parent.parent / "escaped", home)

    model = make("model folder", home).root

    def hostile_model(change: Callable[[Path], object]) -> Callable[[], object]:
        def attack() -> object:
            copy = fresh(home / "copy") / "model"
            shutil.copytree(model, copy)
            change(copy)
            write_manifest(copy)
            return load(copy).predict(table(5))

        return attack

    def encoder_says(key: str, value: Any) -> Callable[[Path], object]:
        def change(copy: Path) -> object:
            path = copy / "encoder" / "encoder.json"
            return path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

        return change

    def config_says(text: str) -> Callable[[Path], object]:
        return lambda copy: (copy / "config.toml").write_text(text)

    def dcp() -> object:
        place = fresh(home / "dcp") / "step-00000001"
        place.mkdir()
        (place / ".metadata").write_bytes(pickle.dumps(Bomb(canary)))
        (place / "__0_0.distcp").write_bytes(b"")
        write_manifest(place)
        return checkpoints.load(place)

    def yaml() -> object:
        path = home / "config.yaml"
        path.write_text(f"!!python/object/apply:os.mkdir [{str(canary)!r}]\n")
        return load_config(path)

    def tar_names() -> object:
        """Names as in a hostile archive: a manifest that lists files outside."""
        copy = fresh(home / "copy") / "model"
        shutil.copytree(model, copy)
        text = (copy / MANIFEST).read_text().replace('"path": "config.toml"', f'"path": "{escape}"')
        (copy / MANIFEST).write_text(text)
        return load(copy)

    def absolute() -> object:
        copy = fresh(home / "copy") / "model"
        shutil.copytree(model, copy)
        text = (copy / MANIFEST).read_text().replace('"path": "config.toml"', '"path": "/etc/passwd"')
        (copy / MANIFEST).write_text(text)
        return load(copy)

    def symlink() -> object:
        """A link in the place of the folder that is to be written."""
        target = home.parent.parent / "escaped"
        link = fresh(home / "links") / "model"
        link.symlink_to(target)
        config = configured()
        dataset = prepare(table(600), schema(), home / "links-data")
        return export(build_recommender(config, dataset.features, len(dataset.dense)), config, dataset.encoder, link)

    def zip_bomb() -> object:
        """A gigabyte of one line in a megabyte."""
        path = home / "bomb.csv.gz"
        with gzip.open(path, "wb", compresslevel=9) as file:
            for _ in range(256):
                file.write(b"a" * (1 << 22))
        return _within(1 << 28, lambda: list(read_frames(path, ["user"])))

    def huge_string() -> object:
        path = home / "huge.parquet"
        cells = pa.array(["x" * (64 << 20), "y"])
        pq.write_table(pa.table({"user": cells}), path, compression="zstd")
        return _within(1 << 30, lambda: [len(frame) for frame in read_frames(path, ["user"])])

    def zip_model() -> object:
        """A zip with names that climb, in the place of the weights."""
        copy = fresh(home / "copy") / "model"
        shutil.copytree(model, copy)
        with zipfile.ZipFile(copy / "model.safetensors", "w") as file:
            file.writestr(escape, "escaped")
        write_manifest(copy)
        return load(copy)

    def named_outside() -> object:
        """Feature and table names that look like paths."""
        frame = table(600).rename(columns={"user": escape})
        dataset = prepare(frame, {**schema(), "categorical": [escape, "item"]}, home / "named")
        config = configured().model_copy(
            update={"data": configured(data={"categorical": [escape, "item"]}).data}  # as if read from a file
        )
        built = build_recommender(config, dataset.features, len(dataset.dense))
        return load(export(built, config, dataset.encoder, home / "named-model")).predict(frame.head(5))

    def environment() -> object:
        """Variables that open doors in libraries under us."""
        settings = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            return hostile_model(lambda copy: (copy / "model.safetensors").write_bytes(pickle.dumps(Bomb(canary))))()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def sklearn_pickle() -> object:
        place = fresh(home / "sklearn")
        (place / "encoder.json").write_bytes(pickle.dumps(Bomb(canary)))
        return Encoder.load(place)

    data = make("encoded data set", home / "set").root

    def data_set_says(**changed: Any) -> Callable[[], object]:
        def attack() -> object:
            copy = fresh(home / "copied") / "data"
            shutil.copytree(data, copy)
            path = copy / "schema.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
            write_manifest(copy)
            return EncodedDataset.open(copy).rows("train")

        return attack

    yield "metadata of a DCP folder", dcp
    yield "sklearn pickle as the encoder", sklearn_pickle
    yield "YAML tag", yaml
    yield "manifest with ../", tar_names
    yield "manifest with an absolute path", absolute
    yield "symbolic link as the target", symlink
    yield "gzip bomb", zip_bomb
    yield "parquet with a huge string", huge_string
    yield "zip with ../ as weights", zip_model
    yield "code in a config", lambda: parse_config({"data": {"path": call}, "model": {"name": call}})
    yield "code as a strategy", lambda: EmbeddingLayer([recsys_embed.Feature("x", 10)], 4, strategy=call)
    yield "code as a budget", lambda: EmbeddingLayer([recsys_embed.Feature("x", 10)], 4, budget=call)
    yield "code in an override", lambda: parse_config({"data": {"path": "x"}}, (f"model.dim={call}",))
    yield "names that are paths", named_outside
    yield "variables of the environment", environment
    yield (
        "a vocabulary elsewhere",
        hostile_model(encoder_says("vocabularies", {"user": "../../../escaped", "item": "/etc/passwd", "tags": "x"})),
    )
    yield "an encoder of no sense", hostile_model(encoder_says("scalers", [{"column": call}]))
    yield "a model config of no sense", hostile_model(config_says(f'[data]\npath = "x"\n[model]\nname = "{call}"\n'))
    yield "a table of 10^15 rows", hostile_model(encoder_says("features", [{"name": "user", "cardinality": 10**15}]))
    yield "a data set without features", data_set_says(features=None, rows=None)
    yield "predictions of a run named ../..", lambda: predictions_path(home, "../../escaped")


def _within(limit: int, attack: Callable[[], object]) -> object:
    """Do it, and raise where the peak of resident memory grew by more than ``limit`` bytes."""
    from recsys_embed.provenance import peak_rss_bytes, reset_peak_rss

    reset_peak_rss()
    before = peak_rss_bytes()
    try:
        return attack()
    finally:
        grown = peak_rss_bytes() - before
        if grown > limit:
            raise MemoryError(f"{grown / 1e6:.0f} MB were taken for it")


def _source(tally: Tally) -> None:
    """No call in the package that could run what it reads."""
    root = Path(recsys_embed.__file__).parent
    tally.injected += 1
    found = [
        f"{file.relative_to(root)}: {line.strip()}"
        for file in root.rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if FORBIDDEN.search(line)
    ]
    tally.recovered += not found
    tally.silent += bool(found)
    for one in found:
        tally.breach(f"in the source: {one}")
