"""The audits: each figure with its interval and beside it the same figure on a control, then what was found."""

import re
from collections.abc import Sequence

from fmray.core.report import Finding, Metric, Report
from fmray.report.figures import metrics_of
from fmray.report.markup import Markup, el, table
from fmray.report.sections.parts import Card, card, heading, key_to_marks, metric_rows, pill
from fmray.report.view import RunView, StepView


def section(run: RunView) -> Card | None:
    """One part for each report with figures under `audit/`; those of cost stand in their own section."""
    steps = [s for s in run.of_kind("report") if _audited(s)]
    if not steps:
        return None
    lead = "A figure of harm means little alone: beside each stands its control, such as an untrained twin or a canary that was never planted."
    return card("Audits", lead, key_to_marks(), [_part(run, step) for step in steps])


def _audited(step: StepView) -> list[Metric]:
    return [m for m in metrics_of(step.payload) if m.name.startswith("audit/") and not m.name.startswith("audit/cost/")]


def _part(run: RunView, step: StepView) -> Markup:
    subject = run.subject(step)
    about = el("small", f"about {subject.label}" if subject else "about a checkpoint of another run")
    panels = [el("div", el("p", el("b", title)), metric_rows(group, title=title), class_="panel") for title, group in grouped(_audited(step))]
    return el("div", heading(step, "audits", about), panels)


def grouped(metrics: Sequence[Metric]) -> list[tuple[str, list[Metric]]]:
    """Metrics that share a scale: the same audit, unit and name up to its level (`exposure_x1`, `exposure_x64`)."""
    groups: dict[tuple[str, str, str], list[Metric]] = {}
    for metric in metrics:
        _, audit, *rest = metric.name.split("/")
        leaf = rest[-1] if rest else audit
        family = re.sub(r"_x\d+$", "", leaf)
        groups.setdefault((audit, metric.unit, family if family != leaf else ""), []).append(metric)

    def title(audit: str, unit: str, family: str) -> str:
        in_unit = f", in {unit}" if unit else ""
        return f"{audit}: {family.replace('_', ' ')} by times planted{in_unit}" if family else f"{audit}{in_unit}"

    return [(title(*key), group) for key, group in groups.items()]


def findings(run: RunView) -> Card | None:
    """Findings of every report, the gravest first."""
    found = [(step, finding) for step in run.of_kind("report") for finding in Report.model_validate(step.payload).findings]
    if not found:
        return None
    order = ("high", "medium", "low", "info")
    found.sort(key=lambda pair: order.index(pair[1].severity))
    rows = [_finding(step, finding) for step, finding in found]
    return card("Findings", "What a reader should know before using the model.", table(["severity", "finding", "detail", "step"], rows, caption="Findings, gravest first"))


def _finding(step: StepView, finding: Finding) -> list[Markup]:
    return [pill(finding.severity), el("b", finding.title), el("span", finding.detail), el("span", step.label)]
