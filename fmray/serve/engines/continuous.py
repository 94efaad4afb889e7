"""The generation engine: transformers' continuous batching with a paged cache of explicit size, on CPU and GPU.

transformers' interface here moves quickly (verified with 5.23): everything that touches it is in this file and in
`sampling.py`.
"""

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from fmray.model.language_model import LanguageModel
from fmray.serve.engine import Piece, RequestError, Sampling
from fmray.serve.engines.sampling import RequestSampling
from fmray.serve.text_stream import TextStream

# Tokens of one cache page. Small pages waste little on short answers; the models here have short contexts.
PAGE_SIZE = 32


class ContinuousBatching:
    """Generates for many requests in one batch that requests join and leave at every step.

    `cache_tokens` bounds the key-value cache (transformers' own default takes 60 % of the memory), `max_requests` the
    rows of a batch; requests beyond either wait in a queue.
    """

    def __init__(self, path: Path, *, device: str, dtype: str, threads: int, cache_tokens: int, max_requests: int) -> None:
        opened = LanguageModel.load(path, device, dtype)
        model, self._tokenizer = opened.model, opened.tokenizer

        import torch
        from transformers.generation.configuration_utils import ContinuousBatchingConfig, GenerationConfig

        # More threads than the replica's CPUs make small models several times slower: they spin against each other.
        torch.set_num_threads(threads)
        self._vocab_size = int(model.config.vocab_size)
        self._eos = _eos_ids(model, self._tokenizer)
        pages = cache_tokens // PAGE_SIZE
        self.max_model_len = min(int(model.config.max_position_embeddings), pages * PAGE_SIZE)
        self._manager: Any = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=sorted(self._eos) or -1, max_new_tokens=16),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE_SIZE,
                num_blocks=pages,
                max_batch_tokens=max(256, max_requests),
                max_requests_per_batch=max_requests,
                use_async_batching=False,
                use_cuda_graph=False,
                auto_switch_to_flash=False,
            ),
        )
        # Sampling by request; its docstring says why the two switches above are off.
        self._manager.logit_processor = RequestSampling()
        self._ids = itertools.count()
        self._manager.start()

    def health(self) -> None:
        """Raises RuntimeError when the generation thread has ended."""
        if not self._manager.is_running():
            raise RuntimeError(f"the generation thread ended: {self._manager.background_thread_status.fatal_error}")

    def load(self) -> dict[str, float]:
        """Requests in the batch and in the queue, and the share of the cache that is taken; nothing until the thread has begun."""
        processor = self._manager.batch_processor
        if processor is None:
            return {}
        scheduler = processor.scheduler
        cache_use = 1.0 - float(processor.cache.compute_free_capacity(relative=True))
        return {"running": len(scheduler.active_requests), "waiting": len(scheduler.waiting_requests), "cache_use": cache_use}

    def close(self) -> None:
        """Ends the generation thread; requests in flight fail."""
        self._manager.stop(block=True, timeout=5.0, hard_stop=True)

    def encode(self, prompt: str | Sequence[int], max_tokens: int) -> list[int]:
        """Token ids as the model's own tokenizer makes them, without an end mark that it may add behind.

        Raises:
            RequestError: (400) ids outside the vocabulary, nothing to continue, or more than the context holds.
        """
        if isinstance(prompt, str):
            ids = [int(token) for token in self._tokenizer(prompt, verbose=False)["input_ids"]]
            while ids and ids[-1] in self._eos and ids[-1] != self._tokenizer.bos_token_id:
                ids.pop()
            if not ids and self._tokenizer.bos_token_id is not None:
                ids = [int(self._tokenizer.bos_token_id)]
        else:
            ids = list(prompt)
        if not ids:
            raise RequestError(400, "the prompt is empty and this model has no token to begin with", param="prompt")
        wrong = next((token for token in ids if not 0 <= token < self._vocab_size), None)
        if wrong is not None:
            raise RequestError(400, f"token id {wrong} is outside the vocabulary of {self._vocab_size}", param="prompt")
        if len(ids) + max_tokens > self.max_model_len:
            message = (
                f"this model's maximum context length is {self.max_model_len} tokens, and {len(ids) + max_tokens} were requested "
                f"({len(ids)} in the prompt, {max_tokens} for the completion)"
            )
            raise RequestError(400, message, param="prompt", code="context_length_exceeded")
        return ids

    async def generate(self, prompt_ids: list[int], sampling: Sampling, *, stream: bool) -> AsyncGenerator[Piece, None]:
        """Pieces of the answer; see `GenerationEngine`."""
        text = TextStream(self._tokenizer, sampling.stop)
        # A stop string must be seen as it comes, or the answer would be generated to its full length for nothing.
        outputs = self._outputs(prompt_ids, sampling, by_token=stream or bool(sampling.stop))
        held = ""
        async for ids, finished in outputs:
            piece = text.feed(ids, last=finished)
            if text.stopped:
                await outputs.aclose()
                yield Piece(held + piece, len(ids), "stop")
                return
            if finished:
                yield Piece(held + piece, len(ids), "stop" if ids and ids[-1] in self._eos else "length")
            elif stream and piece:
                yield Piece(piece, len(ids))
            else:
                held += piece

    async def _outputs(self, prompt_ids: list[int], sampling: Sampling, *, by_token: bool) -> AsyncGenerator[tuple[list[int], bool], None]:
        """All ids generated so far and whether that was all, each time there are more; ending it early cancels the request."""
        request_id = f"fmray-{next(self._ids)}"
        results: asyncio.Queue[Any] = asyncio.Queue()
        seed = random.getrandbits(63) if sampling.seed is None else sampling.seed
        self._manager.register_result_handler(request_id, results.put_nowait)
        finished = False
        try:
            added = self._manager.add_request(
                prompt_ids,
                request_id=request_id,
                max_new_tokens=sampling.max_tokens,
                streaming=by_token,
                sampling=sampling,
                seed=seed,
            )
            if added is None:
                raise RequestError(503, "the engine is stopping", code="engine_stopped")
            while not finished:
                result = await results.get()
                finished = result.is_finished()
                if result.error is not None:
                    raise RequestError(500, f"generation failed: {result.error}")
                yield result.generated_tokens, finished
        finally:
            if not finished:
                self._manager.cancel_request(request_id)
                # A cancelled request delivers nothing more, so its handler would stay for ever.
                with self._manager.output_router._lock:
                    self._manager.output_router.result_handlers.pop(request_id, None)


def _eos_ids(model: Any, tokenizer: Any) -> set[int]:
    """Every id that ends a text, by the model's generation config or else by its tokenizer."""
    declared = model.generation_config.eos_token_id
    if declared is None:
        declared = tokenizer.eos_token_id
    ids = declared if isinstance(declared, (list, tuple)) else [declared]
    return {int(token) for token in ids if token is not None}
