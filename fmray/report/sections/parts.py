"""What the sections share: the frame of a section, tags that say how a figure was obtained, pills, and metric rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from fmray.core.report import Metric
from fmray.report.charts import Row, rows_chart
from fmray.report.figures import UNKNOWN, interval, number, spell
from fmray.report.markup import Markup, Node, anchor, el, join
from fmray.report.view import StepView


@dataclass(frozen=True)
class Card:
    """A section of the page: its title, also shown in the navigation, and its markup."""

    title: str
    markup: Markup


def card(title: str, lead: str, *children: Node) -> Card:
    """A section with its heading, reachable as #<anchor of the title>."""
    return Card(title, el("section", el("h2", title), el("p", lead, class_="lead"), *children, class_="card", id=section_anchor(title)))


def section_anchor(title: str) -> str:
    """The id of a section; it cannot meet that of a step."""
    return anchor(title).replace("s-", "section-", 1)


Home = Literal["life cycle", "gates", "training", "trials", "evaluation", "audits", "served", "corpus", "provenance"]


def home(step: StepView) -> Home:
    """The section that tells most of a step: where its node in the life cycle leads."""
    if step.record is None:
        return "life cycle"
    if step.kind == "checkpoint":
        return "trials" if step.payload["trials"] else "training" if step.payload["losses"] else "provenance"
    if step.kind == "report":
        keys = [metric["name"] for metric in step.payload["metrics"]]
        audited = any(key.startswith("audit/") and not key.startswith("audit/cost/") for key in keys)
        return "evaluation" if any(key.startswith("eval/") for key in keys) else "audits" if audited else "provenance"
    kinds: dict[str, Home] = {"decision": "gates", "deployment": "served", "token_dataset": "corpus"}
    return kinds.get(step.kind, "provenance")


def step_anchor(step: StepView, here: Home) -> str | None:
    """The id that links to a step lead to, if `here` is its home; links lead to first rounds."""
    return anchor(step.name) if step.round == 1 and home(step) == here else None


def heading(step: StepView, here: Home, *after: Node) -> Markup:
    """The heading of one step's part in a section."""
    return el("h3", step.label, " ", *after, id=step_anchor(step, here))


def tag(method: str) -> Markup:
    """Says how a figure was obtained: measured, estimated or declared."""
    return el("span", method, class_="tag")


def pill(word: str, cls: str | None = None) -> Markup:
    """A verdict or state in words, coloured besides."""
    return el("span", word, class_=f"pill {(cls or word).replace(' ', '-')}")


def facts(pairs: Iterable[tuple[Node, Node]]) -> Markup:
    """A list of terms and what they are, one under another."""
    return el("dl", [join(el("dt", term), el("dd", value)) for term, value in pairs], class_="facts")


def strip(pairs: Iterable[tuple[Node, Node]]) -> Markup:
    """A few figures side by side, each over its name."""
    return el("dl", [el("div", el("dt", term), el("dd", value)) for term, value in pairs], class_="facts inline")


def metric_row(metric: Metric, *, name: str | None = None, mark: str = "s1", note: str | None = None) -> Row:
    """A metric as a row of a chart, with its method and the number of units behind it."""
    said = note if note is not None else _small_print(metric)
    shown = number(metric.value, metric.unit) if metric.value is not None else UNKNOWN
    label = el("span", name or _spell_below(metric.name))
    return Row(label, metric.value, shown, metric.lower, metric.upper, metric.control, mark, said)


def _spell_below(key: str) -> str:
    """A metric's name with what stands between its folder and itself: `audit/bias/gender/gap` is gender: gap."""
    groups = key.split("/")[2:-1]
    return ": ".join([*(group.replace("_", " ") for group in groups), spell(key)])


def _small_print(metric: Metric) -> str:
    if metric.value is None:
        return f"{metric.method} · {metric.note}"
    bounds = interval(metric).removeprefix(number(metric.value, metric.unit)).strip()
    control = f"control\u00a0{number(metric.control)}" if metric.control is not None else ""
    return " · ".join(part for part in (metric.method, bounds, control, f"n\u00a0=\u00a0{metric.n:,}" if metric.n else "") if part)


def metric_rows(metrics: Sequence[Metric], *, title: str) -> Markup:
    """Metrics of one scale under one another, as dots with intervals and controls."""
    unit = next((m.unit for m in metrics if m.unit), "")
    return rows_chart([metric_row(m) for m in metrics], title=title, unit=unit, bars=False)


def key_to_marks() -> Markup:
    """What the marks of the charts mean."""
    return el("p", "● figure · ├─┤ 95 % interval · ◇ the same figure on the control", class_="lead")
