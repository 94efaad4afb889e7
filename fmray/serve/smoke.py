"""Smoke requests over real HTTP: does every model answer, and how fast. Plain urllib, so that asking /health needs no Ray."""

import time
import urllib.request
from collections.abc import Iterable
from typing import Any

import numpy as np

from fmray.core.errors import RunError
from fmray.core.report import Metric
from fmray.serve.client import Client
from fmray.serve.deployment import DeployConfig, ModelSpec, Sample

TIMEOUT_S = 120.0


def healthy(url: str, timeout_s: float = 3.0) -> bool:
    """Whether GET {url}/health answers 200."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=timeout_s) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def wait_healthy(url: str, timeout_s: float = 30.0) -> None:
    """Waits until /health answers 200: proxies learn of a new route a moment after its replicas are ready.

    Raises:
        RunError: it did not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not healthy(url):
        if time.monotonic() > deadline:
            raise RunError(f"does not answer /health after {timeout_s:g} s", where=url, todo="see whether this machine can reach the cluster's HTTP proxy")
        time.sleep(0.1)


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The JSON answer to a JSON body.

    Raises:
        RunError: any status but 200, or no answer.
    """
    return Client(url, timeout_s=TIMEOUT_S, attempts=1).post("", body)


def smoke(url: str, spec: ModelSpec, config: DeployConfig) -> tuple[list[Metric], list[Sample]]:
    """Asks one model `smoke_requests` times, one after another, after one request to warm up.

    Returns:
        Its metrics (`serve/<model>/latency_p50_ms`, `latency_p95_ms`; for completions `tokens_per_s`) and one sample a prompt.

    Raises:
        RunError: a request failed.
    """
    prompts = config.smoke_prompts
    ask = _complete if spec.head == "causal_lm" else _classify
    ask(url, spec.name, prompts[0], config)
    samples, tokens = [], 0
    for index in range(config.smoke_requests):
        prompt = prompts[index % len(prompts)]
        started = time.perf_counter()
        answer, n_tokens = ask(url, spec.name, prompt, config)
        samples.append(Sample(model=spec.name, prompt=prompt, answer=answer, latency_ms=round(1e3 * (time.perf_counter() - started), 2)))
        tokens += n_tokens
    return list(_metrics(spec, samples, tokens)), samples[: len(prompts)]


def _complete(url: str, model: str, prompt: str, config: DeployConfig) -> tuple[str, int]:
    # Greedy: the sample in the report is the same in every run.
    body = {"model": model, "prompt": prompt, "max_tokens": config.smoke_max_tokens, "temperature": 0}
    answer = post(f"{url}/v1/completions", body)
    return answer["choices"][0]["text"], answer["usage"]["completion_tokens"]


def _classify(url: str, model: str, text: str, config: DeployConfig) -> tuple[str, int]:
    best = post(f"{url}/v1/classify", {"model": model, "input": text, "truncate": True})["data"][0]
    return f"{best['label']} ({best['scores'][best['label']]:.3f})", 0


def _metrics(spec: ModelSpec, samples: list[Sample], n_tokens: int) -> Iterable[Metric]:
    latencies_ms = [sample.latency_ms for sample in samples]
    note = "smoke requests one after another over HTTP, the client on the same machine"
    for percent in (50, 95):
        yield Metric(
            name=f"serve/{spec.name}/latency_p{percent}_ms", value=round(float(np.percentile(latencies_ms, percent)), 2),
            higher_is_better=False, n=len(samples), unit="ms", note=note,
        )  # fmt: skip
    if n_tokens:
        yield Metric(
            name=f"serve/{spec.name}/tokens_per_s", value=round(1e3 * n_tokens / sum(latencies_ms), 1),
            higher_is_better=True, n=len(samples), unit="tokens/s", note=note,
        )  # fmt: skip
