"""A canary: what is compared between the champion and a candidate that takes a share of the traffic, and by which rules.

Figures carry 95 % intervals, and the champion's own figure as `control`, so the rules are those of a gate:
`upper(canary/error_rate) <= 0.02`, `canary/latency_p95_ratio <= 1.5`, `lower(canary/agreement) >= 0.9`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fmray.core import intervals
from fmray.core.config import Config, did_you_mean
from fmray.core.report import Decision, Metric
from fmray.gate import RuleText, parse_rule

AGREEMENT = "canary/agreement"
METRICS = (
    "canary/error_rate", "canary/latency_p50_ms", "canary/latency_p95_ms", "canary/latency_p50_ratio", "canary/latency_p95_ratio", AGREEMENT,
)  # fmt: skip
QUANTILES = {"p50": 0.5, "p95": 0.95}


class CanaryConfig(Config):
    """How a new version meets traffic beside the champion, and what it must show."""

    share: float = Field(0.1, gt=0, lt=1, description="of the requests go to the candidate, chosen by request id")
    shadow: int = Field(0, ge=0, description="requests that both answer, greedily, to compare what they say; the client sees only one answer")
    min_requests: int = Field(200, ge=1, description="requests that the candidate must have answered before it is judged")
    rules: tuple[RuleText, ...] = Field(min_length=1, description="all must hold, or the candidate is rolled back")

    @model_validator(mode="after")
    def _rules_can_be_known(self) -> "CanaryConfig":
        for rule in map(parse_rule, self.rules):
            for metric in (rule.left.metric, rule.right.metric):
                if metric is not None and metric not in METRICS:
                    raise ValueError(f"rule '{rule.text}': a canary does not measure {metric}{did_you_mean(metric, METRICS)}; it measures {', '.join(METRICS)}")
                if metric == AGREEMENT and not self.shadow:
                    raise ValueError(f"rule '{rule.text}' needs shadow requests: give `shadow`")
        return self


@dataclass(frozen=True)
class Observation:
    """One request that counts: which version answered, how, and how long it took; or, for a shadow request, how far both agreed."""

    request_id: str
    version: int
    status: int
    latency_ms: float
    agreement: float | None = None


def failed(status: int) -> bool:
    """Whether an answer's status says that its version failed: 5xx, and 408 where it was not ready within the deadline."""
    return status >= 500 or status == 408


def takes_candidate(request_id: str, share: float) -> bool:
    """Whether a request is the candidate's: the same for the same id in every replica, and for about `share` of all ids."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def enough(config: CanaryConfig, observations: Sequence[Observation], candidate: int) -> bool:
    """Whether the candidate can be judged."""
    live = sum(o.version == candidate and o.agreement is None for o in observations)
    return live >= config.min_requests and sum(o.agreement is not None for o in observations) >= config.shadow


def measure(observations: Sequence[Observation], *, champion: int, candidate: int) -> tuple[Metric, ...]:
    """The figures of METRICS about the candidate, with the champion's as control.

    The interval of the error rate is Wilson's (1927), which stays honest where no error was seen; those of latencies are
    bootstrapped over requests that were answered well.
    """
    live = {n: [o for o in observations if o.version == n and o.agreement is None] for n in (champion, candidate)}
    agreed = [o.agreement for o in observations if o.agreement is not None]
    well = {n: np.sort([o.latency_ms for o in found if not failed(o.status)]) for n, found in live.items()}
    metrics = [_error_rate(live[candidate], live[champion])]
    for name, q in QUANTILES.items():
        metrics += _latency(name, q, well[candidate], well[champion])
    mean = intervals.mean(agreed) if agreed else None
    metrics.append(
        Metric(
            name=AGREEMENT, value=mean.value if mean else None, higher_is_better=True, stderr=mean.stderr if mean else None,
            lower=mean.lower if mean else None, upper=mean.upper if mean else None, n=len(agreed), control=1.0,
            note="common beginning of both greedy answers, or equal labels" if mean else "no shadow request was answered",
        )
    )
    return tuple(metrics)


def judge(config: CanaryConfig, metrics: Sequence[Metric], *, subject: str, digest: str) -> Decision:
    """The gate's own judgement over a canary's figures: admitted when every rule holds."""
    known = {metric.name: metric for metric in metrics}
    reasons = tuple(parse_rule(rule).judge(known) for rule in config.rules)
    return Decision(subject=subject, subject_digest=digest, admitted=all(reason.passed for reason in reasons), reasons=reasons)


def _error_rate(candidate: Sequence[Observation], champion: Sequence[Observation]) -> Metric:
    from scipy.stats import binomtest

    errors, n = sum(failed(o.status) for o in candidate), len(candidate)
    interval = binomtest(errors, n).proportion_ci(method="wilson") if n else None
    return Metric(
        name="canary/error_rate", value=errors / n if n else None, higher_is_better=False, n=n,
        lower=float(interval.low) if interval else None, upper=float(interval.high) if interval else None,
        control=sum(failed(o.status) for o in champion) / len(champion) if champion else None,
        note="" if n else "the candidate answered no request",
    )  # fmt: skip


def _latency(name: str, q: float, candidate: NDArray[np.float64], champion: NDArray[np.float64]) -> list[Metric]:
    """The quantile of the candidate's latencies, and its ratio to the champion's; both arrays sorted."""
    n = len(candidate)
    if n == 0:
        note = "the candidate answered no request well"
        return [
            Metric(name=f"canary/latency_{name}_ms", value=None, higher_is_better=False, n=0, unit="ms", note=note),
            Metric(name=f"canary/latency_{name}_ratio", value=None, higher_is_better=False, n=0, note=note),
        ]
    own = intervals.statistic(lambda weights: _quantile(candidate, weights, q), n)
    control = float(_quantile(champion, np.ones((1, len(champion))), q)[0]) if len(champion) else None
    metrics = [
        Metric(
            name=f"canary/latency_{name}_ms", value=own.value, higher_is_better=False, stderr=own.stderr, lower=own.lower, upper=own.upper,
            n=n, unit="ms", control=control,
        )
    ]
    if control is None:
        note = "the champion answered no request well"
        return [*metrics, Metric(name=f"canary/latency_{name}_ratio", value=None, higher_is_better=False, n=n, note=note)]

    def ratio(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return _quantile(candidate, weights[:, :n], q) / _quantile(champion, weights[:, n:], q)

    both = intervals.statistic(ratio, n + len(champion))
    metrics.append(
        Metric(
            name=f"canary/latency_{name}_ratio", value=both.value, higher_is_better=False, stderr=both.stderr, lower=both.lower,
            upper=both.upper, n=n, control=1.0,
        )
    )
    return metrics


def _quantile(ordered: NDArray[np.float64], weights: NDArray[np.float64], q: float) -> NDArray[np.float64]:
    """The q-quantile of sorted values for each row of weights [R, n]: the least value with that share of the weight up to it."""
    total = np.cumsum(weights, axis=1)
    return np.asarray(ordered[np.argmax(total >= q * total[:, -1:], axis=1)], float)
