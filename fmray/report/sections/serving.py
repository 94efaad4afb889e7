"""What is served, under which decision, with the smoke requests as they were asked and answered."""

from typing import Any

from fmray.core.report import Metric
from fmray.report.figures import duration, interval, number, spell
from fmray.report.markup import Markup, el, table
from fmray.report.sections.parts import Card, card, facts, heading, pill, tag
from fmray.report.view import RunView, StepView

SHOWN_PER_MODEL = 3


def section(run: RunView) -> Card | None:
    """One part for each deployment."""
    steps = run.of_kind("deployment")
    if not steps:
        return None
    return card("Served models", "Each model stands behind the decision of its own gate. Answers are shown as they came.", [_deployment(run, step) for step in steps])


def _deployment(run: RunView, step: StepView) -> Markup:
    data = step.payload
    state = pill("live") if data["live"] else pill("tried, not live", "done")
    known = [
        ("application", f"{data['app']} at {data['route']}"),
        ("address", data["url"] or "none now"),
        ("replicas of each model", str(data["replicas"])),
        ("start", duration(data["start_s"])),
        ("bring it up", el("code", data["serve_command"])),
    ]
    models = [[m["name"], m["head"].replace("_", " "), _made_by(run, m), el("code", m["digest"][:16])] for m in data["models"]]
    figures = [Metric.model_validate(m) for m in data["metrics"]]
    rows = [[el("span", spell(m.name), " ", tag(m.method)), el("code", m.name), interval(m), m.n or "", m.note] for m in figures]
    return el(
        "div",
        heading(step, "served", state),
        facts(known),
        table(["model", "head", "made by", "digest"], models, caption="Models"),
        table(["figure", "key", "value", "n", "note"], rows, caption="Measured on the smoke requests") if rows else None,
        [_samples(m, data["samples"]) for m in data["models"]],
    )


def _made_by(run: RunView, model: dict[str, Any]) -> str:
    step = run.by_fingerprint(model["fingerprint"])
    return step.label if step else "another run"


def _samples(model: dict[str, Any], samples: list[dict[str, Any]]) -> Markup | None:
    """A continuation stands right behind its prompt, as the model wrote it; a label behind an arrow."""
    mine = [s for s in samples if s["model"] == model["name"]]
    if not mine:
        return None
    between = "" if model["head"] == "causal_lm" else " → "
    quotes = [
        el("blockquote", el("div", el("b", s["prompt"]), between, s["answer"], class_="sample", dir="auto"), el("small", f"{number(s['latency_ms'])} ms"))
        for s in mine[:SHOWN_PER_MODEL]
    ]
    said = " prompt, and how the model goes on" if model["head"] == "causal_lm" else " text → its most likely label"
    return el("div", el("p", el("b", model["name"]), el("small", said)), el("div", quotes, class_="samples"))
