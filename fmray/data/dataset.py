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
REMOVED = "removed.jsonl"
SAMPLES = "samples.json"
BIAS = "bias.json"
CARD = "README.md"


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
    """A corpus made ready for training: tokenized text, or images.

    Text: each document is its tokens with the `bos` token in front and the `eos` token behind, packed into rows of `seq_len` as
    `packing` says. Shards hold the columns input_ids, segment_ids and position_ids, each fixed_size_list<int32>[seq_len].
    Images: shards hold `pixels`, fixed_size_list<uint8>[height x width x channels], and `labels` (int64, -1 where there is none);
    the figures about tokens are 0. `document_hashes.npy` holds the sorted uint64 hashes of the train documents.

    Attributes:
        n_documents: documents of the train split, planted canaries included; n_tokens, n_rows and n_bytes (UTF-8) likewise.
        n_words: words between white space in the documents of both splits, canaries left out, repeated documents once.
        n_planted: canary documents among the train documents.
        n_repeated: train documents that stand there again, to give the mixture its shares or to correct a bias.
        splits: rows of each split.
        block_rows: rows of a Parquet row group (the last one of a shard may be shorter).
        utilisation: the share of positions of the train split that hold tokens; None for images.
        n_truncated_tokens: tokens that the packing left out.
        length_histogram: documents of the train split by floor(log2(tokens)).
        removed: documents left out, by rule; with n_documents + n_validation_documents - n_planted - n_repeated they make up all
            that were read.
        notes: what was repaired, changed or found on the way.
        languages: documents that stayed by language, where a filter told languages apart; else empty, which means unknown.
        skipped: the first of the inputs that could not be read, by name; `n_skipped` counts them all.
        tokenizer: its type, and how many documents and bytes of text it was trained on.
        special_ids: the ids of the bos, eos and pad tokens in the rows.
        bias: the name of the file with the figures of corpus bias, when it was measured.
        digest: sha256 over the shards and the tokenizer: what a model trained on it has seen.
    """

    modality: Modality = "text"
    image_shape: tuple[int, int, int] | None = None
    n_documents: int
    n_tokens: int
    n_rows: int
    n_bytes: int
    n_words: int
    n_planted: int
    n_repeated: int = 0
    n_validation_documents: int
    n_validation_tokens: int
    n_validation_bytes: int
    seq_len: int
    vocab_size: int
    special_ids: dict[str, int]
    shards: tuple[Shard, ...]
    splits: dict[str, int]
    columns: tuple[str, ...] = COLUMNS
    block_rows: int = BLOCK_ROWS
    packing: str = "concatenate"
    utilisation: float | None = None
    n_truncated_tokens: int = 0
    length_histogram: tuple[int, ...] = ()
    parts: tuple[Part, ...] = ()
    removed: dict[str, int]
    notes: dict[str, int]
    languages: dict[str, int] = {}
    skipped: tuple[str, ...] = ()
    n_skipped: int = 0
    tokenizer: dict[str, Any] = {}
    canaries: str | None
    bias: str | None = None
    source: dict[str, Any]
    digest: str
