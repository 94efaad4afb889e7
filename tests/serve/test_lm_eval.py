"""lm-evaluation-harness asks a served model over HTTP as it asks OpenAI, and its figures are those of fmray's own evaluation."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evaluation import measured, ours, own_files
from fmray.core.config import load_config
from fmray.evaluate.config import EvaluateConfig
from fmray.evaluate.lm_tasks.asking import Setup, answers, setup
from fmray.evaluate.lm_tasks.documents import draw
from fmray.evaluate.lm_tasks.opened import OpenTask
from fmray.evaluate.lm_tasks.workers import Workers
from fmray.serve.admission import Waiver, admit
from fmray.serve.deploy import running
from fmray.serve.deployment import DeployConfig
from fmray.serve.specs import specs_of
from tests.evaluate.lm_tasks.small import documents, save

pytestmark = pytest.mark.slow

# Room for every prompt: lm-eval's client cuts contexts one token earlier than a model must, for the token that it has generated.
POSITIONS = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("served") / "llama", "llama", positions=POSITIONS)


@pytest.fixture(scope="module")
def client(model: Path, serve_port: int) -> Iterator[dict[str, Any]]:
    """What lm-eval's own client of a completions server is told, with the model behind it."""
    pytest.importorskip("tenacity", reason="pip install 'lm_eval[api]'")
    specs = specs_of([admit(model, waiver=Waiver("test", "test"))], ["llama"])
    with running(specs, DeployConfig(app="harness", route="/harness", num_cpus=0.1, cache_tokens=1024), keep=False) as url:
        address = f"{url}/v1/completions"
        yield {"model": "llama", "base_url": address, "tokenizer": str(model), "tokenizer_backend": "huggingface", "max_length": POSITIONS}


@pytest.fixture(scope="module")
def lm(client: dict[str, Any]) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(**client, batch_size=4)


@pytest.fixture(scope="module")
def own(model: Path) -> tuple[Setup, Workers]:
    workers = Workers("causal_lm", model, None, 1, 1, 0)
    return setup("causal_lm", model, workers, 4), workers


@pytest.mark.parametrize("shots", [0, 1])
def test_a_served_model_has_the_figures_of_an_own_evaluation(tmp_path: Path, lm: Any, own: tuple[Setup, Workers], shots: int) -> None:
    asked = {name: {**entry, "shots": shots} for name, entry in documents(tmp_path / "tasks").items() if name in ("arc_easy", "winogrande", "blimp", "lambada")}
    tasks = load_config(EvaluateConfig, {"tasks": asked, "num_cpus": 1}).tasks
    for name, task in tasks.items():
        row = measured(name, task, *own, lm, ours_first=True)
        assert row["same"], row
        assert row["nats"] < 1e-3


def test_a_served_model_writes_what_an_own_evaluation_writes(tmp_path: Path, lm: Any, own: tuple[Setup, Workers]) -> None:
    asked = {"lambada_generate": documents(tmp_path / "tasks")["lambada_generate"]}
    [(name, task)] = load_config(EvaluateConfig, {"tasks": asked, "num_cpus": 1}).tasks.items()
    opened = OpenTask(name, task, draw(name, task, 0))
    given, _ = answers(task.output, opened.asks, *own)
    assert lm.generate_until(opened.task.instances, disable_tqdm=True) == given
    assert len(set(given)) > 1


def test_the_command_of_lm_eval_scores_a_served_model(tmp_path: Path, client: dict[str, Any], own: tuple[Setup, Workers]) -> None:
    asked = {"arc_easy": documents(tmp_path / "tasks")["arc_easy"]}
    [(name, task)] = load_config(EvaluateConfig, {"tasks": asked, "num_cpus": 1}).tasks.items()
    drawn = draw(name, task, 0)
    written = own_files(tmp_path, name, task, drawn)
    arguments = ",".join(f"{key}={value}" for key, value in client.items())
    command = ["--model", "local-completions", "--model_args", arguments, "--batch_size", "4", "--tasks", written, "--include_path", str(tmp_path)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *command, "--output_path", str(tmp_path / "found")],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    [results] = (tmp_path / "found").rglob("results_*.json")
    theirs = json.loads(results.read_text())["results"][written]
    figures, _ = ours(name, task, drawn, *own)
    assert figures
    assert figures == {metric: theirs[f"{metric},none"] for metric in figures}
