"""A canary's share, figures and judgement, without a server: what it must tell apart, and what it must never let pass."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fmray.core.artifact import load
from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.core.report import Decision, Report
from fmray.serve import canary
from fmray.serve.admission import admit
from fmray.serve.canary import CanaryConfig, Observation
from fmray.serve.judge import Canary, decide
from fmray.serve.registry import REGISTRY, Registry
from fmray.serve.shadow import agreement, deterministic
from tests.serve.conftest import make_checkpoint, make_decision

RULES = ("upper(canary/error_rate) <= 0.1", "upper(canary/latency_p95_ratio) <= 2", "lower(canary/agreement) >= 0.5")
CONFIG = CanaryConfig(share=0.2, shadow=20, min_requests=60, rules=RULES)


def traffic(*, errors: int = 0, slower: float = 1.0, agreed: float = 0.9, n: int = 80) -> list[Observation]:
    """Requests to a champion (1) and a candidate (2) with lognormal latencies of median 20 ms."""
    draws = np.exp(np.random.default_rng(3).normal(3.0, 0.3, 2 * n))
    live = [Observation(f"r{i}", 1 + i % 2, 200, float(ms) * (slower if i % 2 else 1.0)) for i, ms in enumerate(draws)]
    failed = [Observation(f"e{i}", 2, 503, 1.0) for i in range(errors)]
    return live + failed + [Observation(f"s{i}", 2, 200, 20.0, agreed) for i in range(20)]


def verdict(observations: list[Observation]) -> Decision:
    return canary.judge(CONFIG, canary.measure(observations, champion=1, candidate=2), subject="f", digest="d")


def test_the_share_is_kept_and_an_id_stays_where_it_is() -> None:
    taken = [canary.takes_candidate(f"request-{i}", 0.2) for i in range(5000)]
    assert 0.17 < sum(taken) / 5000 < 0.23
    assert taken == [canary.takes_candidate(f"request-{i}", 0.2) for i in range(5000)]
    assert not any(canary.takes_candidate(f"request-{i}", 0.01) for i in range(5000) if not taken[i])


def test_an_equal_candidate_is_admitted_and_each_fault_is_refused_by_its_own_rule() -> None:
    assert verdict(traffic()).admitted
    for observations, failed in ((traffic(errors=12), RULES[0]), (traffic(slower=3.0), RULES[1]), (traffic(agreed=0.1), RULES[2])):
        decision = verdict(observations)
        assert not decision.admitted
        assert [reason.rule for reason in decision.reasons if not reason.passed] == [failed]


def test_few_requests_without_an_error_prove_little() -> None:
    """Wilson's interval: 10 requests without an error leave an error rate of 28 % possible."""
    [rate, *_] = canary.measure(traffic(n=10), champion=1, candidate=2)
    assert (rate.value, rate.lower) == (0.0, 0.0)
    assert rate.upper == pytest.approx(0.2775, abs=1e-3)


def test_the_figures_are_those_of_the_requests() -> None:
    observations = traffic(slower=1.5)
    metrics = {m.name: m for m in canary.measure(observations, champion=1, candidate=2)}
    mine = sorted(o.latency_ms for o in observations if o.version == 2 and o.agreement is None)
    assert metrics["canary/latency_p50_ms"].value == mine[len(mine) // 2 - 1]
    ratio = metrics["canary/latency_p95_ratio"]
    assert ratio.lower is not None
    assert ratio.upper is not None
    assert ratio.lower <= 1.5 <= ratio.upper
    assert set(metrics) == set(canary.METRICS)


def test_a_candidate_that_never_answers_well_is_refused_and_not_passed_over() -> None:
    decision = verdict([o for o in traffic() if o.version == 1] + [Observation(f"e{i}", 2, 500, 1.0) for i in range(80)])
    assert not decision.admitted
    assert [reason.passed for reason in decision.reasons] == [False, False, False]


def test_it_waits_until_it_has_enough_of_both() -> None:
    observations = traffic()
    assert canary.enough(CONFIG, observations, 2)
    assert not canary.enough(CONFIG, observations[:-1], 2)
    assert not canary.enough(CONFIG, [o for o in observations if o.request_id != "r1"][:100] + observations[-20:], 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rules": ["canary/eror_rate <= 0.1"]}, "did you mean 'canary/error_rate'"),
        ({"shadow": 0}, "needs shadow requests"),
        ({"share": 1.0}, "less than 1"),
        ({"rules": []}, "at least 1"),
        ({"shares": 0.1}, "did you mean 'share'"),
    ],
)
def test_a_canary_that_could_not_be_judged_is_bad_input(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(CanaryConfig, {"share": 0.1, "shadow": 5, "rules": list(RULES), **changes})


def test_shadow_requests_ask_for_one_greedy_answer() -> None:
    body = {"model": "m", "prompt": "p", "temperature": 0.9, "seed": 1, "stream": True, "stream_options": {}, "n": 3, "max_tokens": 4}
    assert deterministic("/v1/completions", body) == {"model": "m", "prompt": "p", "max_tokens": 4, "temperature": 0}
    assert deterministic("/v1/feedback", body) is None
    said = [{"choices": [{"text": text}]} for text in ("abcd", "abxx", "abcd")]
    assert [agreement(said[0], other) for other in said[1:]] == [0.5, 1.0]
    labels = [{"data": [{"label": a}, {"label": "x"}]} for a in "pq"]
    assert agreement(labels[0], labels[1]) == 0.5


def test_the_decision_is_recorded_and_moves_the_aliases(copy_of: Callable[..., Path]) -> None:
    root = copy_of("base", "base_gate")
    make_decision(root / "next_gate", make_checkpoint(root / "next", "causal_lm", 7))
    registry = Registry(root / REGISTRY)
    for name in ("base", "next"):
        registry.register("lm", admit(root / name))
    registry.set_champion("lm", 1)
    for observations, admitted in ((traffic(slower=3.0), False), (traffic(), True)):
        registry.set_candidate("lm", 2)
        under = Canary("lm", str(registry.folder), 1, 2, "lm@2", CONFIG)
        under.begin()
        decision = decide(under, observations)
        entry = registry.entry("lm")
        assert decision.payload.admitted == admitted
        assert (entry.champion, entry.candidate) == ((2, None) if admitted else (1, None))
        assert entry.history[-1].action == ("promote" if admitted else "dismiss")
        assert entry.history[-1].decision == "lm/v2-against-v1/decision"
        recorded = load(under.folder / "decision", Decision)
        assert recorded.payload.subject == load(root / "next").fingerprint
        assert recorded.record.config == json.loads(CONFIG.model_dump_json())
        assert {m.name for m in load(under.folder / "report", Report).payload.metrics} == set(canary.METRICS)
    assert (registry.folder / "lm" / "v2-against-v1.old1" / "decision" / "record.json").exists()
    with pytest.raises(ConfigError, match="no longer the candidate"):
        decide(under, traffic())
