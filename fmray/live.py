"""What one sees while a run goes on: a line a finished step, a live line of the step at work, and nothing of Ray's chatter."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from fmray.core.experiment import Outcome
from fmray.core.report import Decision
from fmray.report.figures import duration, key_figures, number

PLAIN_EVERY_S = 10.0
BESIDE_ROWS = 6
"""Lines of a terminal that a table leaves free: for its head, the step's own line, and what was said before."""


@contextlib.contextmanager
def quiet_terminal(log: Path) -> Iterator[Console]:
    """Gives a console on the real terminal while file descriptors 1 and 2, which Ray's processes inherit, go to `log`."""
    sys.stdout.flush()
    sys.stderr.flush()
    log.parent.mkdir(parents=True, exist_ok=True)
    terminal, errors = os.dup(1), os.dup(2)
    target = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    try:
        with os.fdopen(terminal, "w", encoding="utf-8", closefd=False) as stream:
            yield Console(file=stream, highlight=False)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(terminal, 1)
        os.dup2(errors, 2)
        os.close(terminal)
        os.close(errors)


class LiveRun:
    """Follows a run on a console: on a terminal a live line, and a table where a step has one; else a plain line every ten seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._began = self._last_plain = time.monotonic()
        self._count: tuple[float, float, float] | None = None  # total, where it was first seen to stand, and when
        self._last_done = 0.0
        self._step = ""
        self._line: RenderableType = Text("")
        self._table: RenderableType | None = None

    def __enter__(self) -> "LiveRun":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def on_step(self, name: str, round_: int) -> None:
        """A step begins (or answers from cache)."""
        self._began = self._last_plain = time.monotonic()
        self._count = None
        self._step = name if round_ == 1 else f"{name}@{round_}"
        self._line, self._table = Spinner("dots", Text(f"{self._step}")), None
        self._draw()

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(self._line if self._table is None else Group(self._line, self._table))

    def table(self, step: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """What goes on inside the step at work, as many rows as the terminal has room for."""
        if self._live is None:
            return
        table = Table(*columns, box=None, padding=(0, 2, 0, 0), header_style="dim")
        shown = rows[: max(1, self.console.height - BESIDE_ROWS)]
        for row in shown:
            table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
        more = Text(f"and {len(rows) - len(shown)} more", style="dim") if len(rows) > len(shown) else Text("")
        self._table = Group(table, more)
        self._draw()

    def progress(self, step: str, text: str, done: float | None, total: float | None, figures: Mapping[str, float]) -> None:
        """The step at work moved on."""
        seconds = time.monotonic() - self._began
        parts = [text] if text else []
        if done is not None and total:
            parts.append(f"{done:,.0f}/{total:,.0f}")
        parts += [_figure(name, value) for name, value in figures.items()]
        if done is not None and total and "eta_s" not in figures and (eta_s := self._eta_s(done, total)) is not None:
            parts.append(f"ETA {duration(eta_s)}")
        line = " · ".join(parts)
        if self._live is not None:
            grid = Table.grid(padding=(0, 1))
            cells: list[object] = [Spinner("dots"), Text(f"{self._step:<12}", style="bold")]
            if done is not None and total:
                cells.append(ProgressBar(total=total, completed=done, width=24))
            grid.add_row(*cells, Text(line), Text(duration(seconds), style="dim"))  # type: ignore[arg-type]
            self._line = grid
            self._draw()
        elif time.monotonic() - self._last_plain >= PLAIN_EVERY_S:
            self._last_plain = time.monotonic()
            self.console.print(f"  … {self._step}  {line}", markup=False, soft_wrap=True)

    def _eta_s(self, done: float, total: float) -> float | None:
        """Seconds to `total` at the pace of this count, None until it is known: a step may count anew (each fold, each seed) or begin behind zero."""
        now = time.monotonic()
        if self._count is None or self._count[0] != total or done < self._last_done:
            self._count = (total, done, now)
        self._last_done = done
        _, first, began = self._count
        return (now - began) * (total - done) / (done - first) if first < done < total else None

    def on_done(self, outcome: Outcome) -> None:
        """A step is complete: one line that stays."""
        record, payload = outcome.artifact.record, outcome.artifact.payload
        refused = isinstance(payload, Decision) and not payload.admitted
        mark = "[red]✗[/]" if refused else "[green]✓[/]"
        figures = ", ".join(f"{label} {value}" for label, value in key_figures(record)[:4])
        when = "cached" if outcome.state == "cached" else duration(record.wall_s)
        self.console.print(f"{mark} [bold]{escape(self._step):<12}[/] {when:>12}  {escape(figures)}", soft_wrap=True)
        self._line, self._table = Text(""), None
        self._draw()


def _figure(name: str, value: float) -> str:
    if name == "tokens_per_s":
        return f"{value:,.0f} tokens/s"
    if name == "eta_s":
        return f"ETA {duration(value)}"
    if name == "cost_usd":
        return f"${value:,.2f}"
    return f"{name.replace('_', ' ')} {number(value)}"
