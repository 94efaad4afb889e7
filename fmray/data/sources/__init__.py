"""Sources: where documents come from. One file a member; a new one needs `partitions` and what identifies its data."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field

from fmray.core.config import Component, runtime
from fmray.core.errors import DataError
from fmray.data.dataset import ALL

Document = dict[str, Any]
"""One document: `text` and `id` (strings, the id unique in its source), and any metadata such as `package`.

A document of a source of images has `image` (uint8, height x width x channels) in place of `text`, and perhaps `label` (int).
"""

OnError = Literal["fail", "skip"]
LISTED_BAD = 100
"""How many of the inputs that could not be read are named one by one."""


@dataclass
class Counts:
    """What happened to documents: how many each rule removed, how many were changed on the way (`notes`), which could not be read.

    `bad` names the first LISTED_BAD unreadable inputs, one line each; `n_bad` counts them all.
    """

    removed: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    n_bad: int = 0

    def add(self, other: "Counts") -> None:
        """Adds another part's figures."""
        self.removed.update(other.removed)
        self.notes.update(other.notes)
        self.bad = (self.bad + other.bad)[:LISTED_BAD]
        self.n_bad += other.n_bad

    def bad_input(self, error: DataError, on_error: OnError) -> None:
        """Counts and names an input that cannot be read under `skip`; raises its error under `fail`."""
        if on_error == "fail":
            raise error
        self.n_bad += 1
        if len(self.bad) < LISTED_BAD:
            self.bad.append(str(error))


class Partition(Protocol):
    """A part of a corpus that one Ray task reads. It travels to the task by pickle, so it holds names, not data."""

    def read(self, counts: Counts) -> Iterator[Document]:
        """The documents of this part in their order, counting into `counts` what is left out or repaired.

        Raises:
            DataError: naming the file and the offset or line, when `on_error` is `fail`.
        """


class Source(Component, package="fmray.data.sources"):
    """Where documents come from. Override `identity` so that data enter the fingerprint by digest, never by path.

    Attributes:
        on_error: `fail` stops at the first input that cannot be read; `skip` leaves it out, counts it and names it in the dataset.
        license: under what terms the data stand, for the dataset's card.
        max_bad_fraction: with `skip`, the largest share of unreadable inputs (of them and the documents read) that is borne.
    """

    modality: ClassVar[Literal["text", "image"]] = "text"

    on_error: OnError = "fail"
    max_bad_fraction: float = Field(0.01, ge=0.0, le=1.0)
    license: str | None = runtime(None, min_length=1)

    @abstractmethod
    def partitions(self) -> Sequence[Partition]:
        """The corpus in parts that can be read in parallel, in an order that depends on the data alone.

        Raises:
            DataError: the corpus is missing, unreadable or empty of files.
        """

    def mixture(self) -> "Mapping[str, Share]":
        """The sources that this one is made of, by name: itself alone, unless it is a mixture."""
        return {ALL: Share(self, None)}

    def iter_documents(self) -> Iterator[Document]:
        """All documents, one after the other in this process: what a task reads its examples from."""
        counts, n = Counts(), 0
        for partition in self.partitions():
            for document in partition.read(counts):
                n += 1
                yield document
        self.bear(counts, n)

    def bear(self, counts: Counts, n_documents: int) -> None:
        """Holds what was read against `max_bad_fraction`.

        Raises:
            DataError: more inputs were unreadable than the source bears; names the first.
        """
        if counts.n_bad > self.max_bad_fraction * (counts.n_bad + n_documents):
            raise DataError(
                f"{counts.n_bad} of {counts.n_bad + n_documents} inputs cannot be read, the first: {counts.bad[0]}",
                where="source.max_bad_fraction",
                todo="mend the corpus, or bear more",
            )


@dataclass(frozen=True)
class Share:
    """One source of a mixture, and the share of the train split's tokens that it shall have (None: as much as there is)."""

    source: Source
    weight: float | None
