"""What the terminal says at the end of a run, and `fmray show`."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from fmray.core.artifact import load
from fmray.core.errors import ArtifactError
from fmray.core.experiment import Outcome
from fmray.report.html import write_report
from fmray.report.terminal import show_artifact, show_experiment, summary_table
from tests.report import records


def said(shown: RenderableType | dict[str, Any], width: int = 220) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def test_the_summary_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = records.whole(tmp_path / "runs" / "x")
    write_report(root)
    outcomes = [Outcome("corpus", 1, "cached", load(root / "corpus")), Outcome("base_gate", 1, "done", load(root / "base_gate"))]
    text = said(summary_table(root, outcomes=outcomes, run={"wall_s": 311.0, "peak_memory_gb": 3.42}))
    corpus = next(line for line in text.splitlines() if line.startswith("corpus"))
    assert "cached" in corpus
    assert "words 279 k" in corpus
    assert corpus.rstrip().endswith(" runs/x/corpus")
    assert "tuned" not in text
    assert "✓ upper(eval/bits_per_byte) < eval/bigram_bits_per_byte  observed 2.34, limit 2.94" in text
    assert "wall time 5 min 11 s · peak memory 3.42 GiB" in text
    assert "report  runs/x/report.html" in text


def test_a_refusal_and_a_waiver_say_why(tmp_path: Path) -> None:
    text = said(summary_table(records.refused(tmp_path / "x")))
    assert "✕ refused" in text
    assert "✕ audit/cost/price_usd < 1  observed unknown, limit 2.94; no price was declared" in text
    assert "report  " not in text
    text = said(summary_table(records.two_rounds(tmp_path / "y"), run={"wall_s": 1.0}))
    assert "waived by A. Owner: a demonstration that nobody will use" in text
    assert "peak memory unknown" in text


def test_an_experiment_is_shown_with_its_lineage(tmp_path: Path) -> None:
    root = records.refused(tmp_path / "x")
    text = said(show_experiment(root))
    assert "checkpoint=base, reports.0=base_eval" in text
    assert load(root / "base").fingerprint[:12] in text
    plain: Any = show_experiment(root, as_json=True)
    assert json.loads(json.dumps(plain)) == plain
    gate = plain["steps"][-1]
    assert (gate["step"], gate["state"], gate["inputs"]["checkpoint"]["step"]) == ("base_gate", "refused", "base")
    assert gate["fingerprint"] == load(root / "base_gate").fingerprint
    assert gate["figures"]["rules met"] == "1 of 3"


def test_one_artifact_is_shown_with_config_and_provenance(tmp_path: Path) -> None:
    root = records.whole(tmp_path / "x")
    text = said(show_artifact(root / "base"))
    assert load(root / "base").fingerprint in text
    assert "config.step" in text
    assert "fmray run jobs/quickstart.yaml" in text
    plain: Any = show_artifact(root / "base", as_json=True)
    assert plain["payload"]["n_params"] == 1_967_808
    assert plain["figures"]["parameters"] == "1.97 M"
    with pytest.raises(ArtifactError, match="it has no record"):
        show_artifact(tmp_path)


def test_text_of_records_is_not_taken_for_terminal_markup(tmp_path: Path) -> None:
    root = tmp_path / "x"
    writer = records.Writer(root)
    model = writer.step("base", "pretrain", records.base())
    verdict = records.decision(model, False, waived=True).model_copy(update={"waived_by": "[bold red]x[/nothing]"})
    writer.step("gate", "gate", verdict, {"checkpoint": "base"})
    assert "[bold red]x[/nothing]" in said(summary_table(root))
    assert "[bold red]x[/nothing]" in said(show_artifact(root / "gate"))
