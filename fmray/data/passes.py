"""The two ways through a text corpus: twice, by way of a shuffled store on disk, or once, straight into shards."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmray.cluster import call
from fmray.core.artifact import write_json
from fmray.core.errors import DataError
from fmray.core.stage import Out
from fmray.data import tokenizer as tokenizers_
from fmray.data.canaries import Canaries, plant
from fmray.data.corpus_bias import CorpusBias
from fmray.data.dataset import CANARIES, TOKENIZER
from fmray.data.direct import Direct, DirectPart, write_directly
from fmray.data.documents import key_ranges
from fmray.data.filters import Filter
from fmray.data.flow import Kept, each
from fmray.data.ingest import Ingest, Ingested, ingest
from fmray.data.near_duplicates import NearDuplicates, removed_keys
from fmray.data.order import key
from fmray.data.packings import Packing
from fmray.data.shards import Selection, ShardJob, ShardPart, sample, write_shard
from fmray.data.shares import Measured, by_bytes, joined, measure, repeats, tokens_of
from fmray.data.sources import Share
from fmray.data.tokenizers import TokenizerModel
from fmray.data.watch import MB, Watch, check_documents, n_shards, readings
from fmray.data.writing import Layout

RATE_BYTES = 4_000_000
"""How much of each source is tokenized to learn its tokens a byte."""


@dataclass(frozen=True)
class Passes:
    """What to make of a text corpus; see `PrepareConfig`, whose fields these are. `shares` are the sources by name."""

    seq_len: int
    vocab_size: int
    tokenizer: TokenizerModel
    tokenizer_sample_mb: float
    filters: tuple[Filter, ...]
    exact: bool
    near: NearDuplicates | None
    packing: Packing
    bias: CorpusBias | None
    canaries: Canaries | None
    max_repeats: int
    validation_fraction: float
    shard_mb: float | None
    seed: int
    shares: Mapping[str, Share]

    @property
    def weights(self) -> tuple[float, ...]:
        """The shares that the sources shall have; empty when they are taken as they come."""
        weights = [share.weight for share in self.shares.values()]
        return tuple(w for w in weights if w is not None)

    @property
    def is_one_pass(self) -> bool:
        """Whether nothing needs the whole corpus before the first shard."""
        needs = self.exact or self.near or self.weights or self.canaries or self.tokenizer.is_trained
        return not needs and (self.bias is None or self.bias.correct is None)

    @property
    def most_copies(self) -> int:
        """How often a document can stand in the train split, for the mixture's shares and for a correction of bias together."""
        rebalance = self.bias.max_repeats if self.bias is not None and self.bias.correct == "rebalance" else 1
        return rebalance * (self.max_repeats if self.weights else 1)

    @property
    def split_key(self) -> int:
        """The key by which documents fall into splits."""
        return key(self.seed, 1)

    def layout(self, out: Out) -> Layout:
        """What all shards share."""
        return Layout(out.path, self.seq_len, self.packing, tuple(self.shares))


@dataclass
class Made:
    """What the passes over a corpus made."""

    read: Ingested
    parts: list[ShardPart]
    n_planted: int = 0
    tokenizer_sample: tuple[int, int] | None = None
    mean_repeats: tuple[float, ...] = ()


def one_pass(passes: Passes, out: Out) -> Made:
    """Reads each part of the corpus and writes its shards in one task."""
    todo = readings(passes.shares, passes.filters)
    _make_tokenizer(passes, out, iter(()))
    job = Direct(passes.layout(out), out.work / "hashes", passes.bias, passes.split_key, passes.validation_fraction)
    watch = Watch(out, "reading, tokenizing and packing", len(todo), passes.shares)
    made = Made(Ingested(), [])
    for part in each(partial(write_directly, job), list(enumerate(todo)), Kept[DirectPart](out.work / "direct")):
        made.parts.append(part.made)
        watch(part.ingested, part.made.n_tokens)
    made.read = watch.read
    # Each task read and wrote: its time counts once.
    made.read.task_s = 0.0
    check_documents(made.read)
    made.parts.sort(key=lambda part: part.index)
    return made


def two_passes(passes: Passes, out: Out) -> Made:
    """Lays the corpus down in shuffled order, then selects, tokenizes and writes it range by range."""
    todo = readings(passes.shares, passes.filters)
    job = Ingest(out.work / "documents", out.work / "signatures", key(passes.seed, 0), passes.near, passes.bias)
    watch = Watch(out, "reading", len(todo), passes.shares)
    for part in each(partial(ingest, job), todo, Kept[Ingested](out.work / "ingested")):
        watch(part)
    read = watch.read
    check_documents(read)
    selection = Selection(
        documents=job.documents, exact=passes.exact, dropped=_near_duplicates(passes, out), split_key=passes.split_key,
        copy_key=key(passes.seed, 3), validation_fraction=passes.validation_fraction, max_repeats=passes.most_copies,
        bias=passes.bias, bias_counts=read.bias if passes.bias and passes.bias.correct else None,
    )  # fmt: skip
    ranges = key_ranges(n_shards(passes.shard_mb, read.n_bytes))
    made = Made(read, [])
    made.tokenizer_sample = _tokenizer(passes, selection, ranges, out)
    if passes.weights:
        made.mean_repeats = _mean_repeats(passes, selection, ranges, out)
        selection = Selection(**{**vars(selection), "repeats": made.mean_repeats})
    planted = _plant(passes, out)
    made.n_planted = len(planted)
    jobs = [ShardJob(i, low, high, tuple(p for p in planted if low <= p[0] <= high)) for i, (low, high) in enumerate(ranges)]
    writing = Watch(out, "tokenizing and packing", len(jobs), passes.shares)
    work = partial(write_shard, passes.layout(out), selection, out.work / "hashes")
    for made_part in each(work, jobs, Kept[ShardPart](out.work / "shards")):
        made.parts.append(made_part)
        writing(None, made_part.n_tokens)
    made.parts.sort(key=lambda part: part.index)
    return made


def _near_duplicates(passes: Passes, out: Out) -> Path | None:
    """The file with the keys of all documents that repeat another one nearly."""
    if passes.near is None:
        return None
    path = out.work / "near_duplicates.npy"
    if not path.exists():
        out.progress("comparing documents")
        call(_save_near_duplicates, passes.near, out.work / "signatures", path)
    return path


def _save_near_duplicates(near: NearDuplicates, folder: Path, path: Path) -> None:
    keys = sorted(folder.glob("*.keys.npy"))
    pairs = [(k, k.with_name(k.name.replace(".keys.", ".signatures."))) for k in keys]
    dropped: NDArray[np.uint64] = removed_keys(pairs, near, folder)
    hidden = path.with_name(f".{path.name}")
    np.save(hidden, dropped)
    hidden.rename(path)


def _tokenizer(passes: Passes, selection: Selection, ranges: Sequence[tuple[int, int]], out: Out) -> tuple[int, int] | None:
    """Makes the tokenizer, in a process that ends, and gives the documents and bytes of its sample."""
    counted = out.work / "tokenizer_sample.npy"
    if not passes.tokenizer.is_trained:
        _make_tokenizer(passes, out, iter(()))
        return None
    if not (counted.exists() and (out.path / TOKENIZER).exists()):
        out.progress("training the tokenizer")
        call(_train_tokenizer, passes, selection, ranges, out.path, counted)
    n_documents, n_bytes = np.load(counted).tolist()
    return n_documents, n_bytes


def _train_tokenizer(passes: Passes, selection: Selection, ranges: Sequence[tuple[int, int]], root: Path, counted: Path) -> None:
    n = np.zeros(2, np.int64)

    def counting() -> Iterator[list[str]]:
        total = sum(passes.weights)
        for texts in sample(selection, ranges, [w / total for w in passes.weights], int(passes.tokenizer_sample_mb * MB)):
            n[:] += len(texts), sum(len(text.encode()) for text in texts)
            yield texts

    _write_tokenizer(passes, root, counting())
    np.save(counted, n)


def _make_tokenizer(passes: Passes, out: Out, texts: Iterator[list[str]]) -> None:
    if not (out.path / TOKENIZER).exists():
        out.progress("loading the tokenizer")
        _write_tokenizer(passes, out.path, texts)


def _write_tokenizer(passes: Passes, root: Path, texts: Iterator[list[str]]) -> None:
    """Writes a tokenizer's folder, whole or not at all."""
    hidden = root / f".{TOKENIZER}"
    shutil.rmtree(hidden, ignore_errors=True)
    passes.tokenizer.make(texts, passes.vocab_size, passes.seq_len, hidden)
    shutil.rmtree(root / TOKENIZER, ignore_errors=True)
    hidden.rename(root / TOKENIZER)


def _mean_repeats(passes: Passes, selection: Selection, ranges: Sequence[tuple[int, int]], out: Out) -> tuple[float, ...]:
    """How often each source's documents must stand in the train split for the shares that are asked for."""
    path = out.work / "repeats.npy"
    if not path.exists():
        out.progress("measuring the mixture", done=0, total=len(ranges))
        measured = joined(each(partial(measure, selection), ranges, Kept[Measured](out.work / "measured")))
        for source, name in enumerate(passes.shares):
            if not measured.n_bytes.get(source):
                raise DataError(f"the source {name} of the mixture gives no document to the train split", where="source", todo="leave it out or check its settings")
        rates = call(_tokens_per_byte, passes, selection, ranges, out.path)
        wanted = repeats(passes.weights, tokens_of(measured.n_bytes, rates), passes.max_repeats)
        np.save(path, [by_bytes(mean, measured.bins[source]) for source, mean in enumerate(wanted)])
    return tuple(np.load(path).tolist())


def _tokens_per_byte(passes: Passes, selection: Selection, ranges: Sequence[tuple[int, int]], root: Path) -> list[float]:
    tokenizer, special = tokenizers_.load(root / TOKENIZER)
    n_tokens, n_bytes = np.zeros(len(passes.shares)), np.zeros(len(passes.shares))
    for low, high in ranges:
        table, _ = selection.distinct(low, high)
        sources = table["source"].to_numpy()
        for source in np.flatnonzero(n_bytes < RATE_BYTES):
            texts: Any = table.filter(sources == source)["text"].to_pylist()
            n_tokens[source] += sum(map(len, tokenizers_.encode(tokenizer, special, texts)))
            n_bytes[source] += sum(len(text.encode()) for text in texts)
        if (n_bytes >= RATE_BYTES).all():
            break
    return (n_tokens / np.maximum(1, n_bytes)).tolist()


def _plant(passes: Passes, out: Out) -> list[tuple[int, str]]:
    if passes.canaries is None:
        return []
    drawn = passes.canaries.draw()
    write_json(out.path / CANARIES, drawn)
    return plant(drawn, passes.seed)
