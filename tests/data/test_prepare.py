"""The prepare stage as a whole: what comes out is what went in, once, the same every time."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fmray.core.artifact import Artifact, load, sha256_file
from fmray.core.config import load_config
from fmray.core.errors import ConfigError, DataError, FmrayError
from fmray.data.dataset import BLOCK_ROWS, COLUMNS, TokenDataset
from fmray.data.prepare import PrepareConfig, plan
from fmray.data.text import document_hash, normalise
from tests.data.conftest import CANARIES, SMALL_SHARDS
from tests.data.corpora import columns, documents, drawn_canaries, hashes_of, prepare, topics, write_texts


def test_every_distinct_document_is_in_one_split_once(dataset: Artifact[TokenDataset]) -> None:
    drawn = drawn_canaries(dataset)
    planted = {drawn["template"].format(secret=s) for secrets in drawn["levels"].values() for s in secrets}
    found = documents(dataset, "train") + documents(dataset, "validation")
    kept = [text for text in found if text not in planted]
    assert sorted(kept) == sorted({normalise(text) for text in topics()})


def test_every_document_is_accounted_for(dataset: Artifact[TokenDataset]) -> None:
    made = dataset.payload
    assert made.n_documents == len(documents(dataset, "train"))
    assert made.n_validation_documents == len(documents(dataset, "validation"))
    assert made.removed == {"exact_duplicate": len(topics()) - len({normalise(t) for t in topics()})}
    assert made.n_documents + made.n_validation_documents - made.n_planted + sum(made.removed.values()) == len(topics())
    assert made.n_words == sum(len(text.split()) for text in {normalise(t) for t in topics()})
    assert made.n_bytes == sum(len(text.encode()) for text in documents(dataset, "train"))
    assert made.n_validation_bytes == sum(len(text.encode()) for text in documents(dataset, "validation"))
    share = made.n_validation_documents / (made.n_validation_documents + made.n_documents - made.n_planted)
    assert abs(share - 0.1) < 0.03


def test_rows_are_packed_full_and_counted(dataset: Artifact[TokenDataset]) -> None:
    made = dataset.payload
    for split, n_tokens in (("train", made.n_tokens), ("validation", made.n_validation_tokens)):
        used = columns(dataset, split, "segment_ids") > 0
        assert used.sum() == n_tokens
        assert len(used) == made.splits[split] == sum(s.rows for s in made.shards if s.split == split)
        n_shards = sum(s.split == split for s in made.shards)
        assert n_shards > 1
        assert (~used.all(axis=1)).sum() <= n_shards
        assert (columns(dataset, split, "input_ids")[~used] == made.special_ids["pad"]).all()
    assert made.n_rows == made.splits["train"]


def test_shards_hold_what_their_entry_says(dataset: Artifact[TokenDataset]) -> None:
    for shard in dataset.payload.shards:
        file = pq.ParquetFile(dataset.path / shard.name)
        assert sha256_file(dataset.path / shard.name) == shard.sha256
        assert file.metadata.num_rows == shard.rows
        assert [str(t) for t in file.schema_arrow.types] == ["fixed_size_list<element: int32>[64]"] * 3
        assert tuple(file.schema_arrow.names) == COLUMNS
        groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        assert all(n == BLOCK_ROWS for n in groups[:-1])
    assert not (dataset.path / "work").exists()
    assert dataset.record.provenance.devices == ("1 x cpu",)
    assert dataset.record.provenance.device_hours > 0
    assert load(dataset.path, TokenDataset).payload == dataset.payload


def test_hashes_are_those_of_the_train_documents(dataset: Artifact[TokenDataset]) -> None:
    known = np.load(dataset.path / "document_hashes.npy")
    assert known.dtype == np.uint64
    assert known.tolist() == sorted({document_hash(text) for text in documents(dataset, "train")})
    assert not set(known.tolist()) & {document_hash(text) for text in documents(dataset, "validation")}


def test_neighbours_in_the_corpus_are_strangers_in_the_rows(dataset: Artifact[TokenDataset]) -> None:
    place = {text: i for i, text in enumerate(dict.fromkeys(normalise(t) for t in topics()))}
    order = np.array([place[text] for text in documents(dataset, "train") if text in place])
    assert (np.abs(np.diff(order)) == 1).mean() < 0.01
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.1


def test_other_files_in_another_order_give_the_same_bytes(dataset: Artifact[TokenDataset], tmp_path: Path) -> None:
    source = {"type": "text", "path": str(write_texts(tmp_path / "other", topics(), n_files=7, seed=5))}
    again = prepare(tmp_path / "runs", source, shard_mb=SMALL_SHARDS, canaries=CANARIES, validation_fraction=0.1)
    assert hashes_of(again) == hashes_of(dataset)
    assert again.payload.digest == dataset.payload.digest
    assert again.fingerprint != dataset.fingerprint
    assert sha256_file(again.path / "document_hashes.npy") == sha256_file(dataset.path / "document_hashes.npy")


def test_another_seed_makes_other_rows_of_the_same_documents(
    dataset: Artifact[TokenDataset], corpus: Path, tmp_path: Path
) -> None:
    other = prepare(
        tmp_path,
        {"type": "text", "path": str(corpus)},
        seed=1,
        shard_mb=SMALL_SHARDS,
        canaries=CANARIES,
        validation_fraction=0.1,
    )
    assert hashes_of(other) != hashes_of(dataset)
    assert sorted(documents(other, "train") + documents(other, "validation")) == sorted(
        documents(dataset, "train") + documents(dataset, "validation")
    )


def test_a_moved_corpus_is_a_cache_hit_and_a_changed_one_drifts(
    dataset: Artifact[TokenDataset], corpus: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(corpus, tmp_path / "moved")
    storage = dataset.path.parent.parent
    settings = {"shard_mb": SMALL_SHARDS, "canaries": CANARIES, "validation_fraction": 0.1}
    written = (dataset.path / "record.json").stat().st_mtime_ns
    assert prepare(storage, {"type": "text", "path": str(moved)}, **settings).fingerprint == dataset.fingerprint
    assert (dataset.path / "record.json").stat().st_mtime_ns == written
    (moved / "0.txt").write_text("changed")
    with pytest.raises(FmrayError, match=r"source\.files\.sha256"):
        prepare(storage, {"type": "text", "path": str(moved)}, **settings)


def test_a_loaded_tokenizer_and_jsonl(dataset: Artifact[TokenDataset], ray_session: None, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"body": text}) for text in topics()[:300]))
    source = {"type": "jsonl", "path": str(path), "text": "body"}
    tokenizer = {"type": "pretrained", "path": str(dataset.path / "tokenizer")}
    made = prepare(tmp_path / "runs", source, tokenizer=tokenizer, validation_fraction=0.2)
    assert sha256_file(made.path / "tokenizer" / "tokenizer.json") == sha256_file(
        dataset.path / "tokenizer" / "tokenizer.json"
    )
    assert {normalise(t) for t in topics()[:300]} == set(documents(made, "train") + documents(made, "validation"))
    assert made.payload.canaries is None
    assert not (made.path / "canaries.json").exists()
    with pytest.raises(ConfigError, match="set vocab_size: 400"):
        prepare(tmp_path / "other", source, tokenizer=tokenizer, vocab_size=500)


def test_check_says_what_it_knows_and_no_more() -> None:
    config = load_config(
        PrepareConfig, {"source": {"type": "python_docs"}, "seq_len": 128, "vocab_size": 1024, "canaries": {}}
    )
    lines = plan(config, {})
    assert lines["rows, tokens"] == "unknown until prepare has run"
    assert lines["vocabulary"].startswith("1,024 ")
    assert lines["row"] == "128 positions, concatenate"
    assert lines["corpus"].startswith("read, laid down shuffled")
    assert "1, 4, 16, 64" in lines["canaries"]


def check_refused(tmp_path: Path, content: bytes, message: str, **settings: object) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "x.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        prepare(tmp_path / "runs", {"type": "text", "path": str(tmp_path / "corpus")}, **settings)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs" / "data" / "corpus").exists()


def test_an_empty_corpus(ray_session: None, tmp_path: Path) -> None:
    check_refused(tmp_path, b"\n \n\x07\n", r"holds no document \(removed empty: 1\)")


def test_bytes_that_are_no_text_are_named_across_ray(ray_session: None, tmp_path: Path) -> None:
    check_refused(tmp_path, b"fine\n\n\x00\xff", r"x\.txt: is not text at offset 6 \(null byte\)")


def test_a_vocabulary_larger_than_the_data_supports(ray_session: None, tmp_path: Path) -> None:
    check_refused(tmp_path, "\n\n".join(topics()[:50]).encode(), "supports a vocabulary of [0-9]+, not 9000", vocab_size=9000)


def test_a_split_without_a_row(ray_session: None, tmp_path: Path) -> None:
    check_refused(
        tmp_path,
        "\n\n".join(topics()[:40]).encode(),
        "0.0001 of .* documents leaves the validation split empty",
        vocab_size=300,
        validation_fraction=0.0001,
    )
