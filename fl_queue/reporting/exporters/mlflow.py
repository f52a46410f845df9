"""
Export of metrics to MLflow's local file store: one MLflow run for each run, by ``mlflow-skinny``.

MLflow requires ``MLFLOW_ALLOW_FILE_STORE=true`` for this store.
"""

from __future__ import annotations

import os
from pathlib import Path

from fl_queue.protocol.state import RunPhase

# Read when a client is made. A folder on the command line is the choice of this store.
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
# No user has agreed to telemetry.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from fl_queue.reporting.curves import Point
from fl_queue.reporting.exporters.base import Numbers
from fl_queue.store import RunState

EXPERIMENT = "fl-queue"
#: Tag of an MLflow run with the id of ours.
RUN_ID = "fl_queue.run_id"
#: Largest batch that MLflow accepts.
BATCH = 1000
_STATUS = {
    RunPhase.training: "RUNNING",
    RunPhase.completed: "FINISHED",
    RunPhase.failed: "FAILED",
    RunPhase.cancelled: "KILLED",
}


class FileStore:
    """An MLflow file store. Args: ``folder``: what ``mlflow ui --backend-store-uri`` is given."""

    def __init__(self, folder: Path) -> None:
        self.client = MlflowClient(tracking_uri=folder.absolute().as_uri())
        self._known: dict[tuple[str, int], float] | None = None

    def write(self, state: RunState, numbers: Numbers) -> int:
        """Log the points that MLflow does not have; returns how many."""
        run = self._run(state)
        if self._known is None:
            self._known = self._logged(run, {point.curve for point in numbers.points})
        new = [
            point for point in numbers.points
            if self._known.get((point.curve, point.step)) != point.value
        ]  # fmt: skip
        for start in range(0, len(new), BATCH):
            self.client.log_batch(run, [_metric(point) for point in new[start : start + BATCH]])
        self._known |= {(point.curve, point.step): point.value for point in new}
        self.client.update_run(run, _STATUS.get(state.state, "RUNNING"))
        return len(new)

    def _run(self, state: RunState) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else self.client.create_experiment(EXPERIMENT)
        runs = self.client.search_runs([experiment], f"tags.`{RUN_ID}` = '{state.run_id}'")
        if runs:
            return str(runs[0].info.run_id)
        made = self.client.create_run(
            experiment,
            start_time=int(1000 * state.created_at),
            tags={RUN_ID: state.run_id},
            run_name=state.name,
        )
        return str(made.info.run_id)

    def _logged(self, run: str, curves: set[str]) -> dict[tuple[str, int], float]:
        """(curve, step) -> the newest value MLflow has."""
        logged = self.client.get_run(run).data.metrics
        return {
            (curve, metric.step): metric.value
            for curve in curves & set(logged)
            for metric in self.client.get_metric_history(run, curve)
        }


def _metric(point: Point) -> Metric:
    return Metric(point.curve, point.value, int(1000 * point.at), point.step)
