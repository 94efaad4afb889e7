"""Smoke requests over real HTTP: does every model answer, and how fast. Plain urllib, so that asking /health needs no Ray."""

import time
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fmray.core.errors import RunError
from fmray.core.report import Metric
from fmray.model.checkpoint import Head
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


def post(url: str, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
    """The JSON answer to a JSON body, asked with an API key where there is one.

    Raises:
        RunError: any status but 200, or no answer.
    """
    return Client(url, key=key, timeout_s=TIMEOUT_S, attempts=1).post("", body)


def smoke(url: str, spec: ModelSpec, config: DeployConfig, key: str | None = None) -> tuple[list[Metric], list[Sample]]:
    """Asks one model `smoke_requests` times, one after another, after one request to warm up.

    Returns:
        Its metrics (`serve/<model>/latency_p50_ms`, `latency_p95_ms`; for completions `tokens_per_s`) and one sample a prompt.

    Raises:
        RunError: a request failed.
    """
    prompts = config.smoke_prompts
    ask = ASKED[spec.head]

    def asked(prompt: str) -> tuple[str, int]:
        route, body, read = ask(prompt, config)
        answer = post(f"{url}/v1/{route}", {"model": spec.name, **body}, key)
        return read(answer), answer["usage"].get("completion_tokens", 0)

    asked(prompts[0])
    samples, tokens = [], 0
    for index in range(config.smoke_requests):
        prompt = prompts[index % len(prompts)]
        started = time.perf_counter()
        answer, n_tokens = asked(prompt)
        samples.append(Sample(model=spec.name, prompt=prompt, answer=answer, latency_ms=round(1e3 * (time.perf_counter() - started), 2)))
        tokens += n_tokens
    return list(_metrics(spec, samples, tokens)), samples[: len(prompts)]


Ask = tuple[str, dict[str, Any], Callable[[Any], str]]


def _complete(prompt: str, config: DeployConfig) -> Ask:
    # Greedy: the sample in the report is the same in every run.
    body = {"prompt": prompt, "max_tokens": config.smoke_max_tokens, "temperature": 0}
    return "completions", body, lambda answer: str(answer["choices"][0]["text"])


def _classify(text: str, config: DeployConfig) -> Ask:
    def read(answer: Any) -> str:
        best = answer["data"][0]
        return f"{best['label']} ({best['scores'][best['label']]:.3f})"

    return "classify", {"input": text, "truncate": True}, read


def _tag(text: str, config: DeployConfig) -> Ask:
    return "token-classify", {"input": text, "truncate": True}, lambda answer: " ".join(f"{w['word']}/{w['tag']}" for w in answer["data"][0]["words"])


def _fill(text: str, config: DeployConfig) -> Ask:
    return "fill-mask", {"input": f"{text} [MASK]"}, lambda answer: str(answer["data"][0]["masks"][0][0]["token"])


def _answer(text: str, config: DeployConfig) -> Ask:
    return "question-answer", {"question": "What is it?", "context": text}, lambda answer: str(answer["data"][0]["answer"])


def _summarize(text: str, config: DeployConfig) -> Ask:
    body = {"input": text, "truncate": True, "max_tokens": config.smoke_max_tokens}
    return "summarize", body, lambda answer: str(answer["data"][0]["summary"])


def _embed(text: str, config: DeployConfig) -> Ask:
    def read(answer: Any) -> str:
        vector = answer["data"][0]["embedding"]
        return f"[{', '.join(f'{x:.4f}' for x in vector[:3])}, ...] ({len(vector)} numbers)"

    return "embeddings", {"input": text, "truncate": True}, read


ASKED: dict[Head, Callable[[str, DeployConfig], Ask]] = {
    "causal_lm": _complete,
    "sequence_classification": _classify,
    "token_classification": _tag,
    "question_answering": _answer,
    "masked_lm": _fill,
    "seq2seq_lm": _summarize,
    "encoder": _embed,
}


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
