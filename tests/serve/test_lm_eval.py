"""lm-evaluation-harness asks a served model over HTTP as it asks OpenAI, and its figures are those of fmray's own evaluation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evaluation import measured
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
def lm(model: Path, serve_port: int) -> Iterator[Any]:
    """lm-eval's own client of a completions server, with the model behind it."""
    pytest.importorskip("tenacity", reason="pip install 'lm_eval[api]'")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    specs = specs_of([admit(model, waiver=Waiver("test", "test"))], ["llama"])
    with running(specs, DeployConfig(app="harness", route="/harness", num_cpus=0.1, cache_tokens=1024), keep=False) as url:
        yield LocalCompletionsAPI(
            model="llama", base_url=f"{url}/v1/completions", tokenizer=str(model), tokenizer_backend="huggingface", max_length=POSITIONS, batch_size=4
        )


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
