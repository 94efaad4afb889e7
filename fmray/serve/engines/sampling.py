"""Sampling by request for transformers' continuous batching, which by itself samples by manager and knows no seed of a request.

Legend: B rows with a new token, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fmray.serve.engine import Sampling

if TYPE_CHECKING:
    import torch


class RequestSampling:
    """Takes the place of the manager's logits processors; the manager itself then takes the argmax.

    A greedy row passes untouched, so it equals `generate`. For any other row the token is drawn here and made the only
    one possible. The draw is keyed by the request's seed and the token's position in the sequence, so the answer does
    not depend on what else is in the batch. The parameters stay on the host between `prepare_tensor_args` and the call,
    which is sound only without asynchronous batching and CUDA graphs: the engine turns both off.
    """

    do_processing = True
    tensors_required = 0

    def __init__(self) -> None:
        self._rows: list[tuple[Sampling, int, int]] = []

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Part of the manager's face: the engine passes its own `sampling` and `seed`, always valid."""

    def fill_defaults(self, int32_tensor: "torch.Tensor") -> None:
        """Part of the manager's face: no tensor is asked for, so there is none to fill."""

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: "torch.Tensor") -> "torch.Tensor":
        """Notes the sampling and position of each row that gets a new token, in the order of the logits."""
        self._rows = []
        for state in (request.state for request in requests_in_batch if request.has_new_token):
            arguments = state.logit_processor_kwargs
            # The sum stays right when the manager moves generated tokens into the prompt to free cache.
            position = len(state.initial_tokens) + len(state.generated_tokens)
            self._rows.append((arguments["sampling"], arguments["seed"], position))
        return arg_storage

    def __call__(self, input_ids_B: "torch.Tensor", logits_BV: "torch.Tensor", arguments: "torch.Tensor") -> "torch.Tensor":
        """Logits whose argmax is each row's next token."""
        for row, (sampling, seed, position) in enumerate(self._rows):
            if sampling.temperature > 0:
                token = draw(logits_BV[row], sampling, seed, position)
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


def _key(seed: int, position: int) -> int:
    """63 bits that differ for every (seed, position)."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
