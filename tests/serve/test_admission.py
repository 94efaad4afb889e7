"""Only files that a gate admitted are served by hand; anything else needs a waiver that is recorded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fmray.core.artifact import load
from fmray.core.errors import ArtifactError, ConfigError, FmrayError, GateRefused, ResourceError
from fmray.core.report import Decision, Report
from fmray.serve.admission import WAIVERS, Waiver, admit
from fmray.serve.foreground import admitted, serve_foreground
from tests.serve.conftest import make_decision, save_record

Copy = Callable[..., Path]


def lines(error: FmrayError) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_a_decision_beside_it_admits(experiment: Path) -> None:
    for name, head in (("base", "causal_lm"), ("tuned", "sequence_classification")):
        admission = admit(experiment / name)
        assert admission.decision is not None
        assert (admission.decision.name, admission.head, admission.waiver) == (f"{name}_gate", head, None)


def test_without_a_decision_it_is_refused(copy_of: Copy) -> None:
    root = copy_of("base", "tuned_gate")
    with pytest.raises(GateRefused) as refused:
        admit(root / "base")
    assert refused.value.exit_code == 3
    assert "no decision is about these files (looked at tuned_gate)" in lines(refused.value)
    assert "--waive REASON --by NAME" in lines(refused.value)


def test_any_hugging_face_directory_is_held_to_the_rule(copy_of: Copy) -> None:
    root = copy_of("base")
    (root / "base" / "record.json").unlink()
    with pytest.raises(GateRefused, match="no decision about this checkpoint was found beside it"):
        admit(root / "base")


def test_a_decision_elsewhere_can_be_named(copy_of: Copy, experiment: Path) -> None:
    path = copy_of("base") / "base"
    assert admit(path, decision=experiment / "base_gate").decision is not None
    with pytest.raises(GateRefused, match="no decision is about these files"):
        admit(path, decision=experiment / "tuned_gate")
    with pytest.raises(ArtifactError):
        admit(path, decision=experiment / "base")


def test_a_refusing_gate_refuses_even_beside_an_admitting_one(copy_of: Copy) -> None:
    root = copy_of("base", "base_gate")
    make_decision(root / "strict_gate", load(root / "base"), admitted=False)
    with pytest.raises(GateRefused, match=r"the gate strict_gate refused this checkpoint \(not met: eval/perplexity < 40\)"):
        admit(root / "base")


def test_a_decision_put_aside_by_redo_admits_nothing(copy_of: Copy) -> None:
    root = copy_of("base", "base_gate")
    (root / "base_gate").rename(root / "base_gate.old1")
    with pytest.raises(GateRefused):
        admit(root / "base")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_files_changed_since_the_gate_are_refused(copy_of: Copy, file: str) -> None:
    root = copy_of("base", "base_gate")
    content = (root / "base" / file).read_bytes()
    (root / "base" / file).write_bytes(content + b" ")
    with pytest.raises(GateRefused, match="they changed since"):
        admit(root / "base")


def test_a_file_added_since_the_gate_is_refused(copy_of: Copy) -> None:
    root = copy_of("base", "base_gate")
    (root / "base" / "more.safetensors").write_bytes(b"")
    with pytest.raises(GateRefused, match="they changed since"):
        admit(root / "base")


def test_a_waiver_is_recorded(copy_of: Copy) -> None:
    root = copy_of("base")
    admission = admit(root / "base", waiver=Waiver.of(" to look at it ", "Ada"))
    assert admission.decision is None
    admit(root / "base", waiver=Waiver.of("again", "Ada"))
    first, second = [json.loads(line) for line in (root / WAIVERS).read_text().splitlines()]
    assert (first["model"], first["by"], first["reason"], first["digest"]) == ("base", "Ada", "to look at it", admission.digest)
    assert "no decision" in first["waived"]
    assert second["reason"] == "again"


def test_an_admitted_model_needs_no_waiver(copy_of: Copy) -> None:
    root = copy_of("base", "base_gate")
    assert admit(root / "base", waiver=Waiver.of("why not", "Ada")).waiver is None
    assert not (root / WAIVERS).exists()


def test_a_waiver_that_cannot_be_recorded_waives_nothing(copy_of: Copy) -> None:
    root = copy_of("base")
    (root / WAIVERS).mkdir()
    with pytest.raises(ResourceError, match="cannot be recorded"):
        admit(root / "base", waiver=Waiver.of("r", "b"))


@pytest.mark.parametrize(("reason", "by"), [("r", None), (None, "b"), (" ", "b"), ("r", "")])
def test_half_a_waiver_is_bad_input(reason: str | None, by: str | None) -> None:
    with pytest.raises(ConfigError, match="both a reason and a name"):
        Waiver.of(reason, by)


def test_what_is_not_a_model_is_bad_input(tmp_path: Path, copy_of: Copy) -> None:
    report = save_record(tmp_path / "report", "report", Report(subject="x", metrics=()))
    for target, words in ((tmp_path / "absent", "not a directory"), (report.path, "is a report, which cannot be served"), (tmp_path, "no config.json")):
        with pytest.raises(FmrayError, match=words) as refused:
            admitted([target], decision=None, waiver=None)
        assert refused.value.exit_code == 2
    root = copy_of("base")
    config = json.loads((root / "base" / "config.json").read_text())
    (root / "base" / "config.json").write_text(json.dumps(config | {"architectures": ["ViTForImageClassification"]}))
    with pytest.raises(ArtifactError, match="cannot be served"):
        admit(root / "base")


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("GPT2LMHeadModel", "causal_lm"),
        ("BertForMaskedLM", "masked_lm"),
        ("BertForTokenClassification", "token_classification"),
        ("BertForQuestionAnswering", "question_answering"),
        ("BartForConditionalGeneration", "seq2seq_lm"),
        ("BertModel", "encoder"),
    ],
)
def test_the_head_is_read_from_the_architecture(copy_of: Copy, architecture: str, head: str) -> None:
    path = copy_of("base") / "base"
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    assert admit(path, waiver=Waiver.of("a look", "Ada")).head == head


def test_a_checkpoint_with_no_tokenizer_is_bad_input(copy_of: Copy) -> None:
    path = copy_of("base") / "base"
    for file in path.glob("*token*"):
        file.unlink()
    with pytest.raises(ArtifactError, match="has no tokenizer") as refused:
        admit(path, waiver=Waiver.of("a look", "Ada"))
    assert refused.value.exit_code == 2


def test_names_and_decisions_must_fit(experiment: Path, copy_of: Copy) -> None:
    with pytest.raises(ConfigError, match="two models are named 'base'"):
        admitted([experiment / "base", copy_of("base", "base_gate") / "base"], decision=None, waiver=None)
    with pytest.raises(ConfigError, match="cannot admit 2 models"):
        admitted([experiment / "base", experiment / "tuned"], decision=experiment / "base_gate", waiver=None)


def test_serving_by_hand_refuses_before_it_starts_anything(copy_of: Copy) -> None:
    with pytest.raises(GateRefused):
        serve_foreground([copy_of("base") / "base"])


def test_the_card_tells_nothing_of_the_machine(experiment: Path) -> None:
    [spec] = admitted([experiment / "base"], decision=None, waiver=None)
    assert spec.card["decision"]["payload"]["admitted"] is True
    assert spec.card["record"]["payload"]["digest"] == spec.digest
    assert "secret-argument" not in json.dumps(spec.card)
    assert isinstance(load(experiment / "base_gate").payload, Decision)
