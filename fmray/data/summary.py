"""What a prepared text dataset says about itself: its payload, and the files beside its shards."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmray.core.artifact import tree_digest, write_json
from fmray.core.errors import DataError
from fmray.core.stage import Out
from fmray.data import tokenizer as tokenizers_
from fmray.data.card import card, licences
from fmray.data.dataset import (
    BIAS,
    CANARIES,
    CARD,
    COLUMNS,
    HASHES,
    REMOVED,
    SAMPLES,
    SPLITS,
    TOKENIZER,
    Part,
    Shard,
    Split,
    TokenDataset,
)
from fmray.data.passes import Made, Passes
from fmray.data.writing import SplitPart

SAMPLE_ROWS = 3
LANGUAGE = "language/"


def finish(passes: Passes, made: Made, source: dict[str, Any], out: Out) -> TokenDataset:
    """Writes the files beside the shards and gives the payload.

    Raises:
        DataError: a split has no row.
    """
    out.spend(device="cpu", count=1, seconds=made.read.task_s + sum(part.task_s for part in made.parts))
    save_hashes(out.work / "hashes", out.path / HASHES)
    removed = _removed(made)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in made.read.cleaning.rows())
    (out.path / REMOVED).write_text("".join(lines), encoding="utf-8")
    if passes.bias is not None:
        write_json(out.path / BIAS, _bias(passes, made))
    payload = _payload(passes, made, removed, source, out)
    write_json(out.path / SAMPLES, {"rows": _sample_rows(payload, out.path)})
    (out.path / CARD).write_text(card(payload, name=out.name, licences=licences(passes.shares)), encoding="utf-8")
    return payload


def _removed(made: Made) -> Counter[str]:
    total = made.read.counts.removed + made.read.cleaning.removed
    for part in made.parts:
        total.update(part.removed)
    return total


def _bias(passes: Passes, made: Made) -> dict[str, Any]:
    assert passes.bias is not None
    figures = {}
    for when in ("before", "after"):
        total = passes.bias.empty()
        for part in made.parts:
            counts = part.bias_before if when == "before" else part.bias_after
            if counts is not None:
                total.add(counts)
        figures[when] = passes.bias.report(total)
    return {"correct": passes.bias.correct, **figures}


def checked_shards(parts: Sequence[SplitPart], validation_fraction: float) -> tuple[Shard, ...]:
    """All shards, train before validation.

    Raises:
        DataError: a split has no row.
    """
    shards = tuple(part.shard for split in SPLITS for part in parts if part.split == split and part.shard)
    for split in SPLITS:
        if not any(shard.split == split for shard in shards):
            n = sum(part.n_documents for part in parts)
            raise DataError(
                f"{validation_fraction:g} of {n} documents leaves the {split} split empty",
                where="validation_fraction",
                todo="change it, give more documents, or make smaller ones of them",
            )
    return shards


def _payload(passes: Passes, made: Made, removed: Counter[str], source: dict[str, Any], out: Out) -> TokenDataset:
    root = out.path
    parts = [part for shard in made.parts for part in shard.parts]
    train, validation = ([part for part in parts if part.split == split] for split in SPLITS)
    shards = checked_shards(parts, passes.validation_fraction)
    rows = {split: sum(shard.rows for shard in shards if shard.split == split) for split in SPLITS}
    tokenizer, special = tokenizers_.load(root / TOKENIZER)
    lengths: Counter[int] = sum((part.lengths for part in train), Counter())
    notes = made.read.counts.notes + made.read.cleaning.notes
    files = [shard.name for shard in shards] + [f"{TOKENIZER}/{path.name}" for path in (root / TOKENIZER).iterdir()]
    sampled = {} if made.tokenizer_sample is None else dict(zip(("n_documents", "n_bytes"), made.tokenizer_sample, strict=True))
    return TokenDataset(
        n_documents=sum(p.n_documents for p in train),
        n_tokens=sum(p.n_tokens for p in train),
        n_rows=rows["train"],
        n_bytes=sum(p.n_bytes for p in train),
        n_words=sum(part.n_words for part in made.parts),
        n_planted=made.n_planted,
        n_repeated=sum(part.n_repeated for part in made.parts),
        n_validation_documents=sum(p.n_documents for p in validation),
        n_validation_tokens=sum(p.n_tokens for p in validation),
        n_validation_bytes=sum(p.n_bytes for p in validation),
        seq_len=passes.seq_len,
        vocab_size=tokenizers_.vocabulary_size(tokenizer),
        special_ids={"bos": special.bos, "eos": special.eos, "pad": special.pad},
        shards=shards,
        splits=dict(rows),
        columns=COLUMNS,
        block_rows=passes.layout(out).block_rows,
        packing=str(passes.packing.type),  # type: ignore[attr-defined]
        utilisation=sum(p.n_tokens - p.n_truncated for p in train) / (rows["train"] * passes.seq_len),
        n_truncated_tokens=sum(p.n_truncated for p in parts),
        length_histogram=tuple(lengths[i] for i in range(max(lengths, default=-1) + 1)),
        parts=_mixture(passes, made, train),
        removed=dict(sorted(removed.items())),
        notes=dict(sorted((name, n) for name, n in notes.items() if not name.startswith(LANGUAGE))),
        languages={name.removeprefix(LANGUAGE): n for name, n in sorted(notes.items()) if name.startswith(LANGUAGE)},
        skipped=tuple(sorted(made.read.counts.bad)),
        n_skipped=made.read.counts.n_bad,
        tokenizer={"type": str(passes.tokenizer.type), **sampled},  # type: ignore[attr-defined]
        canaries=CANARIES if passes.canaries else None,
        bias=BIAS if passes.bias else None,
        source=source,
        digest=tree_digest(root, files),
    )


def _mixture(passes: Passes, made: Made, train: Sequence[SplitPart]) -> tuple[Part, ...]:
    total = max(1, sum(part.n_tokens for part in train))
    parts = []
    for number, (name, share) in enumerate(passes.shares.items()):
        mine = [part for part in train if part.source == name]
        n_tokens = sum(part.n_tokens for part in mine)
        parts.append(
            Part(
                name=name, weight=share.weight, n_documents=sum(part.n_documents for part in mine), n_tokens=n_tokens,
                n_rows=sum(part.shard.rows for part in mine if part.shard), n_bytes=sum(part.n_bytes for part in mine),
                repeats=made.mean_repeats[number] if made.mean_repeats else 1.0, share=n_tokens / total,
            )
        )
    return tuple(parts)


def save_hashes(parts: Path, target: Path) -> None:
    """Brings the hashes that the tasks wrote together in one sorted file."""
    loaded = [np.load(path) for path in sorted(parts.glob("part-*.npy"))]
    np.save(target, np.unique(np.concatenate(loaded)))


def _sample_rows(payload: TokenDataset, root: Path) -> list[dict[str, Any]]:
    """The first rows of the first shard of each split and source, decoded piece by piece."""
    import pyarrow.parquet as pq

    tokenizer, _ = tokenizers_.load(root / TOKENIZER)
    seen: set[tuple[Split, str]] = set()
    rows = []
    for shard in payload.shards:
        if (shard.split, shard.source) in seen:
            continue
        seen.add((shard.split, shard.source))
        table = pq.ParquetFile(root / shard.name).read_row_group(0, columns=list(COLUMNS[:2])).slice(0, SAMPLE_ROWS)
        for number, (ids, segments) in enumerate(zip(table["input_ids"].to_pylist(), table["segment_ids"].to_pylist(), strict=True)):
            ids_T, segments_T = np.array(ids), np.array(segments)
            pieces = [tokenizer.decode(ids_T[segments_T == s].tolist(), skip_special_tokens=False) for s in range(1, int(segments_T.max()) + 1)]
            rows.append({"split": shard.split, "source": shard.source, "row": number, "pieces": pieces, "n_tokens": int((segments_T > 0).sum())})
    return rows
