"""Where else than in metrics.jsonl a training's figures are shown. One file a tracker."""

import abc
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fmray.core.config import Component
from fmray.core.errors import ConfigError

# Figures of a line of metrics.jsonl by the names that trackers show.
NAMES = {
    "loss": "train/loss", "lr": "train/lr", "grad_norm": "train/grad_norm", "eval_loss": "eval/loss", "tokens_per_s": "perf/tokens_per_s",
    "tokens_per_s_device": "perf/tokens_per_s_device", "mfu": "perf/mfu", "data_wait_s": "perf/data_wait_s", "checkpoint_s": "perf/checkpoint_s",
    "eval_s": "perf/eval_s", "peak_gb": "perf/peak_gb", "num_workers": "perf/num_workers", "worker_hours": "cost/worker_hours", "energy_kwh": "cost/energy_kwh",
    "cost_usd": "cost/usd",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """The figures of one optimizer step, and when it was finished (seconds since 1970)."""

    step: int
    time: float
    figures: Mapping[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers see it: experiment and step, a folder of the artifact that a tracker may write to, and the config without secrets."""

    experiment: str
    name: str
    folder: Path
    config: Mapping[str, Any]


class Sink(abc.ABC):
    """An open tracker."""

    last_step: int
    """The last step that it already shows, of this or an earlier attempt; 0 when there is none."""

    @abc.abstractmethod
    def log(self, points: Sequence[Point]) -> None:
        """Shows further steps, in their order."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends it; what was told is then safe."""


class Tracker(Component, package="fmray.train.trackers"):
    """A tracker. `needs` are the package that it imports and what to install for it."""

    needs: ClassVar[tuple[str, str]]

    @abc.abstractmethod
    def open(self, run: TrackedRun) -> Sink:
        """Goes on with the run that the artifact's folder tells of, or begins it. It may raise whatever its library does."""


def check_trackers(trackers: Sequence[Tracker]) -> None:
    """Refuses a tracker whose library is not installed, before anything runs.

    Raises:
        ConfigError: one is not.
    """
    for tracker in trackers:
        module, extra = tracker.needs
        if importlib.util.find_spec(module) is None:
            kind = tracker.type  # type: ignore[attr-defined]
            raise ConfigError(f"tracker {kind} needs {module}, which is not installed", where="trackers", todo=f"pip install '{extra}'")


def kept_id(path: Path, fresh: str) -> str:
    """The id of a run that is kept in a file of the artifact, so that another attempt goes on with it; `fresh` is kept where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(fresh, encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested config by dotted name."""
    found: dict[str, str] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": str(value)}
    return found
