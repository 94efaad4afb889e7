"""The README holds: its commands, its example of an objective, its files."""

import re
from pathlib import Path

import pytest

import fmray
from tests.e2e.driver import QUICKSTART, ROOT, SHRUNK
from tests.e2e.driver import fmray as run_fmray

README = (ROOT / "README.md").read_text()
PLUGIN = next(block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "label_smoothing.py" in block)


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
    done = run_fmray("run", str(experiment), "base", *SHRUNK, cwd=experiment.parent)
    assert done.returncode == 0, done.stdout + done.stderr
