"""The gate: its rule language, and that what is unknown, about another model or contradictory never passes."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmray.core.artifact import Artifact, Payload, Provenance, Record
from fmray.core.config import load_config
from fmray.core.errors import ArtifactError, ConfigError
from fmray.core.report import Decision, Metric, Report
from fmray.core.stage import Out
from fmray.gate import FUNCTIONS, OPERATORS, GateConfig, Term, gate, parse_rule
from fmray.model.checkpoint import Checkpoint

SUBJECT = "a" * 64
NOWHERE = Provenance(
    git_commit=None, git_dirty=None, argv=(), host="", python="", versions={}, devices=(), device_hours=0.0, started_at=""
)  # fmt: skip


def artifact(name: str, payload: Payload, fingerprint: str) -> Artifact:
    record = Record(
        kind=payload.kind, name=name, stage="", version=1, round=1, fingerprint=fingerprint, identity={}, config={}, inputs={},
        payload=payload.model_dump(mode="json"), provenance=NOWHERE, wall_s=0.0,
    )  # fmt: skip
    return Artifact(Path("/nowhere") / name, record, payload)


CHECKPOINT = artifact("base", Checkpoint(head="causal_lm", architecture="llama", digest="d" * 64, n_params=1, vocab_size=2), SUBJECT)


def report(*metrics: Metric, name: str = "base_eval", subject: str = SUBJECT) -> Artifact:
    return artifact(name, Report(subject=subject, metrics=metrics), "b" * 64)


def metric(name: str = "eval/loss", value: float | None = 1.0, **fields: object) -> Metric:
    return Metric(name=name, value=value, **fields)


def decide(tmp_path: Path, rules: list[str], *reports: Artifact, **fields: object) -> Decision:
    out = Out(path=tmp_path, fingerprint="c" * 64, name="base_gate", log=tmp_path / "log")
    return gate(load_config(GateConfig, {"rules": rules, **fields}, "base_gate"), CHECKPOINT, out, reports)


# --- the rule language

names = st.from_regex(r"(eval|audit)(/[a-z][a-z0-9_.-]{0,8}){1,3}", fullmatch=True)
numbers = st.floats(allow_nan=False, allow_infinity=False)
metric_terms = st.builds(Term, metric=names, function=st.sampled_from(["", *FUNCTIONS]))
number_terms = st.builds(Term, number=numbers)
spaces = st.sampled_from(["", " ", "  "])


@given(metric_terms, st.sampled_from(sorted(OPERATORS)), metric_terms | number_terms, st.booleans(), spaces)
def test_a_written_rule_parses_to_its_parts(left: Term, op: str, right: Term, swap: bool, space: str) -> None:
    left, right = (right, left) if swap else (left, right)
    written = f"{_spell(left)}{space}{op}{space}{_spell(right)}"
    rule = parse_rule(written)
    assert (rule.left.metric, rule.left.function, rule.op, rule.right.metric, rule.right.function) == (
        left.metric, left.function, op, right.metric, right.function,
    )  # fmt: skip
    for parsed, meant in ((rule.left, left), (rule.right, right)):
        assert meant.metric is not None or parsed.number == meant.number
    assert rule.text == written


def _spell(term: Term) -> str:
    return repr(term.number) if term.metric is None else str(term)


@given(st.text(max_size=40))
def test_any_other_text_is_refused_as_a_value_error(text: str) -> None:
    try:
        rule = parse_rule(text)
    except ValueError:
        return
    assert any(term.metric for term in (rule.left, rule.right))


@given(numbers, numbers, st.sampled_from(sorted(OPERATORS)))
def test_a_rule_holds_exactly_when_its_comparison_does(value: float, limit: float, op: str) -> None:
    reason = parse_rule(f"eval/loss {op} {limit!r}").judge({"eval/loss": metric(value=value)})
    python = {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit, "==": value == limit}
    assert (reason.passed, reason.observed, reason.limit) == (python[op], value, limit)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("eval/loss", "exactly one comparison"),
        ("eval/loss < 1 < 2", "exactly one comparison"),
        ("eval/loss != 3", "exactly one comparison"),
        ("eval/loss = 3", "exactly one comparison"),
        ("< 3", "'' is neither"),
        ("loss < 3", "'loss' is neither"),
        ("mean(eval/loss) < 3", "'mean(eval/loss)' is neither"),
        ("lower(3) < eval/loss", "'lower(3)' is neither"),
        ("upper(lower(eval/loss)) < 3", "is neither"),
        ("eval/loss < nan", "'nan' is neither"),
        ("eval/loss < 1e999", "too large"),
        ("1 < 2", "two numbers"),
        ("eval/loss + 1 < 3", "is neither"),
        ("audit/privacy/excess_exposure_x64 <= 3", "positive control"),
        ("audit/privacy/exposure_x64 > 3", "positive control"),
        ("audit/privacy/exposure_x256 > 3", "positive control"),
        ("3 > upper(audit/privacy/excess_exposure_x64)", "positive control"),
    ],
)
def test_a_faulty_rule_is_one_config_error_that_points_at_it(rule: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(GateConfig, {"rules": ["eval/loss < 1", rule]}, "base_gate")
    assert says in str(caught.value)
    assert rule in str(caught.value)
    assert "base_gate.rules.1" in str(caught.value)


def test_a_gate_without_rules_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"base_gate.rules"):
        load_config(GateConfig, {"rules": []}, "base_gate")


# --- what passes


def test_all_rules_must_hold_and_the_decision_says_what_was_seen(tmp_path: Path) -> None:
    loss = metric(value=1.5, lower=1.4, upper=1.6, control=7.0)
    rules = ["upper(eval/loss) < control(eval/loss)", "lower(eval/loss) >= 1.4", "eval/loss <= 1.0"]
    decision = decide(tmp_path, rules, report(loss))
    assert [(r.rule, r.observed, r.limit, r.passed) for r in decision.reasons] == [
        (rules[0], 1.6, 7.0, True), (rules[1], 1.4, 1.4, True), (rules[2], 1.5, 1.0, False),
    ]  # fmt: skip
    assert not decision.admitted
    assert (decision.subject, decision.subject_digest) == (SUBJECT, "d" * 64)
    assert decide(tmp_path, rules[:2], report(loss)).admitted


@pytest.mark.parametrize(
    ("rule", "measured", "why"),
    [
        ("eval/other < 3", metric(), "not measured"),
        ("eval/loss < 3", metric(value=None, note="no validation rows"), "no validation rows"),
        ("eval/loss < 3", metric(value=math.nan), "not known"),
        ("eval/loss > 3", metric(value=math.inf), "not known"),
        ("lower(eval/loss) < 3", metric(), "lower(eval/loss) is not known"),
        ("upper(eval/loss) < 3", metric(), "upper(eval/loss) is not known"),
        ("control(eval/loss) < 3", metric(), "control(eval/loss) is not known"),
        ("eval/loss < eval/other", metric(), "eval/other was not measured"),
    ],
)
def test_what_is_not_known_fails_with_the_reason(tmp_path: Path, rule: str, measured: Metric, why: str) -> None:
    decision = decide(tmp_path, [rule], report(measured))
    assert not decision.admitted
    assert not decision.reasons[0].passed
    assert why in decision.reasons[0].note


def test_no_report_at_all_refuses(tmp_path: Path) -> None:
    assert not decide(tmp_path, ["eval/loss < 3"]).admitted


# --- whose report


def test_a_report_about_another_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="report other_eval is about checkpoint eeeeeeeeeeee, not base") as caught:
        decide(tmp_path, ["eval/loss < 3"], report(metric()), report(metric(), name="other_eval", subject="e" * 64))
    assert caught.value.exit_code == 2


def test_two_reports_that_disagree_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"eval/loss is 1\.0 in base_eval and 2\.0 in again"):
        decide(tmp_path, ["eval/loss < 3"], report(metric()), report(metric(value=2.0), name="again"))
    with pytest.raises(ArtifactError, match="eval/loss"):
        decide(tmp_path, ["eval/loss < 3"], report(metric(upper=2.0)), report(metric(upper=4.0), name="again"))


def test_two_reports_that_agree_are_one(tmp_path: Path) -> None:
    assert decide(tmp_path, ["eval/loss < 3"], report(metric()), report(metric(), name="again")).admitted


# --- waivers


def test_a_waiver_admits_and_is_recorded(tmp_path: Path) -> None:
    decision = decide(tmp_path, ["eval/loss < 0.5"], report(metric()), waiver={"by": "R. Owner", "reason": "demonstration"})
    assert decision.admitted
    assert not decision.reasons[0].passed
    assert (decision.waived_by, decision.waiver_reason) == ("R. Owner", "demonstration")


def test_without_any_report_no_rule_holds_and_only_a_waiver_admits(tmp_path: Path) -> None:
    refused = decide(tmp_path, ["eval/loss < 3"])
    assert not refused.admitted
    assert "was not measured" in refused.reasons[0].note
    assert decide(tmp_path, ["eval/loss < 3"], waiver={"by": "R. Owner", "reason": "a published model"}).waived_by == "R. Owner"


def test_a_waiver_that_was_not_needed_leaves_no_mark(tmp_path: Path) -> None:
    decision = decide(tmp_path, ["eval/loss < 3"], report(metric()), waiver={"by": "R. Owner", "reason": "demonstration"})
    assert decision.admitted
    assert decision.waived_by is None


@pytest.mark.parametrize("waiver", [{"by": "", "reason": "x"}, {"by": "x", "reason": "  "}, {"by": "x"}, {"reason": "x"}])
def test_a_waiver_needs_a_name_and_a_reason(waiver: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"base_gate.waiver"):
        load_config(GateConfig, {"rules": ["eval/loss < 3"], "waiver": waiver}, "base_gate")
