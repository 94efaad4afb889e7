"""Documents that share long runs of words with evaluation sets."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmray.core.config import Config, dump, load_config
from fmray.core.errors import DataError
from fmray.data.filters import Apply, Filter, Outcome
from fmray.data.sources import Source
from fmray.data.words import U64, among, batches, n_grams, words

GATHERED = 4096
"""Texts of an evaluation set that are hashed together."""


class EvaluationSet(Config):
    """Texts that no training document may hold.

    Attributes:
        source: where they are read from.
        fields: which fields of a document count, each on its own: the text alone unless others are named.
    """

    source: Source
    fields: tuple[str, ...] = Field(("text",), min_length=1)


class Decontaminate(Filter):
    """Removes, or reports, documents that share a run of `n` words with an evaluation set (13 in Brown et al., 2020, appendix C).

    Words are compared in lower case without punctuation; in scripts without spaces, such as Chinese, each character is a word. A text
    of an evaluation set with fewer than `n` words cannot be found. Translations, paraphrases and texts cut differently by less than
    `n` words are not found either: a clean report is no proof.

    Rule: the name of the first set that is hit. Notes: how many documents hit each set, removed or not.
    """

    type: Literal["decontaminate"] = "decontaminate"
    sets: dict[str, EvaluationSet] = Field(min_length=1)
    n: int = Field(13, ge=2, le=100)
    action: Literal["remove", "report"] = "remove"

    def open(self) -> Apply:
        """Reads the evaluation sets and indexes them, once a process.

        Raises:
            DataError: a set cannot be read, lacks a field, or holds no text of `n` words.
        """
        indexes = {name: _index(name, each, self.n) for name, each in sorted(self.sets.items())}

        def apply(texts: Sequence[str]) -> Outcome:
            hits = np.zeros((len(indexes), len(texts)), np.bool_)
            for batch in batches(texts):
                hash_G, document_G = n_grams(words(texts[batch.start : batch.stop]), self.n)
                for row, index in zip(hits, indexes.values(), strict=True):
                    row[batch.start + document_G[among(hash_G, index)]] = True
            return self._outcome(texts, list(indexes), hits)

        return apply

    def _outcome(self, texts: Sequence[str], names: list[str], hits: NDArray[np.bool_]) -> Outcome:
        notes = Counter({name: int(n) for name, n in zip(names, hits.sum(axis=1), strict=True) if n})
        first = hits.argmax(axis=0)
        removed = hits.any(axis=0) & np.full(len(texts), self.action == "remove")
        return Outcome(texts, [names[first[i]] if removed[i] else None for i in range(len(texts))], notes)


def _index(name: str, evaluation_set: EvaluationSet, n: int) -> U64:
    return _indexed(name, json.dumps(dump(evaluation_set)), json.dumps(evaluation_set.identity(), sort_keys=True), n)


@lru_cache(maxsize=16)
def _indexed(name: str, config: str, identity: str, n: int) -> U64:
    """The sorted hashes of a set's n-grams; `identity` is part of the cache's key, so that changed files are read again."""
    evaluation_set = load_config(EvaluationSet, json.loads(config))
    parts: list[U64] = [np.empty(0, np.uint64)]
    gathered: list[str] = []
    for document in evaluation_set.source.iter_documents():
        gathered += _texts(document, evaluation_set.fields, name)
        if len(gathered) >= GATHERED:
            parts.append(_hashed(gathered, n))
            gathered = []
    parts.append(_hashed(gathered, n))
    index = np.unique(np.concatenate(parts))
    if not len(index):
        raise DataError(f"holds no text of {n} words", where=f"filters.decontaminate.sets.{name}", todo="lower n or leave the set out")
    return index


def _hashed(texts: list[str], n: int) -> U64:
    parts = [n_grams(words(texts[batch.start : batch.stop]), n)[0] for batch in batches(texts)]
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)


def _texts(document: Mapping[str, Any], fields: Sequence[str], name: str) -> list[str]:
    """The texts of some fields; a list of texts counts as several."""
    found: list[str] = []
    for field in fields:
        if field not in document:
            raise DataError(
                f"document {document.get('id')} has no field '{field}'; it has: {', '.join(map(str, document))}",
                where=f"filters.decontaminate.sets.{name}.fields",
            )
        value = document[field]
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str) for each in values):
            raise DataError(
                f"field '{field}' of document {document.get('id')} is neither text nor a list of texts",
                where=f"filters.decontaminate.sets.{name}.fields",
            )
        found += values
    return found
