"""What the terminal says of an experiment: the summary at the end of a run, and `fmray show`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fmray.core.artifact import Record, load, read_record
from fmray.core.experiment import Outcome
from fmray.core.report import Decision
from fmray.report.corpus import sample_rows
from fmray.report.dataset_view import dataset_lines
from fmray.report.figures import duration, key_figures, number
from fmray.report.html import REPORT
from fmray.report.lifecycle import SYMBOLS
from fmray.report.view import RunView, StepView, read_run
from fmray.report.watched import OPERATOR_HEAD, RANK_HEAD, operator_rows, rank_rows, slowest, watched_of

_STYLES = {"admitted": "green", "refused": "bold red", "damaged": "bold red", "waived": "yellow", "unfinished": "yellow"}
_SHOWN_FIGURES = 5
DATASET = "token_dataset"


def summary_table(experiment_dir: Path, *, outcomes: Sequence[Outcome] = (), run: Mapping[str, Any] | None = None) -> RenderableType:
    """The table at the end of a run: steps with their key figures, then why each gate decided, cost of the run, and the report.

    Args:
        outcomes: what this run produced or took from cache; only those steps are shown. All of the folder when there are none.
        run: `wall_s` and `peak_memory_gb` of the run, each left out or None when unknown.
    """
    view = read_run(experiment_dir)
    states = {(o.step, o.round): o.state for o in outcomes}
    steps = [s for s in view.steps if not states or (s.name, s.round) in states]
    table = _table("step", "", "key figures", "artifact")
    for step in steps:
        table.add_row(Text(step.label, "bold"), _state(step, states.get((step.name, step.round))), _figures(step), Text(_near(step.path), "dim"))
    lines: list[RenderableType] = [Text(), table]
    for step in steps:
        lines += _reasons(step)
    report = view.root / REPORT
    lines += [Text(), Text(_took(run or {}))] if run else []
    lines += [Text.assemble("report  ", (_near(report), "bold"))] if report.exists() else []
    return Group(*lines)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _near(path: Path) -> str:
    """A path as one would type it from here: relative when that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)


def _state(step: StepView, made: str | None) -> Text:
    words = [f"{SYMBOLS[step.state]} {step.state}"] if step.state != "done" or made is None else []
    words += [made] if made is not None and (made == "cached" or not words) else []
    return Text(", ".join(words), _STYLES.get(step.state, "dim" if made == "cached" else "green"))


def _figures(step: StepView) -> Text:
    if step.record is None:
        return Text(step.problem)
    return Text(" · ".join(f"{label} {value}" for label, value in key_figures(step.record)[:_SHOWN_FIGURES]))


def _reasons(step: StepView) -> list[RenderableType]:
    """The rules of a gate with what was observed, and who waived them."""
    if step.kind != "decision":
        return []
    decision = Decision.model_validate(step.payload)
    lines: list[RenderableType] = [Text(), Text.assemble((step.label, "bold"), " ", (step.state, _STYLES.get(step.state, "")))]
    for reason in decision.reasons:
        mark = Text("  ✓ " if reason.passed else "  ✕ ", "green" if reason.passed else "red")
        observed = f"  observed {number(reason.observed)}, limit {number(reason.limit)}"
        lines.append(Text.assemble(mark, reason.rule, (f"{observed}{f'; {reason.note}' if reason.note else ''}", "dim")))
    if decision.waived_by:
        lines.append(Text(f"  waived by {decision.waived_by}: {decision.waiver_reason}", "yellow"))
    return lines


def _took(run: Mapping[str, Any]) -> str:
    wall, peak = run.get("wall_s"), run.get("peak_memory_gb")
    return f"wall time {duration(wall)} · peak memory {number(peak, 'GiB') if peak is not None else 'unknown'}"


def show_experiment(experiment_dir: Path, as_json: bool = False) -> RenderableType | dict[str, Any]:
    """Steps of an experiment with states, fingerprints, lineage and figures, for the terminal or as plain values.

    Raises:
        ArtifactError: there is no such folder, or no step has started in it.
    """
    run = read_run(experiment_dir)
    if as_json:
        return experiment_facts(run)
    lines: list[RenderableType] = [Text.assemble((run.name, "bold"), f"  {_near(run.root)}")]
    for step in run.steps:
        lines += _step_lines(run, step)
    return Group(*lines)


def _step_lines(run: RunView, step: StepView) -> list[RenderableType]:
    """Who it is, from what it was made, and what it shows: lines that read well in any width."""
    wall = duration(step.record.wall_s) if step.record else ""
    lineage = ", ".join(f"{name}={source.label if source else step.inputs[name][:12]}" for name, source in run.sources(step).items())
    first = Text.assemble((f"{step.label:<14}", "bold"), f"{step.stage:<10}", f"{step.fingerprint[:12]:<14}", f"{wall:<12}", _state(step, None))
    more = [Padding(Text(f"from {lineage}", "dim"), (0, 0, 0, 4))] if lineage else []
    return [first, *more, Padding(_figures(step), (0, 0, 0, 4))]


def experiment_facts(run: RunView) -> dict[str, Any]:
    """An experiment as plain values: every step of every round with its fingerprint, its inputs and its figures."""
    return {"experiment": run.name, "path": str(run.root.absolute()), "steps": [_plain(run, step) for step in run.steps]}


def _plain(run: RunView, step: StepView) -> dict[str, Any]:
    sources = {name: {"fingerprint": step.inputs[name], "step": source.label if source else None} for name, source in run.sources(step).items()}
    return {
        "step": step.name, "round": step.round, "stage": step.stage, "state": step.state, "kind": step.kind or None, "path": str(step.path.absolute()),
        "fingerprint": step.fingerprint or None, "inputs": sources, "wall_s": step.record.wall_s if step.record else None,
        "figures": dict(key_figures(step.record)) if step.record else {},
    }  # fmt: skip


def show_artifact(path: Path, as_json: bool = False) -> RenderableType | dict[str, Any]:
    """One artifact: what it is, its figures, config, inputs and provenance, for the terminal or as plain values.

    Raises:
        ArtifactError: there is no complete artifact at `path`.
    """
    record = read_record(Path(path)) or load(path).record
    if as_json:
        return artifact_facts(Path(path), record)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    is_dataset = record.kind == DATASET
    for label, value in [*_identity(record), *([] if is_dataset else key_figures(record)), *_config(record.config)]:
        table.add_row(Text(label, "dim"), Text(value))
    view = dataset_lines(record.payload, Path(path)) if is_dataset else []
    return Group(Text.assemble((record.name, "bold"), f"  {record.kind}  {Path(path)}"), *view, table, *_watched(watched_of(record.payload)))


def _watched(watched: Mapping[str, Any]) -> list[RenderableType]:
    """Where the ranks' time went, the operators of a profile, and what went wrong beside the training."""
    lines: list[RenderableType] = []
    for head, rows in ((RANK_HEAD, rank_rows(watched)), (OPERATOR_HEAD, operator_rows(watched))):
        if rows:
            shown = _table(*head)
            for row in rows:
                shown.add_row(*map(Text, row))
            lines += [Text(), shown]
    return lines + [Text(text) for text in (slowest(watched), *watched.get("notes", ())) if text]


def artifact_facts(path: Path, record: Record) -> dict[str, Any]:
    """An artifact as plain values: its record, where it lies and its key figures; of a dataset its sample rows too."""
    facts = {**record.model_dump(mode="json"), "path": str(path.absolute()), "figures": dict(key_figures(record))}
    return facts | ({"samples": [asdict(row) for row in sample_rows(path)]} if record.kind == DATASET else {})


def _identity(record: Record) -> list[tuple[str, str]]:
    made = record.provenance
    inputs = [(f"input {name}", value) for name, value in record.inputs.items()]
    commit = f"{made.git_commit or 'unknown'}{' with uncommitted changes' if made.git_dirty else ''}"
    return [
        ("stage", f"{record.stage} version {record.version}, round {record.round}"), ("fingerprint", record.fingerprint), *inputs,
        ("git commit", commit), ("started", made.started_at), ("wall time", duration(record.wall_s)),
        ("devices", f"{', '.join(made.devices)}; {number(made.device_hours)} device hours"), ("command", " ".join(made.argv)),
    ]  # fmt: skip


def _config(config: Mapping[str, Any], prefix: str = "config.") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in config.items():
        found += _config(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else [(f"{prefix}{key}", str(value))]
    return found
