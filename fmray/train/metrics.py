"""`metrics.jsonl`: one line an optimizer step, written by rank 0 and read by whoever watches."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmray.model.checkpoint import LossPoint
from fmray.train.engine import StepStats

METRICS = "metrics.jsonl"
TAIL_BYTES = 16_384


class MetricsLog:
    """Appends to `metrics.jsonl`. `tokens_per_s` counts positions of the global batch, padding included."""

    def __init__(self, path: Path, *, from_step: int, tokens_per_step: int) -> None:
        """Lines of steps after `from_step`, which a killed attempt left behind, are dropped: they will be trained again."""
        kept = [line for line in read_metrics(path) if line["step"] <= from_step]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._tokens, self._last = tokens_per_step, time.monotonic()

    def write(self, step: int, stats: StepStats) -> None:
        """Adds the line of a step. One that was not applied has no loss and no norm: JSON knows no NaN, and no curve should."""
        now = time.monotonic()
        speed = self._tokens / max(now - self._last, 1e-9)
        self._last = now
        line: dict[str, Any] = {
            "step": step, "loss": stats.loss if stats.applied else None, "lr": stats.lr, "grad_norm": stats.grad_norm if stats.applied else None, "n_targets": stats.count,
            "tokens_per_s": round(speed, 1), "time": round(time.time(), 3),
        }  # fmt: skip
        if not stats.applied:
            line["skipped"] = stats.fault
        self._file.write(json.dumps(line) + "\n")

    def pause(self) -> None:
        """Leaves the time until now (a checkpoint) out of the next line's speed."""
        self._last = time.monotonic()


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
