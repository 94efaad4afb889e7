"""The deploy stage with adapters: one deployment, three names, and every door of OpenAI's clients."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import fmray.serve.deploy  # noqa: F401  (registers the stage)
from fmray.core.artifact import Artifact, load
from fmray.model.checkpoint import Checkpoint
from fmray.serve import application
from fmray.serve.deployment import Deployment
from fmray.serve.foreground import planned
from tests.serve.lora import SHAPES, family
from tests.serve.test_continuous import greedy_reference
from tests.serve.test_deploy import experiment_file

pytestmark = pytest.mark.slow
PROMPTS = ["Return the value", "The quick brown fox jumps over the lazy dog", "x"]


@pytest.fixture(scope="module")
def root(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family(tmp_path_factory.mktemp("family"), load(experiment / "base", Checkpoint))


@pytest.fixture(scope="module")
def served(root: Path, serve_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact[Deployment]]:
    settings: dict[str, Any] = {"app": "lora", "route": "/lora", "adapters": dict.fromkeys(SHAPES, "base")}
    [outcome] = experiment_file(root, tmp_path_factory.mktemp("runs"), "base", *SHAPES, **settings).run()
    yield outcome.artifact
    application.take_down("lora")


@pytest.fixture(scope="module")
def client(served: Artifact[Deployment]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.payload.url}/v1", api_key="none", max_retries=0)


def test_adapters_have_names_and_parents_and_no_deployment_of_their_own(served: Artifact[Deployment], client: openai.OpenAI) -> None:
    from ray import serve

    assert set(serve.status().applications["lora"].deployments) == {"model-base", "face"}
    assert {model.id: model.model_dump()["parent"] for model in client.models.list().data} == {"base": None, "first": "base", "second": "base"}
    assert client.models.retrieve("second").model_dump()["parent"] == "base"
    assert [(model.name, model.base) for model in served.payload.models] == [("base", None), ("first", "base"), ("second", "base")]
    specs, _ = planned([served.path], decision=None, waiver=None)
    assert [spec.base for spec in specs] == [None, "base", "base"], "fmray serve DEPLOYMENT serves them as they were deployed"


def test_each_name_answers_as_its_merged_model(client: openai.OpenAI, root: Path) -> None:
    for name in ("base", *SHAPES):
        expected = greedy_reference(root / name, PROMPTS, 20)
        answer = client.completions.create(model=name, prompt=PROMPTS, max_tokens=20, temperature=0)
        assert [choice.text for choice in answer.choices] == expected
        stream = client.completions.create(model=name, prompt=PROMPTS[0], max_tokens=20, temperature=0, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == expected[0]
    vectors = [client.embeddings.create(model=name, input=PROMPTS[0]).data[0].embedding for name in ("base", *SHAPES)]
    assert vectors[0] != vectors[1] != vectors[2]
    echoed = [client.completions.create(model=name, prompt=PROMPTS[0], max_tokens=0, echo=True, logprobs=1).choices[0].logprobs for name in ("base", *SHAPES)]
    assert len({tuple(one.token_logprobs or ()) for one in echoed if one is not None}) == 3


def test_an_unknown_name_is_a_404_as_openais(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="third", prompt="x", max_tokens=2)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert "served: base, first, second" in missing.value.message
