"""The optional engine vLLM (GPU, https://docs.vllm.ai), behind the same protocol. Only this file touches its interface."""

import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmray.core.errors import ConfigError
from fmray.serve.engine import Embedding, Piece, Prompt, RequestError, Sampling, TokenLogprob
from fmray.serve.engines.prompt import PromptReader

BLOCK = 16


def require_vllm() -> None:
    """Raises ConfigError when vLLM is not installed."""
    import importlib.util

    if importlib.util.find_spec("vllm") is None:
        todo = "pip install vllm on GPU machines, or use the engine transformers"
        raise ConfigError("the engine vllm needs the package vllm", where="engine", todo=todo)


class Vllm:
    """Generates with vLLM's asynchronous engine; `cache_tokens` bounds its key-value cache as it does the default engine's.

    It is opened without adapters, and refuses a request for one.
    """

    def __init__(self, path: Path, *, dtype: str, cache_tokens: int, max_requests: int) -> None:
        require_vllm()
        from transformers import AutoConfig, AutoTokenizer
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False).get_text_config()
        self.max_model_len = min(int(config.max_position_embeddings), cache_tokens)
        arguments = AsyncEngineArgs(
            model=str(path), dtype=dtype, load_format="safetensors", trust_remote_code=False, max_model_len=self.max_model_len,
            max_num_seqs=max_requests, block_size=BLOCK, num_gpu_blocks_override=cache_tokens // BLOCK, enable_prefix_caching=False,
        )  # fmt: skip
        self._engine: Any = AsyncLLM.from_engine_args(arguments)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        eos = {self._tokenizer.eos_token_id} - {None}
        self._reader = PromptReader(self._tokenizer, eos, int(config.vocab_size), self.max_model_len)
        self._ids = itertools.count()

    def health(self) -> None:
        """Raises RuntimeError when vLLM's engine process has ended."""
        if self._engine.errored:
            raise RuntimeError(f"vLLM's engine ended: {self._engine.dead_error}")

    def close(self) -> None:
        """Ends vLLM's engine process."""
        self._engine.shutdown()

    def encode(self, prompt: Prompt, max_tokens: int | None, adapter: str | None = None) -> list[int]:
        """Token ids of a prompt; see `PromptReader.encode`."""
        _no_adapter(adapter)
        return self._reader.encode(prompt, max_tokens)

    async def check(self, sampling: Sampling, adapter: str | None = None) -> None:
        """Raises RequestError (400) for sampling that cannot be done with this model."""
        self._reader.require_known((token for token, _ in sampling.logit_bias), "logit_bias")
        if sampling.schema is not None:
            raise RequestError(400, "the engine vllm keeps to no schema here", param="response_format", code="unsupported_parameter")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, *, stream: bool, adapter: str | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Pieces of the answer; see `GenerationEngine`. vLLM aborts a request whose iterator is closed."""
        _no_adapter(adapter)
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        limit = self.max_model_len - len(prompt_ids) if sampling.max_tokens is None else sampling.max_tokens
        asked = self._parameters(
            max_tokens=limit, temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k or -1, seed=sampling.seed,
            min_p=sampling.min_p, stop=list(sampling.stop), logprobs=sampling.logprobs, output_kind=kind,
            presence_penalty=sampling.presence_penalty, frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty, logit_bias=dict(sampling.logit_bias) or None,
        )  # fmt: skip
        n_tokens = 0
        async for output in self._outputs(prompt_ids, asked):
            one = output.outputs[0]
            n_tokens += len(one.token_ids)
            pairs = zip(one.token_ids, one.logprobs or (), strict=False)
            logprobs = tuple(_told(token, row, sampling.logprobs or 0) for token, row in pairs)
            reason = None if one.finish_reason is None else "stop" if one.finish_reason == "stop" else "length"
            yield Piece(one.text, n_tokens, reason, logprobs)  # type: ignore[arg-type]

    async def score(self, rows: Sequence[list[int]], top: int, adapter: str | None = None) -> list[tuple[TokenLogprob, ...]]:
        """Log-probabilities of given texts; see `GenerationEngine`. vLLM tells them beside one generated token."""
        _no_adapter(adapter)
        found = []
        for row in rows:
            async for output in self._outputs(row[: self.max_model_len - 1], self._parameters(max_tokens=1, temperature=0.0, prompt_logprobs=top)):
                told = [_told(token, given, top) for token, given in zip(row[1:], output.prompt_logprobs[1:], strict=False)]
            found.append((TokenLogprob(self._tokenizer.decode([row[0]]), None), *told))
        return found

    async def embed(self, rows: Sequence[list[int]], adapter: str | None = None) -> list[Embedding]:
        """Refused: a vLLM engine either generates or embeds."""
        raise RequestError(400, "the engine vllm does not embed with a model that generates", param="model", code="unsupported_parameter")

    def _parameters(self, **given: Any) -> Any:
        from vllm import SamplingParams

        return SamplingParams(**given)

    def _outputs(self, ids: list[int], parameters: Any) -> Any:
        return self._engine.generate({"prompt_token_ids": ids}, parameters, f"fmray-{next(self._ids)}")


def _no_adapter(adapter: str | None) -> None:
    if adapter is not None:
        raise RequestError(400, "the engine vllm holds no adapters here", param="model", code="unsupported_parameter")


def _told(token: int, row: Mapping[int, Any], top: int) -> TokenLogprob:
    """A token's entry of vLLM's mapping from ids to Logprob (logprob, rank, decoded_token)."""
    likeliest = sorted(row.values(), key=lambda one: one.rank)[:top]
    return TokenLogprob(row[token].decoded_token or "", row[token].logprob, tuple((one.decoded_token or "", one.logprob) for one in likeliest))
