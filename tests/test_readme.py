"""The README holds: its commands, its example of an objective, its files."""

import mailbox
import re
from pathlib import Path

import pytest

import fmray
from fmray.core.artifact import load
from fmray.core.report import Report
from fmray.data.dataset import TokenDataset
from tests.data.corpora import topics, write_texts
from tests.e2e.driver import QUICKSTART, ROOT, SHRUNK
from tests.e2e.driver import fmray as run_fmray
from tests.train import tiny

README = (ROOT / "README.md").read_text()
PLUGINS = {block.split(":")[0].removeprefix('"""'): block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)}
PLUGIN = PLUGINS["label_smoothing.py"]


def test_the_first_command_stands_within_20_lines_and_the_test_command_is_what_ci_runs() -> None:
    first = next(number for number, line in enumerate(README.splitlines(), 1) if line.startswith("python3.11 -m venv"))
    assert first <= 20
    pattern = re.search(r"sed -n '(.*)' README.md", (ROOT / ".ci/run").read_text())
    assert pattern is not None
    assert len(re.findall(r"^python3\.11 -m venv .*pytest$", README, flags=re.MULTILINE)) == 1


def test_every_linked_file_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """The quickstart with the README's objective as a plugin beside it."""
    (tmp_path / "label_smoothing.py").write_text(PLUGIN)
    text = QUICKSTART.read_text().replace("name: quickstart", "name: smoothed\nplugins: [label_smoothing.py]")
    text = text.replace("objective: {type: causal_lm}", "objective: {type: label_smoothing, epsilon: 0.1}")
    assert "label_smoothing, epsilon" in text
    (tmp_path / "smoothed.yaml").write_text(text)
    return tmp_path / "smoothed.yaml"


def test_the_objective_of_the_readme_is_accepted_and_enters_the_fingerprint(experiment: Path) -> None:
    loaded = fmray.load(experiment, ["base.objective.epsilon=0.2"], storage=str(experiment.parent / "runs"))
    assert loaded.steps["base"].config.identity()["objective"] == {"type": "label_smoothing", "epsilon": 0.2}
    assert set(loaded.plugins) == {"label_smoothing"}


@pytest.mark.slow
def test_the_objective_of_the_readme_trains_on_two_workers(experiment: Path) -> None:
    texts = write_texts(experiment.parent / "topics", topics())
    done = run_fmray("run", str(experiment), "base", *SHRUNK, f"corpus.source={{type: text, path: {texts}}}", cwd=experiment.parent)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_source_and_the_filter_of_the_readme_prepare_a_mail_box(tmp_path: Path) -> None:
    for name in ("mbox.py", "shouting.py"):
        (tmp_path / name).write_text(PLUGINS[name])
    box = mailbox.mbox(tmp_path / "list.mbox")
    for number in range(400):
        message = mailbox.mboxMessage()
        message["Message-ID"] = f"<{number}@list>"
        text = f"Dear list, this is message number {number} about the weather of day {number * 7}."
        message.set_payload(text.upper() if number % 20 == 0 else text)
        box.add(message)
    box.close()
    step = "{stage: prepare, source: {type: mbox, path: list.mbox}, filters: [{type: shouting}], seq_len: 32, vocab_size: 300, validation_fraction: 0.2}"
    (tmp_path / "mail.yaml").write_text(f"name: mail\nplugins: [mbox.py, shouting.py]\nsteps:\n  corpus: {step}\n")
    done = run_fmray("run", "mail.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    payload = load(tmp_path / "runs" / "mail" / "corpus", TokenDataset).payload
    assert payload.removed == {"shouting/capitals": 20}
    assert payload.n_documents + payload.n_validation_documents == 380


@pytest.mark.slow
def test_the_task_of_the_readme_is_tuned_and_judged_by_its_own_figures(tmp_path: Path) -> None:
    (tmp_path / "rating.py").write_text(PLUGINS["rating.py"])
    tiny.save_encoder(tmp_path / "base")
    stars = {"weather": "1", "cooking": "2", "sailing": "3"}
    tiny.write_csv(tmp_path / "reviews.csv", [(text, stars[label]) for text, label in tiny.labelled(60)], header=("text", "stars"))
    tuned = "{stage: finetune, checkpoint: base, task: {type: rating, source: {type: csv, path: reviews.csv}}, epochs: 2, optim: {lr: 3e-3}}"
    steps = f"  base: {{stage: import, path: base}}\n  tuned: {tuned}\n  judged: {{stage: evaluate, checkpoint: tuned}}\n"
    (tmp_path / "stars.yaml").write_text(f"name: stars\nplugins: [rating.py]\nsteps:\n{steps}")
    done = run_fmray("run", "stars.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = {metric.name: metric for metric in load(tmp_path / "runs" / "stars" / "judged", Report).payload.metrics}
    within, off = metrics["eval/rating/within_one"], metrics["eval/rating/absolute_error"]
    assert within.lower <= within.value <= within.upper
    assert (within.higher_is_better, off.higher_is_better) == (True, False)
    assert 0 <= off.value <= 2
