"""Filters: rules that keep, change or remove documents one by one. One file a member; a new one needs `open`."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fmray.core.config import Component


@dataclass(frozen=True)
class Outcome:
    """What a filter made of a batch of texts.

    Attributes:
        texts: as many as came in, changed where the filter edits.
        removed: for each of them the rule that removes it (such as `few_words`), or None where it stays.
        notes: what was changed or found in the documents that stay, such as `email: 3`.
    """

    texts: Sequence[str]
    removed: Sequence[str | None]
    notes: Counter[str] = field(default_factory=Counter)


Apply = Callable[[Sequence[str]], Outcome]


class Filter(Component, package="fmray.data.filters"):
    """A rule over single documents: the same text has the same fate in any batch and on any worker.

    Attributes:
        sources: the sources of a mixture whose documents it sees, by name; empty: all of them.

    Override `identity` where a filter reads files, so that they enter the fingerprint by digest.
    """

    sources: tuple[str, ...] = ()

    @abstractmethod
    def open(self) -> Apply:
        """Loads what the filter needs, once a task, and gives the function that it applies to batches of texts.

        Raises:
            DataError: a file that it needs is missing or damaged.
            ConfigError: an optional package that it needs is not installed; names the extra.
        """
