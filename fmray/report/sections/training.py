"""How the training went: the loss over the steps, the rounds of a gate that sent back joined into one curve."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fmray.report.charts import Series, axis_for, plot
from fmray.report.figures import count, figure, metrics_of
from fmray.report.markup import Markup, el, table
from fmray.report.sections.parts import Card, card, heading, strip, tag
from fmray.report.view import RunView, StepView
from fmray.report.watched import OPERATOR_HEAD, RANK_HEAD, operator_rows, rank_rows, slowest, watched_of

# Beside the loss, as far as a training kept them.
_CURVES = (("lr", "learning rate", ""), ("grad_norm", "gradient norm", "before clipping"), ("tokens_per_s", "speed", "tokens/s"))


def section(run: RunView) -> Card | None:
    """One part for each training step that recorded losses, its rounds in one curve."""
    names = [name for name in run.names if any(s.payload.get("losses") for s in run.rounds(name))]
    if not names:
        return None
    return card("Training", "Loss of each optimizer step's batch, in nats a target; lower is better.", [_trained(run, name) for name in names])


def _trained(run: RunView, name: str) -> Markup:
    rounds = [step for step in run.rounds(name) if step.payload.get("losses")]
    series = [Series(f"round {s.round}" if len(rounds) > 1 else "training loss", points, f"s{1 + i % 6}") for i, (s, points) in enumerate(joined(rounds))]
    if evaluated := _curve(rounds, "eval_loss"):
        series.append(Series("held-out loss while training", evaluated, f"s{1 + len(series) % 6}"))
    last = rounds[-1].payload
    guides = _guides(run, rounds[-1])
    steps = axis_for([x for s in series for x, _ in s.points], log=False, zero=True, margin=0.0)
    chart = plot(series, title=f"Training loss of {name}", x_label="optimizer step", y_label="loss (nats)", guides=guides, x_axis=steps)
    return el("div", heading(run.rounds(name)[0], "training", tag("measured")), chart, strip(_facts(last)), _plots(rounds, name), _tables(watched_of(last)))


def joined(rounds: Sequence[StepView]) -> list[tuple[StepView, list[tuple[float, float]]]]:
    """The points of each round on one step axis; a round that counts from zero again is moved behind the one before."""
    return [
        (step, [(p["step"] + offset, float(p["loss"])) for p in step.payload["losses"]]) for step, offset in zip(rounds, _offsets(rounds), strict=True)
    ]


def _offsets(rounds: Sequence[StepView]) -> list[float]:
    """How far each round is moved."""
    offsets, end = [], 0.0
    for step in rounds:
        steps = [float(p["step"]) for p in step.payload["losses"]]
        offsets.append(end if steps and steps[0] <= end else 0.0)
        end = max([end, *(x + offsets[-1] for x in steps)])
    return offsets


def _curve(rounds: Sequence[StepView], name: str) -> list[tuple[float, float]]:
    """A figure over all rounds."""
    return [
        (float(x) + offset, float(y)) for step, offset in zip(rounds, _offsets(rounds), strict=True) for x, y in watched_of(step.payload).get("curves", {}).get(name, ())
    ]


def _plots(rounds: Sequence[StepView], name: str) -> Markup | None:
    """Small charts of what else moved with the steps."""
    charts = [
        plot([Series(title, points)], title=f"{title} of {name}", x_label="optimizer step", y_label=f"{title} ({unit})" if unit else title, height=130, y_axis=axis_for([y for _, y in points], zero=True))
        for key, title, unit in _CURVES
        if len(points := _curve(rounds, key)) > 1
    ]
    return el("div", charts, class_="two") if charts else None


def _tables(watched: Mapping[str, Any]) -> list[Markup]:
    """Where the ranks' time went, the operators of a profile, and what went wrong beside the training."""
    found: list[Markup] = []
    if rows := rank_rows(watched):
        found.append(table(RANK_HEAD, rows, caption="Time of each rank's latest steps: medians and 95th percentiles", numeric=range(2, len(RANK_HEAD))))
        if said := slowest(watched):
            found.append(el("p", f"{said[0].upper()}{said[1:]}."))
    if rows := operator_rows(watched):
        found.append(table(OPERATOR_HEAD, rows, caption="Operators by their own time in the profiled steps of one rank", numeric=range(1, len(OPERATOR_HEAD))))
    return found + [el("p", note) for note in watched.get("notes", ())]


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
