"""Tries every cell in a worker process that may be ended: what cannot fit is not tried, what takes too long is stopped."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.attention.cells import Cell, flops, memory_bytes
from benchmarks.attention.worker import GIB, LEAST_REPEATS, serve

# Of the free memory, how much a cell may be estimated to take.
SHARE = 0.9
# What starting the worker and importing torch and transformers may take.
START_S = 120.0
Row = dict[str, Any]


class Worker:
    """The measuring process, started anew after it was ended or died."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._process: Any = None

    def ask(self, *request: Any, limit_s: float) -> Any:
        """The worker's answer.

        Raises:
            TimeoutError: none came in time; the worker was ended.
            ChildProcessError: the worker died.
        """
        if self._process is None:
            self._start()
        try:
            self._pipe.send(request)
            if not self._pipe.poll(limit_s):
                self._end()
                raise TimeoutError(f"took longer than the limit of {limit_s:g} s")
            return self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(10)
            code = self._process.exitcode
            self._end()
            raise ChildProcessError(f"the measuring process died (exit code {code}{', killed, as for want of memory' if code == -9 else ''})") from None

    def close(self) -> None:
        """Ends the worker."""
        if self._process is not None:
            self._end()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._device), daemon=True)
        self._process.start()
        theirs.close()
        # The limit of a cell is not for imports.
        self.ask("about", limit_s=START_S)

    def _end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._process = None


def sweep(
    cells: Sequence[Cell], peaks: dict[str, float], worker: Worker, *, seconds: float, limit_s: float, budget_s: float, memory_gb: float | None, tell: Callable[[str], None]
) -> Iterator[Row]:  # fmt: skip
    """A row for each cell: its figures, or why it has none.

    Args:
        peaks: FLOP/s of the matrix product by dtype.
        seconds: of measuring a cell.
        limit_s: after which a cell is given up, and longer ones of its kind are not tried; nor is one that should take longer.
        budget_s: after which no further cell is tried.
        memory_gb: that a cell may take, GiB; what is free when it is tried, if left out.
    """
    too_slow: dict[tuple[str, str, str, int], int] = {}
    took: dict[tuple[str, str, str, int], tuple[Cell, float]] = {}
    began = time.monotonic()
    for cell in cells:
        estimate = memory_bytes(cell)
        row: Row = asdict(cell) | {"estimated_bytes": estimate}
        try:
            if cell.family in too_slow:
                row["reason"] = f"not tried: took longer than the limit of {limit_s:g} s at {too_slow[cell.family]:,} positions"
            elif time.monotonic() - began > budget_s:
                row["reason"] = f"not tried: the {budget_s:g} s of this run were over"
            elif cell.family in took and (expected_s := should_take(cell, *took[cell.family])) > limit_s:
                row["reason"] = f"not tried: should take {expected_s:,.0f} s by its time at {took[cell.family][0].seq_len:,} positions, and the limit is {limit_s:g} s"
            elif estimate > SHARE * (free := memory_gb * GIB if memory_gb is not None else worker.ask("free", limit_s=START_S)):
                row["reason"] = f"not tried: should take {estimate / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free"
            else:
                row |= worker.ask("cell", cell, seconds, limit_s=limit_s)
                if "forward_s" in row:
                    took[cell.family] = cell, row["forward_s"] + row["backward_s"]
        except TimeoutError as error:
            row["reason"] = str(error)
            too_slow[cell.family] = cell.seq_len
        except ChildProcessError as error:
            row["reason"] = str(error)
        row |= figures(cell, row, peaks)
        tell(line(row))
        yield row


def should_take(cell: Cell, shorter: Cell, both_s: float) -> float:
    """Seconds to measure a cell, by what both passes of a shorter one of its kind took: the least repeats and one to warm up, over whole squares."""
    grown = cell.rows * cell.heads * cell.seq_len**2 / (shorter.rows * shorter.heads * shorter.seq_len**2)
    return (1 + LEAST_REPEATS) * both_s * grown


def figures(cell: Cell, row: Row, peaks: dict[str, float]) -> Row:
    """tokens/s, TFLOP/s of both passes together and of each, and the share of the matrix-product peak; nothing for a cell that did not run."""
    if "forward_s" not in row:
        return {}
    forward, backward = flops(cell)
    both = row["forward_s"] + row["backward_s"]
    rate = (forward + backward) / both
    return {
        "tokens_per_s": cell.tokens / both,
        "tflops": rate / 1e12,
        "forward_tflops": forward / row["forward_s"] / 1e12,
        "backward_tflops": backward / row["backward_s"] / 1e12,
        "of_peak": rate / peaks[cell.dtype],
    }


def line(row: Row) -> str:
    """A row as it is printed while the sweep goes on."""
    head = f"{row['dtype']} d{row['head_dim']} {row['mask']:6s} {row['seq_len']:6d} {row['implementation']:17s}"
    if "reason" in row:
        return f"{head} {row['reason']}"
    worst = "" if row["errors"] is None else f"  error {max(row['errors'].values()):.1e}"
    peak = "" if row["peak_bytes"] is None else f"  {row['peak_bytes'] / GIB:.2f} GiB"
    return f"{head} {row['tokens_per_s']:12,.0f} tokens/s {row['tflops']:8.3f} TFLOP/s {row['of_peak']:6.1%} of peak{peak}{worst}"
