"""How the training went: the loss over the steps, the rounds of a gate that sent back joined into one curve."""

import math
from collections.abc import Sequence

from fmray.report.charts import Series, axis_for, plot
from fmray.report.figures import count, figure, metrics_of
from fmray.report.markup import Markup, el
from fmray.report.sections.parts import Card, card, heading, strip, tag
from fmray.report.view import RunView, StepView


def section(run: RunView) -> Card | None:
    """One part for each training step that recorded losses, its rounds in one curve."""
    names = [name for name in run.names if any(s.payload.get("losses") for s in run.rounds(name))]
    if not names:
        return None
    return card("Training", "Loss of each optimizer step's batch, in nats a target; lower is better.", [_trained(run, name) for name in names])


def _trained(run: RunView, name: str) -> Markup:
    rounds = [step for step in run.rounds(name) if step.payload.get("losses")]
    series = [Series(f"round {s.round}" if len(rounds) > 1 else "training loss", points, f"s{1 + i % 6}") for i, (s, points) in enumerate(joined(rounds))]
    last = rounds[-1].payload
    guides = _guides(run, rounds[-1])
    steps = axis_for([x for s in series for x, _ in s.points], log=False, zero=True, margin=0.0)
    chart = plot(series, title=f"Training loss of {name}", x_label="optimizer step", y_label="loss (nats)", guides=guides, x_axis=steps)
    return el("div", heading(run.rounds(name)[0], "training", tag("measured")), chart, strip(_facts(last)))


def joined(rounds: Sequence[StepView]) -> list[tuple[StepView, list[tuple[float, float]]]]:
    """The points of each round on one step axis; a round that counts from zero again is moved behind the one before."""
    found: list[tuple[StepView, list[tuple[float, float]]]] = []
    end = 0.0
    for step in rounds:
        points = [(float(p["step"]), float(p["loss"])) for p in step.payload["losses"]]
        offset = end if points and points[0][0] <= end else 0.0
        found.append((step, [(x + offset, y) for x, y in points]))
        end = max([end, *(x + offset for x, _ in points)])
    return found


def _guides(run: RunView, step: StepView) -> list[tuple[float, str]]:
    """The loss of guessing uniformly, and the held-out loss when an evaluation of this checkpoint gives it."""
    guides: list[tuple[float, str]] = []
    vocabulary = step.payload.get("vocab_size")
    if step.payload.get("head") in ("causal_lm", "masked_lm", "seq2seq_lm") and vocabulary:
        guides.append((math.log(vocabulary), "uniform guess"))
    for report in run.of_kind("report"):
        if report.payload.get("subject") == step.fingerprint:
            guides += [(m.value, "held-out loss") for m in metrics_of(report.payload) if m.name == "eval/loss" and m.value is not None]
    return guides


def _facts(payload: dict[str, object]) -> list[tuple[str, str]]:
    pairs = [("parameters", count(_number(payload["n_params"]))), ("optimizer steps", count(_number(payload["step"]))), ("tokens seen", count(_number(payload["tokens_seen"])))]
    figures = payload.get("figures")
    if isinstance(figures, dict):
        pairs += [figure(key, float(value)) for key, value in figures.items() if key != "train/loss"]
    return pairs


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
