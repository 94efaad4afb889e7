"""From a prompt (text, token ids, or a conversation) to the token ids that a causal model continues."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from fmray.core.errors import ArtifactError
from fmray.serve.engine import Chat, Prompt, RequestError


class PromptReader:
    """Encodes prompts as the model's own tokenizer does, and refuses what the model cannot take. `eos` are the ids that end a text."""

    def __init__(self, tokenizer: Any, eos: Collection[int], vocab_size: int, max_model_len: int) -> None:
        self.tokenizer, self.eos = tokenizer, eos
        self.vocab_size, self.max_model_len = vocab_size, max_model_len

    def encode(self, prompt: Prompt, max_tokens: int | None) -> list[int]:
        """Token ids of a prompt, without an end mark that the tokenizer may add behind.

        Args:
            max_tokens: tokens that are to fit behind the prompt; None for at least one.

        Raises:
            RequestError: (400) ids outside the vocabulary, nothing to continue, no chat template or one that refuses these
                messages, or more than the context holds.
        """
        if isinstance(prompt, str):
            ids = self._text(prompt)
        elif isinstance(prompt, Chat):
            ids = self._chat(prompt)
        else:
            ids = list(prompt)
        param = "messages" if isinstance(prompt, Chat) else "prompt"
        if not ids:
            raise RequestError(400, "the prompt is empty and this model has no token to begin with", param=param)
        self.require_known(ids, param)
        behind = 1 if max_tokens is None else max_tokens
        if len(ids) + behind > self.max_model_len:
            message = (
                f"this model's maximum context length is {self.max_model_len} tokens, and {len(ids) + behind} were requested "
                f"({len(ids)} in the prompt, {behind} for the completion)"
            )
            raise RequestError(400, message, param=param, code="context_length_exceeded")
        return ids

    def require_known(self, ids: Iterable[int], param: str) -> None:
        """Raises RequestError (400), about the field `param`, for an id outside the vocabulary."""
        wrong = next((token for token in ids if not 0 <= token < self.vocab_size), None)
        if wrong is not None:
            raise RequestError(400, f"token id {wrong} is outside the vocabulary of {self.vocab_size}", param=param)

    def _text(self, prompt: str) -> list[int]:
        ids = [int(token) for token in self.tokenizer(prompt, verbose=False)["input_ids"]]
        while ids and ids[-1] in self.eos and ids[-1] != self.tokenizer.bos_token_id:
            ids.pop()
        if not ids and self.tokenizer.bos_token_id is not None:
            ids = [int(self.tokenizer.bos_token_id)]
        return ids

    def _chat(self, chat: Chat) -> list[int]:
        """The conversation as the model's template writes it, special tokens and all. transformers runs a template in jinja's
        immutable sandbox; special tokens that stand in a message are read as plain text, so that nobody speaks in another's role."""
        if not self.tokenizer.chat_template:
            message = "this model has no chat template, so it cannot chat: ask it at /v1/completions"
            raise RequestError(400, message, param="model", code="no_chat_template")
        from jinja2.exceptions import TemplateError

        try:
            ids = self.tokenizer.apply_chat_template(
                list(chat.messages), tokenize=True, return_dict=False, add_generation_prompt=True, sanitize_control_tokens=True
            )
        except (TemplateError, TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise RequestError(400, f"the model's chat template does not take these messages ({first})", param="messages") from None
        return [int(token) for token in ids]


def eos_ids(generation_config: Any, tokenizer: Any) -> set[int]:
    """Every id that ends a text, by the model's generation config or else by its tokenizer."""
    declared = generation_config.eos_token_id
    if declared is None:
        declared = tokenizer.eos_token_id
    ids = declared if isinstance(declared, (list, tuple)) else [declared]
    return {int(token) for token in ids if token is not None}


def tuned_reader(folder: Path, base: PromptReader) -> PromptReader:
    """The reader of a model that was tuned on `base`: its own chat template, framing and end of text, over the same vocabulary.

    Raises:
        ArtifactError: it has another vocabulary, or no tokenizer that can be opened.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise ArtifactError("has another vocabulary than its base, so it cannot share its weights", where=str(folder), todo="serve it as a model of its own")
    if (folder / "generation_config.json").is_file():
        found = GenerationConfig.from_pretrained(folder, local_files_only=True)
    else:
        found = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
    return PromptReader(tokenizer, eos_ids(found, tokenizer), base.vocab_size, base.max_model_len)
