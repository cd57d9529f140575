"""MLflow as a logger: a run on the server that ``MLFLOW_TRACKING_URI`` names, by mlflow's own client."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from horovod_yolo.telemetry.logger import End, LoggedRun, Point, Sent, final_numbers

NAME = "mlflow"
SERVER = "MLFLOW_TRACKING_URI"
EXPERIMENT = "horovod_yolo"  # where MLFLOW_EXPERIMENT_NAME and MLFLOW_EXPERIMENT_ID say none
TAG = "horovod_yolo.run"
# The client's own patience is minutes: here the thread has it. Nothing is said to others than the server.
_CLIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
MOST_METRICS, MOST_PARAMS, LONGEST_VALUE = 1000, 100, 500  # that all servers take at once
_STATUS = {"finished": "FINISHED", "stopped": "KILLED"}
_RESULT = "results/best_epoch"  # which all results have


class MlflowLogger:
    """A run of MLflow's with the run's settings as parameters, and its rows as metrics.

    The metrics ``step`` and ``epoch`` are the last row's number. They go with the others in one request,
    which the server takes as a whole. So it can say what it has: where a request failed, nobody else knows.
    """

    name = NAME
    confirms = True

    def __init__(self) -> None:
        self._client: Any = None
        self._run_id = ""
        self._last = 0
        self._has_results = False
        self._set: list[str] = []  # variables of the client's, by us

    def open(self, run: LoggedRun) -> Sent:
        """Find the run on the server, or make it."""
        for variable, value in _CLIENT.items():
            if variable not in os.environ:
                os.environ[variable] = value
                self._set.append(variable)
        from mlflow import MlflowClient

        self._client = client = MlflowClient()
        found = self._known(run.known_id) or self._found_or_made(run)
        self._run_id = found.info.run_id
        if found.info.status != "RUNNING":
            client.update_run(self._run_id, status="RUNNING")
        self._add_params(run.settings, found.data.params)
        metrics = found.data.metrics
        self._last = int(metrics.get("step", 0))
        self._has_results = key(_RESULT) in metrics
        return Sent(self._run_id, self._last, int(metrics.get("epoch", -1)))

    def send(self, points: Sequence[Point]) -> None:
        """Add their metrics."""
        from mlflow.entities import Metric

        waiting: list[Any] = []
        for point in points:
            values = {**point.values, point.axis: float(point.number)}
            at = int(point.time * 1000)
            metrics = [Metric(key(name), value, at, point.number) for name, value in values.items()]
            if len(waiting) + len(metrics) > MOST_METRICS:
                self._client.log_batch(self._run_id, metrics=waiting)
                waiting = []
            waiting += metrics
            if point.axis == "step":
                self._last = point.number
        self._client.log_batch(self._run_id, metrics=waiting)

    def finish(self, end: End, results: Mapping[str, Any]) -> None:
        """Add the results, and set the run's status; one that is broken off may go on in a moment."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        final = [Metric(key(name), value, now, self._last) for name, value in final_numbers(results)]
        if final and not self._has_results:
            self._client.log_batch(self._run_id, metrics=final)
        if end in _STATUS:
            self._client.set_terminated(self._run_id, status=_STATUS[end])

    def close(self) -> None:
        """Leave the client as it was."""
        self._client = None
        while self._set:
            os.environ.pop(self._set.pop(), None)

    def _known(self, run_id: str) -> Any:
        """The run of that id, where the server still has it."""
        from mlflow.exceptions import MlflowException

        if not run_id:
            return None
        try:
            found = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return found if found.info.lifecycle_stage == "active" else None

    def _found_or_made(self, run: LoggedRun) -> Any:
        """The run of our tag: a request to make it may have arrived though its answer did not."""
        experiment = self._experiment()
        query = f"tags.`{TAG}` = '{run.uid}'"
        if found := self._client.search_runs([experiment], query, max_results=1):
            return found[0]
        place = {"horovod_yolo.folder": str(run.folder), "horovod_yolo.host": socket.gethostname()}
        tags = {TAG: run.uid, **place}
        return self._client.create_run(experiment, run_name=run.folder.name, tags=tags)

    def _experiment(self) -> str:
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _add_params(self, settings: Mapping[str, object], there: Mapping[str, str]) -> None:
        """Those that are not there: what a resumed run has others of, MLflow keeps as they were."""
        from mlflow.entities import Param

        new = [Param(key(n), str(value)[:LONGEST_VALUE]) for n, value in settings.items()]
        new = [param for param in new if param.key not in there]
        for first in range(0, len(new), MOST_PARAMS):
            self._client.log_batch(self._run_id, params=new[first : first + MOST_PARAMS])


def key(name: str) -> str:
    """A name as all servers take it: no colon, for one."""
    return re.sub(r"[^\w./ -]", "-", name)
