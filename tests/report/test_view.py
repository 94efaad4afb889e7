"""An experiment's folder as the report sees it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fmray.core.errors import ArtifactError
from fmray.core.stage import STAGES
from fmray.report.lifecycle import NARROW, WIDE, Drawing, Size, depths, direct, draw
from fmray.report.view import read_run
from tests.report import records


def test_steps_come_in_the_order_of_their_inputs(tmp_path: Path) -> None:
    run = read_run(records.whole(tmp_path / "quickstart"))
    assert run.name == "quickstart"
    assert run.names == ("corpus", "base", "base_eval", "base_audit", "base_gate", "tuned", "tuned_eval", "tuned_gate", "served")
    assert ("base", "base_gate") in run.edges()
    assert ("tuned_gate", "served") in run.edges()
    assert run.peak_memory_gb == 3.42
    subject = run.subject(run.latest("base_eval"))
    assert subject is not None
    assert subject.label == "base"


def test_rounds_of_a_gate_that_sent_back(tmp_path: Path) -> None:
    run = read_run(records.two_rounds(tmp_path / "x"))
    assert [(s.label, s.state) for s in run.rounds("base_gate")] == [("base_gate", "refused"), ("base_gate@2", "waived")]
    assert run.latest("base").label == "base@2"
    assert ("base", "base") not in run.edges()
    assert {run.sources(run.latest("tuned"))[key].label for key in ("checkpoint", "decision")} == {"base@2", "base_gate@2"}  # type: ignore[union-attr]


def test_a_step_that_did_not_end_and_steps_kept_aside(tmp_path: Path) -> None:
    root = records.refused(tmp_path / "x")
    (root / "base").rename(root / "base.old1")
    (root / "logs").mkdir()
    writer = records.Writer(root)
    writer.prints["corpus"] = json.loads((root / "corpus" / "record.json").read_text())["fingerprint"]
    writer.unfinished("base", "pretrain", {"dataset": "corpus"})
    run = read_run(root)
    assert "base.old1" not in run.names
    assert "logs" not in run.names
    assert run.latest("base").state == "unfinished"
    assert ("corpus", "base") in run.edges()
    assert run.subject(run.latest("base_eval")) is None


@pytest.mark.parametrize("damage", ["{", '{"kind": "report"}'])
def test_a_damaged_record_is_shown_as_damaged(tmp_path: Path, damage: str) -> None:
    root = records.refused(tmp_path / "x")
    (root / "base_eval" / "record.json").write_text(damage)
    step = read_run(root).latest("base_eval")
    assert (step.state, step.payload) == ("damaged", {})
    assert "damaged" in step.problem


def test_a_payload_of_another_version_is_shown_as_damaged(tmp_path: Path) -> None:
    root = records.refused(tmp_path / "x")
    path = root / "base_eval" / "record.json"
    record = json.loads(path.read_text())
    record["payload"]["metrics"][0]["value"] = "much"
    path.write_text(json.dumps(record))
    assert read_run(root).latest("base_eval").state == "damaged"


def test_folders_that_are_no_experiment_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        read_run(tmp_path / "absent")
    with pytest.raises(ArtifactError, match="holds no steps"):
        read_run(tmp_path)


def test_arrows_are_the_edges_that_no_longer_way_replaces() -> None:
    edges = {("a", "b"), ("b", "c"), ("a", "c"), ("b", "d"), ("c", "d")}
    assert direct(edges) == {("a", "b"), ("b", "c"), ("c", "d")}
    assert depths(("a", "b", "c", "d"), edges) == {"a": 0, "b": 1, "c": 2, "d": 3}


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize("make", [records.whole, records.two_rounds, records.refused])
def test_nodes_lie_apart_and_inside_the_drawing(tmp_path: Path, make: Callable[[Path], Path], size: Size) -> None:
    drawing = Drawing(read_run(make(tmp_path / "x")), size)
    boxes = [(f, c, f + drawing.size.node_flow, c + drawing.size.node_cross) for f, c in drawing.places.values()]
    flow, cross = drawing.extent
    assert all(a >= 0 and b >= 0 and c <= flow and d <= cross for a, b, c, d in boxes)
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_the_drawing_names_every_step_its_state_and_the_loop(tmp_path: Path) -> None:
    page = draw(read_run(records.two_rounds(tmp_path / "x")))
    assert "not met: round 2" in page
    assert "@1 ✕  @2 !" in page
    assert 'aria-label="base_gate@2, stage gate, waived' in page
    assert page.count('href="#s-tuned-gate"') == 2


def test_stage_names_of_the_fixture_are_those_of_the_stages(tmp_path: Path) -> None:
    run = read_run(records.whole(tmp_path / "x"))
    assert {s.stage for s in run.steps} <= set(STAGES)
