"""The dataset card: `datasets` opens the folder by it, figures are there, and no text of a corpus becomes Markdown or HTML."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fmray.core.artifact import Artifact
from fmray.data.card import card
from fmray.data.dataset import CARD, Part, Shard, TokenDataset
from tests.data import made

HOSTILE = "x|</td><script>alert(1)</script>\n# heading\n![a](http://e.example/i.png) **b** \u202e`c`\x1b[31m"


def front(text: str) -> dict[str, Any]:
    _, head, _ = text.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(head)
    return found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Artifact[TokenDataset]:
    artifact = made.dataset(tmp_path_factory.mktemp("data") / "corpus", [("web", 70), ("books", 30)], 20)
    (artifact.path / CARD).write_text(card(artifact.payload, name="corpus"), encoding="utf-8")
    (artifact.path / "document_hashes.npy").write_bytes(b"no rows")
    (artifact.path / "removed.jsonl").write_text('{"no": "rows"}\n')
    return artifact


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def test_datasets_opens_the_folder_by_its_card(dataset: Artifact[TokenDataset], cache: str) -> None:
    import datasets

    opened = datasets.load_dataset(str(dataset.path), cache_dir=cache)
    assert {split: len(rows) for split, rows in opened.items()} == {"train": 100, "validation": 20}
    assert opened["train"].column_names == ["input_ids", "segment_ids", "position_ids"]
    assert sorted(row["input_ids"][0] for row in opened["train"]) == list(range(100))


def test_datasets_opens_the_files_that_the_card_names(dataset: Artifact[TokenDataset], cache: str) -> None:
    import datasets

    (config,) = front((dataset.path / CARD).read_text())["configs"]
    files = {entry["split"]: [str(dataset.path / path) for path in entry["path"]] for entry in config["data_files"]}
    opened = datasets.load_dataset("parquet", data_files=files, cache_dir=cache)
    assert (len(opened["train"]), len(opened["validation"])) == (100, 20)


def test_shards_may_lie_in_folders_of_their_sources(tmp_path: Path, cache: str) -> None:
    import datasets

    artifact = made.dataset(tmp_path / "corpus", [("web", 7), ("books", 5)], 3)
    moved = tuple(s.model_copy(update={"name": s.name.replace("train/", f"train/{s.source}/")}) for s in artifact.payload.shards)
    for old, new in zip(artifact.payload.shards, moved, strict=True):
        (artifact.path / new.name).parent.mkdir(parents=True, exist_ok=True)
        (artifact.path / old.name).rename(artifact.path / new.name)
    (artifact.path / CARD).write_text(card(artifact.payload.model_copy(update={"shards": moved}), name="corpus"), encoding="utf-8")
    opened = datasets.load_dataset(str(artifact.path), cache_dir=cache)
    assert {split: len(rows) for split, rows in opened.items()} == {"train": 12, "validation": 3}


def test_images_open_too(tmp_path: Path, cache: str) -> None:
    import datasets

    artifact = made.dataset(tmp_path / "images", [12], image_shape=(2, 3, 1))
    text = card(artifact.payload, name="digits")
    (artifact.path / CARD).write_text(text, encoding="utf-8")
    opened = datasets.load_dataset(str(artifact.path), cache_dir=cache)
    assert list(opened) == ["train"]
    assert np.array(opened["train"]["pixels"]).shape == (12, 6)
    assert "12 images of 2 x 3 pixels and 1 channels" in text
    assert "AutoTokenizer" not in text


def full(**changes: Any) -> TokenDataset:
    shard = {"split": "train", "name": "train/a.parquet", "rows": 4712, "sha256": "a" * 64}
    parts = tuple(
        Part(name=name, weight=weight, n_documents=10, n_tokens=1000, n_rows=20, n_bytes=4000, repeats=repeats, share=share)
        for name, weight, repeats, share in (("web", 0.7, 1.0, 0.702), ("books", None, 2.5, 0.298))
    )
    fields: dict[str, Any] = {
        "shards": (shard,), "splits": {"train": 4712, "validation": 0}, "n_documents": 1000, "n_planted": 85, "n_repeated": 15, "n_validation_documents": 100,
        "removed": {"exact_duplicate": 612, "few_words": 37}, "notes": {"email": 3}, "canaries": "canaries.json", "parts": parts, "utilisation": 0.9871,
        "n_truncated_tokens": 42, "languages": {"en": 900, "de": 100}, "tokenizer": {"type": "bpe", "n_documents": 900, "n_bytes": 10},
        "source": {"type": "mixture", "sources": {"web": {"source": {"type": "jsonl", "license": "cc-by-4.0"}, "weight": 0.7}, "books": {"source": {"type": "text", "sha256": "ab"}, "weight": 0.3}}},
    }  # fmt: skip
    return made.described((), **{k: v for k, v in (fields | changes).items() if k != "shards"}).model_copy(update={"shards": (Shard.model_validate(shard),)})


def test_it_says_what_the_dataset_is() -> None:
    text = card(full(), name="corpus")
    for said in (
        "1,649 documents were read, 1,000 kept and 649 removed", r"| exact duplicate | 612 |", "| web | 70.0% | 70.2% |", r"| books | as much as there is | 29.8% |",
        "85 of the training documents are canaries", "98.71%", "42 tokens were left out", r"| web | jsonl | cc\-by\-4.0 |", r"| books | text | unknown |",
        "nobody has said what it is", "bpe trained on 900 documents, vocabulary 400",
    ):  # fmt: skip
        assert said in text, said
    keys = front(text)
    assert keys["language"] == ["en", "de"]
    assert keys["license"] == ["cc-by-4.0"]
    assert keys["size_categories"] == ["1K<n<10K"]
    assert keys["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": ["train/*.parquet"]}]}]
    assert {"fmray", "tokenized", "packed", "canaries"} <= set(keys["tags"])
    plain = card(full(canaries=None, parts=(), languages={}, removed={}, n_planted=0), name="corpus")
    assert "anaries" not in plain
    assert "Mixture" not in plain
    assert "language" not in front(plain)


@pytest.mark.parametrize(("rows", "size"), [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**13, "n>1T")])
def test_sizes_are_those_that_the_hub_knows(rows: int, size: str) -> None:
    assert front(card(full(splits={"train": rows}), name="x"))["size_categories"] == [size]


def test_licences_may_be_told() -> None:
    text = card(full(), name="x", licences={"books": "cc0-1.0"})
    assert front(text)["license"] == ["cc-by-4.0", "cc0-1.0"]
    assert "nobody has said" not in text
    alone = card(full(source={"type": "text"}), name="x", licences={"all": "mit"})
    assert front(alone)["license"] == ["mit"]
    assert front(card(full(source={"type": "text"}), name="x"))["license"] == "unknown"


def test_hostile_names_are_shown_and_never_obeyed() -> None:
    payload = full(removed={HOSTILE: 3}, skipped=(HOSTILE,), n_skipped=1, languages={HOSTILE: 1}, source={"type": HOSTILE, "license": HOSTILE}, packing=HOSTILE)
    text = card(payload, name=HOSTILE)
    head, body = text.split("---\n", 2)[1:]
    assert yaml.safe_load(head)["pretty_name"] == HOSTILE
    assert "<script" not in body
    assert "\x1b" not in body
    assert "\u202e" not in body
    assert not re.search(r"^# heading", body, re.MULTILINE)
    assert "![a]" not in body
    for line in body.splitlines():
        if line.startswith("| x"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4)
