"""A proxy for profanity: a linear classifier's score."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from fmray.core.errors import ConfigError
from fmray.data.filters import Apply, Filter, Outcome

SCORED_CHARS = 20_000
"""Characters from the start of a document that are scored."""


class Profanity(Filter):
    """Removes English documents that a linear classifier over words takes for profane with at least `min_score`; rule: `profane`.

    A proxy, to be read as one: alt-profanity-check (an extra) was trained on 200,000 short comments of the Internet. It knows words and
    no meaning, so it also removes writing about abuse, medicine or sexuality and quotes in dialect, misses insults in polite words, and
    knows nothing of other languages. Look at what it removed before trusting it; it says nothing about how toxic a corpus is.

    Attributes:
        action: `report` removes nothing and notes how many documents are `profane`.
    """

    type: Literal["profanity"] = "profanity"
    min_score: float = Field(0.9, ge=0.0, le=1.0)
    action: Literal["remove", "report"] = "remove"

    def open(self) -> Apply:
        """Loads the classifier.

        Raises:
            ConfigError: it is not installed.
        """
        try:
            from profanity_check import predict_prob
        except ImportError:
            raise ConfigError(
                "filter profanity needs a package that is not installed", where="filters.profanity", todo="pip install 'fmray[profanity]'"
            ) from None

        def apply(texts: Sequence[str]) -> Outcome:
            scores = np.asarray(predict_prob([text[:SCORED_CHARS] for text in texts]) if len(texts) else [])
            profane = scores >= self.min_score
            if self.action == "remove":
                return Outcome(texts, ["profane" if found else None for found in profane.tolist()])
            n = int(profane.sum())
            return Outcome(texts, [None] * len(texts), Counter(profane=n) if n else Counter())

        return apply
