"""The first screen: what became of the run in one sentence, its life cycle and its key figures."""

from collections.abc import Sequence

from fmray.core.report import Decision
from fmray.report.figures import (
    baseline_name,
    count,
    duration,
    median_latencies,
    metrics_of,
    number,
    spell,
    with_baselines,
)
from fmray.report.lifecycle import draw
from fmray.report.markup import Markup, el
from fmray.report.sections.parts import Card, card, pill, step_anchor, tag
from fmray.report.view import RunView, StepView

Tile = tuple[str, str, str, str]
_COSTS = ("audit/cost/device_hours", "audit/cost/energy_kwh", "audit/cost/price_usd")


def state(run: RunView) -> str:
    """The run in a word: refused, damaged, unfinished, waived, in part, admitted or done, the worst that holds."""
    latest = [run.latest(name).state for name in run.names]
    for word in ("refused", "damaged", "unfinished", "waived", "not run", "admitted"):
        if word in latest:
            return "in part" if word == "not run" else word
    return "done"


def verdict(run: RunView) -> str:
    """One sentence: what was decided and what the models reach."""
    latest = [run.latest(name) for name in run.names]
    said = [text for step in latest if (text := _trouble(step))] or [_decided(latest)]
    absent = [step.label for step in latest if step.state == "not run"]
    return " ".join([*said, *([f"Not run: {', '.join(absent)}."] if absent else []), *_reached(run, latest)])


def _trouble(step: StepView) -> str:
    if step.state == "damaged":
        return f"{step.label} is damaged: {step.problem}."
    if step.state == "unfinished":
        return f"Unfinished: {step.label} has started and not ended."
    if step.state != "refused":
        return ""
    decision = Decision.model_validate(step.payload)
    failed = [r for r in decision.reasons if not r.passed]
    first = f"{failed[0].rule}, {failed[0].note or f'observed {number(failed[0].observed)}, limit {number(failed[0].limit)}'}"
    return f"Refused at {step.label}: {len(failed)} of {len(decision.reasons)} rules not met ({first}). Nothing that needs this gate was made."


def _decided(latest: Sequence[StepView]) -> str:
    gates = [s for s in latest if s.kind == "decision"]
    if not gates:
        made = sum(s.record is not None for s in latest)
        return f"{made} step{'s' if made != 1 else ''} made; no gate has judged yet."
    waived = [s for s in gates if s.state == "waived"]
    rounds = max(s.round for s in gates)
    word = {1: "The gate is", 2: "Both gates are"}.get(len(gates), f"All {len(gates)} gates are")
    sentence = f"{word} met" if not waived else f"Let through by a waiver at {', '.join(s.label for s in waived)}"
    sentence += f" after {rounds} rounds" if rounds > 1 else ""
    served = [s for s in latest if s.kind == "deployment"]
    models = sum(len(s.payload["models"]) for s in served)
    if not served:
        return f"{sentence}; nothing is deployed."
    live = all(s.payload["live"] for s in served)
    number_of = f"{models} model{'s' if models != 1 else ''}"
    return f"{sentence}; {number_of} {'served' if live else 'tried in service and taken down again'}."


def _reached(run: RunView, latest: Sequence[StepView]) -> list[str]:
    """One sentence: what each evaluated model reaches, beside the baselines."""
    found = []
    for step in latest:
        model = run.subject(step)
        for main, others in with_baselines(metrics_of(step.payload)) if step.kind == "report" else ():
            if others and main.value is not None:
                beside = ", ".join(f"{baseline_name(main, o)} {number(o.value)}" for o in others if o.value is not None)
                found.append(f"{model.name if model else 'the model'} reaches {spell(main.name)} {number(main.value)}{f' ({beside})' if beside else ''}")
    return [f"{'; '.join(found)}."] if found else []


def tiles(run: RunView) -> list[Tile]:
    """(label, figure, small print, method) of what a reader looks for first."""
    latest = [run.latest(name) for name in run.names]
    found: list[Tile] = []
    for step in latest:
        found += _step_tiles(step)
    walls = sum(s.record.wall_s for s in run.steps if s.record)
    last = f"the last run took {duration(run.wall_s)}" if run.wall_s is not None else ""
    found.append(("all steps and rounds", duration(walls), last, "measured"))
    if run.peak_memory_gb is not None:
        found.append(("peak memory", f"{number(run.peak_memory_gb)} GiB", "of all processes of the last run, shared pages counted once", "measured"))
    return found


def _step_tiles(step: StepView) -> list[Tile]:
    payload = step.payload
    if step.kind == "token_dataset":
        return [("corpus", f"{count(payload['n_words'])} words", f"{count(payload['n_tokens'])} training tokens, vocabulary {payload['vocab_size']:,}", "measured")]
    if step.kind == "checkpoint" and not payload.get("trials"):
        seen = f", {count(payload['tokens_seen'])} tokens seen" if payload["tokens_seen"] else ""
        return [(f"{step.name}: model", count(payload["n_params"]), f"parameters, {payload['architecture']}{seen}", "measured")]
    if step.kind == "report":
        return [*_evaluated(step), *_audited(step)]
    if step.kind == "deployment":
        return [(f"latency of {model}", number(m.value, m.unit), f"median of {m.n} requests, one after another", m.method) for model, m in median_latencies(payload)]
    return []


def _evaluated(step: StepView) -> list[Tile]:
    found: list[Tile] = []
    for main, others in with_baselines(metrics_of(step.payload)):
        if others:
            beside = " · ".join(f"{baseline_name(main, o)} {number(o.value)}" for o in others)
            found.append((spell(main.name), number(main.value, main.unit), beside, main.method))
    return found


def _audited(step: StepView) -> list[Tile]:
    metrics = metrics_of(step.payload)
    found: list[Tile] = []
    exposed = [m for m in metrics if m.name.startswith("audit/privacy/exposure_x") and m.control is not None and m.value is not None]
    if exposed:
        worst = exposed[-1]
        found.append((f"canary {spell(worst.name)}", number(worst.value, worst.unit), f"never planted: {number(worst.control)}", worst.method))
    found += [(spell(m.name), number(m.value, m.unit), m.note.partition(";")[0], m.method) for m in metrics if m.value is not None and m.name in _COSTS]
    return found


def header(run: RunView) -> Markup:
    """Title, verdict and key figures."""
    tiled = [
        el("div", el("dt", label), el("dd", value), el("dd", note, class_="note") if note else None, el("dd", tag(method), class_="note"), class_="tile")
        for label, value, note, method in tiles(run)
    ]
    return el(
        "header",
        el("p", "fmray report", class_="eyebrow"),
        el("h1", run.name),
        el("p", pill(state(run)), " ", verdict(run), class_="verdict"),
        el("dl", tiled, class_="tiles"),
    )


def section(run: RunView) -> Card:
    """The life cycle with what is missing from it."""
    behind = [s for s in run.steps if s.record is None]
    lead = "Each box is a step; arrows carry artifacts; thin lines carry the same to steps further on."
    lead += " Dashed: a gate that was not met sent the run back." if any(s.round > 1 for s in run.steps) else ""
    notes = [el("li", el("b", s.label), f" ({s.stage or 'unknown stage'}): ", pill(s.state), " ", s.problem, id=step_anchor(s, "life cycle")) for s in behind]
    return card("Life cycle", lead, draw(run), el("ul", notes) if notes else None)

