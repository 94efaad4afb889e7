"""What the models reach on text that they have not seen, beside baselines on the same text."""

from collections.abc import Sequence

from fmray.core.report import Metric
from fmray.report.charts import Row, rows_chart
from fmray.report.figures import baseline_name, interval, metrics_of, number, spell, with_baselines
from fmray.report.markup import Markup, el, table
from fmray.report.sections.parts import Card, card, heading, metric_row, tag
from fmray.report.view import RunView, StepView


def section(run: RunView) -> Card | None:
    """One part for each report with figures under `eval/`."""
    steps = [s for s in run.of_kind("report") if any(m.name.startswith("eval/") for m in metrics_of(s.payload))]
    if not steps:
        return None
    lead = "Held-out figures with 95 % intervals, beside baselines that were computed on the same text in the same step."
    return card("Evaluation", lead, [_evaluated(run, step) for step in steps])


def _evaluated(run: RunView, step: StepView) -> Markup:
    metrics = [m for m in metrics_of(step.payload) if m.name.startswith("eval/")]
    subject = run.subject(step)
    compared = [(main, others) for main, others in with_baselines(metrics) if others]
    shown = {m.name for main, others in compared for m in (main, *others)}
    rest = [m for m in metrics if m.name not in shown]
    about = el("small", f"about {subject.label}" if subject else "about a checkpoint of another run")
    return el("div", heading(step, "evaluation", about), [_compared(main, others) for main, others in compared], _others(rest))


def _compared(main: Metric, others: Sequence[Metric]) -> Markup:
    better = {True: "higher is better", False: "lower is better", None: ""}[main.higher_is_better]
    title = spell(main.name)
    rows = [_bar(main, "this model", "s1"), *(_bar(o, baseline_name(main, o), "base") for o in others)]
    chart = rows_chart(rows, title=title, unit=main.unit, bars=True)
    return el("div", el("p", el("b", title), el("small", f" {better} · {main.name}")), chart)


def _bar(metric: Metric, name: str, mark: str) -> Row:
    row = metric_row(metric, name=name, mark=mark)
    return Row(row.label, row.value, row.shown, row.lower, row.upper, None, mark, row.note)


def _others(metrics: Sequence[Metric]) -> Markup | None:
    if not metrics:
        return None
    rows = [
        [el("span", spell(m.name), " ", tag(m.method)), interval(m), number(m.control) if m.control is not None else "", f"{m.n:,}" if m.n else "", m.note if m.value is not None else ""]
        for m in metrics
    ]
    return table(["figure", "value [95 % interval]", "control", "n", "note"], rows, caption="Further figures")

