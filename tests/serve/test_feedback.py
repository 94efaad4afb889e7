"""Feedback and the layer around the routes, over a real FastAPI application in this process; and a corpus's source reads what was kept."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from fmray.data.sources.jsonl import Jsonl
from fmray.data.text import normalise
from fmray.serve.asked import MAX_READ
from fmray.serve.canary import CanaryConfig, Observation, measure
from fmray.serve.engine import RequestError
from fmray.serve.face import add_error_bodies
from fmray.serve.feedback import add_feedback
from fmray.serve.judge import Canary
from fmray.serve.operation import Operation
from fmray.serve.playground import add_playground, page
from fmray.serve.streams import DONE, event
from fmray.serve.traffic import Traffic
from tests.data.corpora import documents, prepare, topics

ACCEPTED = {"model": "lm", "verdict": "accepted", "input": "The quick", "output": " brown fox"}
CORRECTED = {"model": "lm", "verdict": "corrected", "kind": "label", "input": "open the file", "output": "json", "correction": "os"}


def application(operation: Operation, seen: list[Observation], *, broken: str = "", status: int = 503, lost: str = "") -> Any:
    """Routes that answer with the model they were asked for, with the layer around them; the model `broken` answers `status`, and
    streams of the model `lost` end with an error."""
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse, StreamingResponse

    api = FastAPI(redirect_slashes=False)
    add_error_bodies(api)
    add_feedback(api, operation.feedback, ("lm", "lm@2"))
    add_playground(api)

    @api.post("/v1/completions", response_model=None)
    async def completions(body: dict[str, Any]) -> Any:
        if body["model"] == broken:
            return JSONResponse({"error": {}}, status)
        if body.get("stream"):
            last = event(RequestError(503, "its replica is gone").body()) if body["model"] == lost else DONE
            return StreamingResponse(iter([event({"choices": [1]}), event({"choices": [1]}), last]), media_type="text/event-stream")
        return {"model": body["model"], "choices": [{"text": body["prompt"]}], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}

    routes = [str(getattr(route, "path", "")) for route in api.routes]
    return Traffic(api, operation=operation, models=("lm", "lm@2"), routes=routes, observe=lambda name, some: seen.extend(some))  # type: ignore[arg-type]


def ask(app: Any, *requests: tuple[str, Any, dict[str, str]]) -> list[httpx.Response]:
    async def all_of_them() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as client:
            answers = []
            for path, body, headers in requests:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                answers.append(await client.post(path, content=content, headers={"Content-Type": "application/json", **headers}))
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)  # shadow requests run behind the answers
            return answers

    return asyncio.run(all_of_them())


def under_canary(folder: Path, **changes: Any) -> Operation:
    """Half of the traffic to version 2: the registry's file names the aliases."""
    registry = {"models": {"lm": {"versions": [], "champion": 1, "candidate": 2, "history": []}}}
    (folder / "registry.json").write_text(json.dumps(registry))
    config = CanaryConfig(share=0.5, shadow=3, min_requests=1, rules=("canary/error_rate <= 0",))
    return Operation(canaries=(Canary("lm", str(folder), 1, 2, "lm@2", config),), **changes)


def test_a_corpus_reads_what_people_accepted_and_corrected(tmp_path: Path) -> None:
    file = tmp_path / "feedback" / "served.jsonl"
    answers = ask(application(Operation(feedback=str(file)), []), *[("/v1/feedback", body, {}) for body in (ACCEPTED, CORRECTED)])
    assert [answer.status_code for answer in answers] == [201, 201]
    accepted, corrected = Jsonl(path=str(file)).iter_documents()
    assert (accepted["text"], accepted["completion"]) == ("The quick brown fox", " brown fox")
    assert (corrected["text"], corrected["label"], corrected["output"]) == ("open the file", "os", "json")


def test_prepare_makes_a_dataset_of_what_people_accepted(tmp_path: Path, ray_session: None) -> None:
    texts = topics()[:200]
    file = tmp_path / "feedback" / "served.jsonl"
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]
    asked = [("/v1/feedback", {**ACCEPTED, "input": left, "output": right}, {}) for left, right in halves]
    assert {answer.status_code for answer in ask(application(Operation(feedback=str(file)), []), *asked)} == {201}
    made = prepare(tmp_path / "runs", {"type": "jsonl", "path": str(file)}, validation_fraction=0.2)
    assert {*documents(made, "train"), *documents(made, "validation")} == {normalise(text) for text in texts}


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"verdict": "fine"}, 400, "verdict"),
        ({"verdict": "corrected"}, 400, "correction"),
        ({"correction": "x"}, 400, "correction"),
        ({"model": "nobody"}, 404, "model"),
        ({"input": " ", "output": ""}, 400, "input"),
        ({"input": "x" * 200_001}, 400, "input"),
        ({"kind": "label", "output": " "}, 400, "output"),
        ({"input": "\ud800"}, 400, "input"),
        ({"model": "\ud800"}, 400, "model"),
    ],
)
def test_feedback_that_says_nothing_is_refused(tmp_path: Path, change: dict[str, Any], status: int, param: str) -> None:
    file = tmp_path / "f.jsonl"
    [answer] = ask(application(Operation(feedback=str(file)), []), ("/v1/feedback", {**ACCEPTED, **change}, {}))
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    assert not file.exists()


def test_without_a_file_nobody_is_told_that_it_was_kept() -> None:
    [answer] = ask(application(Operation(), []), ("/v1/feedback", ACCEPTED, {}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "feedback_off")


def test_the_request_log_holds_ids_and_figures_and_no_text_unless_asked(tmp_path: Path) -> None:
    body = {"model": "lm", "prompt": "my secret"}
    for with_text in (False, True):
        file = tmp_path / f"log-{with_text}.jsonl"
        app = application(Operation(request_log=str(file), log_prompts=with_text), [])
        [named, new, stream, bad] = ask(
            app, ("/v1/completions", body, {"X-Request-Id": "mine-1"}), ("/v1/completions", body, {}),
            ("/v1/completions", body | {"stream": True}, {}), ("/v1/nothing", b"{", {}),
        )  # fmt: skip
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert named.headers["x-fmray-model"] == "lm"
        assert [line["id"] for line in lines] == ["mine-1", *(a.headers["x-request-id"] for a in (new, stream, bad))]
        assert len({line["id"] for line in lines}) == 4
        assert [(line["status"], line["model"], line["route"]) for line in lines[1:]] == [
            (200, "lm", "/v1/completions"), (200, "lm", "/v1/completions"), (404, "unknown", "other"),
        ]  # fmt: skip
        assert (lines[0]["n_prompt_tokens"], lines[0]["n_tokens"], lines[2]["n_tokens"]) == (3, 5, 2)
        assert lines[2]["first_token_ms"] is not None
        assert ("my secret" in file.read_text()) == with_text


def test_a_canary_takes_its_share_by_id_and_tells_its_judge(tmp_path: Path) -> None:
    seen: list[Observation] = []
    app = application(under_canary(tmp_path), seen)
    asked = [("/v1/completions", {"model": "lm", "prompt": "p"}, {"X-Request-Id": f"r{i}"}) for i in range(60)]
    answers = ask(app, *asked, *asked)
    models = [answer.json()["model"] for answer in answers]
    assert models[:60] == models[60:]
    assert 15 < models[:60].count("lm@2") < 45
    live = [o for o in seen if o.agreement is None]
    assert [o.version for o in live] == [2 if model == "lm@2" else 1 for model in models]
    assert [o.agreement for o in seen if o.agreement is not None] == [1.0] * 3


def test_a_failing_candidate_costs_no_client_an_answer(tmp_path: Path) -> None:
    seen: list[Observation] = []
    app = application(under_canary(tmp_path), seen, broken="lm@2")
    answers = ask(app, *[("/v1/completions", {"model": "lm", "prompt": "p", "stream": i % 2 == 0}, {}) for i in range(40)])
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-fmray-model"] for answer in answers} == {"lm"}
    assert {o.status for o in seen if o.version == 2 and o.agreement is None} == {503}
    assert {o.agreement for o in seen if o.agreement is not None} == {0.0}


@pytest.mark.parametrize("fault", [{"lost": "lm@2"}, {"broken": "lm@2", "status": 408}])
def test_streams_that_break_off_and_deadlines_that_pass_count_against_a_candidate(tmp_path: Path, fault: dict[str, Any]) -> None:
    seen: list[Observation] = []
    log = tmp_path / "log.jsonl"
    app = application(under_canary(tmp_path, request_log=str(log)), seen, **fault)
    ask(app, *[("/v1/completions", {"model": "lm", "prompt": "p", "stream": True}, {}) for _ in range(30)])
    wrong = fault.get("status", 500)
    live = [o for o in seen if o.agreement is None]
    assert {(o.version, o.status) for o in live} == {(1, 200), (2, wrong)}
    assert {(line["model"], line["status"]) for line in map(json.loads, log.read_text().splitlines())} == {("lm", 200), ("lm@2", wrong)}
    [rate] = [m for m in measure(live, champion=1, candidate=2) if m.name == "canary/error_rate"]
    assert (rate.value, rate.control) == (1.0, 0.0)


def test_the_traffic_follows_the_registry(tmp_path: Path) -> None:
    operation = under_canary(tmp_path)
    app = application(operation, [])
    body = {"model": "lm", "prompt": "p"}
    aliases = {"champion": 2, "candidate": None}
    (tmp_path / "registry.json").write_text(json.dumps({"models": {"lm": {"versions": [], "history": [], **aliases}}}))
    assert {a.json()["model"] for a in ask(app, *[("/v1/completions", body, {})] * 20)} == {"lm@2"}


def test_a_body_too_long_to_read_passes_by_whole() -> None:
    body = {"model": "lm", "prompt": "x" * (MAX_READ + 10)}
    [answer] = ask(application(Operation(), []), ("/v1/completions", body, {}))
    assert len(answer.json()["choices"][0]["text"]) == MAX_READ + 10


@pytest.mark.parametrize(("prefix", "path"), [("", "/"), ("/play", "/play"), ("/play", "/play/")])
def test_the_playground_is_at_the_root_of_the_application(prefix: str, path: str) -> None:
    async def visit() -> httpx.Response:
        transport = httpx.ASGITransport(app=application(Operation(), []), root_path=prefix)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get(path)

    answer = asyncio.run(visit())
    assert (answer.status_code, answer.text, answer.headers["content-security-policy"]) == (200, page()[0], page()[1]["Content-Security-Policy"])


def test_the_playground_runs_its_own_script_alone() -> None:
    text, headers = page()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert "innerHTML" not in text
    assert "script-src 'sha256-" in headers["Content-Security-Policy"]
    assert "'unsafe-eval'" not in headers["Content-Security-Policy"]
