"""First pass of prepare: read, normalise, clean, and lay documents down sorted by the key that shuffles them."""

import copy
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmray.data.cleaning import Cleaner, Cleaning
from fmray.data.corpus_bias import BiasCounts, CorpusBias
from fmray.data.documents import Place, documents_table, lay_down
from fmray.data.filters import Filter
from fmray.data.near_duplicates import NearDuplicates
from fmray.data.sources import Counts, OnError, Partition
from fmray.data.text import normalise

SPILL_BYTES = 64 * 1024**2
BATCH_BYTES = 1024**2


@dataclass(frozen=True)
class Reading:
    """A part of a corpus to read: partition number `part` of source number `source`, which fails on bad input or skips it, and the filters that it goes through."""

    source: int
    part: int
    partition: Partition
    on_error: OnError = "fail"
    filters: tuple[Filter, ...] = ()


@dataclass(frozen=True)
class Ingest:
    """What every task of the first pass knows: where to lay documents and signatures, the shuffling key, and what to measure."""

    documents: Path
    signatures: Path
    order_key: int
    near: NearDuplicates | None
    bias: CorpusBias | None


@dataclass
class Ingested:
    """What reading made of parts of a corpus; `task_s` is the time that tasks took, one CPU each.

    `n_read` counts documents that were read, `n_documents` and `n_bytes` (UTF-8) those that stayed.
    """

    source: int = 0
    n_read: int = 0
    n_documents: int = 0
    n_bytes: int = 0
    task_s: float = 0.0
    counts: Counts = field(default_factory=Counts)
    cleaning: Cleaning = field(default_factory=Cleaning)
    bias: BiasCounts | None = None

    def add(self, other: "Ingested") -> None:
        """Adds another part's figures."""
        self.n_read += other.n_read
        self.n_documents += other.n_documents
        self.n_bytes += other.n_bytes
        self.task_s += other.task_s
        self.counts.add(other.counts)
        self.cleaning.add(other.cleaning)
        if self.bias is None:
            self.bias = copy.deepcopy(other.bias)
        elif other.bias is not None:
            self.bias.add(other.bias)


def read_batches(reading: Reading, done: Ingested) -> Iterator[list[str]]:
    """The normalised and cleaned texts of a part, about a megabyte at a time; what is left out is counted into `done`."""
    cleaner = Cleaner(reading.filters)
    done.cleaning = cleaner.done
    texts: list[str] = []
    ids: list[str] = []
    size = 0
    for document in reading.partition.read(done.counts):
        done.n_read += 1
        text = normalise(document["text"])
        if not text:
            done.counts.removed["empty"] += 1
            continue
        texts.append(text)
        ids.append(document["id"])
        size += len(text)
        if size >= BATCH_BYTES:
            yield from _clean(cleaner, texts, ids, done)
            texts, ids, size = [], [], 0
    if texts:
        yield from _clean(cleaner, texts, ids, done)


def _clean(cleaner: Cleaner, texts: list[str], ids: list[str], done: Ingested) -> Iterator[list[str]]:
    texts = cleaner.clean(texts, ids).texts
    if texts:
        done.n_documents += len(texts)
        done.n_bytes += len("".join(texts).encode())
        yield texts


def text_hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    """`document_hash` of texts that are in normal form already."""
    digests = b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in texts)
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def ingest(job: Ingest, reading: Reading) -> Ingested:
    """Reads one part into key-sorted Parquet files, with MinHash signatures and bias counts where they are wanted."""
    started = time.monotonic()
    done = Ingested(source=reading.source, bias=job.bias.empty() if job.bias else None)
    pending: list[str] = []
    size = first = 0
    for texts in read_batches(reading, done):
        pending += texts
        size += sum(map(len, texts))
        if job.bias is not None and done.bias is not None:
            done.bias.add(job.bias.count(texts))
        if size >= SPILL_BYTES:
            _spill(job, Place(reading.source, reading.part, first), pending)
            first, pending, size = first + len(pending), [], 0
    if pending:
        _spill(job, Place(reading.source, reading.part, first), pending)
    done.task_s = time.monotonic() - started
    return done


def _spill(job: Ingest, place: Place, texts: list[str]) -> None:
    table = documents_table(texts, text_hashes(texts), job.order_key, place)
    if job.near is not None:
        stem = f"{place.source:04d}-{place.part:06d}-{place.first:012d}"
        np.save(job.signatures / f"{stem}.keys.npy", table["key"].to_numpy())
        np.save(job.signatures / f"{stem}.signatures.npy", job.near.signatures(texts))
    lay_down(table, job.documents, place)
