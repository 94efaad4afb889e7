"""A TokenDataset artifact of synthetic packed rows, made without Ray."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fmray.core.artifact import Artifact, sha256_file, tree_digest
from fmray.data.dataset import COLUMNS, TokenDataset
from fmray.data.tokenizers.bpe import Bpe
from tests.train.rows import BOS, EOS, PAD, packed_rows
from tests.train.tiny import commit, labelled

VOCAB_SIZE = 400


def token_dataset(
    root: Path, *, n_rows: int = 100, seq_len: int = 32, vocab_size: int = VOCAB_SIZE, unpacked: bool = False,
    rows: Callable[[int, int, int], dict[str, np.ndarray]] = packed_rows, ids: int | None = None,
) -> Artifact[TokenDataset]:  # fmt: skip
    """Rows in one shard a split, with a tokenizer of `vocab_size` beside them (the rows use its first 64 ids); `unpacked`: a document each.

    `rows` makes others from their number, length and a seed, and `ids` says how many token ids these have.
    """
    names = []
    for split, n, seed in (("train", n_rows, 0), ("validation", 8, 1)):
        columns = rows(n, seq_len, seed)
        if unpacked:
            rest = columns["segment_ids_BT"] > 1
            for name, empty in (("input_ids_BT", PAD), ("segment_ids_BT", 0), ("position_ids_BT", 0)):
                columns[name][rest] = empty
        arrays = [pa.FixedSizeListArray.from_arrays(pa.array(columns[f"{name}_BT"].ravel(), pa.int32()), seq_len) for name in COLUMNS]
        names.append(f"{split}/part-00000.parquet")
        (root / split).mkdir(parents=True)
        pq.write_table(pa.Table.from_arrays(arrays, list(COLUMNS)), root / names[-1], row_group_size=256)
    Bpe().make([[text for text, _ in labelled(200)]], vocab_size, seq_len, root / "tokenizer")
    payload = TokenDataset(
        n_documents=1, n_tokens=n_rows * seq_len, n_rows=n_rows, n_bytes=1, n_words=1, n_planted=0, n_validation_documents=1,
        n_validation_tokens=8 * seq_len, n_validation_bytes=1, seq_len=seq_len, vocab_size=ids or vocab_size,
        special_ids={"bos": BOS, "eos": EOS, "pad": PAD},
        shards=tuple({"split": name.split("/")[0], "name": name, "rows": n_rows if "train" in name else 8, "sha256": sha256_file(root / name)} for name in names),
        splits={"train": n_rows, "validation": 8}, removed={}, notes={}, canaries=None, source={}, digest=tree_digest(root, names),
        packing="unpacked" if unpacked else "concatenate",
    )  # fmt: skip
    return commit(root, payload, "corpus")
