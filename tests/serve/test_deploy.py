"""The deploy stage from an experiment file, and the HTTP face as real clients meet it: one application for this whole file."""

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import fmray.serve.deploy  # noqa: F401  (registers the stage)
from fmray import cluster
from fmray.core.artifact import Artifact
from fmray.core.errors import ConfigError, GateRefused, ResourceError, RunError
from fmray.core.experiment import Experiment
from fmray.serve import application, smoke
from fmray.serve.admission import admit
from fmray.serve.deploy import running
from fmray.serve.deployment import DeployConfig, Deployment
from fmray.serve.foreground import admitted
from fmray.serve.specs import specs_of
from tests.serve.conftest import LABELS, MAX_LEN, make_decision

QUICK = {"num_cpus": 0.1, "smoke_requests": 4, "smoke_max_tokens": 6}


def experiment_file(root: Path, storage: Path, *names: str, **changes: Any) -> Experiment:
    models = [{"checkpoint": {"artifact": str(root / n)}, "decision": {"artifact": str(root / f"{n}_gate")}} for n in names]
    plain = {"name": "life", "steps": {"served": {"stage": "deploy", "models": models, **QUICK, **changes}}}
    return Experiment(plain, where="test.yaml", storage=str(storage))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def served(experiment: Path, storage: Path, serve_port: int) -> Iterator[Artifact[Deployment]]:
    """Both models, left up as on a standing cluster."""
    [outcome] = experiment_file(experiment, storage, "base", "tuned").run()
    assert outcome.state == "done"
    yield outcome.artifact
    application.take_down("fmray")


@pytest.fixture(scope="module")
def url(served: Artifact[Deployment]) -> str:
    assert served.payload.url is not None
    return served.payload.url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def post(url: str, body: bytes) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_deployment_is_recorded(served: Artifact[Deployment], serve_port: int, experiment: Path) -> None:
    payload = served.payload
    assert (payload.live, payload.url, payload.replicas) == (True, f"http://127.0.0.1:{serve_port}", 1)
    assert [(m.name, m.head) for m in payload.models] == [("base", "causal_lm"), ("tuned", "sequence_classification")]
    assert (served.path / payload.models[0].path).resolve() == (experiment / "base").resolve()
    figures = {metric.name: metric for metric in payload.metrics}
    assert set(figures) == {f"serve/{m}/latency_p{p}_ms" for m in ("base", "tuned") for p in (50, 95)} | {"serve/base/tokens_per_s"}
    assert all(metric.value and metric.value > 0 and metric.n == 4 and metric.method == "measured" for metric in figures.values())
    assert [s.model for s in payload.samples] == ["base"] * 3 + ["tuned"] * 3
    assert payload.samples[3].answer.split(" (")[0] in LABELS
    assert payload.serve_command == f"fmray serve {served.path}"
    assert set(served.record.inputs) == {f"models.{i}.{part}" for i in (0, 1) for part in ("checkpoint", "decision")}


def test_a_second_run_finds_it_alive(served: Artifact[Deployment], experiment: Path, storage: Path) -> None:
    [outcome] = experiment_file(experiment, storage, "base", "tuned").run()
    assert outcome.state == "cached"
    assert outcome.artifact.record == served.record


def test_openai_client_lists_models(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [m.id for m in models] == ["base", "tuned"]
    assert models[0].model_dump()["max_model_len"] == MAX_LEN
    assert client.models.retrieve("tuned").model_dump()["head"] == "sequence_classification"


def test_openai_client_completes_as_generate_does(client: openai.OpenAI, experiment: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompts = ["Return the value", "The quick", "x"]
    tokenizer = AutoTokenizer.from_pretrained(experiment / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(experiment / "base", dtype="float32")
    answer = client.completions.create(model="base", prompt=prompts, max_tokens=20, temperature=0)
    n_prompt_tokens = 0
    for choice, prompt in zip(answer.choices, prompts, strict=True):
        encoded = tokenizer(prompt, return_tensors="pt")
        n = encoded["input_ids"].shape[1]
        n_prompt_tokens += n
        ids = model.generate(encoded["input_ids"], attention_mask=encoded["attention_mask"], do_sample=False, max_new_tokens=20)
        assert choice.text == tokenizer.decode(ids[0, n:], skip_special_tokens=True)
        assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (n_prompt_tokens, 60)


def test_openai_client_streams(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "base", "prompt": "Return", "max_tokens": 20, "temperature": 0.7, "seed": 3}
    whole = client.completions.create(**request)
    chunks = list(client.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert len(chunks) > 5
    assert "".join(c.choices[0].text for c in chunks[:-1]) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage


def test_openai_client_accepts_ids_stop_and_unknown_fields(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="base", prompt=[0, 5, 6], max_tokens=20, temperature=0).choices[0].text
    stopped = client.completions.create(
        model="base", prompt=[[0, 5, 6]], max_tokens=20, temperature=0, stop=whole[4:6], extra_body={"top_k": 5, "hello": [1]}
    )
    assert stopped.choices[0].text == whole[: whole.index(whole[4:6])]
    assert stopped.choices[0].finish_reason == "stop"


def test_openai_client_penalises_and_biases(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="base", prompt="Return", max_tokens=20, temperature=0)
    assert client.completions.create(model="base", prompt="Return", max_tokens=20, temperature=0, presence_penalty=0, logit_bias={}).choices == plain.choices
    shifted = client.completions.create(model="base", prompt="Return", max_tokens=20, temperature=0, frequency_penalty=2, presence_penalty=2)
    assert shifted.choices[0].text != plain.choices[0].text
    forced = client.completions.create(model="base", prompt="Return", max_tokens=2, logit_bias={"40": 100}, extra_body={"min_p": 0.1, "repetition_penalty": 1.1})
    assert forced.choices[0].text
    with pytest.raises(openai.BadRequestError, match="token id 99999 is outside the vocabulary") as outside:
        client.completions.create(model="base", prompt="x", logit_bias={"99999": 1})
    assert outside.value.param == "logit_bias"
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="base", prompt="x", frequency_penalty=2.5)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="base", prompt="x", logit_bias={"a": 1})


def test_many_clients_at_once_each_get_their_own(client: openai.OpenAI) -> None:
    answers: dict[int, str] = {}

    def ask(index: int) -> None:
        answers[index] = client.completions.create(model="base", prompt=f"no {index % 4}", max_tokens=12, temperature=0).choices[0].text

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 16
    assert all(answers[index] == answers[index % 4] for index in range(16))


def test_classify_gives_the_heads_probabilities(url: str, experiment: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = ["Return the value of the option.", "x", "Raise an error"]
    status, body = post(f"{url}/v1/classify", json.dumps({"model": "tuned", "input": texts}).encode())
    assert status == 200
    tokenizer = AutoTokenizer.from_pretrained(experiment / "tuned")
    model = AutoModelForSequenceClassification.from_pretrained(experiment / "tuned", dtype="float32")
    for data, text in zip(body["data"], texts, strict=True):
        with torch.no_grad():
            expected = model(tokenizer(text, return_tensors="pt")["input_ids"]).logits.softmax(-1)[0].tolist()
        assert data["scores"] == pytest.approx(dict(zip(LABELS, expected, strict=True)), abs=1e-5)
        assert data["label"] == max(data["scores"], key=data["scores"].get)
    status, alone = post(f"{url}/v1/classify", json.dumps({"model": "tuned", "input": texts[0]}).encode())
    assert alone["data"][0]["scores"] == pytest.approx(body["data"][0]["scores"], abs=1e-5)


def test_a_long_input_is_cut_only_when_asked(url: str) -> None:
    body = {"model": "tuned", "input": "value " * 500}
    status, refused = post(f"{url}/v1/classify", json.dumps(body).encode())
    assert (status, refused["error"]["code"]) == (400, "context_length_exceeded")
    status, answer = post(f"{url}/v1/classify", json.dumps(body | {"truncate": True}).encode())
    assert (status, answer["data"][0]["truncated"]) == (200, True)


def test_errors_raise_the_openai_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="the model 'nobody' does not exist here") as unknown:
        client.completions.create(model="nobody", prompt="x")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="maximum context length is 96 tokens") as long:
        client.completions.create(model="base", prompt="x", max_tokens=500)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="ask it at /v1/classify"):
        client.completions.create(model="tuned", prompt="x")
    with pytest.raises(openai.BadRequestError, match="'best_of' is not supported here"):
        client.completions.create(model="base", prompt="x", best_of=2)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.completions.create(model="base", prompt="x", max_tokens=500, stream=True)
    with pytest.raises(openai.BadRequestError, match="has no chat template"):
        client.chat.completions.create(model="base", messages=[{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("completions", b"{", None),
        ("completions", b"\xff\xfe{}", None),
        ("completions", b"[]", None),
        ("completions", b"{}", "model"),
        ("completions", b'{"model": "base"}', "prompt"),
        ("completions", b'{"model": "base", "prompt": {}}', "prompt"),
        ("completions", b'{"model": "base", "prompt": []}', "prompt"),
        ("completions", b'{"model": "base", "prompt": [999]}', "prompt"),
        ("completions", b'{"model": "base", "prompt": "x", "max_tokens": -1}', "max_tokens"),
        ("completions", b'{"model": "base", "prompt": "x", "max_tokens": 1e30}', "max_tokens"),
        ("completions", b'{"model": "base", "prompt": "x", "max_tokens": "5"}', "max_tokens"),
        ("completions", b'{"model": "base", "prompt": "x", "temperature": NaN}', "temperature"),
        ("completions", b'{"model": "base", "prompt": "x", "temperature": 9}', "temperature"),
        ("completions", b'{"model": "base", "prompt": "x", "top_p": 0}', "top_p"),
        ("completions", b'{"model": "base", "prompt": "x", "stop": ""}', "stop"),
        ("completions", b'{"model": "base", "prompt": "x", "logprobs": -1}', "logprobs"),
        ("completions", b'{"model": "base", "prompt": "x", "n": 0}', "n"),
        ("classify", b'{"model": "tuned", "input": []}', "input"),
        ("classify", b'{"model": "tuned", "input": [1]}', "input"),
        ("classify", b'{"model": "base", "input": "x"}', "model"),
    ],
)
def test_malformed_bodies_are_a_400_in_openais_shape(url: str, route: str, body: bytes, param: str | None) -> None:
    status, answer = post(f"{url}/v1/{route}", body)
    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert (answer["error"]["type"], answer["error"]["param"]) == ("invalid_request_error", param)


def test_an_unknown_route_has_an_openai_error_body(url: str) -> None:
    status, answer = post(f"{url}/v1/nothing", b"{}")
    assert (status, answer["error"]["type"]) == (404, "invalid_request_error")


def test_health_and_metadata(url: str) -> None:
    assert get(f"{url}/health") == {"status": "ok", "models": ["base", "tuned"]}
    base, tuned = get(f"{url}/metadata")["models"]
    assert base["decision"]["payload"]["reasons"][0]["rule"] == "eval/perplexity < 40"
    assert (base["record"]["kind"], base["waiver"]) == ("checkpoint", None)
    assert tuned["digest"] == tuned["decision"]["payload"]["subject_digest"]
    assert "secret-argument" not in json.dumps(base)


def test_serve_by_hand_takes_a_deployment(served: Artifact[Deployment], experiment: Path) -> None:
    specs = admitted([served.path], decision=None, waiver=None)
    assert [(s.name, s.path) for s in specs] == [(n, str((experiment / n).resolve())) for n in ("base", "tuned")]


def test_a_refused_checkpoint_is_not_deployed(copy_of: Callable[..., Path], storage: Path) -> None:
    root = copy_of("base")
    from fmray.core.artifact import load

    make_decision(root / "base_gate", load(root / "base"), admitted=False)
    life = experiment_file(root, storage / "refused", "base")
    with pytest.raises(GateRefused):
        life.run()
    assert not (life.root / "served").exists()


def test_changed_files_are_not_deployed(copy_of: Callable[..., Path], storage: Path) -> None:
    root = copy_of("base", "base_gate")
    with (root / "base" / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(GateRefused, match="changed since"):
        experiment_file(root, storage / "changed", "base").run()


def test_another_port_than_serves_own_is_refused(served: Artifact[Deployment], serve_port: int) -> None:
    with pytest.raises(ResourceError, match=f"already listens on port {serve_port}") as refused:
        application.start("127.0.0.1", serve_port + 1)
    assert refused.value.exit_code == 2


def test_a_port_in_use_is_bad_input() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"cannot listen on 127.0.0.1:{port}") as refused:
            application.check_port("127.0.0.1", port)
    assert (refused.value.exit_code, "\n" in str(refused.value)) == (2, False)
    application.check_port("127.0.0.1", application.free_port("127.0.0.1"))


def test_what_the_cluster_lacks_is_named(served: Artifact[Deployment], experiment: Path) -> None:
    config = DeployConfig(num_cpus=1000.0, start_timeout_s=1.0)
    with pytest.raises(ResourceError, match=r"CPU: 1000\.1 asked"):
        application.require(specs_of([admit(experiment / "base")], ["base"]), config)


def test_two_models_of_one_name_are_bad_input(experiment: Path, storage: Path) -> None:
    with pytest.raises(ConfigError, match="two models are named 'base'"):
        experiment_file(experiment, storage / "twice", "base", "base").run()


def test_a_replica_that_cannot_start_is_one_clear_line(served: Artifact[Deployment], url: str, copy_of: Callable[..., Path]) -> None:
    root = copy_of("base", "base_gate")
    admission = admit(root / "base")
    (root / "base" / "config.json").unlink()
    config = DeployConfig(app="broken", route="/broken", num_cpus=0.1)
    with pytest.raises(RunError, match="did not start") as fault, running(specs_of([admission], ["base"]), config, keep=False):
        pytest.fail("it came up")
    assert "\n" not in str(fault.value)
    assert "model-base: " in str(fault.value)
    assert "ArtifactError" in str(fault.value)
    assert "it has no config.json" in str(fault.value)
    assert not application.is_up("broken")
    assert smoke.healthy(url)


def test_a_route_in_use_is_bad_input(served: Artifact[Deployment], url: str, experiment: Path) -> None:
    specs = admitted([experiment / "base"], decision=None, waiver=None)
    config = DeployConfig(app="second", num_cpus=0.1)
    with pytest.raises(ResourceError, match='being used by application "fmray"') as refused, running(specs, config, keep=False):
        pytest.fail("it came up")
    assert "\n" not in str(refused.value)
    assert smoke.healthy(url)


def test_a_dead_deployment_is_made_again(experiment: Path, storage: Path, served: Artifact[Deployment], url: str) -> None:
    """Also on a private Ray: there it is tried, taken down, and recorded as not live."""
    application.take_down("fmray")
    assert not smoke.healthy(url)
    life = experiment_file(experiment, storage, "base", "tuned")
    try:
        cluster._private = True
        [outcome] = life.run()
    finally:
        cluster._private = False
    assert outcome.state == "done"
    payload = outcome.artifact.payload
    assert (payload.live, payload.url) == (False, None)
    assert payload.samples[0].answer == served.payload.samples[0].answer
    assert not application.is_up("fmray")
    [again] = life.run()
    assert again.state == "cached"


