"""Weights & Biases: online, or offline into a folder that `wandb sync` sends later."""

import uuid
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from fmray.train.trackers import Point, Sink, TrackedRun, Tracker, kept_id


class Wandb(Tracker):
    """A run of W&B; its key is that of `wandb login` or WANDB_API_KEY, where fmray runs.

    Attributes:
        project: the name of the experiment when left out.
        entity: user or team; the key's own when left out.
        mode: `offline` writes below `work/wandb` of the artifact and sends nothing.
    """

    type: Literal["wandb"] = "wandb"
    needs: ClassVar[tuple[str, str]] = ("wandb", "fmray[wandb]")
    project: str | None = None
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"

    def open(self, run: TrackedRun) -> Sink:
        """See `Tracker`."""
        return _Run(run, project=self.project or run.experiment, entity=self.entity, mode=self.mode)


class _Run(Sink):
    """Every attempt goes on with the run's id; what was shown is kept beside it, for an offline run cannot be asked."""

    def __init__(self, run: TrackedRun, *, project: str, entity: str | None, mode: Literal["online", "offline"]) -> None:
        import wandb

        self._told = run.folder / "wandb-last-step"
        self.last_step = int(self._told.read_text()) if self._told.exists() else 0
        self._run: Any = wandb.init(
            id=kept_id(run.folder / "wandb-run-id", uuid.uuid4().hex[:8]), resume="allow", project=project, entity=entity, name=run.name, mode=mode,
            dir=str(run.folder), config=dict(run.config), reinit="create_new", settings=wandb.Settings(console="off", silent=True, init_timeout=60),
        )  # fmt: skip

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log(dict(point.figures) | {"_timestamp": point.time}, step=point.step)
        self._told.write_text(str(points[-1].step), encoding="utf-8")

    def close(self) -> None:
        self._run.finish()
