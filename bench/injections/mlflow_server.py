"""An MLflow server that can be broken in the ways that servers break."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


class Server(ThreadingHTTPServer):
    """The part of MLflow's REST interface that is used, in memory; like its file store, it keeps duplicates.

    ``fault``, asked before each request for (path, number of the request): ``"500"``, ``"hang"``, ``"lost"`` (it is
    carried out, and the answer is a 500), ``"refuse"`` (400, as MLflow says it) or None.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.uri = f"http://127.0.0.1:{self.server_port}"
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fault: Any = lambda path, number: None
        self.released = threading.Event()
        self.lock = threading.Lock()

    def metrics(self) -> list[tuple[str, int, float]]:
        """Every metric that was logged, as (name, step, value), in order of name and step."""
        return sorted((m["key"], m["step"], m["value"]) for run in self.runs.values() for m in run["metrics"])

    def carry_out(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """What a request asks for; None where it asks for what is not there."""
        name = path.removeprefix("/api/2.0/mlflow/")
        if name == "experiments/get-by-name":
            found = self.experiments.get(body["experiment_name"])
            return {"experiment": {"experiment_id": found, "name": body["experiment_name"]}} if found else None
        if name == "experiments/create":
            self.experiments[body["name"]] = str(len(self.experiments) + 1)
            return {"experiment_id": self.experiments[body["name"]]}
        if name == "experiments/search":
            return {"experiments": [{"experiment_id": one, "name": key} for key, one in self.experiments.items()]}
        if name == "runs/create":
            run = uuid.uuid4().hex
            tags = {one["key"]: one["value"] for one in body.get("tags", [])}
            self.runs[run] = {"experiment": body["experiment_id"], "status": "RUNNING", "metrics": [], "params": {},
                              "tags": tags, "inputs": []}  # fmt: skip
            return {"run": self.shown(run)}
        if name == "runs/search":
            handle = body["filter"].split("'")[1]
            return {"runs": [self.shown(one) for one, run in self.runs.items() if handle in run["tags"].values()]}
        run = self.runs.get(body.get("run_id", ""))
        if run is None:
            return None
        if name == "runs/get":
            return {"run": self.shown(body["run_id"])}
        if name == "runs/log-batch":
            run["metrics"] += body.get("metrics", [])
            run["params"] |= {one["key"]: one["value"] for one in body.get("params", [])}
            run["tags"] |= {one["key"]: one["value"] for one in body.get("tags", [])}
        elif name == "runs/log-inputs":
            run["inputs"] = body["datasets"]
        elif name == "runs/update":
            run["status"] = body["status"]
        elif name == "metrics/get-history":
            return {"metrics": [one for one in run["metrics"] if one["key"] == body["metric_key"]]}
        return {}

    @classmethod
    @contextlib.contextmanager
    def running(cls, port: int = 0) -> Iterator[Server]:
        """A server that answers for the length of a block; whatever hangs then is released."""
        with cls(port) as one:
            thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield one
            finally:
                one.released.set()
                one.shutdown()
                thread.join()

    def shown(self, run: str) -> dict[str, Any]:
        one = self.runs[run]
        pairs = {key: [{"key": k, "value": v} for k, v in one[key].items()] for key in ("params", "tags")}
        return {
            "info": {"run_id": run, "run_uuid": run, "experiment_id": one["experiment"], "status": one["status"],
                     "artifact_uri": f"mlflow-artifacts:/{run}", "lifecycle_stage": "active"},
            "data": pairs,
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.answer()

    do_POST = do_PUT = do_GET

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        url = urlsplit(self.path)
        with self.server.lock:
            self.server.requests.append(url.path)
            fault = self.server.fault(url.path, len(self.server.requests))
        if fault == "hang":
            self.server.released.wait(60)
            return
        done: dict[str, Any] | None = {}
        if fault in (None, "lost") and url.path != "/health":
            with self.server.lock:
                if "mlflow-artifacts" in url.path:
                    self.server.files[url.path.split("/artifacts/", 1)[1]] = content
                else:
                    body = json.loads(content) if content else dict(parse_qsl(url.query))
                    done = self.server.carry_out(url.path, body)
        if fault in ("500", "lost"):
            self.reply(500, {"error_code": "INTERNAL_ERROR", "message": "broken"})
        elif fault == "refuse":
            self.reply(400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "no such thing"})
        elif done is None:
            self.reply(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "there is none"})
        else:
            self.reply(200, done)

    def reply(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass
