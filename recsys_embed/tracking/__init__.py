"""Runs in MLflow: what a job logs, and how it gets to the store.

A report is a run with a nested run per training; a single training is one run. Where the caller has an active run, that
run is used as it is, and stays open. Only text, CSV, JSON and, with ``tracking.log_model``, a model of code and
safetensors are stored, never a pickled flavour. A number that is not finite is logged as a tag, ``not_finite.<name>``:
MLflow would store an infinity as 1.8e308.

Tracking never decides over a training. A local store is written at once; an error costs one warning, then nothing more
is logged. What goes to a server goes into a spool in the folder ``mlflow-pending`` of the working folder, and is
delivered in the background: a server that is absent, hangs or fails holds a job up for at most three seconds in all
(beside the import of MLflow, if it answers at first and then no more). What it did not take is delivered by the next
tracked job in the same folder, or by ``python -m recsys_embed.tracking``.

MLflow's own asynchronous logging does not do this: its queue is in memory, it drops a batch whose delivery fails, waits
at exit without limit, and leaves the creation of runs and the upload of files to the caller's thread.
"""

from recsys_embed.tracking.outbox import deliver, new_handle
from recsys_embed.tracking.repeat import best_trials, fetch_config
from recsys_embed.tracking.tracker import Tracker

__all__ = ["Tracker", "best_trials", "deliver", "fetch_config", "new_handle"]
