"""One training of an encoded data set into an output folder: checkpoints, the model, and its run in MLflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from recsys_embed import ranks
from recsys_embed.config import Config, TrackingConfig
from recsys_embed.data import EncodedDataset
from recsys_embed.export import export
from recsys_embed.files import atomic_write
from recsys_embed.report.run import Begin, Cell, Trained, train_and_measure, whole
from recsys_embed.tracking import Tracker, new_handle
from recsys_embed.training.checkpoints import peek
from recsys_embed.training.kept import kept_of

MODEL, CHECKPOINTS, MLFLOW_MODELS = "model", "checkpoints", "mlflow-models"


def train_into(
    config: Config,
    dataset: EncodedDataset,
    out: Path,
    *,
    job: str = "train",
    files: Sequence[Path] = (),
    begin: Begin | None = None,
    begun_from: str = "",
    at_end: Callable[[Trained, Tracker], None] | None = None,
    progress: bool = True,
) -> tuple[Path, Trained]:
    """Train, evaluate, export into ``out/model``, track; go on with what an earlier call has begun.

    On several ranks all of them call; the first one writes, exports and tracks.

    Args:
        job: what the run in MLflow is called after.
        files: of the job, to be tracked.
        begin: puts the model and its optimizers where training begins, instead of initial vectors.
        begun_from: what ``begin`` goes on from; checkpoints of another are not taken up.
        at_end: called on the first rank with the exported model and the tracker, whose run ends afterwards.

    Raises:
        DivergedError: a loss or gradient was not finite.
    """
    first = ranks.own() == 0
    cell = Cell(config, "" if config.embedding.budget is None else str(config.embedding.budget))
    tracked = config if first else config.model_copy(update={"tracking": TrackingConfig(enabled=False)})
    # By what is trained, wherever: another config's checkpoints are never taken up, another device's are.
    checkpoints = out / CHECKPOINTS / (cell.digest(dataset.fingerprint, anywhere=True) + begun_from)
    meta = {"tracking": peek(checkpoints).get("meta", {}).get("tracking") or new_handle()}  # of the run to go on with
    tracker = Tracker(tracked, f"{job} {dataset.name} {cell.strategy}", job=job, handle=meta["tracking"])
    status = "FAILED"
    try:
        if first:
            atomic_write(out / "config.toml", config.to_toml())
            tracker.artifacts(files)
        trained = train_and_measure(
            cell, dataset, checkpoints=checkpoints, progress=progress, on_epoch=tracker.epoch, meta=meta, begin=begin
        )
        trained = replace(trained, model=whole(trained.model))
        with ranks.alone():
            model = out / MODEL
            if first:
                export(trained.model, config, dataset.encoder, model, checkpoint=kept_of(checkpoints, trained.model))
            tracker.training(config, trained.row, ledger=trained.ledger, features=dataset.features, nested=False)
            tracker.artifacts([model / "manifest.json"], tags={"recsys_embed.model": str(model.resolve())})
            if config.tracking.log_model:
                # By the run's identity: files that a server has not taken yet are never those of another model.
                tracker.model(model, out / MLFLOW_MODELS / cell.digest(dataset.fingerprint))
            if first and at_end is not None:
                at_end(trained, tracker)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.close(status)
    trained.row["mlflow_run_id"] = tracker.run_id or ""
    return model, trained
