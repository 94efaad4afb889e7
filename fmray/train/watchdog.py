"""Finds a training that hangs: every worker watches its own steps, and all leave their stacks behind before they end to be started again.

A rank that hangs holds all others in the next collective, so every rank stands still at about the same time. Each one whose last step is
too long ago writes what it is doing; the first of these reports calls the others, also those that cannot tell by themselves.
"""

import contextlib
import faulthandler
import json
import logging
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from fmray.core.artifact import write_json
from fmray.train.loop import Step

logger = logging.getLogger(__name__)

HANGS = "hangs"
VERDICT = "hang.json"
MEDIANS = 10
KEPT_STEPS = 100
# How long the ranks wait for each other's stacks before they end.
GATHER_S = 10.0
READING, COMPUTING, SAVING = "reading", "computing", "saving"
COLLECTIVES = (f"torch{os.sep}distributed{os.sep}", f"deepspeed{os.sep}comm{os.sep}")


class Watchdog:
    """Ends this process, stacks told, when no step was finished within the larger of `hang_after_s` and ten median steps.

    It is armed by the first step that finishes (which may compile) and holds off while a state is saved, for storage has no usual
    speed; there torch's own limit of a collective stands. Its thread needs the interpreter's lock: code that hangs while it holds the
    lock is ended by a timer of faulthandler's in C instead; its stacks lie beside `folder`.
    """

    def __init__(self, folder: Path, *, rank: int, world_size: int, hang_after_s: float) -> None:
        """`folder` is new for this attempt and the same for all of its workers; it is made when there is something to tell."""
        self.folder, self.rank, self.world_size, self.hang_after_s = folder, rank, world_size, hang_after_s
        self.phase = READING
        self._finished = 0
        self._durations: deque[float] = deque(maxlen=KEPT_STEPS)
        self._moved_at: float | None = None
        self._trainer = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="fmray-watchdog")

    def __enter__(self) -> "Watchdog":
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._frozen = self.folder.with_name(f"{self.folder.name}-frozen-rank-{self.rank}.txt").open("w")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._frozen.close()
        Path(self._frozen.name).unlink(missing_ok=True)

    @property
    def limit_s(self) -> float:
        """How long a step may take."""
        return max(self.hang_after_s, MEDIANS * statistics.median(self._durations) if self._durations else 0.0)

    def watched(self, batches: Iterable[Step]) -> Iterator[Step]:
        """The same batches; what waits for them is told apart from what computes on them."""
        for item in batches:
            self.phase = COMPUTING
            yield item
            self.phase = READING

    def finished(self, step: int) -> None:
        """A step is finished."""
        now = time.monotonic()
        if self._moved_at is not None:
            self._durations.append(now - self._moved_at)
        self._finished, self._moved_at = step, now

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Holds off while the block runs."""
        phase, self.phase = self.phase, SAVING
        faulthandler.cancel_dump_traceback_later()
        try:
            yield
        finally:
            self.phase = phase
            if self._moved_at is not None:
                self._moved_at = time.monotonic()

    def _watch(self) -> None:
        every = min(1.0, self.hang_after_s / 4)
        while not self._ended.wait(every):
            if (self._armed and time.monotonic() - (self._moved_at or 0.0) > self.limit_s) or self._called():
                self._tell_and_end()
            if self._armed:
                # As long as this thread gets the interpreter's lock, it puts the timer off.
                faulthandler.dump_traceback_later(self.limit_s + 2 * every, exit=True, file=self._frozen)
            else:
                # A save may have begun between the look and the arming.
                faulthandler.cancel_dump_traceback_later()
        faulthandler.cancel_dump_traceback_later()

    def _called(self) -> bool:
        """Whether another rank has found a hang."""
        with contextlib.suppress(OSError):
            return self.folder.exists()
        return False

    @property
    def _armed(self) -> bool:
        return self._moved_at is not None and self.phase != SAVING

    def _tell_and_end(self) -> None:
        # Nothing here may keep a process that hangs from ending, least of all a storage that fails.
        faulthandler.cancel_dump_traceback_later()
        with contextlib.suppress(OSError):
            Path(self._frozen.name).unlink(missing_ok=True)
            self.folder.mkdir(exist_ok=True)
            with (self.folder / f"rank-{self.rank}.txt").open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            write_json(self.folder / f"rank-{self.rank}.json", self._report())
            deadline = time.monotonic() + GATHER_S
            while len(reports := _reports(self.folder)) < self.world_size and time.monotonic() < deadline:
                time.sleep(0.1)
            told = {"verdict": verdict(reports, self.world_size), "ranks": suspects(reports, self.world_size)[1], "step": self._finished, "limit_s": self.limit_s}
            write_json(self.folder / VERDICT, told)
        os._exit(1)

    def _report(self) -> dict[str, Any]:
        frames = sys._current_frames()
        in_collective = any(path in frame.f_code.co_filename for top in frames.values() for frame in _outwards(top) for path in COLLECTIVES)
        top = frames.get(self._trainer)
        at = f"{top.f_code.co_filename}:{top.f_lineno} in {top.f_code.co_name}" if top is not None else "nowhere"
        return {"rank": self.rank, "step": self._finished, "phase": self.phase, "in_collective": in_collective, "at": at}


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _reports(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]


def verdict(reports: Sequence[dict[str, Any]], world_size: int) -> str:
    """Which rank is behind, and by which sign, in words."""
    sign, ranks, at = suspects(reports, world_size)
    return f"{sign}: {_ranks(ranks)}{at}" if ranks else sign


def suspects(reports: Sequence[dict[str, Any]], world_size: int) -> tuple[str, list[int], str]:
    """A sign, the ranks that show it, and where; as far as the reports tell: those that gave none, have fewer steps, wait for data, or for no other rank.

    Collectives of a GPU run beside Python: ranks that wait in one may look alike to it, and then none is named.
    """
    told = {report["rank"] for report in reports}
    if silent := sorted(set(range(world_size)) - told):
        return "without a sign, so frozen or lost", silent, ""
    ahead = max(report["step"] for report in reports)
    signs = (
        ("behind by a step", [r for r in reports if r["step"] < ahead]),
        ("waiting for data", [r for r in reports if r["phase"] == READING]),
        ("waiting for no other rank", [r for r in reports if not r["in_collective"]]),
    )
    for sign, those in signs:
        if those and (len(those) < world_size or world_size == 1):
            return sign, [r["rank"] for r in those], f", at {those[0]['at']}"
    return "which rank is behind cannot be told: all of them do the same", [], ""


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def next_hang(root: Path, *, rank: int, world_size: int) -> Path:
    """The folder for this attempt's hang, chosen by rank 0 for all. Every worker calls it."""
    import torch

    chosen = [f"{max(_numbers(root), default=0) + 1:03d}"]
    if world_size > 1:
        torch.distributed.broadcast_object_list(chosen, src=0)
    return root / chosen[0]


def last_hang(root: Path) -> str:
    """What is known of the latest hang and where its stacks lie; empty when there was none."""
    numbers = _numbers(root)
    if not numbers:
        return ""
    folder = root / f"{max(numbers):03d}"
    with contextlib.suppress(OSError, ValueError):
        return f"{json.loads((folder / VERDICT).read_text())['verdict']}; stacks in {folder}"
    return f"stacks in {root}"


def _numbers(root: Path) -> list[int]:
    """Of the attempts that hung, by what they left: a folder, or stacks of a process that froze."""
    return [int(path.name[:3]) for path in root.glob("[0-9][0-9][0-9]*") if path.is_dir() or path.stat().st_size]
