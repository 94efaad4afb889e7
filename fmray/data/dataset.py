"""The TokenDataset artifact: Parquet shards of packed rows, a tokenizer, document hashes and perhaps planted canaries."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from fmray.core.artifact import Payload

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")

Modality = Literal["text", "image"]
ALL = "all"
"""The name of the only source of a dataset that is no mixture."""

COLUMNS = ("input_ids", "segment_ids", "position_ids")
IMAGE_COLUMNS = ("pixels", "labels")
BLOCK_ROWS = 256
"""Rows of a Parquet row group: what the reader fetches at once, and shuffles within."""

TOKENIZER = "tokenizer"
HASHES = "document_hashes.npy"
CANARIES = "canaries.json"


class Shard(BaseModel):
    """One Parquet file, named relative to the artifact, with rows of one source of the mixture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Split
    name: str
    rows: int
    sha256: str
    source: str = ALL


class Part(BaseModel):
    """What one source of the mixture gave to the train split.

    Attributes:
        weight: the share of tokens that was asked for; None: as much as there is.
        repeats: how often each distinct document stands in the split, on average.
        share: its share of the split's tokens as it came out (of its rows, where rows hold images).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    weight: float | None
    n_documents: int
    n_tokens: int
    n_rows: int
    n_bytes: int
    repeats: float
    share: float


class TokenDataset(Payload, kind="token_dataset"):
    """A tokenized corpus.

    Each document is its tokens with the `bos` token in front and the `eos` token behind, packed into rows of `seq_len` (see
    `fmray.data.packing`). Shards hold the columns input_ids, segment_ids and position_ids, each fixed_size_list<int32>[seq_len].
    `document_hashes.npy` holds the sorted uint64 hashes of the train documents.

    Attributes:
        n_documents: documents of the train split, planted canaries included; n_tokens, n_rows and n_bytes (UTF-8) likewise.
        n_words: words between white space in the documents of both splits, canaries left out.
        n_planted: canary documents among the train documents.
        splits: rows of each split.
        removed: documents left out, by rule; with n_documents + n_validation_documents - n_planted they make up all that were read.
        notes: documents repaired on the way, by what was done.
        special_ids: the ids of the bos, eos and pad tokens in the rows.
        digest: sha256 over the shards and the tokenizer: what a model trained on it has seen.
    """

    n_documents: int
    n_tokens: int
    n_rows: int
    n_bytes: int
    n_words: int
    n_planted: int
    n_validation_documents: int
    n_validation_tokens: int
    n_validation_bytes: int
    seq_len: int
    vocab_size: int
    special_ids: dict[str, int]
    shards: tuple[Shard, ...]
    splits: dict[str, int]
    removed: dict[str, int]
    notes: dict[str, int]
    canaries: str | None
    source: dict[str, Any]
    digest: str
