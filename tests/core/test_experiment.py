"""Experiments over toy stages: wiring, cache, drift, rounds, admission, interrupted and foreign folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fmray
from fmray.core.artifact import load, read_record
from fmray.core.errors import ArtifactError, ConfigError, DataError, GateRefused, RunError
from fmray.core.lock import hold, lock_path
from fmray.core.yaml import apply_overrides
from tests.core.toys import RUNS

LIFE = """
name: life
steps:
  field: {stage: toy_grow, amount: 3}
  loaf: {stage: toy_bake, grain: field, heat: 2}
  bite: {stage: toy_taste, checkpoint: loaf}
  verdict: {stage: toy_judge, checkpoint: loaf, reports: [bite], least: 5}
  meal: {stage: toy_eat, meals: [{checkpoint: loaf, decision: verdict}]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    RUNS.clear()
    path = tmp_path / "life.yaml"
    path.write_text(LIFE)
    return path


def run(file: Path, *overrides: str, targets: tuple[str, ...] = (), redo: tuple[str, ...] = (), name: str | None = None):
    experiment = fmray.load(file, overrides, storage=str(file.parent / "runs"), name=name)
    return experiment.run(targets, redo=redo)


def test_runs_down_the_file_then_answers_from_cache(file: Path) -> None:
    outcomes = run(file)
    assert [o.state for o in outcomes] == ["done"] * 5
    assert outcomes[-1].artifact.payload.amount == 6
    assert [o.state for o in run(file)] == ["cached"] * 5
    assert RUNS == {"grow": 1, "bake": 1, "taste": 1, "judge": 1, "eat": 1}


def test_a_runtime_field_does_not_change_the_fingerprint(file: Path) -> None:
    run(file)
    assert [o.state for o in run(file, "field.workers=7")] == ["cached"] * 5


def test_a_target_runs_only_what_it_needs(file: Path) -> None:
    assert [o.step for o in run(file, targets=("bite",))] == ["field", "loaf", "bite"]
    with pytest.raises(ConfigError, match="did you mean 'bite'"):
        run(file, targets=("bitte",))


def test_drift_names_each_field_with_old_and_new_value_and_keeps_everything(file: Path) -> None:
    run(file)
    with pytest.raises(ArtifactError, match=r"field: was made with other settings \(amount: 3 -> 4\).*--name NEW.*--redo field"):
        run(file, "field.amount=4")
    assert [o.state for o in run(file)] == ["cached"] * 5
    assert [o.state for o in run(file, "field.amount=4", name="other")] == ["done"] * 5


def test_redo_keeps_the_old_one_aside_and_makes_what_depends_on_it_anew(file: Path) -> None:
    run(file)
    outcomes = run(file, "field.amount=4", redo=("field",))
    assert [o.state for o in outcomes] == ["done"] * 5
    root = file.parent / "runs" / "life"
    assert load(root / "field.old1").payload.amount == 3
    assert load(root / "field").payload.amount == 4


def test_reports_and_gates_recompute_by_themselves(file: Path) -> None:
    run(file)
    outcomes = run(file, "verdict.least=6", targets=("verdict",))
    assert [o.state for o in outcomes] == ["cached", "cached", "cached", "done"]


def test_a_stricter_gate_refuses_and_a_rerun_refuses_from_cache(file: Path) -> None:
    for _ in range(2):
        with pytest.raises(GateRefused, match="size >= 100") as refused:
            run(file, "verdict.least=100")
        assert refused.value.exit_code == 3
    assert RUNS["judge"] == 1
    assert not (file.parent / "runs" / "life" / "meal").exists()


def test_a_refusal_goes_back_and_each_round_is_its_own_artifact(file: Path) -> None:
    back = "verdict.on_refusal={back_to: loaf, max_rounds: 3, set: {loaf.heat: 4}}"
    outcomes = run(file, "verdict.least=15", back)
    assert [(o.step, o.round) for o in outcomes] == [
        ("field", 1), ("loaf", 1), ("bite", 1), ("verdict", 1), ("loaf", 2), ("bite", 2), ("verdict", 2), ("meal", 1),
    ]  # fmt: skip
    root = file.parent / "runs" / "life"
    assert load(root / "loaf").payload.size == 6
    assert load(root / "loaf@2").payload.size == 6 + 12
    assert load(root / "loaf@2").record.inputs["previous"] == load(root / "loaf").fingerprint
    assert [o.state for o in run(file, "verdict.least=15", back)] == ["cached"] * 8
    with pytest.raises(GateRefused, match="in round 3"):
        run(file, "verdict.least=1000", back, name="never")


def test_a_decision_about_another_checkpoint_admits_nothing(file: Path) -> None:
    file.write_text(LIFE.replace("meals: [{checkpoint: loaf,", "meals: [{checkpoint: other,").replace("  bite:", "  other: {stage: toy_bake, grain: field}\n  bite:"))
    with pytest.raises(GateRefused, match="about another checkpoint than other"):
        run(file)


def test_an_artifact_of_another_run_is_an_input(file: Path) -> None:
    run(file)
    other = file.parent / "runs" / "life" / "field"
    outcomes = run(file, f"loaf.grain={{artifact: {other}}}", targets=("loaf",), name="borrowed")
    assert [o.step for o in outcomes] == ["loaf"]
    with pytest.raises(ArtifactError, match="is a toy_bread, not a toy_grain"):
        run(file, f"loaf.grain={{artifact: {other.parent / 'loaf'}}}", targets=("loaf",), name="wrong")
    (other / "record.json").unlink()
    with pytest.raises(ArtifactError, match="is unfinished"):
        run(file, f"loaf.grain={{artifact: {other}}}", targets=("loaf",), name="half")


def test_refused_input_leaves_nothing_behind_and_a_fault_can_go_on(file: Path) -> None:
    root = file.parent / "runs" / "life" / "field"
    with pytest.raises(DataError, match="field: no rain"):
        run(file, "field.fault=data")
    assert not root.exists()
    with pytest.raises(RunError):
        run(file, "field.fault=crash")
    assert (root / "grain.txt").exists()
    assert read_record(root) is None
    with pytest.raises(ArtifactError, match="holds an unfinished attempt with other settings"):
        run(file)
    with pytest.raises(RunError):
        run(file, "field.fault=crash")


def test_a_folder_with_foreign_files_is_left_alone(file: Path) -> None:
    root = file.parent / "runs" / "life" / "field"
    root.mkdir(parents=True)
    (root / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="holds files that no step wrote"):
        run(file)
    assert (root / "thesis.txt").read_text() == "years of work"


def test_a_step_held_by_a_live_process_is_refused_and_a_dead_holder_is_not(file: Path) -> None:
    root = file.parent / "runs" / "life" / "field"
    root.parent.mkdir(parents=True)
    with hold(root), pytest.raises(ArtifactError, match=f"being written by process {os.getpid()}"):
        run(file)
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    import socket

    lock_path(root).write_text(json.dumps({"host": socket.gethostname(), "pid": dead.pid, "started": "1"}))
    assert [o.state for o in run(file)] == ["done"] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("stage: toy_bake", "stage: toy_bakee"), "loaf.stage: unknown stage 'toy_bakee', did you mean 'toy_bake'"),
        (("heat: 2", "heet: 2"), "loaf.heet: unknown key 'heet', did you mean 'heat'"),
        (("heat: 2", "heat: hot"), "loaf.heat: .*integer.*'hot'"),
        (("grain: field", "grane: field"), "loaf.grain: is required"),
        (("grain: field", "grain: feild"), "loaf.grain: there is no step 'feild', did you mean 'field'"),
        (("grain: field", "grain: bite"), "loaf.grain: 'bite' stands below"),
        (("grain: field", "grain: loaf"), "loaf.grain: 'loaf' names the step itself"),
        (("checkpoint: loaf}", "checkpoint: field}"), "bite.checkpoint: 'field' makes a toy_grain, and a toy_bread is needed"),
        (("reports: [bite]", "reports: bite"), "verdict.reports: is a list"),
        (("decision: verdict", "decison: verdict"), "meal.meals.0.decison: unknown key 'decison', did you mean 'decision'"),
        (("name: life", "nmae: life"), "unknown key 'nmae', did you mean 'name'"),
        (("name: life", "name: ../life"), "needs a `name`"),
        (("least: 5", "least: 5, on_refusal: {back_to: meal}"), "verdict.on_refusal.back_to: 'meal' is not a step above"),
        (("heat: 2", "heat: 2, heat: 3"), "the key 'heat' stands twice"),
        (("heat: 2}", "heat: 2"), "is not valid YAML at line"),
    ],
)
def test_bad_files_are_one_clear_line(file: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in LIFE
    file.write_text(LIFE.replace(*change))
    with pytest.raises(ConfigError, match=message) as error:
        run(file)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("field.amount", "is not an override"),
        ("feild.amount=3", "there is no step 'feild', did you mean 'field'"),
        ("field.amount.deep=3", "is not a mapping"),
        ("field.amount=[", "not valid YAML"),
    ],
)
def test_bad_overrides_are_one_clear_line(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(file, override)


def test_an_override_with_nothing_behind_it_is_an_empty_text() -> None:
    plain = {"name": "life", "steps": {"field": {"stage": "toy_grow"}}}
    apply_overrides(plain, ["field.prefix=", "field.amount=null", "field.seed=0"])
    assert plain["steps"]["field"] == {"stage": "toy_grow", "prefix": "", "amount": None, "seed": 0}


def test_plan_reads_the_upstream_config(file: Path) -> None:
    plan = {step.name: lines for step, lines in fmray.load(file, ["field.amount=9"]).plan()}
    assert plan["loaf"] == {"grain": "9"}


def test_provenance_and_redaction(file: Path) -> None:
    record = run(file)[0].artifact.record
    assert record.wall_s >= 0
    assert record.provenance.versions["fmray"] == fmray.__version__
    assert record.provenance.device_hours >= 0
    from fmray.core.provenance import redact, redact_argv

    assert redact_argv(["run", "x.api_key=abc", "--token", "t", "--token-file"]) == ("run", "x.api_key=[redacted]", "--token", "[redacted]", "--token-file")
    assert redact({"password": "p", "max_tokens": 3}) == {"password": "[redacted]", "max_tokens": 3}


def test_the_core_needs_neither_torch_nor_ray() -> None:
    code = "import sys, fmray; print([m for m in ('torch', 'ray', 'transformers', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
