"""What holds for every audit, found through its family, so that a new one is tested by existing."""

import json
import math

import pytest

from fmray.audit import AuditConfig
from fmray.audit.base import Audit
from fmray.core.artifact import Artifact
from fmray.core.config import dump, load_config
from fmray.core.errors import ConfigError
from fmray.core.report import Metric, Report
from tests.evaluate.lives import trained

TYPES = sorted(Audit.members())


def test_the_audits_of_this_version_are_there() -> None:
    assert {"bias", "privacy", "cost"} <= set(TYPES)


def test_the_report_is_about_the_checkpoint(report: Artifact[Report]) -> None:
    assert report.payload.subject == trained().fingerprint
    assert report.record.provenance.device_hours > 0


@pytest.mark.parametrize("name", TYPES)
def test_its_figures_are_its_own_and_say_how_they_were_obtained(report: Artifact[Report], name: str) -> None:
    figures = [m for m in report.payload.metrics if m.name.startswith(f"audit/{name}/")]
    assert figures
    assert len({m.name for m in figures}) == len(figures)
    for metric in figures:
        assert metric.method in ("measured", "estimated", "declared")
        assert metric.note
        assert metric.value is None or math.isfinite(metric.value)
        if metric.lower is not None:
            assert metric.lower <= metric.value <= metric.upper
            assert metric.n > 1


def test_no_figure_belongs_to_another_audit(report: Artifact[Report]) -> None:
    assert {m.name.split("/")[1] for m in report.payload.metrics} == set(TYPES)


def test_every_measured_figure_has_a_control_or_is_one(report: Artifact[Report]) -> None:
    def has_control(metric: Metric) -> bool:
        return metric.control is not None or "/twin_" in metric.name

    assert [m.name for m in report.payload.metrics if m.method == "measured" and m.value is not None and not has_control(m)] == []


def test_every_audit_finds_something_to_say(report: Artifact[Report]) -> None:
    assert len(report.payload.findings) >= len(TYPES)
    for finding in report.payload.findings:
        assert finding.title
        assert finding.detail.endswith(".")


def test_examples_are_rows_tagged_with_their_audit(report: Artifact[Report]) -> None:
    rows = [json.loads(line) for line in (report.path / str(report.payload.examples)).read_text().splitlines()]
    assert {row["audit"] for row in rows} <= set(TYPES)
    assert sum(row["audit"] == "bias" for row in rows) >= 200


@pytest.mark.parametrize("name", TYPES)
def test_its_config_survives_the_way_through_json(name: str) -> None:
    config = load_config(AuditConfig, {"audits": [{"type": name}]})
    assert load_config(AuditConfig, json.loads(json.dumps(dump(config)))) == config


@pytest.mark.parametrize(
    ("audits", "says"),
    [
        ([], "audits"),
        ([{"type": "cost"}, {"type": "cost"}], "'cost' is listed more than once"),
        ([{"type": "byas"}], "did you mean 'bias'"),
        ([{"type": "bias", "axes": ["hair"]}], r"audits.0.axes.0"),
        ([{"type": "bias", "control_seeds": [0]}], r"audits.0.control_seeds"),
        ([{"type": "cost", "pue": 0.5}], r"audits.0.pue"),
    ],
)
def test_bad_settings_are_one_line_with_their_place(audits: list[dict[str, object]], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(AuditConfig, {"audits": audits}, "base_audit")
    assert "\n" not in str(caught.value)
