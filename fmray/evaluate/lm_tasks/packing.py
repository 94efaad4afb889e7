"""Laying requests into rows without padding: what choices share is computed once, and whole tasks share their solved examples.

A request is a context and a continuation; the model is asked how likely each token of the continuation is. The requests of one document
form a group: their common beginning is its trunk, and each goes on in a branch of its own that sees the trunk and itself. Groups lie
side by side in a row and see nothing of each other; all may see a prefix that is computed once for the task.
Legend: T positions of a row, Q positions whose next token is asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Tokens = list[int]
SHORTEST_PREFIX = 16
"""A shorter common beginning is not worth a pass of its own."""


@dataclass(frozen=True)
class Request:
    """How likely is `continuation` behind `context`? Requests with the same `group` (a document) stand next to each other."""

    group: int
    context: Tokens
    continuation: Tokens


@dataclass
class Row:
    """One row of a forward pass.

    `group_T` and `branch_T` tell who sees whom (branch 0 is a group's trunk); `query_Q` are the positions whose next token `target_Q` is
    asked for, for the request `request_Q`.
    """

    ids_T: Tokens = field(default_factory=list)
    position_T: Tokens = field(default_factory=list)
    group_T: Tokens = field(default_factory=list)
    branch_T: Tokens = field(default_factory=list)
    query_Q: Tokens = field(default_factory=list)
    target_Q: Tokens = field(default_factory=list)
    request_Q: Tokens = field(default_factory=list)

    @property
    def is_plain(self) -> bool:
        """Whether it holds one sequence alone, which an ordinary causal pass reads."""
        return not any(self.branch_T) and len(set(self.group_T)) <= 1

    def sees_TT(self) -> NDArray[np.bool_]:
        """Which position (first axis) sees which (second)."""
        group_T, branch_T = np.array(self.group_T), np.array(self.branch_T)
        before_TT = np.tri(len(group_T), dtype=bool)
        in_trunk_or_own_TT = (branch_T[None] == 0) | (branch_T[None] == branch_T[:, None])
        seen_TT: NDArray[np.bool_] = before_TT & (group_T[None] == group_T[:, None]) & in_trunk_or_own_TT
        return seen_TT


@dataclass(frozen=True)
class Plan:
    """The rows of a task's requests, the prefix that all of them see, and the groups that lost the beginning of a context."""

    prefix: tuple[int, ...]
    rows: tuple[Row, ...]
    truncated: frozenset[int]


def plan_rows(requests: Sequence[Request], max_length: int, width: int, *, shares: bool) -> Plan:
    """Lays requests into rows of about `width` positions, a group never across two.

    Args:
        max_length: the model's positions; a longer request loses the beginning of its context, as in lm-eval.
        shares: False gives each request a row of its own and no prefix.
    """
    whole = [[*request.context, *request.continuation] for request in requests]
    kept = [ids[-(max_length + 1) :] for ids in whole]
    cut = frozenset(i for i, (ids, left) in enumerate(zip(whole, kept, strict=True)) if len(left) < len(ids))
    prefix = _prefix(requests, kept) if shares and not cut else []
    rows = _rows(requests, kept, len(prefix), width, shares)
    groups_cut = (requests[i].group for i in cut)
    return Plan(tuple(prefix), tuple(rows), frozenset(groups_cut))


def _rows(requests: Sequence[Request], kept: Sequence[Tokens], skip: int, width: int, shares: bool) -> Iterator[Row]:
    row = Row()
    for members in _groups(requests, shares):
        if row.ids_T and (not shares or len(row.ids_T) + len(kept[members[0]]) - skip > width):
            yield row
            row = Row()
        _lay(row, requests, kept, members, skip)
    if row.ids_T:
        yield row


def _groups(requests: Sequence[Request], shares: bool) -> Iterator[list[int]]:
    members: list[int] = []
    for i, request in enumerate(requests):
        if members and (not shares or request.group != requests[members[0]].group):
            yield members
            members = []
        members.append(i)
    if members:
        yield members


def _lay(row: Row, requests: Sequence[Request], kept: Sequence[Tokens], members: Sequence[int], skip: int) -> None:
    """Appends a group: its trunk, then the rest of each request. The last token of a request is only asked for, never read."""
    group, start = len(set(row.group_T)), len(row.ids_T)
    trunk = _common([kept[i][skip:-1] for i in members])
    _append(row, kept[members[0]][skip : skip + trunk], skip, group, 0)
    for branch, i in enumerate(members, start=1):
        inputs = kept[i][skip:-1]
        behind = len(row.ids_T)
        _append(row, inputs[trunk:], skip + trunk, group, branch)
        for at in range(len(inputs) - len(requests[i].continuation), len(inputs)):
            row.query_Q.append(start + at if at < trunk else behind + at - trunk)
            row.target_Q.append(kept[i][skip + at + 1])
            row.request_Q.append(i)


def _append(row: Row, ids: Sequence[int], position: int, group: int, branch: int) -> None:
    row.ids_T += ids
    row.position_T += range(position, position + len(ids))
    row.group_T += [group] * len(ids)
    row.branch_T += [branch] * len(ids)


def _prefix(requests: Sequence[Request], kept: Sequence[Tokens]) -> Tokens:
    """The beginning that all contexts share, short of the token whose next one is asked for."""
    if len({request.group for request in requests}) < 2:
        return []
    longest = min(len(request.context) - 1 for request in requests)
    n = min(longest, _common(kept))
    return kept[0][:n] if n >= SHORTEST_PREFIX else []


def _common(sequences: Sequence[Tokens]) -> int:
    """How many tokens at their beginning all sequences share. It is enough to compare the smallest and the largest."""
    low, high = min(sequences), max(sequences)
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
