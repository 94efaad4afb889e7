"""From what a task asks to jobs for the scorers, and back to answers in the tasks' order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmray.core.errors import ConfigError
from fmray.evaluate.lm_tasks.config import Output
from fmray.evaluate.lm_tasks.encoding import Encoder
from fmray.evaluate.lm_tasks.masked import batched, hide_each, summed
from fmray.evaluate.lm_tasks.opened import Ask
from fmray.evaluate.lm_tasks.packing import Request, plan_rows
from fmray.evaluate.lm_tasks.workers import Asked, Workers
from fmray.model.checkpoint import read_hf_config
from fmray.model.positions import position_offset

WIDTH = 256
"""Positions of a packed row: enough to keep two or more cores busy, little enough that attention stays cheap beside the layers."""

MASKED_POSITIONS = 4096
"""Positions of a masked model's batch."""

LONGEST = 2048
"""Positions of a model whose config and tokenizer do not say; lm-eval's default."""


@dataclass(frozen=True)
class Setup:
    """How a model is asked: its tokenizer, whether it is masked, whether its rows may be packed, and texts written at once."""

    encoder: Encoder
    masked: bool
    shares: bool
    micro_batch_size: int


def setup(head: str, path: Path, workers: Workers, micro_batch_size: int) -> Setup:
    """What is to be known of a model before it is asked."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    masked = head == "masked_lm"
    encoder = Encoder(tokenizer, positions(read_hf_config(path), tokenizer, masked))
    return Setup(encoder, masked, not masked and workers.shares(), micro_batch_size)


def positions(config: Mapping[str, Any], tokenizer: Any, masked: bool) -> int:
    """The longest row that a model reads, by its config.json as lm-eval reads it; of a masked model no more than its tokenizer says."""
    named = [int(config[name]) for name in ("n_positions", "max_position_embeddings", "n_ctx") if config.get(name)]
    said = int(tokenizer.model_max_length) if tokenizer.model_max_length and tokenizer.model_max_length < 1e9 else None
    longest = named[0] - position_offset(config) if named else said or LONGEST
    return min(longest, said or longest) if masked else longest


def answers(output: Output, asks: Sequence[Ask], setup: Setup, workers: Asked) -> tuple[list[Any], frozenset[int]]:
    """The answer to each ask as lm-eval wants it, and the documents whose context lost its beginning.

    (log-probability, whether greedy) for likelihoods, a log-probability for whole texts, a text for what is written.
    """
    if output == "generate_until":
        return _written(asks, setup, workers)
    if output == "loglikelihood_rolling":
        windows = [(i, window) for i, ask in enumerate(asks) for window in setup.encoder.windows(ask.arguments[0], masked=setup.masked)]
        # Windows of a text share nothing, so each is a group of its own.
        told, _ = _likelihoods([Request(number, *window) for number, (_, window) in enumerate(windows)], setup, workers)
        sums = [0.0] * len(asks)
        for (i, _), (logprob, _) in zip(windows, told, strict=True):
            sums[i] += logprob
        return sums, frozenset()
    encode = setup.encoder.hidden_request if setup.masked else setup.encoder.request
    return _likelihoods([encode(ask.document, *ask.arguments) for ask in asks], setup, workers)


def _likelihoods(requests: Sequence[Request], setup: Setup, workers: Asked) -> tuple[list[Any], frozenset[int]]:
    if setup.masked:
        hidden, cut = hide_each(requests, setup.encoder.front, setup.encoder.back, setup.encoder.max_length)
        told = [one for part in workers.map("score", [(batch,) for batch in batched(hidden, MASKED_POSITIONS)]) for one in part]
        return list(summed(told, len(requests))), cut
    plan = plan_rows(requests, setup.encoder.max_length, WIDTH, shares=setup.shares)
    found: dict[int, Any] = {}
    for part in workers.map("score", [(plan.prefix, row) for row in plan.rows]):
        found |= part
    return [found[i] for i in range(len(requests))], plan.truncated


def _written(asks: Sequence[Ask], setup: Setup, workers: Asked) -> tuple[list[Any], frozenset[int]]:
    """What is written behind each context, in batches of like length."""
    from lm_eval.models.utils import normalize_gen_kwargs

    jobs: list[tuple[list[int], tuple[Any, ...]]] = []
    cut: set[int] = set()
    by_wish: dict[str, tuple[dict[str, Any], list[tuple[int, list[int]]]]] = {}
    for i, ask in enumerate(asks):
        wish: dict[str, Any] = dict(normalize_gen_kwargs(ask.arguments[1]))
        ids, lost = setup.encoder.context(ask.arguments[0], int(wish["max_gen_toks"]))
        cut |= {ask.document} if lost else set()
        by_wish.setdefault(repr(sorted(wish.items(), key=str)), (wish, []))[1].append((i, ids))
    for wish, contexts in by_wish.values():
        if wish.get("do_sample") or wish.get("temperature"):
            raise ConfigError("a task that samples gives another figure each time; only greedy writing is scored", where="generation_kwargs", todo="leave do_sample and temperature out")
        contexts.sort(key=lambda pair: -len(pair[1]))
        until = [stop for stop in wish.get("until") or [] if stop]
        for start in range(0, len(contexts), setup.micro_batch_size):
            batch = contexts[start : start + setup.micro_batch_size]
            jobs.append(([i for i, _ in batch], ([ids for _, ids in batch], int(wish["max_gen_toks"]), until)))
    found: dict[int, str] = {}
    for (numbers, _), texts in zip(jobs, workers.map("write", [job for _, job in jobs]), strict=True):
        found |= dict(zip(numbers, texts, strict=True))
    return [found[i] for i in range(len(asks))], frozenset(cut)
