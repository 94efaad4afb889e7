"""The bodies of requests and answers, shaped like OpenAI's where OpenAI has them."""

import itertools
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fmray.serve.engine import Completion, FinishReason, Generation, RequestError, Sampling, TokenLogprob

MAX_TEXTS = 128
MAX_STOPS = 16
MAX_LOGPROBS = 20
MAX_BIASES = 1024

# What OpenAI's clients may ask and this engine cannot do, with the values that ask for nothing. Never ignored: a 400.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "modalities": (["text"],),
    "audio": (),
}


def _sound(text: str) -> str:
    """The text itself. Raises ValueError where JSON escaped half a character: no tokenizer and no answer could hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not sound Unicode (half a surrogate pair)") from None
    return text


Utf8 = Annotated[str, AfterValidator(_sound)]
"""Text that can be written as UTF-8."""

TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
"""A token id as a key of JSON."""

Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
"""What is added to a token's logit."""


class Body(BaseModel):
    """The body of a request. Clients send fields of newer interfaces: accepted, as OpenAI does. Types are not converted: "16" is
    no number."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class StreamOptions(Body):
    """What a stream holds beside its pieces."""

    include_usage: bool = False


class JsonSchema(Body):
    """The schema of an answer. Whether it is `strict` makes no difference: every answer keeps to it."""

    name: Utf8
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Body):
    """What form an answer has: text, any JSON object, or JSON that keeps to a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def schema_text(self) -> str | None:
        """The schema as JSON. Raises RequestError (400) where it is lacking."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return '{"type": "object"}'
        if self.json_schema is None:
            raise RequestError(400, "'response_format' of type json_schema needs 'json_schema'", param="response_format")
        return json.dumps(self.json_schema.schema_)


class GenerationBody(Body):
    """What completions and chats share. `top_k` (0 and -1 turn it off), `min_p` and `repetition_penalty` are additions to OpenAI's fields,
    by the names that vLLM gives them."""

    model: Utf8
    max_tokens: int | None = Field(None, ge=0, lt=2**31)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, gt=0, le=2, allow_inf_nan=False)
    logit_bias: dict[TokenId, Bias] | None = Field(None, max_length=MAX_BIASES)
    response_format: ResponseFormat | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Utf8 | list[Utf8] | None = None
    n: int | None = Field(None, ge=1, le=MAX_TEXTS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def wants_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> Sampling:
        """How tokens are chosen, with OpenAI's defaults.

        Raises:
            RequestError: (400) something that the engines cannot do, or a stop string that cannot be met.
        """
        for name, neutral in UNSUPPORTED.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in neutral:
                raise RequestError(400, f"'{name}' is not supported here", param=name, code="unsupported_parameter")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > MAX_STOPS or not all(stop):
            raise RequestError(400, f"give at most {MAX_STOPS} stop strings, none of them empty", param="stop")
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            seed=self.seed,
            stop=tuple(stop),
            logprobs=logprobs,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
            schema=None if self.response_format is None else self.response_format.schema_text(),
        )


class CompletionRequest(GenerationBody):
    """The body of POST /v1/completions."""

    prompt: Utf8 | list[Utf8] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None

    def generation(self) -> Generation:
        """What is asked of the model.

        Raises:
            RequestError: (400) no prompt or too many choices, or something that the engines cannot do.
        """
        prompt = self.prompt
        single = isinstance(prompt, str) or (len(prompt) > 0 and all(isinstance(token, int) for token in prompt))
        prompts: list[Any] = [prompt] if single else list(prompt)
        n = self.n or 1
        if not 1 <= len(prompts) * n <= MAX_TEXTS:
            raise RequestError(400, f"give between 1 and {MAX_TEXTS} prompts times n, not {len(prompts) * n}", param="prompt")
        max_tokens = Sampling().max_tokens if self.max_tokens is None else self.max_tokens
        return Generation(tuple(prompts), self.sampling(max_tokens, self.logprobs), n, bool(self.echo))


def completion_head(model: str) -> dict[str, Any]:
    """The fields that a completion and every chunk of its stream share."""
    return {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": model}


def choice(text: str, finish_reason: FinishReason | None, index: int, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    """One choice of a completion."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def completion_logprobs(told: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """The `logprobs` of a completion's choice; the chosen token stands among the likeliest too, as OpenAI has it.

    Args:
        offset: characters of the tokens before these; `text_offset` counts the tokens' own texts, special ones too.
    """
    ends = list(itertools.accumulate((len(one.text) for one in told), initial=offset))
    return {
        "tokens": [one.text for one in told],
        "token_logprobs": [one.logprob for one in told],
        "top_logprobs": [_by_text(one) for one in told],
        "text_offset": ends[:-1],
    }


def _by_text(one: TokenLogprob) -> dict[str, float] | None:
    if one.logprob is None:
        return None
    # Different tokens may have one text (pieces of a character do): the likeliest stands for them.
    found: dict[str, float] = {}
    for text, logprob in (*one.top, (one.text, one.logprob)):
        found.setdefault(text, logprob)
    return found


def completion_body(model: str, completions: Sequence[Completion], n: int, with_logprobs: bool) -> dict[str, Any]:
    """The answer of POST /v1/completions; a prompt with several choices counts once."""
    choices = [
        choice(c.text, c.finish_reason, index, completion_logprobs(c.logprobs) if with_logprobs else None)
        for index, c in enumerate(completions)
    ]
    return completion_head(model) | {"choices": choices, "usage": total_usage(completions, n)}


def total_usage(completions: Sequence[Completion], n: int) -> dict[str, int]:
    """Token counts over all choices, `n` of each prompt."""
    return usage(sum(c.n_prompt_tokens for c in completions[::n]), sum(c.n_tokens for c in completions))


def usage(n_prompt_tokens: int, n_tokens: int) -> dict[str, int]:
    """Token counts of a completion."""
    return {"prompt_tokens": n_prompt_tokens, "completion_tokens": n_tokens, "total_tokens": n_prompt_tokens + n_tokens}
