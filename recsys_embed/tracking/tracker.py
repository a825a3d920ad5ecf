"""What a job calls to be tracked."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recsys_embed.config import Config
from recsys_embed.errors import StackError
from recsys_embed.features import Feature
from recsys_embed.tracking.operations import (
    champion,
    creation,
    data_set,
    description,
    end,
    logs,
    model_files,
    sizes_of,
    text_file,
    upload,
)
from recsys_embed.tracking.outbox import JOB, Direct, Outbox, Spooled
from recsys_embed.tracking.spool import Operation
from recsys_embed.tracking.store import quiet
from recsys_embed.tracking.uris import (
    INSTALL,
    available,
    experiment_name,
    is_default,
    is_local,
    reason,
    shown,
    tracking_uri,
)

CHAMPION = "champion"
_LOG = logging.getLogger("recsys_embed.tracking")


class Tracker:
    """Logs one job. Nothing is imported or contacted before the first call that logs.

    With a ``handle`` (:func:`~recsys_embed.tracking.new_handle`) the job goes on with the run that has it.

    Raises:
        StackError: MLflow is missing although the config names a URI of its own.
    """

    def __init__(self, config: Config, name: str, *, job: str, handle: str | None = None) -> None:
        self._config, self._name, self._job, self._handle = config, name, job, handle
        self._uri = tracking_uri(config.tracking)
        self._outbox: Outbox | None = None
        self._borrowed = False
        self._runs = 1
        self.left = 0
        """How many operations a server had not taken when the job was closed."""
        self._on = config.tracking.enabled
        if self._on and not available(self._uri):
            if not is_default(config.tracking):
                raise StackError(
                    f"tracking to {shown(self._uri)} needs MLflow: {INSTALL}", component="mlflow", mend=INSTALL
                )
            self._on = False
            _LOG.warning("MLflow is not installed, nothing is tracked: %s", INSTALL)

    @property
    def run_id(self) -> str | None:
        """The id of the job's own run once something was logged, else None.

        While a server has not created the run yet, ``pending-…``, which is also the run's tag ``recsys_embed.handle``.
        """
        return None if self._outbox is None else self._outbox.id(JOB)

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Log one epoch's metrics into the job's own run."""
        with self._safely():
            self._started().put(logs(JOB, epochs=[metrics]))

    def training(
        self,
        config: Config,
        row: Mapping[str, Any],
        *,
        history: Sequence[Mapping[str, Any]] = (),
        ledger: pd.DataFrame | None = None,
        features: Sequence[Feature] = (),
        nested: bool = True,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> str | None:
        """Log a finished training, as a run nested under the job's or into the job's own; return the run's id.

        A nested run has a ``name`` that says what was trained, where none is given; ``labels`` are tags beside ours.

        The id is as in :attr:`run_id`, and None when nothing was logged.
        """
        logged: str | None = None
        with self._safely():
            outbox = self._started()
            run, operations = JOB, []
            if nested:
                run, self._runs = self._runs, self._runs + 1
                tuned = f" tuned, epochs {config.training.epochs}" if row.get("tuned") else ""
                what = row.get("found_by") or row["strategy"]
                name = name or f"{what} {row['budget_requested'] or 'full size'}{tuned} seed {row['seed']}"
                operations += [self._creation(run, name, parent=JOB), *description(run, config)]
            tags = {key: str(row[key]) for key in ("run", "status", "settings", "fingerprint")}
            tags |= {"error": row["error"]} if row["error"] else {}
            tags |= {"tuning": json.dumps(row["tuning"])} if row.get("tuned") else {}
            tags |= labels or {}
            operations += [
                *logs(run, epochs=history, metrics=row, tags=tags),
                data_set(run, str(row["dataset"]), str(row["fingerprint"]), self._config.data),
            ]
            if ledger is not None:
                tables = {"ledger.csv": ledger, "features.csv": sizes_of(ledger, features)}
                operations += [text_file(run, name, table.to_csv(index=False)) for name, table in tables.items()]
            if nested:
                operations.append(end(run, "FINISHED" if row["status"] in ("ok", "infeasible") else "FAILED"))
            outbox.put(operations)
            logged = outbox.id(run, wait=nested)
        return logged

    def artifacts(self, files: Sequence[Path], *, tags: Mapping[str, str] | None = None) -> None:
        """Log files, and tags, into the job's own run. A server may get a file later: it is sent as it is then."""
        with self._safely():
            uploads = [upload(JOB, file) for file in files if file.exists()]
            self._started().put([*logs(JOB, tags=tags or {}), *uploads])

    def model(self, model_dir: Path, out: Path) -> None:
        """Log a model folder into the job's own run, as the MLflow model ``model``: code and safetensors, no pickle.

        It is made in the folder ``out``, from where a server may get its files later.
        """
        with self._safely():
            outbox = self._started()
            from recsys_embed.mlflow_model import save_mlflow_model  # which needs the rest of MLflow

            outbox.put(model_files(JOB, save_mlflow_model(model_dir, out)))

    def champion(self) -> dict[str, Any]:
        """Give the alias ``champion`` to the model that was logged into the job's own run; to be called last.

        Returns:
            ``alias`` and ``model``, whether it was ``moved``, and where it was not, ``why``. ``moved`` is None where it
            was sent to a server, which may take it later: see :attr:`left`.
        """
        tracking = self._config.tracking
        told: dict[str, Any] = {"alias": CHAMPION, "model": tracking.registered_model, "moved": False}
        if not tracking.enabled:
            return {**told, "why": "tracking.enabled is false"}
        if not tracking.log_model:
            return {**told, "why": "no model is logged: tracking.log_model is false"}
        told["why"] = f"tracking to {shown(self._uri)} is off for this job"
        with self._safely():
            self._started().put([champion(JOB, tracking.registered_model, CHAMPION)])
            told.pop("why")
            told["moved"] = True if is_local(self._uri) else None
        return told

    def close(self, status: str = "FINISHED") -> None:
        """End the job's run, unless it is the caller's own; say what a server has not taken yet."""
        if self._outbox is not None:
            with self._safely() if self._on else contextlib.suppress(Exception):
                if not self._borrowed:
                    self._outbox.put([end(JOB, status)])
                self.left = self._outbox.close()
        self._on = False

    @contextlib.contextmanager
    def _safely(self) -> Iterator[None]:
        """Run a block if tracking is on; an error in it turns tracking off with one warning."""
        if not self._on:
            with contextlib.suppress(_OffError):
                yield
            return
        try:
            with quiet():
                yield
        except Exception as error:
            self._on = False
            _LOG.warning("tracking to %s is off for this job, everything else goes on: %s",
                         shown(self._uri), reason(error))  # fmt: skip

    def _started(self) -> Outbox:
        """Where operations go; at the first call, the job's run is the first of them."""
        if not self._on:
            raise _OffError
        if self._outbox is None:
            # Not imported for this alone: without MLflow loaded, nobody has an active run.
            mlflow = sys.modules.get("mlflow")
            active = mlflow.active_run() if hasattr(mlflow, "active_run") else None  # type: ignore[union-attr]
            borrowed = active.info.run_id if active else os.environ.get("MLFLOW_RUN_ID")
            if active and mlflow is not None:
                self._uri = mlflow.get_tracking_uri()
            handle = None if borrowed else self._handle
            local = is_local(self._uri)
            outbox: Outbox = Direct(self._uri, borrowed) if local else Spooled(self._uri, borrowed, handle)
            self._borrowed = bool(borrowed)
            creation = [] if borrowed else [self._creation(JOB, self._name, handle=handle)]
            outbox.put([*creation, *description(JOB, self._config, borrowed=bool(borrowed or handle))])
            self._outbox = outbox
        return self._outbox

    def _creation(self, run: int, name: str, *, parent: int | None = None, handle: str | None = None) -> Operation:
        experiment = experiment_name(self._config.tracking)
        return creation(run, name, job=self._job, experiment=experiment, parent=parent, handle=handle)


class _OffError(Exception):
    """Leaves a block of a tracker that is off."""
