"""Runs in MLflow: a store in the run's own folder, unless a server is named."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import Summary, Tracker, plain_tag, results, scalars

EXPERIMENT = "fedclip"
_URI, _EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
_FOLDER = "fedclip.directory"  # the tag by which a run that goes on is found again
_LONGEST = 500  # characters of a parameter
_PARAMS, _METRICS = 100, 1000  # that a request may hold


class MlflowLog(Tracker):
    """One MLflow run; ``<run>/mlruns`` is its store without MLFLOW_TRACKING_URI.

    A run that goes on goes on in MLflow, too.
    """

    name = "mlflow"
    package = "mlflow"

    def __init__(self, directory: Path, label: str, config: Mapping[str, Any]) -> None:
        uri = os.environ.get(_URI)
        if not uri:  # nothing leaves the machine unless its user says so
            uri = (Path(directory).resolve() / "mlruns").as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._client: Any = MlflowClient(uri)
        name = os.environ.get(_EXPERIMENT, EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        experiment = (
            found.experiment_id if found else self._client.create_experiment(name)
        )
        here = str(Path(directory).resolve())
        self._run = self._former(experiment, here)
        if self._run is None:
            tags = {_FOLDER: here}
            run = self._client.create_run(experiment, run_name=label, tags=tags)
            self._run = run.info.run_id
            params = [Param(plain_tag(k), str(v)[:_LONGEST]) for k, v in config.items()]
            for i in range(0, len(params), _PARAMS):
                self._client.log_batch(self._run, params=params[i : i + _PARAMS])
        else:
            self._client.set_terminated(self._run, "RUNNING")

    def _former(self, experiment: str, here: str) -> Any:
        quoted = here.replace("'", "''")
        runs = [] if quoted != here else self._client.search_runs(
            [experiment], f"tags.`{_FOLDER}` = '{here}'", max_results=1
        )  # fmt: skip
        return runs[0].info.run_id if runs else None

    def log(self, metrics: Mapping[str, Any]) -> None:
        """The round's numbers at its step."""
        self._write(scalars(metrics), metrics["round"])

    def finish(self, summary: Summary) -> None:
        """The results; the run is FINISHED."""
        self._write(results(summary), summary["rounds"])
        self._client.set_terminated(self._run, "FINISHED")
        self._run = None

    def close(self) -> None:
        """What is not finished by now was broken off."""
        if self._run is not None:
            self._client.set_terminated(self._run, "KILLED")

    def _write(self, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        entries = [
            self._metric(plain_tag(tag), float(value), now, step)
            for tag, value in values.items()
        ]
        for i in range(0, len(entries), _METRICS):
            self._client.log_batch(self._run, metrics=entries[i : i + _METRICS])
