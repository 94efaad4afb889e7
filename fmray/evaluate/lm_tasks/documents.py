"""The documents of a task: reading them, drawing those that are scored and those that stand before them, and telling which were trained on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmray.core.artifact import load
from fmray.core.errors import DataError
from fmray.data.dataset import TOKENIZER, TokenDataset
from fmray.data.reader import TokenReader
from fmray.data.sources import Counts, Document
from fmray.data.sources._blocks import LINE
from fmray.data.sources._fields import Fields
from fmray.data.sources.jsonl import Jsonl, Records
from fmray.data.words import U64, among, batches, n_grams, words
from fmray.evaluate.lm_tasks.config import LmTask

N_GRAM = 13
"""So many words in a row that stand in a training document make a task's document contaminated (Brown et al. 2020, appendix C)."""

BLOCK_ROWS = 1024


class _Whole(Fields):
    """A record as it is."""

    def document(self, record: Mapping[str, Any], place: str, where: str) -> Document:
        """The record itself."""
        return dict(record)


@dataclass(frozen=True)
class Drawn:
    """What is scored and what stands before it, with the places in the file, counted from 0."""

    places: tuple[int, ...]
    documents: tuple[Document, ...]
    shot_places: tuple[int, ...]
    shots: tuple[Document, ...]


def read_documents(path: str) -> list[Document]:
    """The records of JSON Lines files in their order.

    Raises:
        DataError: there are none, or one is no JSON object.
    """
    source = Jsonl(path=path)
    reader = Records(_Whole(()), source.encoding, source.limit)
    # Many small files come as one part; each is read in order.
    found = [document for part in source.parts(reader, LINE, may_cut=lambda file: False) for document in part.read(Counts())]
    if not found:
        raise DataError("holds no documents", where=path)
    return found


def draw(name: str, task: LmTask, seed: int) -> Drawn:
    """The documents of a task that are scored, in the file's order, and its solved examples, which are none of them.

    Raises:
        DataError: there are too few documents.
    """
    documents = read_documents(task.path)
    if len(documents) <= task.shots:
        raise DataError(f"holds {len(documents)} documents, too few for {task.shots} solved examples and one to score", where=task.path, todo=f"lower tasks.{name}.shots")
    order = np.random.default_rng([seed, len(documents)]).permutation(len(documents)).tolist()
    shots = order[len(order) - task.shots :]
    places = sorted(order[: len(order) - task.shots][: task.limit])
    return Drawn(tuple(places), tuple(documents[i] for i in places), tuple(shots), tuple(documents[i] for i in shots))


def contaminated(texts: Sequence[str], dataset_path: Path) -> NDArray[np.float64]:
    """For each text 1 when N_GRAM words of it in a row stand in a training document of a dataset, else 0; NaN for a shorter text.

    The documents are read back from the token rows in storage order. A run of words that a row's end cuts is put together again where
    the next row goes on with the same document.

    Raises:
        DataError: the dataset holds images.
    """
    if load(dataset_path, TokenDataset).payload.modality != "text":
        raise DataError("holds images, so no text can be found in it", where=str(dataset_path))
    hash_G, text_G = n_grams(words(list(texts)), N_GRAM)
    known = np.unique(hash_G)
    found = np.zeros(len(known), dtype=bool)
    if len(known):
        for block in _training_texts(dataset_path):
            for batch in batches(block):
                seen_G = n_grams(words(block[batch.start : batch.stop]), N_GRAM)[0]
                found |= _marked(known, seen_G)
    hit_N = np.full(len(texts), np.nan)
    hit_N[text_G] = 0.0
    hit_N[text_G[found[np.searchsorted(known, hash_G)]]] = 1.0
    return hit_N


def _marked(known: U64, seen_G: U64) -> NDArray[np.bool_]:
    marks = np.zeros(len(known), dtype=bool)
    marks[np.searchsorted(known, seen_G[among(seen_G, known)])] = True
    return marks


def _training_texts(dataset_path: Path) -> Iterator[list[str]]:
    """The training documents as texts, block by block; what the end of a block cuts goes on in the next."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(dataset_path / TOKENIZER, local_files_only=True, trust_remote_code=False)
    bos = load(dataset_path, TokenDataset).payload.special_ids["bos"]
    reader, rest = TokenReader(dataset_path, "train", 0, 1), np.empty(0, np.int64)
    for start in range(0, reader.n_rows, BLOCK_ROWS):
        rows = reader.rows(start, min(start + BLOCK_ROWS, reader.n_rows))
        ids = np.concatenate([rest, rows["input_ids_BT"][rows["segment_ids_BT"] != 0]])
        parts = np.split(ids, np.flatnonzero(ids == bos))
        rest = parts.pop()
        yield tokenizer.batch_decode([part.tolist() for part in parts if len(part)], skip_special_tokens=True)
    yield tokenizer.batch_decode([rest.tolist()], skip_special_tokens=True)
