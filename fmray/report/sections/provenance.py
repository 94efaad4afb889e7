"""Where every figure comes from: fingerprints and inputs of each step, code, versions and devices."""

from collections.abc import Iterable
from urllib.parse import quote

from fmray.core.artifact import Record
from fmray.report.figures import duration, number
from fmray.report.markup import Markup, Node, el, join, table
from fmray.report.sections.parts import Card, card, facts, pill, step_anchor
from fmray.report.view import RunView, StepView


def section(run: RunView) -> Card:
    """The steps with their fingerprints, then what all of them ran on."""
    rows = [_row(run, step) for step in run.steps]
    head = ["step", "stage", "state", "fingerprint", "inputs", "wall time", "device hours", "devices", "started"]
    steps = table(head, rows, caption="Steps in order; a fingerprint covers the config and, through the inputs, everything before it", numeric=(5, 6))
    return card("Provenance", "Every figure above is read from the record.json of the step named beside it.", steps, _environment([s.record for s in run.steps if s.record]))


def _row(run: RunView, step: StepView) -> list[Node]:
    here = step_anchor(step, "provenance")
    link = el("a", step.label, href=quote(step.path.name) + "/", id=here) if step.path.is_dir() else el("span", step.label, id=here)
    record = step.record
    if record is None:
        return [link, step.stage, pill(step.state), "", _inputs(run, step), "", "", "", ""]
    made = record.provenance
    return [
        link, f"{record.stage} v{record.version}", pill(step.state), el("code", record.fingerprint[:12], title=record.fingerprint), _inputs(run, step),
        duration(record.wall_s), number(made.device_hours), ", ".join(made.devices), made.started_at,
    ]  # fmt: skip


def _inputs(run: RunView, step: StepView) -> str:
    made = [f"{name}: {source.label if source else step.inputs[name][:12]}" for name, source in run.sources(step).items()]
    return ", ".join(made or sorted(step.parents)) or "none"


def _environment(records: Iterable[Record]) -> Markup:
    all_of = [r.provenance for r in records]
    versions: dict[str, set[str]] = {}
    for made in all_of:
        for name, version in made.versions.items():
            versions.setdefault(name, set()).add(version)
    commits = {f"{p.git_commit}{' with uncommitted changes' if p.git_dirty else ''}" if p.git_commit else "unknown (not a checkout)" for p in all_of}
    commands = {" ".join(p.argv) for p in all_of}
    return facts(
        [
            ("git commit", join([el("code", c) for c in sorted(commits)])),
            ("command", join([el("div", el("code", c)) for c in sorted(commands)])),
            ("host", ", ".join(sorted({p.host for p in all_of}))),
            ("Python", ", ".join(sorted({p.python for p in all_of}))),
            ("versions", ", ".join(f"{name} {'/'.join(sorted(found))}" for name, found in sorted(versions.items()))),
        ]
    )

