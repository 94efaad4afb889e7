"""How likely a causal model holds continuations, and what it writes. Shapes: T positions of a row, P of the prefix, Q scored, V vocabulary, B texts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmray.core.errors import RunError
from fmray.evaluate.lm_tasks.packing import Request, Row, plan_rows
from fmray.model.language_model import LanguageModel

if TYPE_CHECKING:
    from torch import Tensor

Answer = tuple[float, bool]
"""The log-probability of a continuation in nats, and whether it is what the model would have written."""

HEAD_POSITIONS = 512  # logits are made for so many positions at once, for a large vocabulary fills memory
ALIKE = 1e-3  # nats that packing may change a continuation's log-probability by
# Rotary positions that depend on how long the row is, which a row of several texts is not.
BY_ROW_LENGTH = ("dynamic", "longrope")
# How configs name attention that reaches back only so far: Mistral, GPT-Neo, RecurrentGemma, Llama 4.
WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size")


class CausalScorer:
    """A causal model in float32 that scores packed rows, and writes greedily.

    Packing holds when a model lets positions and a mask be told to it. That is tried once on rows of random tokens (`may_pack`), and a
    model that answers otherwise than without packing is given each request in a row of its own.
    """

    def __init__(self, path: Path, seed: int | None, num_threads: int, device: str) -> None:
        """Opens the model of a directory, or with a seed its untrained twin."""
        import torch

        torch.set_num_threads(num_threads)
        opened = LanguageModel.load(path, device, torch.float32) if seed is None else LanguageModel.random_twin(path, seed, device)
        self.model: Any = opened.model.float()
        self.tokenizer: Any = opened.tokenizer
        self._prefix: tuple[int, ...] = ()
        self._cache: Any = None
        self._shares = self._may_share() and self._answers_alike()

    def may_pack(self) -> bool:
        """Whether several requests may lie in a row."""
        return self._shares

    def score(self, prefix: tuple[int, ...], row: Row) -> dict[int, Answer]:
        """The answer of each request in a row, by its number.

        Raises:
            RunError: the row is packed, and this model does not answer such rows as it does plain ones.
        """
        if not self._shares and (prefix or not row.is_plain):
            raise RunError("a packed row came to a model that may not be asked so: this worker's hardware answers otherwise than that of the worker it replaces")
        return answered(row, *(self._targets(prefix, row) if self._shares else self._targets_plainly(row)))

    def write(self, contexts: Sequence[list[int]], max_new_tokens: int, until: Sequence[str]) -> list[str]:
        """What the model writes behind each context, the likeliest token each time, up to one of `until` or its end of text."""
        import torch
        from lm_eval.models.utils_hf import stop_sequences_criteria
        from transformers import GenerationConfig

        width = max(map(len, contexts))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        ids_BT = torch.full((len(contexts), width), pad, device=self.model.device)
        mask_BT = torch.zeros_like(ids_BT)
        for row, context in enumerate(contexts):
            ids_BT[row, width - len(context) :] = torch.tensor(context)
            mask_BT[row, width - len(context) :] = 1
        # A config of our own: the model's may sample, or punish what it has said before.
        plainly = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=self.tokenizer.eos_token_id)
        stops = stop_sequences_criteria(self.tokenizer, [*until], width, len(contexts))
        with torch.inference_mode():
            written_BT = self.model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=plainly, stopping_criteria=stops)
        texts = self.tokenizer.batch_decode(written_BT[:, width:], skip_special_tokens=True)
        return [_before_any(text, until) for text in texts]

    def _targets(self, prefix: tuple[int, ...], row: Row) -> "tuple[np.ndarray, np.ndarray]":
        import torch

        device = self.model.device
        inputs: dict[str, Any] = {"input_ids": torch.tensor([row.ids_T], device=device), "position_ids": torch.tensor([row.position_T], device=device)}
        if prefix:
            self._remember(prefix)
        if prefix or not row.is_plain:
            sees_TT = np.pad(row.sees_TT(), ((0, 0), (len(prefix), 0)), constant_values=True)
            mask = torch.zeros((1, 1, *sees_TT.shape), device=device)
            inputs["attention_mask"] = mask.masked_fill_(~torch.from_numpy(sees_TT).to(device), torch.finfo(torch.float32).min)
        with torch.inference_mode():
            cache = self._cache if prefix else None
            hidden_TD = self.model.base_model(**inputs, past_key_values=cache, use_cache=cache is not None)[0][0]
            if cache is not None:
                cache.crop(-len(row.ids_T))
            head = self.model.get_output_embeddings()
            return _read(lambda at_Q: head(hidden_TD[at_Q]), row)

    def _targets_plainly(self, row: Row) -> "tuple[np.ndarray, np.ndarray]":
        import torch

        with torch.inference_mode():
            return read_plainly(self.model, self.model.device, row)

    def _remember(self, prefix: tuple[int, ...]) -> None:
        """Reads a prefix once, so that rows go on from its keys and values."""
        import torch
        from transformers import DynamicCache

        if self._prefix == prefix:
            return
        self._prefix, self._cache = prefix, DynamicCache()
        with torch.inference_mode():
            self.model.base_model(input_ids=torch.tensor([prefix], device=self.model.device), past_key_values=self._cache, use_cache=True)

    def _may_share(self) -> bool:
        """False for models with attention in windows (or layers without attention) or positions by the row's length, which short rows would not show."""
        config = self.model.config.get_text_config()
        rope = getattr(config, "rope_parameters", None) or {}
        windowed = any(getattr(config, name, None) for name in WINDOWS) or set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        return not windowed and rope.get("rope_type") not in BY_ROW_LENGTH

    def _answers_alike(self) -> bool:
        """Whether rows of random tokens, packed behind a prefix, are answered as one by one."""
        generator = np.random.default_rng(0)
        ids = generator.integers(0, self.model.config.get_text_config().vocab_size, 60).tolist()
        requests = [
            Request(0, ids[:20], ids[20:25]), Request(0, ids[:20], ids[25:28]), Request(1, [*ids[:17], *ids[30:36]], ids[36:40]),
            Request(2, [*ids[:17], *ids[40:42]], ids[42:50]),
        ]  # fmt: skip
        packed = plan_rows(requests, 1000, 1000, shares=True)
        try:
            # Twice, for the second row finds the prefix as the first one left it.
            found = [[self._targets(packed.prefix, row) for row in packed.rows] for _ in range(2)]
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
            return False
        alone = [self._targets_plainly(row) for row in plan_rows(requests, 1000, 1000, shares=False).rows]
        first_Q, second_Q, apart_Q = (np.concatenate([logprob_Q for logprob_Q, _ in each]) for each in (*found, alone))
        return bool(max(np.abs(first_Q - apart_Q).max(), np.abs(second_Q - apart_Q).max()) < ALIKE)


def read_plainly(model: Callable[..., Any], device: Any, row: Row) -> "tuple[np.ndarray, np.ndarray]":
    """The log-probability [Q] of each target of a row with one sequence, and whether it is the likeliest token, by a model's forward pass."""
    import torch

    logits_TV = model(input_ids=torch.tensor([row.ids_T], device=device), use_cache=False).logits[0]
    return _read(lambda at_Q: logits_TV[at_Q], row)


def answered(row: Row, logprob_Q: np.ndarray, greedy_Q: np.ndarray) -> dict[int, Answer]:
    """The answer of each request in a row, by its number."""
    request_Q = np.array(row.request_Q)
    return {int(i): (float(logprob_Q[request_Q == i].sum(dtype=np.float64)), bool(greedy_Q[request_Q == i].all())) for i in np.unique(request_Q)}


def _read(logits: "Callable[[Tensor], Tensor]", row: Row) -> "tuple[np.ndarray, np.ndarray]":
    """The log-probability of each target of a row, and whether it is the likeliest token."""
    import torch

    logprobs, greedy = [], []
    for start in range(0, len(row.query_Q), HEAD_POSITIONS):
        target_Q = torch.tensor(row.target_Q[start : start + HEAD_POSITIONS])
        logits_QV = logits(torch.tensor(row.query_Q[start : start + HEAD_POSITIONS])).float()
        target_Q = target_Q.to(logits_QV.device)
        logprobs.append((logits_QV.gather(1, target_Q[:, None])[:, 0] - logits_QV.logsumexp(-1)).cpu().numpy())
        greedy.append((logits_QV.argmax(-1) == target_Q).cpu().numpy())
    return np.concatenate(logprobs), np.concatenate(greedy)


def _before_any(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop, maxsplit=1)[0] if stop else text
    return text
