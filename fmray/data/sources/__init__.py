"""Sources: where documents come from. One file a member; a new one needs `partitions` and what identifies its data."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fmray.core.config import Component

Document = dict[str, Any]
"""One document: `text` and `id` (strings, the id unique in its source), and any metadata such as `package`."""


@dataclass
class Counts:
    """What happened to documents: how many each rule removed, and how many were changed on the way (`notes`)."""

    removed: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


class Partition(Protocol):
    """A part of a corpus that one Ray task reads. It travels to the task by pickle, so it holds names, not data."""

    def read(self, counts: Counts) -> Iterator[Document]:
        """The documents of this part in their order, counting into `counts` what is left out or repaired.

        Raises:
            DataError: naming the file and the offset or line.
        """


class Source(Component, package="fmray.data.sources"):
    """Where documents come from. Override `identity` so that data enter the fingerprint by digest, never by path."""

    @abstractmethod
    def partitions(self) -> Sequence[Partition]:
        """The corpus in parts that can be read in parallel, in an order that depends on the data alone.

        Raises:
            DataError: the corpus is missing, unreadable or empty of files.
        """

    def iter_documents(self) -> Iterator[Document]:
        """All documents, one after the other in this process: what a task reads its examples from."""
        counts = Counts()
        for partition in self.partitions():
            yield from partition.read(counts)
