"""What a job logs, as plain values that a file can keep, within MLflow's limits."""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import xxhash

from recsys_embed.config import Config, DataConfig
from recsys_embed.features import Feature
from recsys_embed.ledger import VOCABULARY
from recsys_embed.provenance import versions
from recsys_embed.tracking.spool import Operation
from recsys_embed.tracking.uris import shown

CONFIG_DIGEST, WORKING_FOLDER = "recsys_embed.config_digest", "recsys_embed.working_folder"
MODEL = PurePosixPath("model")
_PARAM_LIMIT, _BATCH, _METRICS, _TAG_LIMIT = 6000, 100, 800, 5000


def creation(
    run: int, name: str, *, job: str, experiment: str, parent: int | None = None, handle: str | None = None
) -> Operation:
    """A new run, nested under ``parent`` if there is one; or the one that has the ``handle``, if there is one."""
    tags = {"mlflow.source.name": f"recsys-embed {job}"}
    with contextlib.suppress(Exception):  # no user name on this system
        tags["mlflow.user"] = getpass.getuser()
    return {
        "do": "create",
        "run": run,
        "parent": parent,
        "name": name,
        "tags": tags,
        "experiment": experiment,
        "handle": handle,
        "time": _now(),
    }


def description(run: int, config: Config, *, borrowed: bool = False) -> list[Operation]:
    """Config as parameters and as a file, versions as tags. The store's user and password are left out."""
    tracking = config.tracking.model_copy(update={"uri": shown(config.tracking.uri)})
    text = config.model_copy(update={"tracking": tracking}).to_toml()
    params = list(flatten(config.model_dump(mode="json", exclude={"tracking"})).items())
    tags = {f"version.{name}": version for name, version in versions().items()}
    tags |= {CONFIG_DIGEST: xxhash.xxh3_64_hexdigest(text.encode()), WORKING_FOLDER: str(Path.cwd())}
    batches: list[Operation] = [
        {"do": "log", "run": run, "params": dict(params[start : start + _BATCH]), "borrowed": borrowed}
        for start in range(0, len(params), _BATCH)
    ]
    return [*batches, *logs(run, tags=tags), text_file(run, "config.toml", text)]


def logs(
    run: int,
    *,
    epochs: Sequence[Mapping[str, Any]] = (),
    metrics: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> list[Operation]:
    """Metrics and tags in batches that MLflow accepts."""
    now, logged, labels = _now(), [], dict(tags or {})
    # The validation AUC of the kept weights would otherwise overwrite the curve of the same name.
    finals = {("best_val_auc" if key == "val_auc" else key): value for key, value in (metrics or {}).items()}
    for values, step in [*((epoch, int(epoch["epoch"])) for epoch in epochs), (finals, 0)]:
        for key, value in values.items():
            if key in ("epoch", "seed", "dim") or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if math.isfinite(value):
                logged.append([key, float(value), now, step])
            else:
                labels[f"not_finite.{key}"] = f"{value} at step {step}"
    pairs = [(key, value[:_TAG_LIMIT]) for key, value in labels.items()]
    count = max(-(-len(logged) // _METRICS), -(-len(pairs) // _BATCH))
    return [
        {
            "do": "log",
            "run": run,
            "metrics": logged[n * _METRICS : (n + 1) * _METRICS],
            "tags": dict(pairs[n * _BATCH : (n + 1) * _BATCH]),
        }
        for n in range(count)
    ]


def text_file(run: int, name: str, text: str) -> Operation:
    """A file with this text."""
    return {"do": "text", "run": run, "file": name, "text": text, "apart": True}


def end(run: int, status: str) -> Operation:
    """The end of a run."""
    return {"do": "end", "run": run, "status": status, "time": _now()}


def _now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def upload(run: int, file: Path, to: str = "") -> Operation:
    """A file as it is when it is delivered, into the folder ``to`` of the run's artifacts."""
    return {"do": "file", "run": run, "path": str(file.absolute()), "to": to, "apart": True}


def model_files(run: int, folder: Path) -> list[Operation]:
    """The files of an MLflow model, one by one: what was delivered of a large one need not be sent again.

    ``MLmodel``, by which MLflow knows a model, comes last.
    """
    files = sorted(
        (file for file in folder.rglob("*") if file.is_file()), key=lambda file: (file.name == "MLmodel", file)
    )
    return [upload(run, file, (MODEL / file.parent.relative_to(folder)).as_posix()) for file in files]


def champion(run: int, name: str, alias: str) -> Operation:
    """The model that a run has logged becomes a version of a registered one, and the alias moves to it."""
    return {"do": "champion", "run": run, "name": name, "alias": alias, "apart": True}


def data_set(run: int, name: str, fingerprint: str, data: DataConfig) -> Operation:
    """The data that a run read."""
    source = json.dumps(data.model_dump(mode="json", exclude_none=True))[:60_000]
    return {"do": "data", "run": run, "name": name, "digest": fingerprint[:36], "source": source}


# --- shapes --------------------------------------------------------------------------------------------------


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted parameters within MLflow's limits. Lists, and tables whose keys it would refuse, are JSON."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and all(re.fullmatch(r"\w+", str(name)) for name in value):
            flat |= flatten(value, f"{path}.")
        elif value is not None:
            flat[path[:250]] = (value if isinstance(value, str) else json.dumps(value))[:_PARAM_LIMIT]
    return flat


def sizes_of(ledger: pd.DataFrame, features: Sequence[Feature]) -> pd.DataFrame:
    """Cardinality beside the rows and width of every table that a feature reads: one file, not a thousand metrics."""
    columns = ["feature", "part", "table", "rows", "width", "serve_bytes"]
    sizes = pd.DataFrame({"feature": [f.name for f in features], "cardinality": [f.cardinality for f in features]})
    return ledger.loc[ledger["part"] != VOCABULARY, columns].merge(sizes, on="feature", how="outer")
