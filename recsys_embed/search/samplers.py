"""Optuna studies of a search: who draws the proposals, and who is stopped early."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from recsys_embed.config import Config, SearchConfig
from recsys_embed.errors import ConfigError
from recsys_embed.provenance import code_digest, digest_of
from recsys_embed.search.storage import open_storage, optuna
from recsys_embed.seeds import seed_of

if TYPE_CHECKING:
    from optuna import Study

IDENTITY = "recsys_embed:identity"
SPACE_CODE = ("budget.py", "search/division.py", "search/space.py")
"""Sources that say what the parameters of a trial stand for."""


def objectives(method: str, search: SearchConfig) -> dict[str, str]:
    """What a sampled method optimises, with the direction."""
    if method != "pareto":
        return {"val_auc": "maximize"}
    return {"val_auc": "maximize", "serve_bytes": "minimize"} | ({"latency": "minimize"} if search.latency else {})


def open_study(config: Config, method: str, fingerprint: str, folder: Path) -> Study:
    """The study of a method where ``search.storage`` says, made or joined. ``folder`` is the search's.

    Raises:
        ConfigError: it is there, for another config or other data.
        CheckpointError: the storage cannot be opened.
    """
    library, search = optuna(), config.search
    study: Study = library.create_study(
        storage=open_storage(search.storage, folder),
        study_name=f"recsys_embed/{method}",
        directions=list(objectives(method, search).values()),
        load_if_exists=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", library.exceptions.ExperimentalWarning)
        study.set_metric_names(list(objectives(method, search)))
    identity = _identity(config, fingerprint)
    known = study.user_attrs.get(IDENTITY)
    if known is None:
        study.set_user_attr(IDENTITY, identity)
    elif known != identity:
        raise ConfigError(
            f"the study {study.study_name!r} in this storage is of another config, other data or another version of "
            "the code: give --out another folder, or search.storage another place",
            path="search.storage",
        )
    return study


def _identity(config: Config, fingerprint: str) -> str:
    """A digest of all that a trial's outcome depends on, and of the space: what may be changed is how many there are,
    who runs them, and what becomes of the best."""
    free = {"methods", "trials", "finalists", "seeds", "warm_start", "storage", "workers", "grace_seconds"}
    tree = config.model_dump(mode="json", include={"model", "embedding"})
    tree |= {"training": config.training.protocol(), "search": config.search.model_dump(mode="json", exclude=free)}
    code = [code_digest(), digest_of(SPACE_CODE)]
    return xxhash.xxh3_64_hexdigest(json.dumps([tree, fingerprint, code], sort_keys=True).encode())


def draw_by(study: Study, method: str, search: SearchConfig, slot: int) -> None:
    """Give the study the sampler and pruner of a slot's trial.

    What is drawn depends on the seed, on the slot and, unless the sampler is ``random``, on the trials that are done
    when it is drawn. So a search of one worker that was interrupted goes on as it would have, except with the pruner
    ``hyperband``, which asks for the number of a trial: that of a retried one is another.
    """
    library = optuna()
    seed = seed_of(f"{method}/0", slot, search.seed) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", library.exceptions.ExperimentalWarning)
        study.sampler = _sampler(library, method, search, seed)
        study.pruner = _pruner(library, method, search)


def _sampler(library: Any, method: str, search: SearchConfig, seed: int) -> Any:
    if method == "random" or search.sampler == "random":
        return library.samplers.RandomSampler(seed=seed)
    if search.sampler == "gp":
        return library.samplers.GPSampler(seed=seed, deterministic_objective=False)
    return library.samplers.TPESampler(seed=seed, constant_liar=True)


def _pruner(library: Any, method: str, search: SearchConfig) -> Any:
    if method == "pareto" or search.pruner == "none":
        return library.pruners.NopPruner()
    if search.pruner == "hyperband":
        return library.pruners.HyperbandPruner(min_resource=1, max_resource="auto")
    return library.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=0)
