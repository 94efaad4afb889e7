"""Canary exposure: its formula by brute force, and that it sees what a model has read 64 times."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmray.audit import privacy
from fmray.audit.privacy import chance_exposure, exposure
from fmray.core.artifact import Artifact
from fmray.core.errors import ArtifactError, ConfigError
from fmray.core.report import Metric, Report
from fmray.gate import POSITIVE_LEVEL
from tests.evaluate.lives import corpus, run, trained

likelihoods = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=12)


@given(likelihoods, likelihoods)
def test_exposure_is_that_of_the_rank_counted_by_hand(secrets: list[float], candidates: list[float]) -> None:
    by_hand = []
    for secret in secrets:
        rank = 1 + sum(c > secret for c in candidates) + sum(c == secret for c in candidates) / 2
        by_hand.append(np.log2(len(candidates) + 1) - np.log2(rank))
    assert exposure(np.array(secrets), np.array(candidates)) == pytest.approx(by_hand)


def test_exposure_at_its_ends() -> None:
    candidates = np.arange(1023.0)
    assert exposure(np.array([5000.0, -1.0]), candidates) == pytest.approx([10.0, 0.0])


def test_chance_is_one_and_a_half_bits_in_a_large_space() -> None:
    assert chance_exposure(1) == pytest.approx(0.5)  # rank 1 gives one bit and rank 2 none
    assert chance_exposure(100_000) == pytest.approx(1 / np.log(2), abs=1e-3)


def test_the_gate_and_the_audit_agree_about_the_positive_control() -> None:
    assert privacy.POSITIVE_LEVEL == POSITIVE_LEVEL == 64


def figures(report: Artifact[Report]) -> dict[str, Metric]:
    prefix = "audit/privacy/"
    return {metric.name.removeprefix(prefix): metric for metric in report.payload.metrics if metric.name.startswith(prefix)}


def test_what_was_read_64_times_is_remembered_and_controls_are_not(report: Artifact[Report]) -> None:
    found = figures(report)
    chance = found["exposure_x0"].control
    assert abs(found["exposure_x0"].value - chance) < 4 * found["exposure_x0"].stderr
    assert found["excess_exposure_x64"].lower > 1.0
    assert found["exposure_x64"].value > found["exposure_x1"].value + 1.0
    assert any(finding.title == "The canary audit sees memorisation" for finding in report.payload.findings)


def test_excess_is_the_difference_of_the_means_and_controls_stand_beside(report: Artifact[Report]) -> None:
    found = figures(report)
    assert set(found) == {"exposure_x0"} | {f"{kind}_x{level}" for kind in ("exposure", "excess_exposure") for level in (1, 4, 16, 64)}
    for level in (1, 4, 16, 64):
        raw, excess = found[f"exposure_x{level}"], found[f"excess_exposure_x{level}"]
        assert excess.value == pytest.approx(raw.value - found["exposure_x0"].value)
        assert raw.control == found["exposure_x0"].value
        assert (raw.n, excess.n, excess.control) == (10, 10, 0.0)
    assert found["exposure_x0"].n == 40
    assert "positive control" in found["excess_exposure_x64"].note
    assert "positive control" not in found["excess_exposure_x16"].note


def test_the_examples_hold_each_secret_once(report: Artifact[Report]) -> None:
    rows = [json.loads(line) for line in (report.path / str(report.payload.examples)).read_text().splitlines()]
    rows = [row for row in rows if row["audit"] == "privacy"]
    drawn = json.loads((corpus().path / "canaries.json").read_text())
    assert sorted(r["secret"] for r in rows) == sorted([*drawn["controls"], *(s for level in drawn["levels"].values() for s in level)])
    mean = np.mean([row["exposure"] for row in rows if row["planted"] == 64])
    assert mean == pytest.approx(figures(report)["exposure_x64"].value, abs=1e-3)


def test_a_model_that_never_read_them_knows_nothing_and_the_audit_says_so(untrained_report: Artifact[Report]) -> None:
    found = figures(untrained_report)
    assert found["excess_exposure_x64"].lower < 0 < found["excess_exposure_x64"].upper
    titles = {finding.title for finding in untrained_report.payload.findings}
    assert {"The canary audit cannot see memorisation", "Not known to be the training data"} <= titles


@pytest.mark.usefixtures("ray_session")
def test_the_dataset_must_hold_canaries(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the dataset"):
        run("audit", {"audits": [{"type": "privacy"}]}, tmp_path / "a", checkpoint=trained())
    plain = corpus().payload.model_copy(update={"canaries": None})
    without = Artifact(corpus().path, corpus().record, plain)
    with pytest.raises(ConfigError, match=r"corpus has no canaries.*add `canaries: \{seed: 0\}` to corpus"):
        run("audit", {"audits": [{"type": "privacy"}]}, tmp_path / "b", checkpoint=trained(), dataset=without)


@pytest.mark.parametrize("content", ["", "{", '{"template": "x"}'])
def test_a_damaged_canary_file_is_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "canaries.json"
    file.write_text(content)
    with pytest.raises(ArtifactError, match="prepare the dataset again"):
        privacy.read_canaries(file)
