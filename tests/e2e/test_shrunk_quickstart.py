"""The quickstart from its file to its report, shrunk by overrides alone: every stage does its real work."""

import re
from pathlib import Path

import pytest

from fmray.core.artifact import load
from tests.e2e.driver import QUICKSTART, SHRUNK, fmray, metrics, record

STEPS = ("corpus", "base", "base_eval", "base_audit", "base_gate", "tuned", "tuned_eval", "tuned_gate", "served")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the shrunk quickstart ran, and what it printed."""
    folder = tmp_path_factory.mktemp("life")
    done = fmray("run", str(QUICKSTART), *SHRUNK, cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout


def test_ends_with_the_summary_and_a_report(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    for step in STEPS:
        assert step in printed
    for word in ("report.html", "peak memory", "wall time", "admitted"):
        assert word in printed
    page = (folder / "runs" / "quickstart" / "report.html").read_text()
    assert "bits per byte" in page


def test_every_artifact_has_its_provenance_and_chained_fingerprints(finished: tuple[Path, str]) -> None:
    root = finished[0] / "runs" / "quickstart"
    assert {step: record(root, step)["name"] for step in STEPS} == dict(zip(STEPS, STEPS, strict=True))
    for step in STEPS:
        provenance = record(root, step)["provenance"]
        assert provenance["versions"]["ray"]
        assert provenance["device_hours"] >= 0
    assert record(root, "base")["inputs"]["dataset"] == load(root / "corpus").fingerprint
    assert record(root, "served")["inputs"]["models.1.checkpoint"] == load(root / "tuned").fingerprint


def test_every_figure_says_how_it_was_obtained_and_harm_has_a_control(finished: tuple[Path, str]) -> None:
    root = finished[0] / "runs" / "quickstart"
    audit = metrics(root, "base_audit")
    assert {m["method"] for m in audit.values()} <= {"measured", "estimated", "declared"}
    assert audit["audit/privacy/exposure_x64"]["control"] is not None
    assert audit["audit/bias/stereotype_preference"]["control"] is not None
    evaluated = metrics(root, "base_eval")
    assert {"eval/loss", "eval/perplexity", "eval/bits_per_byte", "eval/unigram_bits_per_byte", "eval/bigram_bits_per_byte"} <= evaluated.keys()
    tuned = metrics(root, "tuned_eval")
    for name in ("macro_f1", "majority_macro_f1", "random_init_macro_f1", "tfidf_macro_f1"):
        assert tuned[f"eval/package/{name}"]["lower"] is not None or name.startswith("majority")


def test_the_checkpoints_open_with_transformers_alone(finished: tuple[Path, str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from fmray.model.language_model import LanguageModel

    root = finished[0] / "runs" / "quickstart"
    tokenizer = AutoTokenizer.from_pretrained(root / "base")
    ids = tokenizer("The list is sorted in place.", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(root / "base")(ids).logits
        ours = LanguageModel.load(root / "base").model(ids).logits
        classified = AutoModelForSequenceClassification.from_pretrained(root / "tuned")(ids).logits
    assert torch.equal(logits.float(), ours.float())
    assert classified.shape[-1] == len(record(root, "tuned")["payload"]["labels"])


def test_a_second_run_answers_from_cache_without_ray_or_torch(finished: tuple[Path, str]) -> None:
    done = fmray("run", str(QUICKSTART), *SHRUNK, cwd=finished[0], python_args=("-X", "importtime"))
    assert done.returncode == 0
    assert done.stdout.count("cached") >= len(STEPS)
    imported = set(re.findall(r"\|\s+([\w.]+)$", done.stderr, flags=re.MULTILINE))
    assert "pydantic" in imported
    assert not {"ray", "torch", "transformers", "deepspeed", "pyarrow"} & imported


def test_a_stricter_rule_refuses_and_nothing_is_deployed(finished: tuple[Path, str]) -> None:
    folder = finished[0]
    strict = "base_gate.rules=['eval/bits_per_byte < 0.1']"
    done = fmray("run", str(QUICKSTART), *SHRUNK, strict, cwd=folder)
    assert done.returncode == 3
    assert "eval/bits_per_byte < 0.1" in done.stdout
    assert "base_gate: the gate refused" in done.stderr
    served = fmray("serve", str(folder / "runs" / "quickstart" / "base"), cwd=folder)
    assert served.returncode == 3
    # The gate recomputes by itself: with the old rule the rest still answers from cache.
    assert fmray("run", str(QUICKSTART), *SHRUNK, cwd=folder).returncode == 0


def test_drift_is_one_line_that_names_the_field(finished: tuple[Path, str]) -> None:
    done = fmray("run", str(QUICKSTART), *SHRUNK, "base.max_steps=31", cwd=finished[0])
    assert done.returncode == 2
    assert "max_steps: 30 -> 31" in done.stderr
    assert done.stderr.count("\n") == 1


def test_show_and_report_speak_of_it(finished: tuple[Path, str]) -> None:
    folder = finished[0]
    shown = fmray("show", "runs/quickstart", cwd=folder)
    assert shown.returncode == 0
    assert all(step in shown.stdout for step in STEPS)
    as_json = fmray("show", "runs/quickstart/base", "--json", cwd=folder)
    assert load(folder / "runs" / "quickstart" / "base").fingerprint in as_json.stdout
    report = fmray("report", "runs/quickstart", cwd=folder)
    assert Path(report.stdout.strip()).is_file()
