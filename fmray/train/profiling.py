"""A window of torch.profiler: a trace of a few steps, and which operators took their time."""

import json
import logging
from pathlib import Path
from typing import Any

from pydantic import Field

from fmray.core.artifact import write_json
from fmray.core.config import Config
from fmray.model.watched import Operator

logger = logging.getLogger(__name__)

PROFILE = "profile"
TOP = 15


class Profile(Config):
    """Which steps of a run are profiled, and on which workers; all others pay nothing.

    Attributes:
        from_step: the first one, counted from the run's (or round's) beginning.
        steps: so many; traces grow by megabytes a step.
        ranks: the workers that profile themselves.
    """

    from_step: int = Field(10, ge=1)
    steps: int = Field(3, ge=1, le=100)
    ranks: tuple[int, ...] = Field((0,), min_length=1)


class Profiler:
    """Profiles the thread that makes it, over the steps of the window that are still to come."""

    def __init__(self, rule: Profile | None, folder: Path, *, rank: int, first_step: int, use_gpu: bool) -> None:
        """`first_step`: finished steps where the run began."""
        self._folder, self._rank, self._use_gpu = folder, rank, use_gpu
        mine = rule is not None and rank in rule.ranks
        # Finished steps before and behind the window.
        self._before = first_step + rule.from_step - 1 if mine and rule is not None else -1
        self._behind = self._before + rule.steps if mine and rule is not None else -1
        self._running: Any = None

    def due(self, step: int) -> bool:
        """Whether there is something to do when so many steps are finished: a trace takes seconds to write."""
        return step == self._behind and self._running is not None

    def between(self, step: int) -> str:
        """Begins or ends the profile, when so many steps are finished. What went wrong, in words, or nothing: no training ends for its profile."""
        try:
            if self._running is not None and step >= self._behind:
                self._end()
            elif self._running is None and self._before <= step < self._behind:
                self._begin()
        except (OSError, RuntimeError) as error:
            self._running, self._behind = None, -1
            fault = f"the profile of rank {self._rank} failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            logger.warning("%s", fault)
            return fault
        return ""

    def _begin(self) -> None:
        from torch import profiler

        kinds = [profiler.ProfilerActivity.CPU] + ([profiler.ProfilerActivity.CUDA] if self._use_gpu else [])
        self._running = profiler.profile(activities=kinds)
        self._running.start()

    def _end(self) -> None:
        running, self._running = self._running, None
        running.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        running.export_chrome_trace(str(self._folder / f"rank-{self._rank}.trace.json.gz"))
        found = top_operators(running.key_averages())
        write_json(self._folder / f"rank-{self._rank}.json", [operator.model_dump(mode="json") for operator in found])

    def close(self) -> None:
        """Ends a window that the run's end cut short."""
        if self._running is not None:
            self.between(self._behind)


def top_operators(averages: Any) -> list[Operator]:
    """The `TOP` operators by their own time, of those on the GPU where there are any; `share` is of all operators' own time."""
    device = "cuda" if any(event.self_device_time_total for event in averages) else "cpu"
    own = {event.key: (event.count, event.self_device_time_total if device == "cuda" else event.self_cpu_time_total) for event in averages}
    total = sum(us for _, us in own.values()) or 1.0
    first = sorted(own.items(), key=lambda item: -item[1][1])[:TOP]
    return [Operator(name=name, calls=calls, self_ms=round(us / 1e3, 3), share=round(us / total, 4), device=device) for name, (calls, us) in first if us]


def read_operators(folder: Path) -> tuple[Operator, ...]:
    """Of the first rank that profiled itself; none where none did."""
    path = min(folder.glob("rank-*[0-9].json"), key=lambda p: int(p.stem.split("-")[1]), default=None)
    return tuple(Operator.model_validate(item) for item in json.loads(path.read_text())) if path is not None else ()
