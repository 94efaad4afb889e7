"""What a checkpoint keeps of its training, in words and rows for page and terminal: where the ranks' time went, and what a profile found."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

RANK_HEAD = ("rank", "host", "steps", "step", "95 %", "waits for data", "95 %", "waits for others", "95 %")
OPERATOR_HEAD = ("operator", "calls", "own time", "share")


def watched_of(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `watched` of a checkpoint's payload; empty where it has none."""
    return payload.get("watched") or {}


def rank_rows(watched: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row a rank, as in `RANK_HEAD`; times are medians and 95th percentiles a step."""

    def times(rank: Mapping[str, Any], name: str) -> tuple[str, str]:
        spread = rank[name]
        return ("unknown", "unknown") if spread is None else (_ms(spread["median"]), _ms(spread["p95"]))

    return [
        (str(rank["rank"]), rank["host"], f"{rank['n_steps']:,}", *times(rank, "step_s"), *times(rank, "data_wait_s"), *times(rank, "others_s"))
        for rank in watched.get("ranks", ())
    ]


def slowest(watched: Mapping[str, Any]) -> str:
    """Which rank the others wait for: that with the most time of its own, in a sentence. Nothing where there is one rank.

    Where no rank's wait for others is known, it is the one that waits longest for data.
    """
    ranks: Sequence[Mapping[str, Any]] = watched.get("ranks", ())
    if len(ranks) < 2:
        return ""
    if any(rank["others_s"] is None for rank in ranks):
        late = max(ranks, key=lambda rank: rank["data_wait_s"]["median"])
        return f"rank {late['rank']} on {late['host']} waits longest for data: {_ms(late['data_wait_s']['median'])} a step; which one computes longest a GPU's clocks do not tell (see a profile)"
    own = [rank["step_s"]["median"] - rank["others_s"]["median"] for rank in ranks]
    index, most = max(enumerate(own), key=lambda pair: pair[1])
    rest = median(value for place, value in enumerate(own) if place != index)
    above = f", {100 * (most / rest - 1):.0f} % more than the others' median" if rest > 0 else ""
    return f"rank {ranks[index]['rank']} on {ranks[index]['host']} is the slowest: {_ms(most)} a step of its own{above}"


def operator_rows(watched: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row an operator, as in `OPERATOR_HEAD`."""
    return [(o["name"], f"{o['calls']:,}", f"{o['self_ms']:,.1f} ms", f"{100 * o['share']:.1f} %") for o in watched.get("operators", ())]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"
