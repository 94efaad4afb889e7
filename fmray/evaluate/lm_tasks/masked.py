"""How likely a masked model holds texts, by pseudo-likelihood. Shapes: N hidden tokens, T positions, V vocabulary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmray.evaluate.lm_tasks.causal import Answer
from fmray.evaluate.lm_tasks.packing import Request


@dataclass(frozen=True)
class Hidden:
    """A text with one token to be told: the number of its request, the text, and the token's place."""

    request: int
    ids: tuple[int, ...]
    place: int


def hide_each(requests: Sequence[Request], front: Sequence[int], back: Sequence[int], max_length: int) -> tuple[list[Hidden], frozenset[int]]:
    """One text for each token of each continuation, and the groups that lost the beginning of a context so as to fit."""
    found: list[Hidden] = []
    cut: set[int] = set()
    for i, request in enumerate(requests):
        room = max_length - len(front) - len(back) - len(request.continuation)
        context = request.context[max(0, len(request.context) - room) :]
        if len(context) < len(request.context):
            cut.add(request.group)
        ids = (*front, *context, *request.continuation, *back)
        first = len(front) + len(context)
        found += [Hidden(i, ids, place) for place in range(first, first + len(request.continuation))]
    return found, frozenset(cut)


def batched(hidden: Sequence[Hidden], positions: int) -> list[tuple[Hidden, ...]]:
    """Texts of like length together, with about so many positions a batch."""
    batches: list[list[Hidden]] = []
    for one in sorted(hidden, key=lambda one: len(one.ids)):
        if not batches or (len(batches[-1]) + 1) * len(one.ids) > positions:
            batches.append([])
        batches[-1].append(one)
    return [tuple(batch) for batch in batches]


class MaskedScorer:
    """A masked model in float32. The log-probability of a continuation is the sum over its tokens of each one's log-probability where it

    alone is hidden and all others are seen, those behind it too (Salazar et al. 2020, https://arxiv.org/abs/1910.14659): no probability of
    a text, so it compares texts under one model, not models.
    """

    def __init__(self, path: Path, seed: int | None, num_threads: int, device: str) -> None:
        """Opens the model of a directory, or with a seed its untrained twin."""
        import torch
        from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

        torch.set_num_threads(num_threads)
        safely: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path, **safely)
        if seed is None:
            model: Any = AutoModelForMaskedLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True, **safely)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(path, **safely), dtype=torch.float32)
        self.model = model.to(device).eval()

    def score(self, batch: Sequence[Hidden]) -> list[tuple[int, float, bool]]:
        """For each text its request, the hidden token's log-probability, and whether it is the likeliest."""
        import torch

        with torch.inference_mode():
            return tell_hidden(self.model, self.model.device, self.tokenizer.mask_token_id, batch)


def tell_hidden(model: Callable[..., Any], device: Any, mask_id: int, batch: Sequence[Hidden]) -> list[tuple[int, float, bool]]:
    """See `MaskedScorer.score`, by a model's forward pass."""
    import torch

    ids_NT = np.zeros((len(batch), max(len(one.ids) for one in batch)), dtype=np.int64)
    seen_NT = np.zeros_like(ids_NT)
    for row, one in enumerate(batch):
        ids_NT[row, : len(one.ids)], seen_NT[row, : len(one.ids)] = one.ids, 1
        ids_NT[row, one.place] = mask_id
    logits_NTV = model(input_ids=torch.from_numpy(ids_NT).to(device), attention_mask=torch.from_numpy(seen_NT).to(device)).logits
    logits_NV = logits_NTV[torch.arange(len(batch)), torch.tensor([one.place for one in batch])].float()
    logprob_NV = logits_NV.log_softmax(-1).cpu()
    targets = [one.ids[one.place] for one in batch]
    best_N = logprob_NV.argmax(-1).tolist()
    return [(one.request, float(logprob_NV[i, targets[i]]), best_N[i] == targets[i]) for i, one in enumerate(batch)]


def summed(told: Sequence[tuple[int, float, bool]], n_requests: int) -> list[Answer]:
    """The answer of each request from those of its tokens."""
    sums, all_best = [0.0] * n_requests, [True] * n_requests
    for request, logprob, best in told:
        sums[request] += logprob
        all_best[request] &= best
    return list(zip(sums, all_best, strict=True))
