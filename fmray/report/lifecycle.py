"""The life cycle drawn: steps as nodes in the order of their inputs, verdicts on the gates, rounds as loops.

The drawing has a flow axis (along which inputs come before what they feed) and a cross axis. It is laid out once from left
to right for wide screens and once from top to bottom for narrow ones; the page shows one of the two.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from fmray.report.figures import key_figures, metrics_of, number, spell, with_baselines
from fmray.report.markup import Markup, anchor, el
from fmray.report.view import RunView, State, StepView

Point = tuple[float, float]
SYMBOLS: dict[State, str] = {"done": "●", "admitted": "✓", "refused": "✕", "waived": "!", "unfinished": "…", "damaged": "✕", "not run": "○"}
_MARGIN = 10.0


@dataclass(frozen=True)
class Size:
    """Sizes along the flow axis and across it, in pixels."""

    node_flow: float
    node_cross: float
    gap_flow: float
    gap_cross: float
    lane: float
    upright: bool


WIDE = Size(node_flow=118, node_cross=64, gap_flow=26, gap_cross=16, lane=9, upright=False)
NARROW = Size(node_flow=64, node_cross=124, gap_flow=34, gap_cross=10, lane=6.5, upright=True)


def draw(run: RunView) -> Markup:
    """Both drawings of an experiment; the style sheet shows the one that fits."""
    spoken = "Life cycle. " + ". ".join(f"{name}: {run.latest(name).stage}, {run.latest(name).state}" for name in run.names)
    return el("div", *(Drawing(run, size).svg(spoken, cls) for size, cls in ((WIDE, "flow wide"), (NARROW, "flow narrow"))), class_="lifecycle", tabindex="0", role="region", aria_label="Life cycle")


def depths(names: Sequence[str], edges: Collection[tuple[str, str]]) -> dict[str, int]:
    """The longest way from a step without inputs to each step; `names` are in order, inputs first."""
    depth: dict[str, int] = {}
    for name in names:
        depth[name] = max((depth[a] + 1 for a, b in edges if b == name and a in depth), default=0)
    return depth


def direct(edges: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """The edges that no longer way replaces: those are drawn as arrows, the others as thin lines beside the nodes."""
    after: dict[str, set[str]] = {}
    for a, b in edges:
        after.setdefault(a, set()).add(b)

    def reachable(start: str, seen: set[str]) -> set[str]:
        for following in after.get(start, ()):
            if following not in seen:
                seen.add(following)
                reachable(following, seen)
        return seen

    return {(a, b) for a, b in edges if not any(b in reachable(c, set()) for c in after[a] - {b})}


class Drawing:
    """One drawing of a run: where each node lies and what is drawn between them."""

    def __init__(self, run: RunView, size: Size) -> None:
        self.run, self.size = run, size
        self.edges = {(a, b) for a, b in run.edges() if a != b}
        self.depth = depths(run.names, self.edges)
        self.direct = direct(self.edges)

    @cached_property
    def loops(self) -> list[tuple[str, str, int]]:
        """(gate, step that it sent back to, round that began there) for every gate with more than one round."""
        again = [name for name in self.run.names if len(self.run.rounds(name)) > 1]
        gates = [name for name in again if self.run.latest(name).kind == "decision"]
        return [(gate, again[0], step.round) for gate in gates for step in self.run.rounds(gate)[1:]]

    @cached_property
    def lanes(self) -> dict[str, int]:
        """Which thin line beside the nodes carries what a step gives to later ones, 0 next to the nodes."""
        sources = [name for name in self.run.names if any(a == name for a, _ in self.edges - self.direct)]
        return {name: index for index, name in enumerate(reversed(sources))}

    @cached_property
    def start(self) -> float:
        """Where the nodes begin across the flow, below (or right of) the thin lines."""
        return _MARGIN + (len(self.lanes) + 1) * self.size.lane if self.lanes else _MARGIN

    @cached_property
    def widest(self) -> int:
        """How many nodes stand side by side at most."""
        return max(list(self.depth.values()).count(d) for d in self.depth.values())

    @cached_property
    def places(self) -> dict[str, Point]:
        """The corner of each node as (flow, cross); the nodes of one depth are centred across the flow."""
        places: dict[str, Point] = {}
        unit = self.size.node_cross + self.size.gap_cross
        for depth in range(max(self.depth.values()) + 1):
            column = [name for name in self.run.names if self.depth[name] == depth]
            first = self.start + (self.widest - len(column)) * unit / 2
            for index, name in enumerate(column):
                places[name] = (_MARGIN + depth * (self.size.node_flow + self.size.gap_flow), first + index * unit)
        return places

    @cached_property
    def extent(self) -> Point:
        """Width and height of the drawing as (flow, cross)."""
        flow = (max(self.depth.values()) + 1) * (self.size.node_flow + self.size.gap_flow) - self.size.gap_flow + 2 * _MARGIN
        below = len(self.loops) * 30.0
        return flow, self.start + self.widest * (self.size.node_cross + self.size.gap_cross) - self.size.gap_cross + _MARGIN + below

    def svg(self, spoken: str, cls: str) -> Markup:
        """The drawing; `spoken` is what it says to those who do not see it."""
        flow, cross = self.extent
        width, height = (cross, flow) if self.size.upright else (flow, cross)
        further = sorted(self.edges - self.direct)
        arrows = [el("g", [self._thin(a, b) for a, b in further if a == source], class_="further") for source in self.lanes]
        arrows += [self._arrow(a, b) for a, b in sorted(self.direct)]
        loops = [self._loop(gate, back, number, index) for index, (gate, back, number) in enumerate(self.loops)]
        nodes = [self._node(name) for name in self.run.names]
        svg = el("svg", el("title", spoken), arrows, loops, nodes, viewBox=f"0 0 {width:.0f} {height:.0f}", width=f"{width:.0f}", height=f"{height:.0f}", aria_label=spoken, role="group")
        return el("div", svg, class_=cls)

    def _xy(self, flow: float, cross: float) -> str:
        return f"{cross:.1f},{flow:.1f}" if self.size.upright else f"{flow:.1f},{cross:.1f}"

    def _path(self, points: Sequence[Point], cls: str) -> Markup:
        return el("path", d="M" + " L".join(self._xy(*p) for p in points), class_=cls)

    def _tip(self, flow: float, cross: float, cls: str, size: float = 6) -> Markup:
        """An arrow head that points along the flow and ends at (flow, cross)."""
        points = ((flow, cross), (flow - size, cross - size * 0.6), (flow - size, cross + size * 0.6))
        return el("polygon", points=" ".join(self._xy(*p) for p in points), class_=cls)

    def _arrow(self, a: str, b: str) -> Markup:
        from_flow, from_cross = self.places[a][0] + self.size.node_flow, self.places[a][1] + self.size.node_cross / 2
        to_flow, to_cross = self.places[b][0] - 1, self.places[b][1] + self.size.node_cross / 2
        bend = (from_flow + to_flow) / 2
        curve = f"M{self._xy(from_flow, from_cross)} C{self._xy(bend, from_cross)} {self._xy(bend, to_cross)} {self._xy(to_flow - 5, to_cross)}"
        return el("g", el("title", f"{a} to {b}"), el("path", d=curve, class_="edge"), self._tip(to_flow, to_cross, "tip"))

    def _thin(self, a: str, b: str) -> Markup:
        """Out of the source, along its lane beside the nodes, and into the reader."""
        lane = self.lanes[a]
        off = 6 + lane * 3.5
        out_flow, out_cross = self.places[a][0] + self.size.node_flow, self.places[a][1] + 10 + lane * 2.5
        in_flow, in_cross = self.places[b][0], self.places[b][1] + 10 + lane * 2.5
        along = self.start - (lane + 1) * self.size.lane
        points = ((out_flow, out_cross), (out_flow + off, out_cross), (out_flow + off, along), (in_flow - off - 5, along), (in_flow - off - 5, in_cross), (in_flow - 1, in_cross))
        return el("g", el("title", f"{a} to {b}"), self._path(points, "thin"), self._tip(in_flow, in_cross, "thin-tip", 4))

    def _loop(self, gate: str, back: str, number: int, index: int) -> Markup:
        """From under the gate back under the step that trains on."""
        half = self.size.node_flow / 2
        far = self.start + self.widest * (self.size.node_cross + self.size.gap_cross) - self.size.gap_cross + 14 + index * 28
        start, end = self.places[gate][0] + half + index * 8, self.places[back][0] + half - index * 8
        near_gate, near_back = self.places[gate][1] + self.size.node_cross, self.places[back][1] + self.size.node_cross
        path = self._path(((start, near_gate), (start, far), (end, far), (end, near_back + 7)), "loop")
        head = ((end, near_back + 1), (end - 4.5, near_back + 8), (end + 4.5, near_back + 8))
        tip = el("polygon", points=" ".join(self._xy(*p) for p in head), class_="loop-tip")
        words = f"not met: round {number}"
        x, y = self._xy((start + end) / 2, far + (4 if self.size.upright else 14)).split(",")
        turned = f"rotate(90 {x} {y})" if self.size.upright else None
        return el("g", el("title", f"{gate} was not met and sent back to {back} for round {number}"), path, tip, el("text", words, x=x, y=y, text_anchor="middle", class_="loop-name", transform=turned))

    def _node(self, name: str) -> Markup:
        step, rounds = self.run.latest(name), self.run.rounds(name)
        flow, cross = self.places[name]
        x, y = (cross, flow) if self.size.upright else (flow, cross)
        width, height = (self.size.node_cross, self.size.node_flow) if self.size.upright else (self.size.node_flow, self.size.node_cross)
        state = step.state.replace(" ", "-")
        verdicts = "  ".join(f"@{s.round} {SYMBOLS[s.state]}" for s in rounds) if len(rounds) > 1 and step.kind == "decision" else ""
        spoken = f"{step.label}, stage {step.stage}, {step.state}" + (f", {short_figure(step)}" if short_figure(step) else "")
        shape = [
            el("title", spoken),
            el("rect", x=f"{x:.1f}", y=f"{y:.1f}", width=width, height=height, rx=8, class_=f"node {state}"),
            el("rect", x=f"{x:.1f}", y=f"{y + 8:.1f}", width=4, height=height - 16, rx=2, class_=f"stripe {state}"),
            _line(x, y + 20, f"{SYMBOLS[step.state]} {name}", "node-name", int((width - 14) / 8.2)),
            _line(x, y + 36, step.stage + (f"  @{step.round}" if len(rounds) > 1 and not verdicts else ""), "node-stage", int((width - 14) / 6.6)),
            _line(x, y + 53, verdicts or short_figure(step), f"node-figure {state}", int((width - 14) / 6.6)),
        ]
        return el("a", *shape, href=f"#{anchor(name)}", aria_label=spoken)


def _line(x: float, y: float, words: str, cls: str, room: int) -> Markup:
    shown = words if len(words) <= room else words[: room - 1] + "…"
    return el("text", shown, x=f"{x + 12:.1f}", y=f"{y:.1f}", class_=cls)


def short_figure(step: StepView) -> str:
    """One figure that fits into a node: what the step made, or its state."""
    if step.record is None:
        return step.state
    figures = dict(key_figures(step.record))
    if step.kind == "token_dataset":
        return f"{figures['words']} words" if "words" in figures else f"{figures['images']} images"
    if step.kind == "checkpoint":
        return f"score {figures['best score']}" if "best score" in figures else f"{figures['parameters']} params"
    if step.kind == "decision":
        return f"{step.state}, {figures['rules met'].replace(' of ', '/')}"
    if step.kind == "report":
        compared = [main for main, others in with_baselines(metrics_of(step.payload)) if others]
        return number(compared[0].value, compared[0].unit or spell(compared[0].name)) if compared else f"{len(step.payload['metrics'])} figures"
    if step.kind == "deployment":
        return f"{len(step.payload['models'])} models, {'live' if step.payload['live'] else 'tried'}"
    return next(iter(figures.values()), "")
