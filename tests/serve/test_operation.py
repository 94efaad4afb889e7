"""A running application through its changes, on a real Ray Serve: canaries promoted and rolled back, an upgrade under load, a killed replica."""

import json
import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fmray.serve.deploy  # noqa: F401  (registers the stage)
from fmray.core.artifact import Artifact, load
from fmray.core.experiment import Experiment
from fmray.core.report import Decision, Report
from fmray.serve import application
from fmray.serve.canary import METRICS
from fmray.serve.client import Client
from fmray.serve.deployment import Deployment
from fmray.serve.foreground import planned
from fmray.serve.registry import REGISTRY, Registry
from tests.serve.conftest import make_checkpoint, make_decision, save_record
from tests.serve.load import Load, ready, replicas

pytestmark = pytest.mark.slow

QUICK = {"num_cpus": 0.1, "smoke_requests": 2, "smoke_max_tokens": 4, "drain_s": 5.0}
ROLLING = {"app": "roll", "route": "/roll", "num_replicas": 2}
CANARY = {"share": 0.5, "shadow": 6, "min_requests": 25, "rules": ["upper(canary/error_rate) <= 0.2", "lower(canary/agreement) >= 0.5"]}


def gated(folder: Path, name: str, head: str, seed: int) -> Path:
    checkpoint = make_checkpoint(folder / name, head, seed)
    make_decision(folder / f"{name}_gate", checkpoint)
    return folder


def deploy(storage: Path, folder: Path, name: str, **config: Any) -> Artifact[Deployment]:
    model = {"checkpoint": {"artifact": str(folder / name)}, "decision": {"artifact": str(folder / f"{name}_gate")}}
    plain = {"name": folder.name, "steps": {"served": {"stage": "deploy", "models": [model], **QUICK, **config}}}
    [outcome] = Experiment(plain, where="test.yaml", storage=str(storage)).run()
    return outcome.artifact


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, serve_port: int) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("operation")
    for app in ("canary", "roll"):
        application.take_down(app)


def same_answers(root: Path) -> Path:
    """Version 2: other files with the same weights, so that it must agree with version 1."""
    shutil.copytree(root / "one" / "lm", root / "two" / "lm")
    (root / "two" / "lm" / "record.json").unlink()
    config = root / "two" / "lm" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text())))
    from fmray.model.checkpoint import Checkpoint, hf_digest

    payload = Checkpoint(head="causal_lm", architecture="llama", digest=hf_digest(config.parent), n_params=1, vocab_size=320)
    make_decision(root / "two" / "lm_gate", save_record(config.parent, "lm", payload))
    return root / "two"


def drive(client: Client, registry: Registry) -> list[str]:
    """Asks for `lm` until its canary has decided; who answered each request."""
    answered = []
    deadline = time.monotonic() + 60
    while registry.entry("lm").candidate is not None:
        assert time.monotonic() < deadline, "no decision after 60 s"
        answered.append(client.complete("lm", "Return the", max_tokens=4, temperature=0)["model"])
    return answered


def test_a_canary_is_promoted_and_the_next_one_rolled_back(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage, registry = root / "runs", Registry(root / "runs" / REGISTRY)
    first = deploy(storage, gated(root / "one", "lm", "causal_lm", 0), "lm", app="canary", route="/canary")
    assert first.payload.url is not None
    client = Client(first.payload.url, attempts=1)
    assert (registry.entry("lm").champion, registry.entry("lm").candidate) == (1, None)

    second = deploy(storage, same_answers(root), "lm", app="canary", route="/canary", canary=CANARY)
    assert [m["id"] for m in client.models()] == ["lm", "lm@2"]
    assert {name.split("/")[1] for name in (m.name for m in second.payload.metrics)} == {"lm", "lm@2"}
    assert [spec.name for spec in planned([second.path], decision=None, waiver=None)[0]] == ["lm", "lm@2"]
    answered = drive(client, registry)
    assert set(answered) == {"lm", "lm@2"}
    entry = registry.entry("lm")
    assert (entry.champion, entry.candidate, entry.history[-1].action) == (2, None, "promote")
    time.sleep(1.0)
    assert {client.complete("lm", "x", max_tokens=2)["model"] for _ in range(10)} == {"lm@2"}
    registry.rollback("lm", by="Ada", reason="to see it go back")
    time.sleep(1.0)
    assert {client.complete("lm", "x", max_tokens=2)["model"] for _ in range(10)} == {"lm"}

    third = deploy(storage, gated(root / "three", "lm", "causal_lm", 9), "lm", app="canary", route="/canary", canary=CANARY)
    assert "lm@3" in drive(client, registry)
    entry = registry.entry("lm")
    assert (entry.champion, entry.candidate, entry.history[-1].action) == (1, None, "dismiss")
    time.sleep(1.0)
    assert {client.complete("lm", "x", max_tokens=2)["model"] for _ in range(10)} == {"lm"}
    assert [spec.name for spec in planned([third.path], decision=None, waiver=None)[0]] == ["lm"]
    for folder, admitted in (("v2-against-v1", True), ("v3-against-v1", False)):
        decision = load(registry.folder / "lm" / folder / "decision", Decision)
        assert decision.payload.admitted == admitted
        assert {m.name for m in load(registry.folder / "lm" / folder / "report", Report).payload.metrics} == set(METRICS)
        with capsys.disabled():
            print(f"\n{folder}:", [(r.rule, r.observed, r.passed) for r in decision.payload.reasons])
    lines = [json.loads(line) for line in (storage / "two" / "logs" / "served.requests.jsonl").read_text().splitlines()]
    assert {line["model"] for line in lines} >= {"lm", "lm@2"}


def test_ray_exports_the_figures_by_model(root: Path) -> None:
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    wanted = {
        'ray_fmray_requests_total{': 'route="/v1/completions"', "ray_fmray_completion_tokens_total{": 'model="lm"',
        "ray_fmray_prompt_tokens_total{": 'model="lm"', "ray_fmray_request_seconds_bucket{": 'model="lm"',
        "ray_fmray_time_to_first_token_seconds_bucket{": 'model="lm"', "ray_fmray_inter_token_seconds_bucket{": 'model="lm"',
        "ray_fmray_requests_in_flight{": 'model="lm"', "ray_fmray_engine_cache_use{": 'model="lm"',
        "ray_fmray_engine_waiting_requests{": 'model="lm"', "ray_fmray_engine_running_requests{": 'model="lm"',
        "ray_serve_deployment_replica_healthy{": 'deployment="model-lm"', "ray_fmray_refused_requests_total{": 'code="request_too_large"',
    }  # fmt: skip
    url = load(root / "runs" / "three" / "served", Deployment).payload.url
    assert url is not None
    assert len(list(Client(url).stream("lm", "Return", max_tokens=16, temperature=0))) > 1
    with pytest.raises(urllib.error.HTTPError, match="413"):
        urllib.request.urlopen(f"{url}/v1/completions", data=b"x" * 3_000_000, timeout=10)
    deadline = time.monotonic() + 45
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        missing = [name for name, label in wanted.items() if not any(line.startswith(name) and label in line for line in lines)]
        if not missing:
            return
        assert time.monotonic() < deadline, missing
        time.sleep(1.0)


def score(client: Client) -> float:
    return float(client.classify("tuned", "Return the value")["data"][0]["scores"]["os"])


@pytest.fixture(scope="module")
def rolling(root: Path) -> str:
    """The URL of a classifier on two replicas."""
    first = deploy(root / "rolling", gated(root / "r1", "tuned", "sequence_classification", 1), "tuned", **ROLLING)
    assert first.payload.url is not None
    return first.payload.url


def test_an_upgrade_under_load_fails_no_request(root: Path, rolling: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Clients that ask once, and never see more than a longer wait."""
    gated(root / "r2", "tuned", "sequence_classification", 5)
    with Load(rolling, score, clients=3, attempts=1) as load_:
        load_.wait(lambda: len(load_.answers) >= 200, 60)
        before = load_.answers[0]
        began, seen = time.monotonic(), len(load_.answers)
        deploy(root / "rolling", root / "r2", "tuned", **ROLLING)
        took_s, during = time.monotonic() - began, len(load_.answers) - seen
        load_.wait(lambda: len(load_.answers) >= max(1000, seen + during + 200), 180)
    assert load_.failures == []
    assert len(load_.answers) >= 1000
    assert during > 50
    new = [answer != pytest.approx(before, abs=1e-6) for answer in load_.answers]
    assert all(new[-100:])
    with capsys.disabled():
        print(f"\nupgrade: {len(new)} requests, 0 failed; {during} in its {took_s:.1f} s; slowest {load_.slowest_s:.2f} s; first new answer after {new.index(True)}")


def test_a_killed_replica_loses_a_plain_client_at_most_what_was_in_flight(rolling: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Clients that ask once: each has one request in flight when the replica dies."""
    with Load(rolling, score, clients=4, attempts=1) as load_:
        load_.wait(lambda: len(load_.answers) >= 100 and ready("roll", "tuned") == 2, 60)
        killed = min(replicas("roll", "tuned"))
        os.kill(killed, signal.SIGKILL)
        load_.wait(lambda: len(replicas("roll", "tuned") - {killed}) >= 2 and ready("roll", "tuned") == 2, 180)
        lost, seen = len(load_.failures), len(load_.answers)
        load_.wait(lambda: len(load_.answers) >= seen + 200, 60)
    assert len(load_.failures) == lost <= 4
    with capsys.disabled():
        print(f"\nkill -9, asked once: {len(load_.answers)} requests, {lost} of 4 in flight lost: {load_.failures}")


def test_a_killed_replica_loses_no_request_of_fmrays_own_client(rolling: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Load(rolling, score, clients=3) as load_:
        load_.wait(lambda: len(load_.answers) >= 100 and ready("roll", "tuned") == 2, 60)
        killed = min(replicas("roll", "tuned"))
        os.kill(killed, signal.SIGKILL)
        began = time.monotonic()
        load_.wait(lambda: len(replicas("roll", "tuned") - {killed}) >= 2 and ready("roll", "tuned") == 2, 180)
        took_s, seen = time.monotonic() - began, len(load_.answers)
        load_.wait(lambda: len(load_.answers) >= seen + 100, 60)
    assert load_.failures == []
    with capsys.disabled():
        print(f"\nkill -9: {len(load_.answers)} requests, 0 lost, {load_.retried} asked again; two replicas after {took_s:.1f} s; slowest {load_.slowest_s:.2f} s")
