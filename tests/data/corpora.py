"""Small real corpora and prepared datasets for the tests of the data room."""

import ast
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import fmray.data.prepare  # noqa: F401  registers the stage
from fmray.core.artifact import Artifact
from fmray.core.experiment import Experiment
from fmray.data.dataset import SPLITS, TokenDataset
from fmray.data.sources import Document
from fmray.data.sources.python_docs import TOPICS, PythonDocs, library


@cache
def topics() -> list[str]:
    """The paragraphs of the texts behind Python's `help()`, about 2,600, with their repetitions."""
    (assigned,) = [node for node in ast.parse((library() / TOPICS).read_bytes()).body if isinstance(node, ast.Assign)]
    texts = ast.literal_eval(assigned.value).values()
    return [part.strip() for text in texts for part in text.split("\n\n") if part.strip()]


@cache
def docstrings() -> list[Document]:
    """The documents that `python_docs` gives to tasks."""
    return list(PythonDocs().iter_documents())


def write_texts(folder: Path, paragraphs: list[str], n_files: int = 3, seed: int = 0) -> Path:
    """The paragraphs spread over text files, in an order of their own."""
    folder.mkdir(parents=True)
    shuffled = list(paragraphs)
    random.Random(seed).shuffle(shuffled)
    for i in range(n_files):
        (folder / f"{i}.txt").write_text("\n\n".join(shuffled[i::n_files]), encoding="utf-8")
    return folder


def prepare(storage: Path, source: dict[str, Any], **config: Any) -> Artifact[TokenDataset]:
    """Runs the stage through the core, as `fmray run` does."""
    step = {"stage": "prepare", "source": source, "seq_len": 64, "vocab_size": 400} | config
    (outcome,) = Experiment({"name": "data", "steps": {"corpus": step}}, where="test", storage=str(storage)).run()
    artifact: Artifact[TokenDataset] = outcome.artifact
    return artifact


def columns(artifact: Artifact[TokenDataset], split: str, name: str, source: str | None = None) -> np.ndarray:
    """A column of all rows of a split (of one source), in storage order."""
    shards = [s for s in artifact.payload.shards if s.split == split and source in (None, s.source)]
    paths = [artifact.path / shard.name for shard in shards]
    seq_len = artifact.payload.seq_len
    return np.concatenate(
        [pq.read_table(path)[name].combine_chunks().flatten().to_numpy().reshape(-1, seq_len) for path in paths]
    )


def documents(artifact: Artifact[TokenDataset], split: str, source: str | None = None) -> list[str]:
    """The texts of a split (of one source), put together again from its rows."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(artifact.path / "tokenizer" / "tokenizer.json"))
    special = artifact.payload.special_ids
    ids = columns(artifact, split, "input_ids", source)[columns(artifact, split, "segment_ids", source) > 0]
    starts, ends = np.flatnonzero(ids == special["bos"]), np.flatnonzero(ids == special["eos"])
    assert len(starts) == len(ends)
    assert (starts < ends).all()
    return tokenizer.decode_batch([ids[a + 1 : b].tolist() for a, b in zip(starts, ends, strict=True)])


def hashes_of(artifact: Artifact[TokenDataset]) -> dict[str, str]:
    """The digest of every shard by name."""
    assert {shard.split for shard in artifact.payload.shards} == set(SPLITS)
    return {shard.name: shard.sha256 for shard in artifact.payload.shards}


def drawn_canaries(artifact: Artifact[TokenDataset]) -> dict[str, Any]:
    """The content of canaries.json."""
    found: dict[str, Any] = json.loads((artifact.path / "canaries.json").read_text())
    return found
