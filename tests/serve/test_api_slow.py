"""Every head behind one HTTP face, asked as clients ask, by thousands of generated requests, and under the deploy stage's own key."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmray.serve.admission import Waiver, admit
from fmray.serve.deploy import running
from fmray.serve.deployment import DeployConfig
from fmray.serve.protection import sha256_of
from fmray.serve.smoke import smoke
from fmray.serve.specs import specs_of
from tests.serve.conftest import make_checkpoint
from tests.serve.heads import save_head
from tests.serve.test_deploy import experiment_file

pytestmark = pytest.mark.slow

HEADS = {
    "tagger": "BertForTokenClassification",
    "reader": "BertForQuestionAnswering",
    "filler": "BertForMaskedLM",
    "writer": "BartForConditionalGeneration",
    "encoder": "BertModel",
}
# `FMRAY_CASES=100` while one works on the face.
CASES = int(os.environ.get("FMRAY_CASES", "1000"))


@pytest.fixture(scope="module")
def url(serve_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model of every head, without keys: who asks is tried elsewhere."""
    root = tmp_path_factory.mktemp("heads")
    for name, architecture in HEADS.items():
        save_head(root / name, architecture)
    make_checkpoint(root / "chatty", "causal_lm", 0)
    (root / "chatty" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    make_checkpoint(root / "sorter", "sequence_classification", 1)
    names = ["chatty", "sorter", *HEADS]
    config = DeployConfig(app="heads", route="/heads", num_cpus=0.1, smoke_requests=1, smoke_prompts=("Ada lives in London",))
    specs = specs_of([admit(root / name, waiver=Waiver("test", "test")) for name in names], names)
    with running(specs, config, keep=False) as url:
        for spec in specs:
            _, [sample] = smoke(url, spec, config)
            assert sample.answer or spec.name == "writer"
        yield url


def post(url: str, route: str, **body: Any) -> Any:
    answer = httpx.post(f"{url}/v1/{route}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def test_each_head_answers_at_its_own_route(url: str) -> None:
    text = "Ada lives in London"
    [tagged] = post(url, "token-classify", model="tagger", input=text)
    assert [w["word"] for w in tagged["words"]] == text.split()
    [read] = post(url, "question-answer", model="reader", question="the fox", context=text)
    assert text[read["start"] : read["end"]] == read["answer"]
    [filled, _] = post(url, "fill-mask", model="filler", input=["Ada [MASK] London", "[MASK] fox"], top_k=3)
    assert [len(mask) for mask in filled["masks"]] == [3]
    [written] = post(url, "summarize", model="writer", input=text, max_tokens=6)
    assert set(written) == {"index", "summary", "truncated"}
    [first, second] = post(url, "embeddings", model="encoder", input=[text, "fox"])
    assert (first["index"], len(first["embedding"]), second["index"]) == (0, 32, 1)
    [sorted_] = post(url, "classify", model="sorter", input=text)
    assert sum(sorted_["scores"].values()) == pytest.approx(1)
    wrong = httpx.post(f"{url}/v1/summarize", json={"model": "tagger", "input": text}, timeout=60)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "model")
    assert "ask it at /v1/token-classify" in wrong.json()["error"]["message"]


def test_generated_requests_meet_the_schema_and_never_a_5xx(url: str) -> None:
    """A thousand cases of schemathesis, right and wrong, half of them about a model that is served."""
    schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
    from schemathesis import checks
    from schemathesis.specs.openapi import checks as openapi_checks

    chosen = [
        checks.not_a_server_error, openapi_checks.status_code_conformance, openapi_checks.content_type_conformance,
        openapi_checks.response_schema_conformance, openapi_checks.negative_data_rejection,
    ]  # fmt: skip
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    # A text longer than its limit may be longer than a body's as well.
    rejection = schema.config.checks.negative_data_rejection
    rejection.expected_statuses = [*rejection.expected_statuses, "413"]
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/chat/completions", "/v1/embeddings", "/v1/fill-mask", "/health"}
    bodies = [operation for operation in operations if operation.method == "post"]
    modes = schemathesis.GenerationMode
    counts: Counter[int] = Counter()

    def attempt(operation: Any, mode: Any) -> None:
        @settings(max_examples=CASES // (2 * len(bodies)) + 1, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode), served=st.sampled_from([None, "chatty", "sorter", *HEADS]))
        def ask(case: Any, served: str | None) -> None:
            if mode == modes.POSITIVE and served is not None and isinstance(case.body, dict):
                case.body["model"] = served
            answer = case.call(timeout=60)
            counts[answer.status_code] += 1
            case.validate_response(answer, checks=chosen)

        ask()

    for operation in operations:
        for mode in modes if operation in bodies else (modes.POSITIVE,):
            attempt(operation, mode)
    assert counts.total() >= CASES
    assert {200, 400, 404} <= set(counts)
    assert max(counts) < 500
    assert httpx.get(f"{url}/health", timeout=60).json()["status"] == "ok"


def test_the_deploy_stage_asks_with_a_key_of_its_own(experiment: Path, tmp_path: Path, serve_port: int) -> None:
    from fmray.serve import application

    (tmp_path / "keys").write_text(f"ada:{sha256_of('secret')}\n")
    life = experiment_file(experiment, tmp_path, "base", app="kept", route="/kept", api_keys=str(tmp_path / "keys"), requests_per_min=1)
    try:
        [outcome] = life.run()
        payload = outcome.artifact.payload
        assert len(payload.samples) == 3
        assert httpx.get(f"{payload.url}/v1/models", timeout=60).status_code == 401
        answers = [httpx.get(f"{payload.url}/v1/models", headers={"Authorization": "Bearer secret"}, timeout=60).status_code for _ in range(2)]
        assert answers == [200, 429]
    finally:
        application.take_down("kept")
