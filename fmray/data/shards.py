"""Second pass of prepare: each range of keys becomes one shard of each split and source, on its own and always the same."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fmray.data.canaries import Planted
from fmray.data.corpus_bias import BiasCounts, CorpusBias
from fmray.data.dataset import SPLITS, Split
from fmray.data.documents import (
    Place,
    documents_between,
    documents_table,
    first_of_each,
    sorted_documents,
    text_batches,
)
from fmray.data.ingest import text_hashes
from fmray.data.order import unit
from fmray.data.writing import ENCODE_BYTES, Layout, SplitPart, SplitWriter

if TYPE_CHECKING:
    import pyarrow as pa

PLANTED_PART = -1
COUNTERFACTUAL = 1_000_003
"""The number of the copy whose place a counterfactual takes: far beyond any count of repeats."""


@dataclass(frozen=True)
class Selection:
    """Which documents of the store train and validate, and how often.

    Attributes:
        exact: remove exact duplicates.
        dropped: a .npy file with the sorted keys of documents that repeat another one nearly, or None.
        repeats: for each source how often a train document is wanted, as a mean; empty: once.
        bias: measures, and corrects if it says so; `bias_counts` are the figures of the whole corpus that a correction needs.
    """

    documents: Path
    exact: bool
    dropped: Path | None
    split_key: int
    copy_key: int
    validation_fraction: float
    repeats: tuple[float, ...] = ()
    max_repeats: int = 1
    bias: CorpusBias | None = None
    bias_counts: BiasCounts | None = None

    def distinct(self, low: int, high: int, copy: int = 0, columns: Sequence[str] | None = None) -> "tuple[pa.Table, Counter[str]]":
        """The documents of a range of keys without duplicates, and what was removed by rule."""
        removed: Counter[str] = Counter()
        table = documents_between(self.documents, low, high, copy, columns)
        n_found = len(table)
        if self.exact:
            table = first_of_each(table)
            removed["exact_duplicate"] += n_found - len(table)
        if self.dropped is not None:
            n_distinct, dropped = len(table), np.load(self.dropped, mmap_mode="r")
            table = table.filter(~_among(_first_keys(table, copy), dropped))
            removed["near_duplicate"] += n_distinct - len(table)
        return table, +removed

    def in_validation(self, table: "pa.Table") -> NDArray[np.bool_]:
        """Which documents the validation split takes: by hash, so that the same text always falls on the same side."""
        return unit(table["hash"].to_numpy(), self.split_key) < self.validation_fraction

    def copies(self, table: "pa.Table") -> NDArray[np.int64]:
        """How often each train document is wanted: from its text's hash, its source and the corpus's figures alone."""
        wanted = np.ones(len(table), np.int64)
        hashes = table["hash"].to_numpy()
        if self.repeats:
            mean = np.array(self.repeats)[table["source"].to_numpy()]
            wanted = np.floor(mean).astype(np.int64) + (unit(hashes, self.copy_key) < mean % 1.0)
        if self.bias is not None and self.bias_counts is not None and self.bias.correct == "rebalance" and len(table):
            wanted = wanted * self.bias.repeats(table["text"].to_pylist(), self.bias_counts)
        return np.minimum(wanted, self.max_repeats)


def _first_keys(table: "pa.Table", copy: int) -> NDArray[np.uint64]:
    return table["first_key"].to_numpy() if copy else table["key"].to_numpy()


def _among(values: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(known):
        return np.zeros(len(values), np.bool_)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.asarray(known[at] == values)


@dataclass(frozen=True)
class ShardJob:
    """What one task of the second pass does: the keys from `low` to `high`, with canaries among them."""

    index: int
    low: int
    high: int
    planted: tuple[Planted, ...]


@dataclass
class ShardPart:
    """What a task made: the shards by split and source, and figures that add up over the corpus."""

    index: int
    parts: list[SplitPart]
    n_words: int = 0
    n_repeated: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    bias_before: BiasCounts | None = None
    bias_after: BiasCounts | None = None
    task_s: float = 0.0

    @property
    def n_tokens(self) -> int:
        """Tokens of both splits."""
        return sum(part.n_tokens for part in self.parts)


def write_shard(layout: Layout, selection: Selection, hashes: Path, job: ShardJob) -> ShardPart:
    """Selects, plants canaries, splits, tokenizes, packs and writes; the same job writes the same bytes."""
    started = time.monotonic()
    found, removed = selection.distinct(job.low, job.high)
    is_validation = selection.in_validation(found)
    originals, validation = found.filter(~is_validation), found.filter(is_validation)
    wanted = selection.copies(originals)
    if not wanted.all():
        removed["mixture_share"] += int((wanted == 0).sum())
    once = originals.filter(wanted > 0)
    train, n_repeated = _with_copies(selection, job, once)
    train = _with_planted(train, job.planted)
    np.save(hashes / f"part-{job.index:06d}.npy", np.unique(train["hash"].to_numpy()))
    result = ShardPart(job.index, [], count_words(once) + count_words(validation), n_repeated, +removed)
    if selection.bias is not None:
        result.bias_before, result.bias_after = (_bias(selection.bias, table) for table in (originals, train))
    for split, table in zip(SPLITS, (train, validation), strict=True):
        result.parts += write_split(layout, split, job.index, table)
    result.task_s = time.monotonic() - started
    return result


def _with_copies(selection: Selection, job: ShardJob, once: "pa.Table") -> "tuple[pa.Table, int]":
    """The train documents of a range with the copies whose places lie in it, and how many copies they are."""
    import pyarrow as pa

    tables = [once]
    most = selection.max_repeats if _repeats_any(selection) else 1
    for copy in range(1, most):
        train = _train_between(selection, job, copy)
        tables.append(train.filter(selection.copies(train) > copy).select(once.column_names))
    if selection.bias is not None and selection.bias.correct == "augment":
        train = _train_between(selection, job, COUNTERFACTUAL)
        tables.append(_counterfactuals(selection.bias, train.filter(selection.copies(train) > 0)).select(once.column_names))
    whole = sorted_documents(pa.concat_tables(tables)) if len(tables) > 1 else once
    return whole, len(whole) - len(once)


def _repeats_any(selection: Selection) -> bool:
    return any(mean > 1 for mean in selection.repeats) or (selection.bias is not None and selection.bias.correct == "rebalance")


def _train_between(selection: Selection, job: ShardJob, copy: int) -> "pa.Table":
    table, _ = selection.distinct(job.low, job.high, copy)
    return table.filter(~selection.in_validation(table))


def _counterfactuals(bias: CorpusBias, table: "pa.Table") -> "pa.Table":
    """The counterfactuals of documents that have one, each with its own hash."""
    import pyarrow as pa

    texts = bias.counterfactual(table["text"].to_pylist())
    swapped = [text for text in texts if text is not None]
    table = table.filter(pa.array([text is not None for text in texts], pa.bool_()))
    columns = {"text": pa.array(swapped, pa.large_string()), "hash": pa.array(text_hashes(swapped), pa.uint64())}
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def _with_planted(documents: "pa.Table", planted: Sequence[Planted]) -> "pa.Table":
    import pyarrow as pa

    if not planted:
        return documents
    texts = [text for _, text in planted]
    extra = documents_table(texts, text_hashes(texts), 0, Place(0, PLANTED_PART))
    keys = pa.array([key for key, _ in planted], pa.uint64())
    extra = extra.set_column(extra.schema.get_field_index("key"), "key", keys).select(documents.column_names)
    return sorted_documents(pa.concat_tables([documents, extra]))


def write_split(layout: Layout, split: Split, index: int, documents: "pa.Table") -> list[SplitPart]:
    """Tokenizes, packs and writes the documents of one split, each source to a shard of its own."""
    sources = documents["source"].to_numpy()
    made: list[SplitPart] = []
    for source in range(len(layout.sources)):
        with SplitWriter(layout, split, source, index) as writer:
            mine = documents if len(layout.sources) == 1 else documents.filter(sources == source)
            for texts in text_batches(mine["text"], ENCODE_BYTES):
                writer.add(texts)
            made.append(writer.finish())
    return made


def count_words(documents: "pa.Table") -> int:
    """Words between ASCII white space in the texts of a table."""
    return sum(words_in(texts) for texts in text_batches(documents["text"], ENCODE_BYTES))


def words_in(texts: Sequence[str]) -> int:
    """Words between ASCII white space."""
    data = np.frombuffer(("\n".join(texts)).encode(), np.uint8)
    white = data <= ord(" ")
    return int((~white[1:] & white[:-1]).sum()) + int(len(data) > 0 and not white[0])


def _bias(bias: CorpusBias, documents: "pa.Table") -> BiasCounts:
    total = bias.empty()
    for texts in text_batches(documents["text"], ENCODE_BYTES):
        total.add(bias.count(texts))
    return total


def sample(selection: Selection, ranges: Sequence[tuple[int, int]], shares: Sequence[float], sample_bytes: int) -> Iterator[list[str]]:
    """Distinct train documents in shuffled order, about `sample_bytes` of them: what a tokenizer is trained on.

    Args:
        shares: how much of the sample each source may give; empty: whatever comes.
    """
    seen = np.zeros(max(1, len(shares)))
    for low, high in ranges:
        table, _ = selection.distinct(low, high)
        table = table.filter(~selection.in_validation(table))
        for source in range(len(seen)):
            mine = table.filter(table["source"].to_numpy() == source) if shares else table
            limit = sample_bytes * (shares[source] if shares else 1.0)
            for texts in text_batches(mine["text"], ENCODE_BYTES):
                if seen[source] >= limit:
                    break
                yield texts
                seen[source] += sum(map(len, texts))
        if seen.sum() >= sample_bytes:
            return
