"""Prepare in one pass: where nothing needs the whole corpus first, each part goes from its file to its shards in one task."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmray.data.corpus_bias import CorpusBias
from fmray.data.ingest import Ingested, Reading, read_batches, text_hashes
from fmray.data.order import unit
from fmray.data.shards import ShardPart, words_in
from fmray.data.writing import Layout, SplitWriter


@dataclass(frozen=True)
class Direct:
    """What every task of a single pass knows."""

    layout: Layout
    hashes: Path
    bias: CorpusBias | None
    split_key: int
    validation_fraction: float


@dataclass
class DirectPart:
    """What reading a part gave, and the shards that came of it."""

    ingested: Ingested
    made: ShardPart


def write_directly(job: Direct, numbered: tuple[int, Reading]) -> DirectPart:
    """Reads, cleans, splits, tokenizes, packs and writes one part of the corpus, in the order of its documents."""
    started = time.monotonic()
    index, reading = numbered
    read = Ingested(source=reading.source)
    made = ShardPart(index, [], removed=Counter())
    bias = job.bias.empty() if job.bias else None
    seen: list[np.ndarray] = [np.empty(0, np.uint64)]
    with (
        SplitWriter(job.layout, "train", reading.source, index) as train,
        SplitWriter(job.layout, "validation", reading.source, index) as validation,
    ):
        for texts in read_batches(reading, read):
            hashes = text_hashes(texts)
            is_validation = unit(hashes, job.split_key) < job.validation_fraction
            kept = [text for text, out in zip(texts, is_validation, strict=True) if not out]
            train.add(kept)
            validation.add([text for text, out in zip(texts, is_validation, strict=True) if out])
            seen.append(hashes[~is_validation])
            made.n_words += words_in(texts)
            if job.bias is not None and bias is not None:
                bias.add(job.bias.count(kept))
        made.parts = [writer.finish() for writer in (train, validation)]
    np.save(job.hashes / f"part-{index:06d}.npy", np.unique(np.concatenate(seen)))
    made.bias_before = made.bias_after = bias
    read.task_s = made.task_s = time.monotonic() - started
    return DirectPart(read, made)
