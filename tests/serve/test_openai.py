"""The whole OpenAI face as real clients meet it, behind an API key: one model that chats, for this whole file."""

import concurrent.futures
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from pydantic import BaseModel

from fmray.core.errors import RunError
from fmray.serve import smoke
from fmray.serve.admission import Waiver, admit
from fmray.serve.deploy import running
from fmray.serve.deployment import DeployConfig
from fmray.serve.protection import sha256_of
from fmray.serve.specs import specs_of
from tests.serve.conftest import MAX_LEN, make_checkpoint

KEY = "a key of this test"
AUTH = {"Authorization": f"Bearer {KEY}"}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + m.role) }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
)
APP = "openai"
SAY: Any = [{"role": "user", "content": "Return the"}]


@pytest.fixture(scope="module")
def url(serve_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("openai")
    make_checkpoint(root / "chatty", "causal_lm", 0)
    (root / "chatty" / "chat_template.jinja").write_text(TEMPLATE)
    (root / "keys").write_text(f"ada:{sha256_of(KEY)}\nbob:{sha256_of('slow')}:2\n")
    config = DeployConfig(app=APP, route="/api", num_cpus=0.1, max_requests=4, max_queued=12, api_keys=str(root / "keys"))
    specs = specs_of([admit(root / "chatty", waiver=Waiver("test", "test"))], ["chatty"])
    with running(specs, config, keep=False) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def load(url: str) -> Callable[[], int]:
    """How many answers the model's replica is giving."""
    from ray import serve

    handle: Any = serve.get_deployment_handle("model-chatty", APP)
    return lambda: int(handle.load.remote().result(timeout_s=30))


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)


def test_completions_with_n_echo_and_logprobs(client: openai.OpenAI) -> None:
    asked: Any = {"model": "chatty", "prompt": [[0, 5], [0, 9]], "max_tokens": 6, "seed": 5, "temperature": 2}
    answer = client.completions.create(**asked, n=2, logprobs=2, echo=True)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    alone = client.completions.create(**asked, echo=True)
    assert [answer.choices[0].text, answer.choices[2].text] == [c.text for c in alone.choices]
    assert answer.choices[0].text != answer.choices[1].text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 4
    assert sum(len(c.logprobs.tokens or ()) - 2 for c in answer.choices if c.logprobs) == answer.usage.completion_tokens
    for choice in answer.choices:
        told: Any = choice.logprobs
        assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
        assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
        rows = zip(told.tokens[1:], told.token_logprobs[1:], told.top_logprobs[1:], strict=True)
        assert all(1 <= len(top) <= 3 and token in top and logprob <= max(top.values()) for token, logprob, top in rows)
    chunks = list(client.completions.create(**asked, n=2, logprobs=2, echo=True, stream=True))
    for choice in answer.choices:
        mine: Any = [c.choices[0] for c in chunks if c.choices[0].index == choice.index]
        whole: Any = choice.logprobs
        assert "".join(c.text for c in mine) == choice.text
        assert [t for c in mine for t in c.logprobs.tokens] == whole.tokens
        assert [t for c in mine for t in c.logprobs.text_offset] == whole.text_offset
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]


def test_it_scores_token_ids_as_lm_eval_asks(client: openai.OpenAI) -> None:
    """Its request and its reading of the answer: `local-completions` of lm-evaluation-harness."""
    rows = [[0, 5, 6, 7, 8, 9], [0, 9, 8, 7]]
    for max_tokens, behind in ((1, 1), (0, 0)):
        answer = client.completions.create(model="chatty", prompt=rows, temperature=0, max_tokens=max_tokens, logprobs=1, seed=1234, echo=True)
        for row, choice in zip(rows, answer.choices, strict=True):
            told: Any = choice.logprobs
            assert len(told.token_logprobs) == len(row) + behind
            end = len(row)
            greedy = [own == max(top.values()) for own, top in zip(told.token_logprobs[1:end], told.top_logprobs[1:end], strict=True)]
            assert all(own <= 0 for own in told.token_logprobs[1:])
            assert not all(greedy)
            if behind:
                assert told.token_logprobs[-1] == max(told.top_logprobs[-1].values())
    # What it generates itself, it scores as greedy.
    ids = [0, 5, 6]
    text = client.completions.create(model="chatty", prompt=ids, temperature=0, max_tokens=4, logprobs=0)
    again = client.completions.create(model="chatty", prompt=ids, temperature=0, max_tokens=4, logprobs=0, echo=True)
    assert again.choices[0].logprobs.token_logprobs[3:] == text.choices[0].logprobs.token_logprobs  # type: ignore[union-attr, index]


def test_a_chat_is_the_completion_of_what_its_template_writes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="chatty", messages=SAY, max_completion_tokens=12, temperature=0, logprobs=True, top_logprobs=2)
    # The tokenizer adds the beginning that the template writes here.
    plain = client.completions.create(model="chatty", prompt="user: Return the\nassistant:", max_tokens=12, temperature=0)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", plain.choices[0].text, plain.choices[0].finish_reason)
    assert answer.usage == plain.usage
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert answer.usage is not None
    assert len(choice.logprobs.content) == answer.usage.completion_tokens
    assert all(len(one.top_logprobs) == 2 and one.logprob == one.top_logprobs[0].logprob for one in choice.logprobs.content)
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "Return"}, {"type": "text", "text": " the"}]}]
    assert client.chat.completions.create(model="chatty", messages=parts, max_tokens=12, temperature=0).choices[0].message.content == choice.message.content
    whole = client.chat.completions.create(model="chatty", messages=SAY, temperature=0)
    assert whole.usage is not None
    assert whole.usage.total_tokens == MAX_LEN or whole.choices[0].finish_reason == "stop"


def test_a_chat_streams_with_usage(client: openai.OpenAI) -> None:
    asked: Any = {"model": "chatty", "messages": SAY, "max_tokens": 12, "temperature": 0.9, "seed": 2, "n": 2}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for index in (0, 1):
        mine = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == whole.choices[index].message.content
        assert mine[-1].finish_reason == whole.choices[index].finish_reason
    content = whole.choices[0].message.content or ""
    stop = content[len(content) // 2 :][:2]
    stopped = client.chat.completions.create(**(asked | {"stop": [stop], "n": 1}))
    assert stopped.choices[0].finish_reason == "stop"
    assert stop not in (stopped.choices[0].message.content or "")


def test_embeddings_as_numbers_and_as_base64(client: openai.OpenAI) -> None:
    texts = ["Return the value", "x"]
    asked = client.embeddings.create(model="chatty", input=texts)  # the client asks for base64 and decodes it
    plain = client.embeddings.create(model="chatty", input=texts, encoding_format="float")
    for one, other in zip(asked.data, plain.data, strict=True):
        assert len(one.embedding) == 32
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert sum(x * x for x in one.embedding) == pytest.approx(1, abs=1e-5)
    ids = client.embeddings.create(model="chatty", input=[0, 5, 6], encoding_format="float")
    assert (ids.usage.prompt_tokens, len(ids.data)) == (3, 1)
    for changes in ({"dimensions": 8}, {"input": []}, {"extra_body": {"truncate": True}}, {"input": "x " * 500}):
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(**({"model": "chatty", "input": "x"} | changes))  # type: ignore[arg-type]


def test_langchain_works_unchanged(url: str) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="pip install langchain-openai")
    common = {"base_url": f"{url}/v1", "api_key": KEY, "max_retries": 0}
    chat = langchain.ChatOpenAI(model="chatty", temperature=0, max_tokens=12, stream_usage=True, **common)
    answer = chat.invoke("Return the")
    assert 0 < answer.usage_metadata["output_tokens"] <= 12
    chunks = list(chat.stream("Return the"))
    assert "".join(str(chunk.content) for chunk in chunks) == answer.content
    assert sum((c.usage_metadata or {}).get("output_tokens", 0) for c in chunks) == answer.usage_metadata["output_tokens"]
    vectors = langchain.OpenAIEmbeddings(model="chatty", check_embedding_ctx_length=False, **common).embed_documents(["Return", "x"])
    assert [len(vector) for vector in vectors] == [32, 32]
    judge = langchain.ChatOpenAI(model="chatty", temperature=0, max_tokens=40, **common)
    assert isinstance(judge.with_structured_output(Verdict).invoke("Return the"), Verdict)


class Verdict(BaseModel):
    """What is asked for."""

    label: Literal["ham", "spam"]
    sure: bool


def test_a_chat_is_parsed_into_the_class_that_was_asked_for(client: openai.OpenAI) -> None:
    answers = client.chat.completions.parse(model="chatty", messages=SAY, response_format=Verdict, n=4, seed=2, max_tokens=40)
    assert all(isinstance(choice.message.parsed, Verdict) for choice in answers.choices)
    # As the newer interface of the client streams it.
    with client.chat.completions.stream(model="chatty", messages=SAY, response_format=Verdict, seed=2, max_tokens=40) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == answers.choices[0].message.parsed
    with pytest.raises(openai.BadRequestError, match="the schema cannot be kept to") as refused:
        client.chat.completions.create(
            model="chatty", messages=SAY, stream=True, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
        )
    assert refused.value.param == "response_format"


def test_errors_are_the_clients_own_classes(client: openai.OpenAI, url: str) -> None:
    def stranger(key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)

    with pytest.raises(openai.AuthenticationError, match="incorrect API key"):
        stranger("wrong").models.list()
    slow = stranger("slow")
    assert [m.id for m in (*slow.models.list(), *slow.models.list())] == ["chatty"] * 2
    with pytest.raises(openai.RateLimitError, match="2 requests a minute") as often:
        slow.models.list()
    assert int(often.value.response.headers["retry-after"]) >= 1
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=SAY)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="unknown role tool"):
        client.chat.completions.create(model="chatty", messages=[{"role": "tool", "content": "x", "tool_call_id": "1"}])
    with pytest.raises(openai.BadRequestError, match="ask it at /v1/completions"):
        client.post("/classify", cast_to=object, body={"model": "chatty", "input": "x"})


def test_health_is_open_and_the_rest_is_not(url: str) -> None:
    assert httpx.get(f"{url}/health", timeout=30).status_code == 200
    for path in ("/metadata", "/v1/models", "/openapi.json"):
        assert httpx.get(url + path, timeout=30).status_code == 401
        assert httpx.get(url + path, headers=AUTH, timeout=30).status_code == 200


CHAT = '{"model": "chatty", "messages": [{"role": "user", "content": "x"}]'


@pytest.mark.parametrize(
    ("route", "body", "status", "param"),
    [
        ("chat/completions", b"{", 400, None),
        ("chat/completions", b'{"model": "\xff"}', 400, None),
        ("chat/completions", b"[" * 100_000, 400, None),
        ("chat/completions", b'{"model": "chatty"}', 400, "messages"),
        ("chat/completions", b'{"model": "chatty", "messages": []}', 400, "messages"),
        ("chat/completions", b'{"model": "chatty", "messages": "x"}', 400, "messages"),
        ("chat/completions", b'{"model": "chatty", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', 400, "messages"),
        ("chat/completions", f'{CHAT}, "max_tokens": -1}}'.encode(), 400, "max_tokens"),
        ("chat/completions", f'{CHAT}, "max_completion_tokens": 99999999999}}'.encode(), 400, "max_completion_tokens"),
        ("chat/completions", f'{CHAT}, "max_tokens": 3, "max_completion_tokens": 4}}'.encode(), 400, "max_tokens"),
        ("chat/completions", f'{CHAT}, "top_logprobs": 2}}'.encode(), 400, "top_logprobs"),
        ("chat/completions", f'{CHAT}, "tools": [{{"type": "function"}}]}}'.encode(), 400, "tools"),
        ("chat/completions", f'{CHAT}, "response_format": {{"type": "json_schema"}}}}'.encode(), 400, "response_format"),
        ("chat/completions", f'{CHAT}, "response_format": {{"type": "yaml"}}}}'.encode(), 400, "response_format"),
        ("chat/completions", f'{CHAT}, "presence_penalty": 3}}'.encode(), 400, "presence_penalty"),
        ("chat/completions", f'{CHAT}, "logit_bias": {{"x": 1}}}}'.encode(), 400, "logit_bias"),
        ("chat/completions", f'{CHAT}, "n": 17}}'.encode(), 400, "n"),
        ("chat/completions", f'{CHAT}, "max_tokens": 4, "hello": {{"a": [1]}}}}'.encode(), 200, None),
        ("completions", b'{"model": "chatty", "prompt": "\\ud800"}', 400, "prompt"),
        ("completions", b'{"model": "\\ud800", "prompt": "x"}', 400, "model"),
        ("completions", b'{"model": "chatty", "prompt": "' + b"long " * 5000 + b'"}', 400, "prompt"),
        ("completions", b'{"model": "chatty", "prompt": "x", "max_tokens": 100000000}', 400, "prompt"),
        ("completions", b'{"model": "chatty", "prompt": "x", "stop": ["a", 1]}', 400, "stop"),
        ("embeddings", b'{"model": "chatty", "input": "x", "encoding_format": "hex"}', 400, "encoding_format"),
        ("embeddings", b'{"model": "chatty", "input": [999999]}', 400, "input"),
        ("summarize", b'{"model": "chatty", "input": "x"}', 400, "model"),
        ("fill-mask", b'{"model": "nobody", "input": "x"}', 404, "model"),
        ("question-answer", b'{"model": "chatty", "question": " ", "context": "x"}', 400, "question"),
    ],
)
def test_bad_input_has_the_right_status_and_an_openai_body(url: str, route: str, body: bytes, status: int, param: str | None) -> None:
    answer = httpx.post(f"{url}/v1/{route}", content=body, headers=AUTH | {"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code == status, answer.text
    if status >= 400:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_a_body_of_50_mb_is_a_413_and_the_server_stays_up(url: str) -> None:
    body = b'{"model": "chatty", "prompt": "' + b"x" * 50_000_000 + b'"}'
    answer = httpx.post(f"{url}/v1/completions", content=body, headers=AUTH | {"Content-Type": "application/json"}, timeout=120)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert httpx.get(f"{url}/health", timeout=30).status_code == 200


def test_a_wrong_method_says_which_are_right(url: str) -> None:
    answer = httpx.get(f"{url}/v1/completions", headers=AUTH, timeout=30)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_who_leaves_stops_the_work(url: str, load: Callable[[], int], stream: bool) -> None:
    asked = {"model": "chatty", "prompt": ["Return"] * 16, "max_tokens": MAX_LEN - 4, "temperature": 0, "stream": stream}
    body = json.dumps(asked).encode()
    began = time.monotonic()
    httpx.post(f"{url}/v1/completions", content=body, headers=AUTH | {"Content-Type": "application/json"}, timeout=120)
    whole_s = time.monotonic() - began
    where = urlsplit(url)
    with socket.create_connection((where.hostname or "", where.port or 0)) as line:
        head = f"POST {where.path}/v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        line.sendall(head.encode() + body)
        wait_until(lambda: load() == 16)
    left = time.monotonic()
    wait_until(lambda: load() == 0)
    assert time.monotonic() - left < whole_s / 2


def test_a_full_queue_is_a_429_that_the_client_knows(client: openai.OpenAI, load: Callable[[], int]) -> None:
    def ask(_: int) -> str:
        try:
            client.completions.create(model="chatty", prompt=["Return"] * 4, max_tokens=60, temperature=0)
        except openai.RateLimitError as error:
            return f"{error.code}, {error.response.headers['retry-after']} s"
        return "done"

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        said = list(pool.map(ask, range(12)))
    assert set(said) == {"done", "queue_full, 1 s"}
    assert load() == 0
    assert ask(0) == "done"


def test_smoke_requests_carry_a_key(url: str) -> None:
    body = {"model": "chatty", "prompt": "x", "max_tokens": 2}
    with pytest.raises(RunError, match="answered 401"):
        smoke.post(f"{url}/v1/completions", body)
    assert smoke.post(f"{url}/v1/completions", body, KEY)["usage"]["completion_tokens"] == 2
