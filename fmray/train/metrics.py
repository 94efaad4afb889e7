"""`metrics.jsonl`: one line an optimizer step, written by rank 0 and read by whoever watches."""

import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from fmray.model.checkpoint import LossPoint
from fmray.train.device import Device
from fmray.train.engine import StepStats
from fmray.train.storage import persist

T = TypeVar("T")

METRICS = "metrics.jsonl"
TAIL_BYTES = 16_384


@dataclass(frozen=True)
class Meter:
    """What a step's line says besides loss and speed, and what it takes to say so.

    Attributes:
        devices: that train; of CPU workers each counts as one.
        last_step: where the run ends.
        flops_per_token: of forward and backward of a trained position; None when the model's are not known.
        device: what is declared of one device.
        memory_gb: the most that this worker has held so far, 10^9 bytes.
        waited_s: how long the loop has waited for data since it was last asked.
    """

    devices: int
    last_step: int
    flops_per_token: float | None
    device: Device
    memory_gb: Callable[[], float]
    waited_s: Callable[[], float]

    def mfu(self, tokens_per_s: float) -> float | None:
        """Model FLOPs utilisation (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B): tokens/s x FLOPs a token over
        the devices' declared peak. None when one of them is not known.
        """
        if self.why_no_mfu is not None or self.flops_per_token is None or self.device.peak_tflops is None:
            return None
        return tokens_per_s * self.flops_per_token / (self.devices * self.device.peak_tflops * 1e12)

    @property
    def why_no_mfu(self) -> str | None:
        """Why MFU is not known, or None when it is."""
        if self.device.peak_tflops is None:
            return "device.peak_tflops is not declared"
        return "the FLOPs of this model are not known" if self.flops_per_token is None else None


class Waited(Generic[T]):
    """Passes items on and keeps how long each was waited for."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self._seconds = iter(items), 0.0
        self.total_s = 0.0
        """Seconds waited for since the first item."""

    def __iter__(self) -> "Waited[T]":
        return self

    def __next__(self) -> T:
        begun = time.monotonic()
        try:
            return next(self._items)
        finally:
            took = time.monotonic() - begun
            self._seconds += took
            self.total_s += took

    def take_s(self) -> float:
        """Seconds since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class MetricsLog:
    """Appends to `metrics.jsonl`. `tokens_per_s` counts positions of the global batch, padding included; a checkpoint's time is left out
    of it and told as `checkpoint_s` in the line of the step that follows.
    """

    def __init__(self, path: Path, *, from_step: int, tokens_per_step: int, num_workers: int = 1, meter: Meter | None = None) -> None:
        """Lines of steps after `from_step`, which a killed attempt left behind, are dropped: they will be trained again."""
        before = read_metrics(path)
        kept = [line for line in before if line["step"] <= from_step]
        partial = path.with_suffix(".partial")
        persist(lambda: partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8"), partial)
        os.replace(partial, path)
        self._path, self._size, self._torn = path, path.stat().st_size, False
        self._file = path.open("r+b", buffering=0)
        self._tokens, self._num_workers, self._meter, self._last = tokens_per_step, num_workers, meter, time.monotonic()
        self._stall_s, self._began = 0.0, self._last
        # Of earlier attempts, also for steps that were lost: their devices were held all the same.
        self._hours_before = max((line.get("worker_hours", 0.0) for line in before), default=0.0)
        # The step and time from which the rest is foretold: the first line's, for the first step also warms up.
        self._known: tuple[int, float] | None = None

    def write(self, step: int, stats: StepStats, *, ended: float | None = None, also: Mapping[str, Any] | None = None) -> None:
        """Adds the line of a step. One that was not applied has no loss and no norm: JSON knows no NaN, and no curve should.

        `ended` is when the step did, by time.monotonic: what came behind it (an evaluation) is in no step's speed. `also` joins the line.
        """
        now = time.monotonic()
        speed = self._tokens / max((now if ended is None else ended) - self._last, 1e-9)
        self._last = now
        line: dict[str, Any] = {
            "step": step, "loss": stats.loss if stats.applied else None, "lr": stats.lr, "grad_norm": stats.grad_norm if stats.applied else None, "n_targets": stats.count,
            "tokens_per_s": round(speed, 1), "time": round(time.time(), 3), "num_workers": self._num_workers,
        }  # fmt: skip
        if not stats.applied:
            line["skipped"] = stats.fault
        if self._meter is not None:
            line |= self._watched(step, speed, now, self._meter)
        content = (json.dumps(line | dict(also or {})) + "\n").encode()
        persist(lambda: self._add(content), self._path)
        self._size += len(content)

    def _add(self, content: bytes) -> None:
        if self._torn:
            # The attempt before this one met a storage that was full or away, and may have left a part of the line.
            self._file.close()
            self._file = self._path.open("r+b", buffering=0)
            self._file.truncate(self._size)
        self._torn = True
        self._file.seek(self._size)
        if self._file.write(content) != len(content):
            raise OSError(errno.ENOSPC, "the line was cut short")
        self._torn = False

    def _watched(self, step: int, speed: float, now: float, meter: Meter) -> dict[str, Any]:
        eta_s = None
        if self._known is not None:
            first, since = self._known
            eta_s = round((now - since) / (step - first) * (meter.last_step - step), 1)
        mfu, stall_s = meter.mfu(speed), self._stall_s
        # Said once: the reason does not change within a run.
        why = {"mfu_unknown": meter.why_no_mfu} if self._known is None and meter.why_no_mfu else {}
        self._known, self._stall_s = self._known or (step, now), 0.0
        hours = self._hours_before + (now - self._began) * meter.devices / 3600
        return {
            "tokens_per_s_device": round(speed / meter.devices, 1), "mfu": None if mfu is None else round(mfu, 4), "data_wait_s": round(meter.waited_s(), 4),
            "checkpoint_s": round(stall_s, 4), "peak_gb": round(meter.memory_gb(), 3), "eta_s": eta_s, "worker_hours": round(hours, 6),
            **{name: None if value is None else float(f"{value:.6g}") for name, value in meter.device.spent(hours).items()},
        } | why  # fmt: skip

    def pause(self) -> None:
        """Leaves the time until now (a checkpoint) out of the next line's speed."""
        now = time.monotonic()
        self._stall_s += now - self._last
        self._last = now


def read_metrics(path: Path, *, tail: bool = False) -> list[dict[str, Any]]:
    """The whole lines of a metrics file, oldest first; with `tail` the last few alone. No file gives no lines."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = max(0, size - TAIL_BYTES) if tail else 0
        file.seek(start)
        lines = file.read().split(b"\n")
    # The first may be cut when not read from the start; what follows the last line break is still being written.
    return [json.loads(line) for line in (lines[1:-1] if start else lines[:-1])]


def loss_points(lines: Sequence[dict[str, Any]], at_most: int = 200) -> tuple[LossPoint, ...]:
    """The loss curve in at most so many points: each is the mean over the steps since the point before it, weighted by targets.

    Steps that were skipped have no loss to show.
    """
    lines = [line for line in lines if line["loss"] is not None]
    size = max(1, -(-len(lines) // at_most))
    chunks = [lines[start : start + size] for start in range(0, len(lines), size)]
    return tuple(
        LossPoint(step=chunk[-1]["step"], loss=sum(x["loss"] * x["n_targets"] for x in chunk) / sum(x["n_targets"] for x in chunk)) for chunk in chunks
    )
