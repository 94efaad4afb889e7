"""MLflow: a run in a tracking server, a database, or a local folder."""

import os
from collections.abc import Sequence
from typing import ClassVar, Literal

from fmray.train.trackers import Point, Sink, TrackedRun, Tracker, flat, kept_id

# What one request may hold (MLflow's REST API): 1,000 metrics, 100 parameters; a parameter is cut.
METRICS, PARAMS, PARAM_CHARACTERS = 1000, 100, 500
WATCHED = "train/loss", "train/lr"


class Mlflow(Tracker):
    """A run of the experiment's name, through the client of mlflow-skinny.

    Attributes:
        uri: of the tracking server or its database; left out, MLFLOW_TRACKING_URI, and without that a folder of the artifact. MLflow
            keeps plain folders for those who have them and wants to be told so: fmray does.
        experiment: MLflow's experiment; the name of fmray's when left out.
    """

    type: Literal["mlflow"] = "mlflow"
    needs: ClassVar[tuple[str, str]] = ("mlflow", "fmray[mlflow]")
    uri: str | None = None
    experiment: str | None = None

    def open(self, run: TrackedRun) -> Sink:
        """See `Tracker`."""
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or (run.folder / "mlflow").absolute().as_uri()
        if uri.startswith("file:") or "://" not in uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        return _Run(run, uri, self.experiment or run.experiment)


class _Run(Sink):
    def __init__(self, run: TrackedRun, uri: str, experiment: str) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        kept = run.folder / "mlflow-run-id"
        if kept.exists():
            self._id = kept.read_text(encoding="utf-8").strip()
            self._client.update_run(self._id, status="RUNNING")
            shown = [m.step for name in WATCHED for m in self._client.get_metric_history(self._id, name)]
            self.last_step = max(shown, default=0)
            return
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found is not None else self._client.create_experiment(experiment)
        self._id = self._client.create_run(experiment_id, run_name=run.name).info.run_id
        self.last_step = 0
        params = [Param(name, value[:PARAM_CHARACTERS]) for name, value in flat(run.config).items()]
        for start in range(0, len(params), PARAMS):
            self._client.log_batch(self._id, params=params[start : start + PARAMS])
        kept_id(kept, self._id)

    def log(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, int(point.time * 1000), point.step) for point in points for name, value in point.figures.items()]
        for start in range(0, len(metrics), METRICS):
            self._client.log_batch(self._id, metrics=metrics[start : start + METRICS])

    def close(self) -> None:
        self._client.set_terminated(self._id)
