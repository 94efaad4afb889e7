"""The runs that a law is fitted to: experiments' folders, or a CSV file."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmray.core.errors import ArtifactError, DataError
from fmray.report.figures import metrics_of
from fmray.report.scaling.fit import Run
from fmray.report.view import RunView, StepView, read_run

COLUMNS = ("n_params", "tokens", "loss")
HELD_OUT = "held-out loss (eval/loss)"
TRAINED = "training loss at the end (the last point of the curve)"
GIVEN = "loss as the file gives it"


@dataclass(frozen=True)
class Runs:
    """Runs with what their loss is, and what a reader should know of them."""

    runs: tuple[Run, ...]
    loss: str
    notes: tuple[str, ...] = ()


def read_runs(paths: Sequence[Path]) -> Runs:
    """The runs of one CSV file (columns n_params, tokens, loss), or of every pretraining in experiments' folders.

    Of experiments the held-out loss is taken where each of them was evaluated, else that of training.

    Raises:
        ArtifactError: a path does not exist or is no experiment.
        DataError: a file lacks a column or holds no positive number where one belongs, or losses of different kinds are mixed.
    """
    files = [path for path in paths if path.is_file()]
    if files and len(paths) > 1:
        raise DataError("give either one CSV file or experiments' folders", where="RUNS")
    return Runs(_from_csv(files[0]), GIVEN) if files else _from_experiments(paths)


def _from_csv(path: Path) -> tuple[Run, ...]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"has no column {missing[0]}", where=str(path), todo=f"its first line must name {', '.join(COLUMNS)}")
            return tuple(Run(row.get("name") or f"line {number}", *(_positive(row[column], f"{path}: line {number}: {column}") for column in COLUMNS)) for number, row in enumerate(reader, start=2))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read ({error})", where=str(path)) from None


def _positive(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"{text!r} is not a positive number", where=where)
    return value


def _from_experiments(paths: Sequence[Path]) -> Runs:
    found = [(view, step) for view in map(read_run, paths) for step in view.of_kind("checkpoint") if step.stage == "pretrain"]
    if not found:
        raise DataError("holds no finished pretraining", where=", ".join(map(str, paths)))
    for _, step in found:
        if "init" in step.inputs:
            raise ArtifactError("was started from another checkpoint, so its tokens do not tell what it has seen", where=str(step.path), todo="leave it out")
    for name in ("vocab_size", "objective"):
        told = {str(step.payload[name]) for _, step in found}
        if len(told) > 1:
            raise DataError(f"the runs have different {name} ({', '.join(sorted(told))}), so their losses cannot be compared", where="RUNS", todo="fit them apart")
    held_out = [_held_out(view, step) for view, step in found]
    trained = [float(step.payload["losses"][-1]["loss"]) for _, step in found]
    losses: Sequence[float | None] = trained if None in held_out else held_out
    runs = tuple(
        Run(f"{view.name}/{step.label}", float(step.payload["n_params"]), float(step.payload["tokens_seen"]), float(loss or 0))
        for (view, step), loss in zip(found, losses, strict=True)
    )
    datasets = {step.inputs.get("dataset") for _, step in found}
    notes = (f"they were trained on {len(datasets)} different datasets",) if len(datasets) > 1 else ()
    return Runs(runs, TRAINED if None in held_out else HELD_OUT, notes)


def _held_out(view: RunView, step: StepView) -> float | None:
    """The held-out loss that a report of the same experiment gives for a checkpoint."""
    reports = [report for report in view.of_kind("report") if report.payload.get("subject") == step.fingerprint]
    values = [metric.value for report in reports for metric in metrics_of(report.payload) if metric.name == "eval/loss"]
    return next((value for value in values if value is not None), None)
