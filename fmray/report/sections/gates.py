"""The gates: every rule with what was observed, its limit, and whether it was met."""

from fmray.core.report import Decision, Reason
from fmray.report.figures import number
from fmray.report.markup import Markup, Node, el, table
from fmray.report.sections.parts import Card, card, heading, pill
from fmray.report.view import RunView, StepView


def section(run: RunView) -> Card | None:
    """One part for each decision of each round."""
    steps = run.of_kind("decision")
    if not steps:
        return None
    lead = "A gate decides about one checkpoint; nothing is searched or served that its gate did not admit. A figure that is missing fails its rule."
    return card("Gates", lead, [_gate(run, step) for step in steps])


def _gate(run: RunView, step: StepView) -> Markup:
    decision = Decision.model_validate(step.payload)
    subject = run.subject(step)
    about = el("small", f"about {subject.label}" if subject else f"about checkpoint {decision.subject[:12]}")
    waiver = None
    if decision.waived_by:
        waiver = el("blockquote", el("b", f"Waived by {decision.waived_by}: "), decision.waiver_reason or "")
    rows = [_rule(reason) for reason in decision.reasons]
    rules = table(["rule", "observed", "limit", "verdict", "why"], rows, caption=f"Rules of {step.label}", numeric=(1, 2))
    return el("div", heading(step, "gates", pill(step.state), " ", about), waiver, rules)


def _rule(reason: Reason) -> list[Node]:
    verdict = pill("✓ met", "pass") if reason.passed else pill("✕ not met", "fail")
    return [el("code", reason.rule, class_="rule"), number(reason.observed), number(reason.limit), verdict, reason.note]
