"""The prepare stage: a corpus becomes a TokenDataset."""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import Field

from fmray.cluster import call, connect
from fmray.core.artifact import tree_digest, write_json
from fmray.core.config import Config
from fmray.core.errors import DataError
from fmray.core.stage import Out, stage
from fmray.data import tokenizer as tokenizers_
from fmray.data.canaries import Canaries, Planted, plant
from fmray.data.dataset import CANARIES, HASHES, SPLITS, TOKENIZER, Shard, TokenDataset
from fmray.data.flow import each
from fmray.data.ingest import Ingested, ingest, key_ranges
from fmray.data.order import key
from fmray.data.shards import ShardJob, ShardPart, sample, write_shard
from fmray.data.sources import Source

MB = 1_000_000


class PrepareConfig(Config):
    """What to prepare, from where and how.

    Attributes:
        vocab_size: tokens of the vocabulary, bytes and special tokens included; with `tokenizer`, the size of the loaded one.
        tokenizer: load this one instead of training byte-level BPE.
        tokenizer_sample_mb: how much text (millions of characters) a tokenizer is trained on: distinct documents of the train
            split, drawn by hash from the whole corpus.
        validation_fraction: the share of documents held out, drawn by hash of their text.
        shard_mb: text for one shard, in millions of bytes; by default a 64th of the corpus, at least 4 and at most 256. One
            worker holds a few times as much.
        seed: shuffles the documents and draws the split.
    """

    source: Source
    seq_len: int = Field(ge=8, le=1_048_576)
    vocab_size: int = Field(ge=tokenizers_.SMALLEST, le=2_000_000)
    tokenizer: tokenizers_.TokenizerFiles | None = None
    tokenizer_sample_mb: float = Field(64.0, gt=0)
    validation_fraction: float = Field(0.05, gt=0, lt=1)
    canaries: Canaries | None = None
    shard_mb: float | None = Field(None, gt=0)
    seed: int = 0


def plan(config: PrepareConfig, upstream: dict[str, Config]) -> dict[str, str]:
    """What `fmray check` can say before anything is read."""
    made = (
        f"loaded from {config.tokenizer.path}"
        if config.tokenizer
        else f"byte-level BPE trained on up to {config.tokenizer_sample_mb:g} MB"
    )
    lines = {
        "vocabulary": f"{config.vocab_size:,} ({made})",
        "row": f"{config.seq_len:,} positions",
        "rows, tokens": "unknown until prepare has run",
    }
    if config.canaries:
        lines["canaries"] = (
            f"{config.canaries.per_level} secrets at each of the levels {', '.join(map(str, config.canaries.levels))}"
        )
    return lines


@stage("prepare", version=1, plan=plan)
def prepare(config: PrepareConfig, out: Out) -> TokenDataset:
    """Reads, normalises, removes exact duplicates, makes the tokenizer, tokenizes, packs and writes shards.

    The result depends on the texts and the config alone, not on files' order, partitions or CPUs.

    Raises:
        DataError: the corpus is unreadable or empty, too small for the vocabulary, or leaves a split without a row.
    """
    partitions = config.source.partitions()
    connect()
    documents, hashes = _fresh_folders(out)
    read = ingest(partitions, documents, key(config.seed, 0), _watch_reading(out, len(partitions)))
    if not read.n_documents:
        removed = ", ".join(f"{rule}: {n}" for rule, n in sorted(read.counts.removed.items()))
        raise DataError(
            f"the corpus holds no document (removed {removed or 'none'})",
            where="source",
            todo="check the path and the source's settings",
        )
    ranges = key_ranges(_n_shards(config, read.n_bytes))
    _make_tokenizer(config, out, documents, ranges)
    drawn = config.canaries.draw() if config.canaries else None
    planted = plant(drawn, config.seed) if drawn else []
    jobs = [
        ShardJob(
            i,
            low,
            high,
            _between(planted, low, high),
            documents,
            hashes,
            out.path,
            config.seq_len,
            key(config.seed, 1),
            config.validation_fraction,
        )
        for i, (low, high) in enumerate(ranges)
    ]
    parts = _write_shards(jobs, out)
    shards = _checked(config, parts)
    out.spend(device="cpu", count=1, seconds=read.task_s + sum(part.task_s for part in parts))
    _save_hashes(hashes, out.path / HASHES)
    if drawn:
        write_json(out.path / CANARIES, drawn)
    shutil.rmtree(out.work)
    return _payload(config, read, parts, shards, len(planted), out.path)


def _fresh_folders(out: Out) -> tuple[Path, Path]:
    """Empty folders for this attempt: what an interrupted one left is made again, the same."""
    shutil.rmtree(out.work)
    for name in (*SPLITS, TOKENIZER):
        shutil.rmtree(out.path / name, ignore_errors=True)
        (out.path / name).mkdir()
    documents, hashes = out.work / "documents", out.work / "hashes"
    documents.mkdir()
    hashes.mkdir()
    return documents, hashes


def _watch_reading(out: Out, n_parts: int) -> Callable[[int, Ingested], None]:
    def watch(done: int, read: Ingested) -> None:
        out.progress(
            "reading", done=done, total=n_parts, documents=read.n_documents, text_mb=round(read.n_bytes / MB, 2)
        )

    out.progress("reading", done=0, total=n_parts)
    return watch


def _n_shards(config: PrepareConfig, n_bytes: int) -> int:
    shard_mb = config.shard_mb if config.shard_mb is not None else min(256.0, max(4.0, n_bytes / MB / 64))
    return max(1, round(n_bytes / (shard_mb * MB)))


def _make_tokenizer(config: PrepareConfig, out: Out, documents: Path, ranges: list[tuple[int, int]]) -> None:
    out.progress("loading the tokenizer" if config.tokenizer else "training the tokenizer")
    if config.tokenizer:
        tokenizers_.copy(config.tokenizer, config.vocab_size, out.path / TOKENIZER)
    else:
        call(_train_tokenizer, config, documents, ranges, out.path / TOKENIZER)


def _train_tokenizer(config: PrepareConfig, documents: Path, ranges: list[tuple[int, int]], folder: Path) -> None:
    texts = sample(
        documents, ranges, key(config.seed, 1), config.validation_fraction, int(config.tokenizer_sample_mb * MB)
    )
    tokenizers_.train(texts, config.vocab_size, config.seq_len, folder)


def _between(planted: list[Planted], low: int, high: int) -> tuple[Planted, ...]:
    return tuple(item for item in planted if low <= item[0] <= high)


def _write_shards(jobs: list[ShardJob], out: Out) -> list[ShardPart]:
    out.progress("tokenizing and packing", done=0, total=len(jobs))
    parts: list[ShardPart] = []
    started, n_tokens = time.monotonic(), 0
    for part in each(write_shard, jobs):
        parts.append(part)
        n_tokens += sum(split.n_tokens for split in part.splits.values())
        out.progress(
            "tokenizing and packing",
            done=len(parts),
            total=len(jobs),
            tokens=n_tokens,
            tokens_per_s=n_tokens / (time.monotonic() - started),
        )
    return sorted(parts, key=lambda part: part.index)


def _checked(config: PrepareConfig, parts: list[ShardPart]) -> tuple[Shard, ...]:
    """All shards, train before validation; each split has at least one row."""
    shards = tuple(shard for split in SPLITS for part in parts if (shard := part.splits[split].shard))
    for split in SPLITS:
        if not any(shard.split == split for shard in shards):
            n = sum(p.n_documents for part in parts for p in part.splits.values())
            raise DataError(
                f"{config.validation_fraction:g} of {n} documents leaves the {split} split empty",
                where="validation_fraction",
                todo="change it, give more documents, or make smaller ones of them",
            )
    return shards


def _payload(
    config: PrepareConfig, read: Ingested, parts: list[ShardPart], shards: tuple[Shard, ...], n_planted: int, root: Path
) -> TokenDataset:
    train, validation = ([part.splits[split] for part in parts] for split in SPLITS)
    rows = {split: sum(shard.rows for shard in shards if shard.split == split) for split in SPLITS}
    _, special = tokenizers_.load(root / TOKENIZER)
    duplicates = sum(part.n_duplicates for part in parts)
    files = [shard.name for shard in shards] + [f"{TOKENIZER}/{path.name}" for path in (root / TOKENIZER).iterdir()]
    return TokenDataset(
        n_documents=sum(p.n_documents for p in train),
        n_tokens=sum(p.n_tokens for p in train),
        n_rows=rows["train"],
        n_bytes=sum(p.n_bytes for p in train),
        n_words=sum(part.n_words for part in parts),
        n_planted=n_planted,
        n_validation_documents=sum(p.n_documents for p in validation),
        n_validation_tokens=sum(p.n_tokens for p in validation),
        n_validation_bytes=sum(p.n_bytes for p in validation),
        seq_len=config.seq_len,
        vocab_size=config.vocab_size,
        special_ids={"bos": special.bos, "eos": special.eos, "pad": special.pad},
        shards=shards,
        splits=dict(rows),
        removed=dict(sorted((read.counts.removed + Counter(exact_duplicate=duplicates)).items())),
        notes=dict(sorted(read.counts.notes.items())),
        canaries=CANARIES if config.canaries else None,
        source=config.source.identity(),
        digest=tree_digest(root, files),
    )


def _save_hashes(parts: Path, target: Path) -> None:
    loaded = [np.load(path) for path in sorted(parts.glob("part-*.npy"))]
    np.save(target, np.unique(np.concatenate(loaded)))
