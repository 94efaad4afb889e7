"""Charts of a search as a whole: what each trial drew and scored as one line, what mattered, and what it took."""

from collections.abc import Mapping, Sequence
from typing import Any

from fmray.report.charts import Axis, Row, percent, rows_chart
from fmray.report.figures import duration, number
from fmray.report.markup import Markup, el

HEIGHT = 190
IMPORTANCE = "importance/"

Searched = Sequence[tuple[dict[str, Any], dict[str, Any]]]
"""Trials with their hyperparameters by dotted name."""


def parallel(searched: Searched, keys: Sequence[str]) -> Markup | None:
    """Parallel coordinates: an upright axis a hyperparameter, the score's at the right; a line a trial, the best third in front."""
    scored = sorted(((config, float(trial["score"]), trial["trial_id"]) for trial, config in searched if trial["score"] is not None), key=lambda one: one[1])
    if len(scored) < 2 or len(keys) < 2:
        return None
    columns = [_places([config.get(key) for config, _, _ in scored]) for key in keys]
    columns.append(_places([score for _, score, _ in scored]))
    across = [number / len(keys) for number in range(len(columns))]
    drawn = [_axis(x, name, labels) for x, name, (_, labels) in zip(across, [*keys, "score"], columns, strict=True)]
    best = len(scored) - max(1, len(scored) // 3)
    for row, (_, score, trial_id) in enumerate(scored):
        points = " ".join(f"{1000 * x:.1f},{HEIGHT * (1 - places[row]):.1f}" for x, (places, _) in zip(across, columns, strict=True))
        line = el("polyline", el("title", f"{trial_id}: score {number(score)}"), points=points, class_=f"line {'s1' if row >= best else 's6'}", vector_effect="non-scaling-stroke")
        drawn.append(el("svg", line, width="100%", height=HEIGHT, viewBox=f"0 0 1000 {HEIGHT}", preserveAspectRatio="none", overflow="visible"))
    title = "Hyperparameters and score of each trial"
    svg = el("svg", el("title", title), drawn, width="100%", height=HEIGHT, role="img", aria_label=title)
    return el("div", el("div", svg, class_="plot"), el("p", el("small", "One line a trial; the third that scored best is drawn in the first colour.")), class_="chart")


def _places(values: Sequence[Any]) -> tuple[list[float], tuple[str, str]]:
    """Where values lie on an axis from 0 to 1, and what stands at its two ends."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        numbers = [float(value) for value in values]
        low, high = min(numbers), max(numbers)
        axis = Axis(low, high, log=low > 0 and high / low >= 5)
        return [axis.at(value) for value in numbers], (number(low), number(high))
    names = sorted({str(value) for value in values})
    return [names.index(str(value)) / max(1, len(names) - 1) for value in values], (names[0], names[-1])


def _axis(x: float, name: str, labels: tuple[str, str]) -> Markup:
    anchor = "start" if x == 0 else "end" if x == 1 else "middle"
    texts = [(name, -22), (labels[1], -6), (labels[0], HEIGHT + 18)]
    words = [el("text", text, x=percent(x), y=y, text_anchor=anchor, class_="axis-name" if y == -22 else "tick") for text, y in texts]
    return el("g", el("line", x1=percent(x), x2=percent(x), y1=0, y2=HEIGHT, class_="axis"), words)


def importance(figures: Mapping[str, float]) -> Markup | None:
    """How much of the scores' variance goes back to each hyperparameter, as the search measured it."""
    found = {name.removeprefix(IMPORTANCE): share for name, share in figures.items() if name.startswith(IMPORTANCE)}
    if not found:
        return None
    rows = [Row(el("span", name), share, f"{100 * share:.0f} %") for name, share in sorted(found.items(), key=lambda one: -one[1])]
    note = "Share of the variance of the scores, by functional ANOVA over a random forest. With few trials a hint, no finding."
    return el("div", rows_chart(rows, title="Importance of hyperparameters", unit="share of the variance", bars=True), el("p", el("small", note)), class_="chart")


def cost(payload: Mapping[str, Any]) -> Markup:
    """What all trials and the control took together."""
    trials = payload["trials"]
    spent = payload.get("cost") or {}
    parts = [f"{len(trials)} trainings, {sum(len(trial['history']) for trial in trials)} epochs, {duration(sum(trial['wall_s'] or 0.0 for trial in trials))} of processes"]
    if spent.get("device_hours") is not None:
        parts.append(f"{number(spent['device_hours'])} device hours")
    if spent.get("flops") is not None:
        parts.append(f"{number(spent['flops'])} FLOPs (estimated)")
    return el("p", f"The search took {', '.join(parts)}.")
