"""The bodies of requests and answers, shaped like OpenAI's where OpenAI has them."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fmray.serve.engine import Completion, FinishReason, RequestError, Sampling, Scores

MAX_TEXTS = 128

# What OpenAI's clients may ask and this engine cannot do, with the values that ask for nothing. Never ignored: a 400.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}


class _Request(BaseModel):
    # Clients send fields of newer interfaces: accepted, as OpenAI does. Types are not converted: "16" is no number.
    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class StreamOptions(_Request):
    """What a stream holds beside its pieces."""

    include_usage: bool = False


class CompletionRequest(_Request):
    """The body of POST /v1/completions. `top_k` is an addition to OpenAI's fields; 0 and -1 turn it off."""

    model: str
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def prompts(self) -> list[str | list[int]]:
        """One prompt for each choice of the answer.

        Raises:
            RequestError: (400) none, too many, or several where only one can be streamed.
        """
        prompt = self.prompt
        single = isinstance(prompt, str) or (len(prompt) > 0 and all(isinstance(token, int) for token in prompt))
        prompts: list[Any] = [prompt] if single else list(prompt)
        if not 1 <= len(prompts) <= MAX_TEXTS:
            raise RequestError(400, f"give between 1 and {MAX_TEXTS} prompts, not {len(prompts)}", param="prompt")
        if self.stream and len(prompts) > 1:
            raise RequestError(400, "a stream takes one prompt", param="stream", code="unsupported_parameter")
        return prompts

    def sampling(self) -> Sampling:
        """How tokens are chosen, with OpenAI's defaults.

        Raises:
            RequestError: (400) something that this engine cannot do, or a stop string that cannot be met.
        """
        for name, neutral in UNSUPPORTED.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in neutral:
                raise RequestError(400, f"'{name}' is not supported here", param=name, code="unsupported_parameter")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > 4 or not all(stop):
            raise RequestError(400, "give at most 4 stop strings, none of them empty", param="stop")
        default = Sampling()
        return Sampling(
            max_tokens=default.max_tokens if self.max_tokens is None else self.max_tokens,
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            seed=self.seed,
            stop=tuple(stop),
        )


class ClassifyRequest(_Request):
    """The body of POST /v1/classify. `truncate` cuts an input that is longer than the model's context; without it that is an error."""

    model: str
    input: str | list[str]
    truncate: bool = False

    def texts(self) -> list[str]:
        """The texts to score.

        Raises:
            RequestError: (400) none or too many.
        """
        texts = [self.input] if isinstance(self.input, str) else self.input
        if not 1 <= len(texts) <= MAX_TEXTS:
            raise RequestError(400, f"give between 1 and {MAX_TEXTS} inputs, not {len(texts)}", param="input")
        return texts


def completion_head(model: str) -> dict[str, Any]:
    """The fields that a completion and every chunk of its stream share."""
    return {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": model}


def choice(text: str, finish_reason: FinishReason | None, index: int = 0) -> dict[str, Any]:
    """One choice of a completion."""
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def usage(n_prompt_tokens: int, n_tokens: int) -> dict[str, int]:
    """Token counts of a completion."""
    return {"prompt_tokens": n_prompt_tokens, "completion_tokens": n_tokens, "total_tokens": n_prompt_tokens + n_tokens}


def completion_body(model: str, completions: Sequence[Completion]) -> dict[str, Any]:
    """The answer of POST /v1/completions."""
    return completion_head(model) | {
        "choices": [choice(c.text, c.finish_reason, index) for index, c in enumerate(completions)],
        "usage": usage(sum(c.n_prompt_tokens for c in completions), sum(c.n_tokens for c in completions)),
    }


def classify_body(model: str, scored: Sequence[Scores]) -> dict[str, Any]:
    """The answer of POST /v1/classify: for each input its likeliest label and the probability of every label."""
    data = [
        {"index": index, "label": max(s.scores, key=s.scores.__getitem__), "scores": s.scores, "truncated": s.truncated}
        for index, s in enumerate(scored)
    ]
    n_tokens = sum(s.n_tokens for s in scored)
    return {"object": "list", "model": model, "data": data, "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens}}
