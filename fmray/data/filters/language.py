"""Language identification by py3langid, whose model lies in its package."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fmray.core.config import did_you_mean
from fmray.core.errors import ConfigError
from fmray.data.filters import Apply, Filter, Outcome

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNSURE = "unsure"


class Language(Filter):
    """Keeps documents in the languages of `keep` (ISO 639-1), found with at least `min_probability`; notes each kept language.

    Rules: the language that was found, such as `fr`, or `unsure` below `min_probability`. With an empty `keep` every language
    stays and is noted. Naive Bayes over byte n-grams (Lui and Baldwin, 2012): it needs about a sentence to be sure.

    Attributes:
        max_chars: how many characters from the start are looked at; the time is proportional to them (500: about 3,000 documents/s a core).
    """

    type: Literal["language"] = "language"
    keep: tuple[str, ...] = ()
    min_probability: float = Field(0.5, ge=0.0, le=1.0)
    max_chars: int = Field(500, ge=20, le=1_000_000)

    def open(self) -> Apply:
        """Loads the model, once a process.

        Raises:
            ConfigError: `keep` names a language that the model does not know.
        """
        identifier = _identifier()
        for language in self.keep:
            if language not in identifier.labels:
                raise ConfigError(
                    f"unknown language '{language}'{did_you_mean(language, identifier.labels)}",
                    where="filters.language.keep",
                    todo=f"known: {', '.join(sorted(identifier.labels))}",
                )
        keep = frozenset(self.keep or identifier.labels)

        def apply(texts: Sequence[str]) -> Outcome:
            found = [identifier.classify(text[: self.max_chars]) for text in texts]
            fates = [
                UNSURE if probability < self.min_probability else None if language in keep else language
                for language, probability in found
            ]
            kept = (language for (language, _), fate in zip(found, fates, strict=True) if fate is None)
            return Outcome(texts, fates, Counter(kept))

        return apply


@lru_cache(maxsize=1)
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
