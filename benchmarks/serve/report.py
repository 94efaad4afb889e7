"""The results of the serving benchmark as Markdown."""

import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.serve.client import Load
from benchmarks.serve.watching import Memory

CLIENTS = 16
WAYS = {
    "fmray": "fmray over HTTP (replica, face and proxy counted)", "one_by_one": "`generate` one by one, no network",
    "static": "`generate` in padded batches of 32, no network", "plain": "FastAPI + `generate`", "transformers": "`transformers serve`",
}  # fmt: skip
GOALS = (("one_by_one", "goal 6, not below 5"), ("static", "at least 1.3"))


@dataclass
class Found:
    """What was measured: of each way its rounds, of streams their times, of the load its answers and the memory meanwhile."""

    rounds: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    latency: dict[str, dict[str, Any]] = field(default_factory=dict)
    load: Load | None = None
    memory: Memory | None = None

    def add(self, way: str, told: dict[str, Any]) -> None:
        """One round of a way."""
        self.rounds.setdefault(way, []).append(told)

    def rates(self) -> dict[str, list[float]]:
        """Tokens a CPU-second of each way, by round."""
        return {way: [one["tokens"] / one["cpu_s"] for one in found] for way, found in self.rounds.items()}


def report(found: Found) -> list[str]:
    """The lines of every part that was measured."""
    lines = [""]
    if found.rounds:
        lines += speed(found)
    lines += [f"{WAYS[way]} did not run: {why}" for way, why in found.failed.items()]
    if found.latency:
        lines += latency(found.latency)
    if found.load is not None and found.memory is not None:
        lines += load(found.load, found.memory)
    return lines


def speed(found: Found) -> list[str]:
    """Tokens a second and a CPU-second, ratios within a round, and whether the answers are `generate`'s."""
    rates = found.rates()
    lines = [
        f"{len(rates['one_by_one'])} rounds; medians, ratios with [lowest, highest] of the rounds.", "",
        "| | tokens/s | tokens per CPU-second | times one by one | answers equal to `generate` |", "|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    for way, shown in WAYS.items():
        rounds = found.rounds.get(way, [])
        # A way that failed in a round is told of below, and has no ratio to that round.
        if len(rounds) == len(rates["one_by_one"]):
            wall = statistics.median(one["tokens"] / one["wall_s"] for one in rounds)
            times = ratio(rates[way], rates["one_by_one"])
            equal = same(found, way) if way in ("fmray", "plain", "transformers") else ""
            lines.append(f"| {shown} | {wall:,.0f} | {statistics.median(rates[way]):,.0f} | {times} | {equal} |")
    lines += ["", *(f"fmray over HTTP / {WAYS[way]}: {ratio(rates['fmray'], rates[way])} a CPU-second ({goal}).  " for way, goal in GOALS), ""]
    return lines


def ratio(ours: list[float], theirs: list[float]) -> str:
    """The median of the rounds' ratios between the lowest and the highest."""
    values = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def same(found: Found, way: str) -> str:
    """How many of a server's answers are `generate`'s, word for word, in all rounds together."""
    expected = [text.split() for text in found.rounds["one_by_one"][0]["texts"]]
    said = [[text.split() for text in one["texts"]] for one in found.rounds[way]]
    return f"{sum(a == b for one in said for a, b in zip(one, expected, strict=True))} of {len(said) * len(expected)}"


def latency(found: dict[str, dict[str, Any]]) -> list[str]:
    """First tokens and the times between pieces."""
    bare, alone = found["engine"]["mean_ms"], float(np.mean(found["alone"]["ttft_ms"]))
    lines = [
        f"First token, one client: {alone:.1f} ms over HTTP, {bare:.1f} ms from the bare engine: {alone - bare:.1f} ms added "
        f"(means of {len(found['alone']['ttft_ms'])} and {len(found['engine']['ttft_ms'])}; goal: at most 20).", "",
        f"| {CLIENTS} clients, streams | first token p50, ms | p99 | between pieces p50, ms | p99 | streams | a second | a CPU-second |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for way in ("fmray", "transformers"):
        if way in found:
            ttft, gaps = (np.percentile(found[way][key] or [np.nan], (50, 99)) for key in ("ttft_ms", "gap_ms"))
            n, wall_s, cpu_s = len(found[way]["ttft_ms"]), found[way]["wall_s"], found[way]["cpu_s"]
            times = f"{ttft[0]:.0f} | {ttft[1]:.0f} | {gaps[0]:.1f} | {gaps[1]:.1f}"
            lines.append(f"| {WAYS[way].partition(' (')[0]} | {times} | {n} | {n / wall_s:.2f} | {n / cpu_s:.2f} |")
    return [*lines, "", "Pieces that come in one event of the server have no time between them.", ""]


def load(found: Load, memory: Memory) -> list[str]:
    """Faults of the load, and each process's memory behind its warm-up."""
    lines = [
        f"Load: {CLIENTS} clients for {found.seconds / 60:.1f} min: {found.n_answers:,} answers ({found.n_answers / found.seconds:.1f} a second), "
        f"{len(found.faults)} faults, {found.n_different} answers that differ from the first one to the same request.", "",
        "| process | memory behind the warm-up, MB | at the end | most | slope, MB a minute (standard error) |", "|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    for name in memory.mb[0] if memory.mb else ():
        first, last, most = memory.ends(name)
        slope, error = memory.slope_mb_per_min(name)
        lines.append(f"| {name} | {first:,.1f} | {last:,.1f} | {most:,.1f} | {slope:+.3f} ({error:.3f}) |")
    return [*lines, *(f"* {fault}" for fault in sorted(set(found.faults))[:10]), ""]
