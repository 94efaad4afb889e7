"""Summarisation by a decoder, which writes the summary behind the text."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from fmray.core.errors import DataError
from fmray.model.checkpoint import Head
from fmray.tasks import Split
from fmray.tasks.classifier import Rows
from fmray.tasks.generative import causal_rows
from fmray.tasks.summarisation import Summarisation


class CausalSummarisation(Summarisation):
    """Summarisation whose rows are text, cue and summary; loss is on the summary alone. Texts are cut so that a summary has room.

    Attributes:
        cue: what stands between a text and its summary (Radford et al. 2019, section 3.6).
    """

    type: Literal["causal_summarisation"] = "causal_summarisation"  # type: ignore[assignment]
    head: ClassVar[Head] = "causal_lm"
    cue: str = Field("\nTL;DR:", min_length=1)

    def encode(self, tokenizer: Any, split: Split, max_length: int, n_labels: int) -> Rows:
        """See `Task` and `causal_rows`.

        Raises:
            DataError: `max_length` leaves no room for a text beside a summary of `max_new_tokens`.
        """
        bos, eos = ([] if token is None else [token] for token in (tokenizer.bos_token_id, tokenizer.eos_token_id))
        cue = tokenizer(self.cue, add_special_tokens=False)["input_ids"]
        room = max_length - len(bos) - len(cue) - self.max_new_tokens
        if room < 1:
            raise DataError(
                f"max_length {max_length} leaves no room for a text beside {self.max_new_tokens} tokens of its summary", where=self.where,
                todo="raise max_length, or lower task.max_new_tokens",
            )  # fmt: skip
        texts = tokenizer([self.prefix + text for text in split.inputs], add_special_tokens=False)["input_ids"]
        summaries = tokenizer([f" {target[0]}" for target in split.targets], add_special_tokens=False)["input_ids"]
        answered = []
        for text, summary in zip(texts, summaries, strict=True):
            prompt = [*bos, *text[:room], *cue]
            answer = [*summary[: self.max_new_tokens - len(eos)], *eos]
            answered.append(([*prompt, *answer], [False] * len(prompt) + [True] * len(answer), len(prompt)))
        return causal_rows(answered, max_length, tokenizer.pad_token_id, self.where)
