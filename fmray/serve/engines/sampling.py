"""Sampling by request for transformers' continuous batching, which by itself samples by manager and knows no seed of a request.

Legend: B rows with a new token, V vocabulary.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmray.serve.engine import Sampling
from fmray.serve.engines.adapters import Routes
from fmray.serve.engines.structured import Follower

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Drawn:
    """A chosen token with its log-probability under the model itself (nats), and the likeliest tokens with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Row:
    """A row of the batch that gets a new token: its request's sampling and seed, the new token's position, and what the answer holds so
    far behind the prompt (both empty where nothing asks for them), and what follows it through its schema."""

    sampling: Sampling
    seed: int
    position: int
    request_id: str
    prompt: Sequence[int] = ()
    answer: Sequence[int] = ()
    follower: Follower | None = None


class RequestSampling:
    """Takes the place of the manager's logits processors; the manager itself then takes the argmax.

    A greedy row whose logits nothing shifts passes untouched, so it equals `generate`. For any other row the token is chosen here and made
    the only one possible. The draw is keyed by the request's seed and the token's position in the sequence, so the answer does
    not depend on what else is in the batch. The parameters stay on the host between `prepare_tensor_args` and the call,
    which is sound only without asynchronous batching and CUDA graphs: the engine turns both off.

    `drawn` holds, for each request that the engine put there, what was drawn at each position, and `followers` what follows the answer
    through a schema. They are kept here by request id because the manager copies a request's own arguments when it frees cache.

    It also tells `routes` whose tokens a batch holds, for the model is called next and by the same thread.
    """

    do_processing = True
    tensors_required = 0

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self.drawn: dict[str, dict[int, Drawn]] = {}
        self.followers: dict[str, Follower] = {}
        self._rows: list[Row] = []

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
            asked, ids = arguments["sampling"], list[int]()
            if asked.shifts:
                ids = [*state.initial_tokens, *state.generated_tokens]
            held = ids[: arguments["n_prompt"]], ids[arguments["n_prompt"] :]
            self._rows.append(Row(asked, arguments["seed"], position, state.request_id, *held, self.followers.get(state.request_id)))
        return arg_storage

    def __call__(self, input_ids_B: "torch.Tensor", logits_BV: "torch.Tensor", arguments: "torch.Tensor") -> "torch.Tensor":
        """Logits whose argmax is each row's next token."""
        for number, row in enumerate(self._rows):
            token = choose(logits_BV[number], row)
            kept = self.drawn.get(row.request_id)
            if kept is not None:
                kept[row.position] = look(logits_BV[number], token, row.sampling.logprobs or 0)
            if token is not None:
                logits_BV[number] = float("-inf")
                logits_BV[number, token] = 0.0
        return logits_BV


def choose(logits_V: "torch.Tensor", row: Row) -> int | None:
    """The token id of a row; None for the likeliest under the model itself."""
    import torch

    sampling = row.sampling
    if sampling.shifts:
        logits_V = shifted(logits_V, sampling, row.prompt, row.answer)
    if row.follower is not None:
        ruled_out_V = torch.from_numpy(~row.follower.allowed(row.answer)).to(logits_V.device)
        logits_V = logits_V.masked_fill(ruled_out_V, float("-inf"))
    if sampling.temperature > 0:
        return draw(logits_V, sampling, row.seed, row.position)
    return int(logits_V.argmax()) if sampling.shifts else None


def shifted(logits_V: "torch.Tensor", sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]) -> "torch.Tensor":
    """The logits under the penalties and biases of `Sampling`; the given ones stay as they are."""
    import torch

    logits_V = logits_V.float().clone()

    def ids_of(found: Sequence[int]) -> torch.Tensor:
        return torch.tensor(found, dtype=torch.long, device=logits_V.device)

    if sampling.repetition_penalty != 1.0:
        held = ids_of(sorted({*prompt, *answer}))
        logits_V[held] = torch.where(logits_V[held] > 0, logits_V[held] / sampling.repetition_penalty, logits_V[held] * sampling.repetition_penalty)
    counts = Counter(answer)
    if counts:
        times = torch.tensor(list(counts.values()), dtype=torch.float32, device=logits_V.device)
        logits_V[ids_of(list(counts))] -= sampling.presence_penalty + sampling.frequency_penalty * times
    if sampling.logit_bias:
        ids, biases = zip(*sampling.logit_bias, strict=True)
        logits_V[ids_of(ids)] += torch.tensor(biases, dtype=torch.float32, device=logits_V.device)
    return logits_V


def draw(logits_V: "torch.Tensor", sampling: Sampling, seed: int, position: int) -> int:
    """One token id from softmax(logits / temperature), cut to the top_k likeliest, then to the smallest set holding top_p and to
    those with at least min_p of the likeliest one's probability."""
    import torch

    # In double precision and below zero, the least temperature gives minus infinity and never NaN.
    logits_V = logits_V.double()
    logits_V = (logits_V - logits_V.max()) / sampling.temperature
    if sampling.top_k > 0 and sampling.top_k < logits_V.numel():
        lowest = torch.topk(logits_V, sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < lowest, float("-inf"))
    probabilities_V = torch.softmax(logits_V, dim=-1).cpu()
    least = sampling.min_p * probabilities_V.max()
    if sampling.top_p < 1.0:
        sorted_V, ids_V = torch.sort(probabilities_V, descending=True, stable=True)
        outside_V = torch.cumsum(sorted_V, dim=-1) - sorted_V >= sampling.top_p  # the likeliest is never outside
        probabilities_V[ids_V[outside_V]] = 0.0
    probabilities_V[probabilities_V < least] = 0.0
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
