"""TokenDatasets written straight to disk, without a corpus and without Ray: row i of a split holds the number i everywhere."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fmray  # noqa: F401  registers the kinds
from fmray.core.artifact import Artifact, Provenance, Record, fingerprint, load, write_json
from fmray.data.dataset import ALL, IMAGE_COLUMNS, Shard, TokenDataset

SEQ_LEN = 8


def described(shards: Sequence[Shard], **changes: Any) -> TokenDataset:
    """The payload of a dataset of these shards."""
    splits = {split: sum(s.rows for s in shards if s.split == split) for split in ("train", "validation")}
    seq_len = changes.get("seq_len", SEQ_LEN)
    fields: dict[str, Any] = {
        "n_documents": splits["train"], "n_tokens": splits["train"] * seq_len, "n_rows": splits["train"], "n_bytes": 1, "n_words": 1, "n_planted": 0,
        "n_validation_documents": splits["validation"], "n_validation_tokens": splits["validation"] * seq_len, "n_validation_bytes": 1, "seq_len": SEQ_LEN,
        "vocab_size": 400, "special_ids": {"bos": 1, "eos": 2, "pad": 0}, "shards": tuple(shards), "splits": splits, "removed": {}, "notes": {},
        "canaries": None, "source": {"type": "made"}, "digest": "d" * 64, "utilisation": 1.0,
    }  # fmt: skip
    return TokenDataset(**(fields | changes))


def commit(root: Path, payload: TokenDataset, name: str = "corpus") -> Artifact[TokenDataset]:
    """Writes the record, so that the folder is a complete artifact."""
    identity = {"stage": "by hand", "name": name}
    made = Provenance(git_commit=None, git_dirty=None, argv=(), host="", python="", versions={}, devices=(), device_hours=0.0, started_at="")
    record = Record(
        kind="token_dataset", name=name, stage="by hand", version=1, round=1, fingerprint=fingerprint(identity), identity=identity, config={},
        inputs={}, payload=payload.model_dump(mode="json"), provenance=made, wall_s=0.0,
    )  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / "record.json", record.model_dump(mode="json"))
    return load(root, TokenDataset)


def text_table(first: int, n: int, seq_len: int = SEQ_LEN) -> pa.Table:
    """Rows first to first + n - 1, each full of its own number."""
    ids = np.repeat(np.arange(first, first + n, dtype=np.int32), seq_len)
    columns = {"input_ids": ids, "segment_ids": np.ones_like(ids), "position_ids": np.tile(np.arange(seq_len, dtype=np.int32), n)}
    return pa.table({name: pa.FixedSizeListArray.from_arrays(pa.array(values), seq_len) for name, values in columns.items()})


def image_table(first: int, n: int, shape: tuple[int, int, int]) -> pa.Table:
    """Images whose pixel values are the row's number modulo 251, with the number as the label."""
    size = int(np.prod(shape))
    pixels = np.repeat((np.arange(first, first + n) % 251).astype(np.uint8), size)
    labels = pa.array(np.arange(first, first + n), pa.int64())
    return pa.table({"pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels), size), "labels": labels})


def dataset(
    root: Path, train: Sequence[int | tuple[str, int]], validation: int = 0, *, block_rows: int = 16, image_shape: tuple[int, int, int] | None = None
) -> Artifact[TokenDataset]:
    """A dataset whose train shards have these many rows, each a number or a pair of source and number."""
    wanted = [("train", *(s if isinstance(s, tuple) else (ALL, s))) for s in train] + [("validation", ALL, validation)] * bool(validation)
    shards, first = list[Shard](), {"train": 0, "validation": 0}
    for i, (split, source, rows) in enumerate(wanted):
        name = f"{split}/{source}-{i:05d}.parquet"
        (root / split).mkdir(parents=True, exist_ok=True)
        table = text_table(first[split], rows) if image_shape is None else image_table(first[split], rows, image_shape)
        pq.write_table(table, root / name, row_group_size=block_rows)
        shards.append(Shard.model_validate({"split": split, "name": name, "rows": rows, "sha256": "0" * 64, "source": source}))
        first[split] += rows
    image = {"modality": "image", "image_shape": image_shape, "columns": IMAGE_COLUMNS, "seq_len": 0, "vocab_size": 0, "special_ids": {}, "packing": "unpacked"} if image_shape is not None else {}
    return commit(root, described(shards, block_rows=block_rows, **image))


def large(root: Path, shards_of: dict[str, int], *, shard_rows: int = 20_480, block_rows: int = 512, seq_len: int = SEQ_LEN) -> Artifact[TokenDataset]:
    """A dataset of millions of rows: so many shards by source, all of them links to one file whose row i holds the number i."""
    (root / "train").mkdir(parents=True)
    pq.write_table(text_table(0, shard_rows, seq_len), root / "one.parquet", row_group_size=block_rows)
    shards = []
    for source, n in shards_of.items():
        for i in range(n):
            name = f"train/{source}-{i:05d}.parquet"
            os.link(root / "one.parquet", root / name)
            shards.append(Shard.model_validate({"split": "train", "name": name, "rows": shard_rows, "sha256": "0" * 64, "source": source}))
    return commit(root, described(shards, block_rows=block_rows, seq_len=seq_len))
