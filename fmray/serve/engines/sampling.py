"""Sampling by request for transformers' continuous batching, which by itself samples by manager and knows no seed of a request.

Legend: B rows with a new token, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmray.serve.engine import Sampling
from fmray.serve.engines.adapters import Routes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Drawn:
    """A chosen token with its log-probability under the model itself (nats), and the likeliest tokens with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class RequestSampling:
    """Takes the place of the manager's logits processors; the manager itself then takes the argmax.

    A greedy row passes untouched, so it equals `generate`. For any other row the token is drawn here and made the only
    one possible. The draw is keyed by the request's seed and the token's position in the sequence, so the answer does
    not depend on what else is in the batch. The parameters stay on the host between `prepare_tensor_args` and the call,
    which is sound only without asynchronous batching and CUDA graphs: the engine turns both off.

    `drawn` holds, for each request that the engine put there, what was drawn at each position. It is kept here by request
    id because the manager copies a request's own arguments when it frees cache.

    It also tells `routes` whose tokens a batch holds, for the model is called next and by the same thread.
    """

    do_processing = True
    tensors_required = 0

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self.drawn: dict[str, dict[int, Drawn]] = {}
        self._rows: list[tuple[Sampling, int, int, str]] = []

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Part of the manager's face: the engine passes its own `sampling`, `seed` and `adapter`, always valid."""

    def fill_defaults(self, int32_tensor: "torch.Tensor") -> None:
        """Part of the manager's face: no tensor is asked for, so there is none to fill."""

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: "torch.Tensor") -> "torch.Tensor":
        """Notes the sampling and position of each row that gets a new token, in the order of the logits."""
        whose = [(request.state.logit_processor_kwargs["adapter"], request.query_length) for request in requests_in_batch]
        self._routes.by_request(whose, arg_storage.device)
        self._rows = []
        for state in (request.state for request in requests_in_batch if request.has_new_token):
            arguments = state.logit_processor_kwargs
            # The sum stays right when the manager moves generated tokens into the prompt to free cache.
            position = len(state.initial_tokens) + len(state.generated_tokens)
            self._rows.append((arguments["sampling"], arguments["seed"], position, state.request_id))
        return arg_storage

    def __call__(self, input_ids_B: "torch.Tensor", logits_BV: "torch.Tensor", arguments: "torch.Tensor") -> "torch.Tensor":
        """Logits whose argmax is each row's next token."""
        for row, (sampling, seed, position, request_id) in enumerate(self._rows):
            token = draw(logits_BV[row], sampling, seed, position) if sampling.temperature > 0 else None
            kept = self.drawn.get(request_id)
            if kept is not None:
                kept[position] = look(logits_BV[row], token, sampling.logprobs or 0)
            if token is not None:
                logits_BV[row] = float("-inf")
                logits_BV[row, token] = 0.0
        return logits_BV


def draw(logits_V: "torch.Tensor", sampling: Sampling, seed: int, position: int) -> int:
    """One token id from softmax(logits / temperature), cut to the top_k likeliest, then to the smallest set holding top_p."""
    import torch

    # In double precision and below zero, the least temperature gives minus infinity and never NaN.
    logits_V = logits_V.double()
    logits_V = (logits_V - logits_V.max()) / sampling.temperature
    if sampling.top_k > 0 and sampling.top_k < logits_V.numel():
        lowest = torch.topk(logits_V, sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < lowest, float("-inf"))
    probabilities_V = torch.softmax(logits_V, dim=-1).cpu()
    if sampling.top_p < 1.0:
        sorted_V, ids_V = torch.sort(probabilities_V, descending=True, stable=True)
        outside_V = torch.cumsum(sorted_V, dim=-1) - sorted_V >= sampling.top_p  # the likeliest is never outside
        probabilities_V[ids_V[outside_V]] = 0.0
    generator = torch.Generator()
    generator.manual_seed(_key(seed, position))
    return int(torch.multinomial(probabilities_V, 1, generator=generator))


def look(logits_V: "torch.Tensor", token: int | None, top: int) -> Drawn:
    """The log-probability of a token (None: the likeliest) under softmax(logits), beside those of the `top` likeliest."""
    import torch

    logprobs_V = torch.log_softmax(logits_V.float(), dim=-1)
    chosen = int(logits_V.argmax()) if token is None else token
    likeliest = torch.topk(logprobs_V, min(top, logprobs_V.numel()))
    pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return Drawn(chosen, float(logprobs_V[chosen]), tuple((int(i), float(value)) for i, value in pairs))


def _key(seed: int, position: int) -> int:
    """63 bits that differ for every (seed, position)."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
