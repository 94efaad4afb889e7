"""The result files: Markdown, JSON, and a page of charts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.attention.cells import MEANING
from benchmarks.attention.sweep import Row
from benchmarks.attention.worker import CHECKED_POSITIONS, GIB
from fmray.report.charts import Series, plot
from fmray.report.markup import el
from fmray.report.style import sheet

# The largest error against float64, relative to the largest value, of a correct implementation: a thousand roundings in float32;
# in bf16 (a rounding is 0.4 %) those of scores, probabilities and their gradients.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.03}


def is_correct(row: Row) -> bool | None:
    """Whether a row's errors are within the tolerance; None where they were not measured."""
    found = row.get("errors")
    return None if found is None else max(found.values()) <= TOLERANCE[row["dtype"]]


def markdown(about: dict[str, Any], rows: Sequence[Row], *, command: str, settings: dict[str, Any]) -> str:
    """The whole result as Markdown."""
    peaks = ", ".join(f"{dtype} {value / 1e12:,.3g} TFLOP/s" for dtype, value in about["peaks"].items())
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        "# Attention", "",
        f"`{command}`", "",
        f"Machine: {about['device']} ({about['name']}), {about['threads']} threads. Python {about['python']}, {versions}.",
        f"Matrix-product peak of this run: {peaks}. Rows and heads of a cell: {settings['tokens']:,} positions (or one row) x {settings['width']} wide.", "",
        "Forward and backward pass through transformers' attention functions under their names there; behind a colon, the backend that torch is held to.",
        "TFLOP/s count what the mask asks for, 12 x pairs x head dimension x heads for both passes, whatever the implementation computes; masks are made before the clock runs.",
        f"Medians of {settings['seconds']:g} s of repeats (3 to 20), after a warm-up. Error: the largest deviation from float64 of output and gradients, over the largest value, up to {CHECKED_POSITIONS:,} positions;",
        f"**wrong** above {', '.join(f'{limit:g} in {dtype}' for dtype, limit in TOLERANCE.items())}.", "",
        *(f"* {mask}: {MEANING[mask]}." for mask in dict.fromkeys(row["mask"] for row in rows)), "",
        "## The fastest that is correct", "",
        *fastest_table(rows), "",
    ]  # fmt: skip
    for key, group in grouped(rows).items():
        lines += [f"## {key}", "", *cells_table(group), ""]
    return "\n".join(lines)


def grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by mask, dtype and head dimension."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(f"{row['mask']}, {row['dtype']}, head dimension {row['head_dim']}", []).append(row)
    return found


def fastest_table(rows: Sequence[Row]) -> list[str]:
    """For each group and length the fastest implementation whose errors, where they were measured, are within the tolerance.

    Where none was checked at a length, an implementation counts that was right at every length that was checked.
    """
    lengths = sorted({row["seq_len"] for row in rows})
    lines = ["| | " + " | ".join(f"{length:,}" for length in lengths) + " |", "|---|" + "---|" * len(lengths)]
    for key, group in grouped(rows).items():
        wrong = {row["implementation"] for row in group if is_correct(row) is False}
        cells = []
        for length in lengths:
            ran = [row for row in group if row["seq_len"] == length and "tokens_per_s" in row and row["implementation"] not in wrong]
            best = max(ran, key=lambda row: row["tokens_per_s"], default=None)
            cells.append("-" if best is None else f"{best['implementation']} {best['tokens_per_s']:,.0f} tokens/s")
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return lines


def cells_table(group: Sequence[Row]) -> list[str]:
    """Every cell of a group; one that did not run says why."""
    lines = ["| positions | implementation | tokens/s | TFLOP/s | of peak | forward, ms | backward, ms | peak memory, GiB (estimated) | error |", "|--:|---|--:|--:|--:|--:|--:|--:|--:|"]
    for row in group:
        head = f"| {row['seq_len']:,} | {row['implementation']} |"
        if "reason" in row:
            lines.append(f"{head} {escaped(row['reason'])} | | | | | ({row['estimated_bytes'] / GIB:.2f}) | |")
            continue
        error = "" if row["errors"] is None else f"{max(row['errors'].values()):.1e}" + (" **wrong**" if is_correct(row) is False else "")
        peak = "unknown" if row["peak_bytes"] is None else f"{row['peak_bytes'] / GIB:.2f}"
        lines.append(
            f"{head} {row['tokens_per_s']:,.0f} | {row['tflops']:.3g} | {row['of_peak']:.1%} | {1000 * row['forward_s']:.2f} | {1000 * row['backward_s']:.2f} "
            f"| {peak} ({row['estimated_bytes'] / GIB:.2f}) | {error} |"
        )  # fmt: skip
    return lines


def escaped(reason: str) -> str:
    """A reason inside a table's cell."""
    return reason.replace("|", "\\|").replace("<", "&lt;")


def charts(about: dict[str, Any], rows: Sequence[Row]) -> str:
    """A page with a chart for each group: tokens/s over positions, a line an implementation."""
    names = list(dict.fromkeys(row["implementation"] for row in rows if "tokens_per_s" in row))
    drawn = []
    for key, group in grouped(rows).items():
        series = [
            Series(name, [(row["seq_len"], row["tokens_per_s"]) for row in group if row["implementation"] == name and "tokens_per_s" in row], f"s{names.index(name) % 6 + 1}")
            for name in names
        ]
        series = [s for s in series if s.points]
        if series:
            drawn.append(el("section", el("h2", key), plot(series, title=f"{key}: tokens/s by positions", x_label="positions", y_label="tokens/s"), class_="card"))
    title = f"Attention on {about['name']}"
    head = el("head", el("meta", charset="utf-8"), el("title", title), el("style", sheet()))
    return f"<!doctype html>\n{el('html', head, el('body', el('main', el('h1', title), drawn)), lang='en')}\n"


def write(folder: Path, stem: str, about: dict[str, Any], rows: Sequence[Row], *, command: str, settings: dict[str, Any]) -> list[Path]:
    """Writes the three files and gives their paths."""
    texts = {
        ".md": markdown(about, rows, command=command, settings=settings),
        ".json": json.dumps({"about": about, "settings": settings, "cells": list(rows)}, indent=1) + "\n",
        ".html": charts(about, rows),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths
