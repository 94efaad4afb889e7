"""The search: every trial with its hyperparameters, how it ended and what it scored."""

from collections.abc import Mapping, Sequence
from typing import Any

from fmray.report.charts import Series, axis_for, plot
from fmray.report.figures import CONTROL, duration, number
from fmray.report.markup import Markup, Node, el, table
from fmray.report.sections.parts import Card, card, heading, pill, tag
from fmray.report.sections.search_charts import cost, importance, parallel
from fmray.report.view import RunView, StepView


def section(run: RunView) -> Card | None:
    """One part for each checkpoint that a search chose."""
    steps = [s for s in run.of_kind("checkpoint") if s.payload.get("trials")]
    if not steps:
        return None
    return card("Trials", "Every trial of the search is kept, those that were stopped early or failed too. A score is that of the trial's best epoch on the validation split; higher is better. The control has the winner's hyperparameters and starts from random weights.", [_searched(step) for step in steps])


def _searched(step: StepView) -> Markup:
    trials = sorted(step.payload["trials"], key=lambda t: (t["score"] is None, -(t["score"] or 0.0)))
    flat = [(trial, flatten(trial["config"])) for trial in trials]
    keys = list(dict.fromkeys(key for _, config in flat for key in config))
    searched = [(trial, config) for trial, config in flat if trial["trial_id"] != CONTROL]
    varied = [key for key in keys if len({str(config.get(key)) for _, config in searched}) > 1]
    charts = [_by_key(searched, key) for key in varied]
    lines = [Series(t["trial_id"], [(i + 1.0, score) for i, score in enumerate(t["history"])], f"s{1 + i % 6}") for i, t in enumerate(trials) if t["history"]]
    curve = plot(lines, title="Score of each trial by epoch", x_label="epoch", y_label="score", height=190, x_ticks=_whole(lines)) if lines else None
    return el("div", heading(step, "trials", tag("measured")), cost(step.payload), _table(flat, keys), el("div", curve, charts, class_="two"), parallel(searched, varied), importance(step.payload.get("figures") or {}))


def _whole(lines: Sequence[Series]) -> list[tuple[float, str]]:
    longest = max(len(line.points) for line in lines)
    every = max(1, longest // 8)
    return [(float(i), str(i)) for i in range(1, longest + 1, every)]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested hyperparameters by dotted name."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _table(flat: Sequence[tuple[dict[str, Any], dict[str, Any]]], keys: Sequence[str]) -> Markup:
    winner = next((t["trial_id"] for t, _ in flat if t["trial_id"] != CONTROL and t["score"] is not None), None)

    def row(trial: dict[str, Any], config: dict[str, Any]) -> list[Node]:
        best = [" ", pill("best", "admitted")] if trial["trial_id"] == winner else []
        values = [_value(config.get(key)) for key in keys]
        ended = [trial["status"], el("small", f" {trial['note']}") if trial["note"] else None]
        return [[trial["trial_id"], *best], *values, number(trial["score"]), len(trial["history"]), duration(trial["wall_s"]), ended]

    head = ["trial", *keys, "best score", "epochs run", "wall time", "ended"]
    rows = [row(trial, config) for trial, config in flat]
    return table(head, rows, caption="Trials, best first", numeric=range(1, len(keys) + 4))


def _value(value: Any) -> str:
    return number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _by_key(flat: Sequence[tuple[dict[str, Any], dict[str, Any]]], key: str) -> Markup | None:
    """Score against one hyperparameter: a number on its axis, anything else as categories side by side."""
    pairs = [(config.get(key), trial["score"], trial["trial_id"]) for trial, config in flat if trial["score"] is not None]
    if len(pairs) < 2:
        return None
    ticks: list[tuple[float, str]] | None = None
    if all(isinstance(x, (int, float)) and not isinstance(x, bool) for x, _, _ in pairs):
        places = [float(x) for x, _, _ in pairs if isinstance(x, (int, float))]
        axis = axis_for(places, log=min(places) > 0 and max(places) / min(places) >= 5, margin=0.08)
        if all(isinstance(x, int) for x, _, _ in pairs):
            ticks = [(x, number(x)) for x in sorted(set(places))]
    else:
        names = list(dict.fromkeys(str(x) for x, _, _ in pairs))
        places = [float(names.index(str(x))) for x, _, _ in pairs]
        ticks, axis = [(float(i), name) for i, name in enumerate(names)], axis_for([-0.5, len(names) - 0.5])
    titles = [f"{name}: {key} {_value(x)}, score {number(score)}" for x, score, name in pairs]
    series = Series(key, [(x, float(score)) for x, (_, score, _) in zip(places, pairs, strict=True)], "s1", line=False, titles=titles)
    return plot([series], title=f"Score by {key}", x_label=key, y_label="score", height=190, x_axis=axis, x_ticks=ticks)
