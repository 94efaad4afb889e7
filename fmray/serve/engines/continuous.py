"""The generation engine: transformers' continuous batching with a paged cache of explicit size, on CPU and GPU.

transformers' interface here moves quickly (verified with 5.23): everything that touches it is in this file and in
`sampling.py`.
"""

import asyncio
import contextlib
import copy
import itertools
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmray.model.adapter import ADAPTER, read_adapter
from fmray.model.language_model import LanguageModel
from fmray.serve.engine import Embedding, Piece, Prompt, RequestError, Sampling, TokenLogprob
from fmray.serve.engines import cpu
from fmray.serve.engines.adapters import attach, tensors_of
from fmray.serve.engines.forward import MAX_LOGITS, groups, mean_pooled, shown, token_logprobs
from fmray.serve.engines.prompt import PromptReader, eos_ids, tuned_reader
from fmray.serve.engines.sampling import RequestSampling
from fmray.serve.engines.structured import Structures
from fmray.serve.text_stream import UNFINISHED, TextStream

# Tokens of one cache page. Small pages waste little on short answers; the models here have short contexts.
PAGE_SIZE = 32


class ContinuousBatching:
    """Generates for many requests in one batch that requests join and leave at every step.

    `cache_tokens` bounds the key-value cache (transformers' own default takes 60 % of the memory), `max_requests` the
    rows of a batch; requests beyond either wait in a queue. `adapters` are directories of fine-tuned models by name, each with the
    unmerged adapter in `adapter/`: they share this model's weights, cache and batches, and bring their own framing of prompts.
    """

    def __init__(
        self, path: Path, *, device: str, dtype: str, threads: int, cache_tokens: int, max_requests: int, adapters: Mapping[str, Path] | None = None
    ) -> None:
        opened = LanguageModel.load(path, device, dtype)
        model, self._tokenizer = opened.model, opened.tokenizer
        adapters = adapters or {}
        routes = attach(model, {name: read_adapter(folder / ADAPTER) for name, folder in adapters.items()})

        import torch
        from transformers.generation.configuration_utils import ContinuousBatchingConfig, GenerationConfig

        # More threads than the replica's CPUs make small models several times slower: they spin against each other.
        torch.set_num_threads(threads)
        self._vocab_size = int(model.config.vocab_size)
        eos = eos_ids(model.generation_config, self._tokenizer)
        # The manager changes how its model attends. Whole texts go through a twin that shares every weight and stays as it was.
        shared = {id(t): t for t in itertools.chain(model.parameters(), model.buffers(), tensors_of(model))}
        self._plain, self._plain_routes = copy.deepcopy((model, routes), shared)
        cpu.prepare(model)
        self._one_pass = asyncio.Semaphore(1)
        pages = cache_tokens // PAGE_SIZE
        self.max_model_len = min(int(model.config.max_position_embeddings), pages * PAGE_SIZE)
        self._manager: Any = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=sorted(eos) or -1, max_new_tokens=16),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE_SIZE,
                num_blocks=pages,
                max_batch_tokens=max(256, max_requests),
                max_requests_per_batch=max_requests,
                use_async_batching=False,
                use_cuda_graph=False,
                auto_switch_to_flash=False,
                # Pages are found again by their tokens, and the same tokens have other keys and values under another adapter.
                allow_block_sharing=not adapters,
            ),
        )
        # Sampling by request; its docstring says why the two switches above are off.
        self._sampling = RequestSampling(routes)
        self._manager.logit_processor = self._sampling
        base = PromptReader(self._tokenizer, eos, self._vocab_size, self.max_model_len)
        self._readers: dict[str | None, PromptReader] = {None: base, **{name: tuned_reader(folder, base) for name, folder in adapters.items()}}
        self._structures = Structures(self._tokenizer, self._vocab_size)
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

    def encode(self, prompt: Prompt, max_tokens: int | None, adapter: str | None = None) -> list[int]:
        """Token ids of a prompt; see `PromptReader.encode`."""
        return self._readers[adapter].encode(prompt, max_tokens)

    async def check(self, sampling: Sampling, adapter: str | None = None) -> None:
        """Raises RequestError (400) for sampling that cannot be done with this model."""
        self._readers[adapter].require_known((token for token, _ in sampling.logit_bias), "logit_bias")
        if sampling.schema is not None:
            await asyncio.to_thread(self._structures.follower, sampling.schema, self._readers[adapter].eos)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    async def score(self, rows: Sequence[list[int]], top: int, adapter: str | None = None) -> list[tuple[TokenLogprob, ...]]:
        """Log-probabilities of given texts; see `GenerationEngine`. One plain pass after another, so that a client who leaves
        stops what has not begun."""
        found: dict[int, tuple[TokenLogprob, ...]] = {}
        for group in groups(rows, MAX_LOGITS // self._vocab_size):
            async with self._plain_pass(adapter):
                drawn = await asyncio.to_thread(token_logprobs, self._plain, [rows[i] for i in group], top)
            for index, one in zip(group, drawn, strict=True):
                found[index] = tuple(shown(self._tokenizer, token, each) for token, each in zip(rows[index], one, strict=True))
        return [found[index] for index in range(len(rows))]

    async def embed(self, rows: Sequence[list[int]], adapter: str | None = None) -> list[Embedding]:
        """Mean-pooled vectors of texts; see `GenerationEngine`."""
        found: dict[int, Embedding] = {}
        for group in groups(rows, 16 * self.max_model_len):
            async with self._plain_pass(adapter):
                vectors = await asyncio.to_thread(mean_pooled, self._plain.base_model, [rows[i] for i in group], 0)
            found |= dict(zip(group, vectors, strict=True))
        return [found[index] for index in range(len(rows))]

    @contextlib.asynccontextmanager
    async def _plain_pass(self, adapter: str | None) -> AsyncIterator[None]:
        """One pass of the twin at a time, all of it one adapter's."""
        async with self._one_pass:
            self._plain_routes.all_through(adapter)
            yield

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, *, stream: bool, adapter: str | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Pieces of the answer; see `GenerationEngine`."""
        text = TextStream(self._tokenizer, sampling.stop)
        # A stop string must be seen as it comes, or the answer would be generated to its full length for nothing.
        outputs = self._outputs(prompt_ids, sampling, adapter, by_token=stream or bool(sampling.stop))
        eos = self._readers[adapter].eos
        held, told, sent = "", 0, 0
        async for ids, finished, logprobs in outputs:
            piece = text.feed(ids, last=finished)
            sent += len(piece)
            if text.stopped:
                await outputs.aclose()
                yield Piece(held + piece, len(ids), "stop", logprobs[told : self._n_within(ids, sent)] if logprobs else ())
                return
            if finished:
                yield Piece(held + piece, len(ids), "stop" if ids and ids[-1] in eos else "length", logprobs[told:])
            elif stream and piece:
                yield Piece(piece, len(ids), None, logprobs[told:])
                told = len(logprobs)
            else:
                held += piece

    def _n_within(self, ids: list[int], n_characters: int) -> int:
        """How many tokens begin within the text that is sent: what a stop string cuts off is not told of."""
        return next((n for n in range(len(ids)) if len(self.decode(ids[:n]).rstrip(UNFINISHED)) >= n_characters), len(ids))

    async def _outputs(
        self, prompt_ids: list[int], sampling: Sampling, adapter: str | None, *, by_token: bool
    ) -> AsyncGenerator[tuple[list[int], bool, tuple[TokenLogprob, ...]], None]:
        """All ids generated so far, whether that was all, and their log-probabilities where asked for, each time there are more;
        ending it early cancels the request."""
        follower = None if sampling.schema is None else self._structures.follower(sampling.schema, self._readers[adapter].eos)
        request_id = f"fmray-{next(self._ids)}"
        results: asyncio.Queue[Any] = asyncio.Queue()
        seed = random.getrandbits(63) if sampling.seed is None else sampling.seed
        self._manager.register_result_handler(request_id, results.put_nowait)
        drawn = self._sampling.drawn.setdefault(request_id, {}) if sampling.logprobs is not None else {}
        if follower is not None:
            self._sampling.followers[request_id] = follower
        logprobs: list[TokenLogprob] = []
        finished = False
        try:
            added = self._manager.add_request(
                prompt_ids,
                request_id=request_id,
                max_new_tokens=self.max_model_len - len(prompt_ids) if sampling.max_tokens is None else sampling.max_tokens,
                streaming=by_token,
                eos_token_id=sorted(self._readers[adapter].eos) or -1,
                adapter=adapter,
                sampling=sampling,
                seed=seed,
                n_prompt=len(prompt_ids),
            )
            if added is None:
                raise RequestError(503, "the engine is stopping", code="engine_stopped")
            while not finished:
                result = await results.get()
                finished = result.is_finished()
                if result.error is not None:
                    raise RequestError(500, f"generation failed: {result.error}")
                if follower is not None and follower.fault is not None:
                    raise RequestError(500, f"the answer could not be kept to the schema: {follower.fault}")
                ids = result.generated_tokens
                if sampling.logprobs is not None:
                    new = range(len(logprobs), len(ids))
                    logprobs += [shown(self._tokenizer, ids[i], drawn[len(prompt_ids) + i]) for i in new]
                yield ids, finished, tuple(logprobs)
        finally:
            self._sampling.drawn.pop(request_id, None)
            self._sampling.followers.pop(request_id, None)
            if not finished:
                self._manager.cancel_request(request_id)
                # A cancelled request delivers nothing more, so its handler would stay for ever.
                with self._manager.output_router._lock:
                    self._manager.output_router.result_handlers.pop(request_id, None)
