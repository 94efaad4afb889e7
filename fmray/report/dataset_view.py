"""A dataset in the terminal: its figures, mixture, what was removed, how long documents are, and what rows look like."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fmray.report.corpus import (
    BIAS_HEAD,
    MIXTURE,
    SampleRow,
    bias_rows,
    cut,
    falling,
    known,
    lengths,
    mixture,
    n_kept,
    sample_rows,
    visible,
)

BAR = 32
_EIGHTHS = " ▏▎▍▌▋▊▉"


def dataset_lines(data: Mapping[str, Any], folder: Path) -> list[RenderableType]:
    """The parts of a dataset's view, one under another.

    Args:
        data: the payload of its record.
        folder: where it lies, with its sample rows.
    """
    lines: list[RenderableType] = [_pairs(known(data))]
    if rows := mixture(data):
        lines += [*_title("mixture of the training split"), _table(MIXTURE, rows)]
    if removed := falling(data["removed"]):
        read = n_kept(data) + sum(data["removed"].values())
        lines += [*_title(f"removed, of {read:,} documents read"), _bars(removed, read)]
    if languages := falling(data.get("languages") or {}):
        lines += [*_title("languages of the documents kept"), _bars(languages, sum(n for _, n in languages))]
    if spread := lengths(data):
        lines += [*_title("training documents by length in tokens"), _bars(spread, sum(n for _, n in spread))]
    done, figures = bias_rows(folder)
    if figures:
        lines += [*_title(f"bias of the training split ({done})"), _table(BIAS_HEAD, figures)]
    if samples := sample_rows(folder):
        lines += [*_title("sample rows; each block of text is one document, or the part of it in this row"), *map(_sample, samples)]
    return [*lines, Text()]


def _title(text: str) -> list[RenderableType]:
    return [Text(), Text(text, "bold")]


def _pairs(pairs: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for label, value in pairs:
        table.add_row(Text(visible(label), "dim"), Text(visible(value)))
    return table


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table


def _bars(counts: Sequence[tuple[str, int]], whole: int) -> Table:
    """Counts with their share of the whole and a bar that is full for the largest."""
    most = max(n for _, n in counts)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for justify in ("left", "right", "right", "left"):
        table.add_column(justify=justify)
    for name, n in counts:
        table.add_row(Text(visible(name)), Text(f"{n:,}"), Text(f"{n / max(1, whole):.1%}", "dim"), Text(bar(n / max(1, most)), "cyan"))
    return table


def bar(part: float) -> str:
    """A bar of at most BAR cells, in eighths of a cell; what is there at all shows."""
    eighths = max(1, round(part * BAR * 8)) if part > 0 else 0
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _sample(sample: SampleRow) -> RenderableType:
    text = Text.assemble((f"{sample.split} row {sample.row:,}: {sample.holds}", "dim"))
    for piece in cut(sample.pieces):
        text.append("\n▌", "cyan")
        text.append(f" {visible(piece)}")
    return Padding(text, (0, 0, 1, 2))
