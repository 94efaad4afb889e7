"""What was seen of a training while it went on, as its checkpoint keeps it for the report."""

from pydantic import BaseModel, ConfigDict

# (step, value) pairs, a few hundred at most.
Curve = tuple[tuple[int, float], ...]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Frozen):
    """How a figure spreads over steps."""

    median: float
    p95: float


class RankTimes(_Frozen):
    """Where one worker's time went in the latest `n_steps` steps of its last attempt, in seconds a step.

    `others_s` is how long it stood still while it computed, which is for the other ranks and for what they exchange; None where that
    cannot be told from the processor's clocks, as on a GPU. A rank for which the others wait has little of it.
    """

    rank: int
    host: str
    n_steps: int
    step_s: Spread
    data_wait_s: Spread
    others_s: Spread | None


class Operator(_Frozen):
    """An operator in the window of a profile: how often one rank ran it, and its own time without that of what it called, in milliseconds of
    the `device` (cpu or cuda); `share` is of all operators' own time.
    """

    name: str
    calls: int
    self_ms: float
    share: float
    device: str


class Watched(_Frozen):
    """Curves by the name of their figure in metrics.jsonl, where the ranks' time went, what a profile found, and what went wrong beside it."""

    curves: dict[str, Curve] = {}
    ranks: tuple[RankTimes, ...] = ()
    operators: tuple[Operator, ...] = ()
    notes: tuple[str, ...] = ()
