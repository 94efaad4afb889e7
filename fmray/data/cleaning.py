"""Cleaning: an ordered list of filters over batches of documents, with an account of every document removed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from fmray.core.errors import DataError
from fmray.data.filters import Filter
from fmray.data.text import document_hash, normalise

SAMPLED = 20
"""How many removed documents of each rule are kept as examples."""

EXCERPT = 500
"""Characters of a removed document that an example shows."""

EMPTY = "empty"
"""The rule that removes a document of which a filter leaves nothing."""


@dataclass(frozen=True, order=True)
class Removed:
    """An example of a removed document, as the filter that removed it saw it.

    Attributes:
        hash: the document's hash, by which examples are chosen.
        excerpt: its first EXCERPT characters.
    """

    hash: int
    id: str
    excerpt: str


@dataclass
class Cleaning:
    """What cleaning did: counts by `<filter type>/<rule>` and `<filter type>/<what>`, and examples of what each rule removed.

    The examples of a rule are the SAMPLED documents with the smallest hashes, so that any split of the corpus gives the same.
    """

    removed: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Removed]] = field(default_factory=dict)

    def add(self, other: "Cleaning") -> None:
        """Adds another part's figures and examples."""
        self.removed.update(other.removed)
        self.notes.update(other.notes)
        for rule, examples in other.examples.items():
            self._sample(rule, examples)

    def remove(self, rule: str, texts: Sequence[str], ids: Sequence[str]) -> None:
        """Counts documents that one rule removes."""
        self.removed[rule] += len(texts)
        self._sample(
            rule, [Removed(document_hash(text), id, text[:EXCERPT]) for text, id in zip(texts, ids, strict=True)]
        )

    def _sample(self, rule: str, examples: Sequence[Removed]) -> None:
        distinct: dict[int, Removed] = {}
        for example in sorted([*self.examples.get(rule, ()), *examples]):
            distinct.setdefault(example.hash, example)
            if len(distinct) == SAMPLED:
                break
        self.examples[rule] = list(distinct.values())

    def rows(self) -> list[dict[str, str]]:
        """The examples as plain rows of rule, id, hash (hexadecimal) and text, by rule and hash: the lines of removed.jsonl."""
        return [
            {"rule": rule, "id": one.id, "hash": f"{one.hash:016x}", "text": one.excerpt}
            for rule, examples in sorted(self.examples.items())
            for one in examples
        ]


@dataclass(frozen=True)
class Cleaned:
    """The documents of a batch that stay: their texts, and their places in the batch, rising."""

    texts: list[str]
    kept: list[int]


class Cleaner:
    """Filters opened once and applied in their order to batch after batch; `done` accumulates what they did.

    A filter sees only what those before it left, as they left it. A changed text is brought back into normal form.

    Raises:
        DataError, ConfigError: a filter cannot be opened.
    """

    def __init__(self, filters: Sequence[Filter]) -> None:
        self.done = Cleaning()
        self._filters = [(_tag(each), each.open()) for each in filters]

    def clean(self, texts: Sequence[str], ids: Sequence[str]) -> Cleaned:
        """Applies every filter to a batch.

        Args:
            texts: documents in normal form.
            ids: as many names, for the examples.

        Raises:
            DataError: a filter breaks its contract (another number of texts or fates than it was given).
        """
        kept, texts = list(range(len(texts))), list(texts)
        for tag, apply in self._filters:
            outcome = apply(texts)
            if not len(texts) == len(outcome.texts) == len(outcome.removed):
                raise DataError(
                    f"gave {len(outcome.texts)} texts and {len(outcome.removed)} fates for {len(texts)}",
                    where=f"filter {tag}",
                )
            self.done.notes.update({f"{tag}/{what}": n for what, n in outcome.notes.items()})
            changed = [new if new is old else normalise(new) for new, old in zip(outcome.texts, texts, strict=True)]
            fates = [
                fate if fate is not None or text else EMPTY
                for fate, text in zip(outcome.removed, changed, strict=True)
            ]
            self._account(tag, fates, texts, [ids[i] for i in kept])
            stays = [i for i, fate in enumerate(fates) if fate is None]
            kept, texts = [kept[i] for i in stays], [changed[i] for i in stays]
        return Cleaned(texts, kept)

    def _account(self, tag: str, fates: Sequence[str | None], texts: Sequence[str], ids: Sequence[str]) -> None:
        by_rule: dict[str, list[int]] = {}
        for i, fate in enumerate(fates):
            if fate is not None:
                by_rule.setdefault(fate, []).append(i)
        for rule, at in by_rule.items():
            self.done.remove(f"{tag}/{rule}", [texts[i] for i in at], [ids[i] for i in at])


def _tag(each: Filter) -> str:
    return str(type(each).model_fields["type"].default)
