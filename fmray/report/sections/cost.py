"""What the run cost: wall time of each step, and the figures of the cost audit with how each was obtained."""

from fmray.report.charts import Row, rows_chart
from fmray.report.figures import duration, interval, metrics_of, spell
from fmray.report.markup import Markup, el, join, table
from fmray.report.sections.parts import Card, card, tag
from fmray.report.view import RunView


def section(run: RunView) -> Card:
    """Costs that were audited, then where the time went."""
    return card("Cost", "Energy and price follow from declared rates unless a meter was read; each figure says which.", _audited(run), _walls(run))


def _audited(run: RunView) -> Markup | None:
    rows = [
        [step.label, el("span", spell(m.name)), interval(m), tag(m.method), m.note if m.value is not None else ""]
        for step in run.of_kind("report")
        for m in metrics_of(step.payload)
        if m.name.startswith("audit/cost/")
    ]
    return table(["audit", "figure", "value", "obtained", "how"], rows, caption="Cost of the audited checkpoints") if rows else None


def _walls(run: RunView) -> Markup:
    done = [s for s in run.steps if s.record is not None]
    rows = [Row(el("span", s.label, " ", el("small", s.stage)), s.record.wall_s, duration(s.record.wall_s)) for s in done if s.record]
    total = sum(s.record.wall_s for s in done if s.record)
    title = el("p", el("b", "Wall time of each step"), el("small", f" together {duration(total)} "), tag("measured"))
    return join(title, rows_chart(rows, title="Wall time of each step", unit="seconds", bars=True))
