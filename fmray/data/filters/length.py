"""Documents that are too short or too long."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from fmray.data.filters import Apply, Filter, Outcome


class Length(Filter):
    """Keeps documents of `min_chars` to `max_chars` characters and `min_words` to `max_words` words between white space.

    Rules: `few_chars`, `many_chars`, `few_words`, `many_words`. Words mean little where a language sets no spaces, such as Chinese.
    """

    type: Literal["length"] = "length"
    min_chars: int = Field(0, ge=0)
    max_chars: int | None = Field(None, ge=1)
    min_words: int = Field(0, ge=0)
    max_words: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _ranges_hold_something(self) -> "Length":
        for least, most, name in ((self.min_chars, self.max_chars, "chars"), (self.min_words, self.max_words, "words")):
            if most is not None and least > most:
                raise ValueError(f"min_{name} is above max_{name}")
        return self

    def open(self) -> Apply:
        """Needs nothing."""

        def apply(texts: Sequence[str]) -> Outcome:
            return Outcome(texts, [self._rule(text) for text in texts])

        return apply

    def _rule(self, text: str) -> str | None:
        if len(text) < self.min_chars:
            return "few_chars"
        if self.max_chars is not None and len(text) > self.max_chars:
            return "many_chars"
        if not self.min_words and self.max_words is None:
            return None
        n_words = len(text.split())
        if n_words < self.min_words:
            return "few_words"
        return "many_words" if self.max_words is not None and n_words > self.max_words else None
