"""Two reports on the same examples: differences counted by hand, what is refused, the gate's rule and the command."""

import json
from pathlib import Path
from typing import Any

import pytest

from fmray.core.artifact import Artifact, load
from fmray.core.errors import DataError
from fmray.core.experiment import Experiment
from fmray.core.report import Report
from fmray.evaluate.comparison import compare, find_report, markdown, mcnemar, summary
from tests.core.toys import RUNS  # noqa: F401  registers the toy stages


def report(root: Path, lines: list[dict[str, Any]], subject: str = "s", stage: str = "evaluate") -> Artifact[Report]:
    """A report artifact with these per-example lines."""
    root.mkdir(parents=True)
    (root / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    payload = Report(subject=subject, metrics=(), examples="examples.jsonl")
    provenance = {
        "git_commit": None, "git_dirty": None, "argv": (), "host": "h", "python": "3", "versions": {}, "devices": (), "device_hours": 0.0, "started_at": "",
    }  # fmt: skip
    record = {
        "kind": "report", "name": root.name, "stage": stage, "version": 1, "round": 1, "fingerprint": root.name, "identity": {}, "config": {}, "inputs": {},
        "payload": payload.model_dump(mode="json"), "provenance": provenance, "wall_s": 0.0,
    }  # fmt: skip
    (root / "record.json").write_text(json.dumps(record))
    return load(root, Report)


def lines(right: list[int], nats: list[float], first: int = 0) -> list[dict[str, Any]]:
    return [
        {"task": "t", "document": i, "document_hash": f"d{i + first}", "prompt_hash": "p", "text": f"text {i}", "target": "x", "metrics": {"acc": float(acc), "nats": loss}}
        for i, (acc, loss) in enumerate(zip(right, nats, strict=True))
    ]


A, B = [1, 1, 1, 0, 1, 0], [0, 0, 1, 1, 0, 0]


def test_differences_wins_and_losses(tmp_path: Path):
    a, b = report(tmp_path / "a", lines(A, [1.0] * 6)), report(tmp_path / "b", list(reversed(lines(B, [2.0] * 5 + [0.5]))))
    accuracy, nats = compare(a, b)
    assert (accuracy.name, accuracy.n, accuracy.wins, accuracy.losses) == ("t/acc", 6, 3, 1)
    assert accuracy.difference.value == pytest.approx(2 / 6)
    assert accuracy.p_value == pytest.approx(mcnemar(3, 1)) == pytest.approx(0.625), "five of the eight outcomes of three coins and more are as unequal"
    assert [example["text"] for example in accuracy.lost] == ["text 3"]
    assert (nats.wins, nats.losses, nats.p_value) == (5, 1, None), "fewer nats are better"
    assert nats.difference.lower <= nats.difference.value == pytest.approx(-4.5 / 6)
    said = markdown(summary(a, b, [accuracy, nats], 1))
    assert "| t | acc | 6 | 0.6667 | 0.3333 | +0.3333 |" in said
    assert said.count("text 0") == 2


def test_examples_that_differ_are_refused(tmp_path: Path):
    a, b = report(tmp_path / "a", lines(A, [1.0] * 6)), report(tmp_path / "b", lines(B, [1.0] * 6, first=2))
    with pytest.raises(DataError, match=r"the examples of t differ: 2 of 6 stand only in .*a, 2 of 6 only in .*b") as error:
        compare(a, b)
    assert error.value.exit_code == 2
    other = report(tmp_path / "c", [{**line, "task": "u"} for line in lines(B, [1.0] * 6)])
    with pytest.raises(DataError, match="share no task: t against u"):
        compare(a, other)
    (other.path / "examples.jsonl").unlink()
    with pytest.raises(DataError, match="keeps no examples"):
        compare(a, other)


def test_examples_of_a_unit_are_resampled_together(tmp_path: Path):
    def rows(right: bool, width: int) -> list[dict[str, Any]]:
        return [{"task": "answers", "text": f"x{i}", "label": [[0, "a"]], "model": "", "unit": i // width, "figures": {"f1": float(right and i // 10 % 2)}} for i in range(40)]

    (alone,), (grouped,) = (compare(report(tmp_path / f"a{width}", rows(True, width)), report(tmp_path / f"b{width}", rows(False, width))) for width in (1, 10))
    assert alone.difference.value == grouped.difference.value == 0.5
    assert (alone.n, alone.difference.n, grouped.n, grouped.difference.n) == (40, 40, 40, 4)
    assert grouped.difference.stderr > 2 * alone.difference.stderr, "ten questions about a passage are no ten proofs"


def test_reports_without_a_common_figure_are_refused(tmp_path: Path):
    a = report(tmp_path / "a", lines(A, [1.0] * 6))
    b = report(tmp_path / "b", [{**line, "metrics": {"acc_norm": 1.0}} for line in lines(B, [1.0] * 6)])
    with pytest.raises(DataError, match="share no figure of t: acc, nats against acc_norm; evaluate both with the same metrics") as error:
        compare(a, b)
    assert error.value.exit_code == 2


def test_tuned_models_are_compared_by_what_they_said(tmp_path: Path):
    # Of a question the label is its list of answers and what was said a text: only the task's own figure tells whether that is right.
    rows = [{"task": "answers", "text": f"x{i}", "label": [[3, "yes"]], "model": said, "figures": {"f1": float(said == "yes")}} for i, said in enumerate(("yes", "no", "yes"))]
    a, b = report(tmp_path / "a", rows), report(tmp_path / "b", [{**row, "model": "no", "figures": {"f1": 0.0}} for row in rows])
    (f1,) = compare(a, b)
    assert (f1.name, f1.wins, f1.losses) == ("answers/f1", 2, 0)
    assert f1.won[0] == {"task": "answers", "text": "x0", "target": [[3, "yes"]], "said": ["yes", "no"], "f1": [1.0, 0.0]}
    with pytest.raises(DataError, match="hold no figure that one example has on its own"):
        compare(a, report(tmp_path / "old", [{name: value for name, value in row.items() if name != "figures"} for row in rows]))
    with pytest.raises(Exception, match=r"neither a report nor a checkpoint|does not exist"):
        find_report(tmp_path / "none")


def test_a_gate_reads_the_champions_rule(tmp_path: Path):
    candidate = report(tmp_path / "candidate", lines(A * 20, [1.0] * 120), subject="x")
    champion = report(tmp_path / "champion", lines([0] * 120, [2.0] * 120))
    steps = {"against": {"stage": "compare", "report": {"artifact": str(candidate.path)}, "champion": {"artifact": str(champion.path)}}}
    (outcome,) = Experiment({"name": "e", "steps": steps}, where="test", storage=str(tmp_path / "runs")).run()
    made = outcome.artifact.payload
    assert made.subject == "x", "a gate takes it for a report about the candidate"
    accuracy, nats = made.metrics
    assert accuracy.name == "compare/t/acc_difference"
    assert accuracy.lower > 0.5
    assert (nats.name, nats.higher_is_better) == ("compare/t/nats_difference", False)
    from fmray.gate import parse_rule

    metrics = {metric.name: metric for metric in made.metrics}
    assert parse_rule("lower(compare/t/acc_difference) >= 0").judge(metrics).passed
    assert not parse_rule("lower(compare/t/nats_difference) >= 0").judge(metrics).passed


def test_the_command_says_it_in_markdown_and_json_and_refuses_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from fmray.cli import app, guarded

    a, b, other = (report(tmp_path / name, made) for name, made in (("a", lines(A, [1.0] * 6)), ("b", lines(B, [2.0] * 6)), ("c", lines(B, [2.0] * 6, 9))))

    def command(*arguments: str) -> int:
        return guarded(lambda: app(["compare", *arguments], standalone_mode=False))

    assert command(str(a.path), str(b.path)) == 0
    assert "| t | acc | 6 |" in capsys.readouterr().out
    assert command(str(a.path), str(b.path), "--json", "--examples", "0") == 0
    assert json.loads(capsys.readouterr().out)["comparisons"][0]["won"] == []
    assert command(str(a.path), str(other.path)) == 2
    assert capsys.readouterr().err.count("\n") == 1
