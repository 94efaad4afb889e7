"""Many models behind one deployment that holds a few of them at a time."""

import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from fmray.core.artifact import load
from fmray.model.checkpoint import Checkpoint
from fmray.serve import application
from fmray.serve.admission import admit
from fmray.serve.deploy import running
from fmray.serve.deployment import DeployConfig
from fmray.serve.pool import POOL, Held
from fmray.serve.smoke import post
from fmray.serve.specs import specs_of
from tests.serve.conftest import make_checkpoint, make_decision
from tests.serve.lora import SHAPES, make_adapter
from tests.serve.test_continuous import greedy_reference

PROMPT = "Return the value"


class Ended:
    """Stands where a replica's model stands, and says when it was closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def check_health(self) -> None:
        assert not self.closed.is_set()

    def close(self) -> None:
        assert not self.closed.is_set(), "closed twice"
        self.closed.set()


def test_a_model_is_ended_once_and_after_its_requests() -> None:
    model: Any = Ended()
    held = Held(model, wait_s=60)
    assert held.enter()
    assert held.enter()
    ending = threading.Thread(target=held.__del__)
    ending.start()
    while held.enter():  # until the ending has begun: from then on nobody comes in
        held.leave()
        time.sleep(0.001)
    held.leave()
    held.check_health()
    assert not model.closed.wait(0.05)
    held.leave()
    ending.join(10)
    assert model.closed.is_set()
    held.__del__()  # Python's own, when nothing knows it any more
    held.check_health()
    assert not held.enter()


def test_a_request_that_never_ends_does_not_keep_the_next_model_out() -> None:
    model: Any = Ended()
    held = Held(model, wait_s=0.05)
    assert held.enter()
    held.__del__()
    assert model.closed.is_set()
    held.leave()


@pytest.fixture(scope="module")
def root(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside the base and the classifier another model of its own, and an adapter on the base."""
    root = tmp_path_factory.mktemp("many")
    for name in ("base", "tuned"):
        for one in (name, f"{name}_gate"):
            (root / one).symlink_to(experiment / one)
    make_decision(root / "other_gate", make_checkpoint(root / "other", "causal_lm", 7))
    make_decision(root / "first_gate", make_adapter(root / "first", load(experiment / "base", Checkpoint), 0, **SHAPES["first"]))
    return root


def loaded(client: openai.OpenAI) -> dict[str, bool]:
    return {model.id: model.model_dump()["loaded"] for model in client.models.list().data}


@pytest.mark.slow
def test_three_models_on_a_replica_with_room_for_two(root: Path, serve_port: int) -> None:
    """Each answers as it does alone; the one asked longest ago makes room, after its requests, and is loaded again when it is asked."""
    from ray import serve

    names = ["base", "tuned", "other", "first"]
    specs = specs_of([admit(root / name) for name in names], names, {"first": "base"})
    config = DeployConfig(app="many", route="/many", num_cpus=0.1, cache_tokens=1024, max_loaded=2)
    expected = {name: greedy_reference(root / name, [PROMPT], 16)[0] for name in ("base", "other", "first")}
    with running(specs, config, keep=False) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert set(serve.status().applications["many"].deployments) == {POOL, "face"}

        def completed(name: str) -> str:
            return client.completions.create(model=name, prompt=PROMPT, max_tokens=16, temperature=0).choices[0].text

        assert loaded(client) == dict.fromkeys(names, False)
        [unloaded] = [model.model_dump() for model in client.models.list().data if model.id == "other"]
        assert (unloaded["max_model_len"], unloaded["parent"]) == (None, None)
        assert completed("base") == expected["base"]
        scores = post(f"{url}/v1/classify", {"model": "tuned", "input": PROMPT})["data"][0]["scores"]
        assert loaded(client) == {"base": True, "tuned": True, "other": False, "first": True}
        # A stream of the base is under way while two others come; the base is the one asked longest ago.
        stream = client.completions.create(model="first", prompt=PROMPT, max_tokens=60, temperature=0, stream=True)
        pieces = [next(stream).choices[0].text]
        assert post(f"{url}/v1/classify", {"model": "tuned", "input": PROMPT})["data"][0]["scores"] == scores
        assert completed("other") == expected["other"]
        pieces += [chunk.choices[0].text for chunk in stream]
        assert "".join(pieces) == greedy_reference(root / "first", [PROMPT], 60)[0]
        assert loaded(client) == {"base": False, "tuned": True, "other": True, "first": False}
        for _ in range(2):  # round and round: every one of these loads a model again
            assert completed("first") == expected["first"]
            assert sum(loaded(client)[name] for name in ("base", "tuned", "other")) == 2
            assert post(f"{url}/v1/classify", {"model": "tuned", "input": PROMPT})["data"][0]["scores"] == pytest.approx(scores)
            assert completed("other") == expected["other"]
        with pytest.raises(openai.NotFoundError, match="the model 'nobody' does not exist here"):
            completed("nobody")
        asked = [threading.Thread(target=lambda name=name: answers.append((name, completed(name)))) for name in ("base", "other", "first") * 4]
        answers: list[tuple[str, str]] = []
        for one in asked:
            one.start()
        for one in asked:
            one.join()
        assert sorted(answers) == sorted((name, expected[name]) for name in ("base", "other", "first") * 4)
    assert not application.is_up("many")


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_503_and_the_others_answer(root: Path, serve_port: int, tmp_path: Path) -> None:
    make_decision(tmp_path / "gone_gate", make_checkpoint(tmp_path / "gone", "causal_lm", 9))
    specs = specs_of([admit(root / "base"), admit(tmp_path / "gone")], ["base", "gone"])
    (tmp_path / "gone" / "model.safetensors").unlink()
    config = DeployConfig(app="gone", route="/gone", num_cpus=0.1, cache_tokens=1024, max_loaded=1)
    with running(specs, config, keep=False) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        for _ in range(2):
            with pytest.raises(openai.InternalServerError) as failed:
                client.completions.create(model="gone", prompt=PROMPT, max_tokens=4)
            assert (failed.value.status_code, failed.value.code) == (503, "model_not_loaded")
            assert client.completions.create(model="base", prompt=PROMPT, max_tokens=4, temperature=0).choices[0].text
