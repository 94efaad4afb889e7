"""The ways through a corpus: mixtures, one pass, corrections of bias, images, and what a killed run leaves for the next."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmray.core.artifact import Artifact, load
from fmray.core.errors import ConfigError, DataError, ResourceError
from fmray.data.dataset import TokenDataset
from fmray.data.documents import (
    COPY_STEP,
    Place,
    documents_between,
    documents_table,
    first_of_each,
    key_ranges,
    lay_down,
)
from fmray.data.ingest import text_hashes
from fmray.data.shards import words_in
from fmray.data.shares import BINS, by_bytes, repeats
from fmray.data.text import document_hash, normalise
from fmray.data.writing import block_rows
from tests.data.corpora import columns, documents, hashes_of, prepare, topics, write_texts


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two sources without a document in common, one three times as large as the other."""
    root = tmp_path_factory.mktemp("halves")
    distinct = list(dict.fromkeys(normalise(t) for t in topics() if len(t) > 60))
    cut = len(distinct) // 4
    few, many = write_texts(root / "few", distinct[:cut]), write_texts(root / "many", distinct[cut:])
    return {name: {"source": {"type": "text", "path": str(path)}} for name, path in (("few", few), ("many", many))}


def mixed(halves: dict[str, Any], **weights: float) -> dict[str, Any]:
    return {"type": "mixture", "sources": {name: part | ({"weight": weights[name]} if weights else {}) for name, part in halves.items()}}


def texts_of(artifact: Artifact[TokenDataset], source: str, split: str = "train") -> list[str]:
    found = [s for s in artifact.payload.shards if s.source == source and s.split == split]
    assert all(source in Path(s.name).name for s in found)
    return documents(artifact, split, source)


def test_a_mixture_without_weights_is_everything_once_by_source(ray_session: None, halves: dict[str, Any], tmp_path: Path) -> None:
    made = prepare(tmp_path, mixed(halves), shard_mb=0.1)
    parts = {part.name: part for part in made.payload.parts}
    for name in halves:
        texts = texts_of(made, name)
        assert len(texts) == len(set(texts)) == parts[name].n_documents
        assert (parts[name].weight, parts[name].repeats) == (None, 1.0)
    assert sum(part.n_tokens for part in parts.values()) == made.payload.n_tokens
    assert parts["few"].share == pytest.approx(parts["few"].n_tokens / made.payload.n_tokens)
    assert made.payload.n_repeated == 0


def test_weights_become_shares_of_tokens(ray_session: None, halves: dict[str, Any], tmp_path: Path) -> None:
    made = prepare(tmp_path, mixed(halves, few=2, many=2), shard_mb=0.1)
    parts = {part.name: part for part in made.payload.parts}
    assert abs(parts["few"].share - 0.5) < 0.02
    few = texts_of(made, "few")
    counted = {text: few.count(text) for text in set(few)}
    assert parts["few"].repeats > 1.5
    assert set(counted.values()) <= {int(parts["few"].repeats), int(parts["few"].repeats) + 1}
    assert np.mean(list(counted.values())) == pytest.approx(parts["few"].repeats, rel=0.1)
    assert made.payload.removed["mixture_share"] > 0, "of the larger source some documents are left out"
    gaps = [b - a for text in list(counted)[:40] if counted[text] > 1 for a, b in [[i for i, t in enumerate(few) if t == text][:2]]]
    assert np.median(gaps) > len(few) / 20, "repetitions lie far apart"
    assert not {*texts_of(made, "few", "validation")} & set(few)
    capped = prepare(tmp_path / "capped", mixed(halves, few=9, many=1), shard_mb=0.1, max_repeats=2)
    assert {part.name: part.repeats for part in capped.payload.parts}["few"] == pytest.approx(2.0)
    assert abs(capped.payload.parts[0].share - 0.9) < 0.03


@given(sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=40), mean=st.floats(0, 8), seed=st.integers(0, 2**32))
def test_a_share_of_bytes_is_met_as_nearly_as_the_documents_allow(sizes: list[int], mean: float, seed: int) -> None:
    bins = np.zeros(BINS, np.int64)
    places = np.random.default_rng(seed).permutation(BINS)[: len(sizes)]
    bins[places] = sizes
    found = by_bytes(mean, bins)
    taken = int(found) * sum(sizes) + bins[: round(found % 1.0 * BINS)].sum()
    assert abs(taken - mean * sum(sizes)) <= max(sizes) / 2 + 1e-6 * sum(sizes)


def test_one_huge_document_does_not_spoil_the_shares(ray_session: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(400)]
    texts = {
        "many": [" ".join(rng.choice(words, 40)) for _ in range(400)] + [" ".join(rng.choice(words, 8000)) for _ in range(3)],
        "few": [" ".join(rng.choice(words, 40)) for _ in range(700)],
    }
    halves = {name: {"source": {"type": "text", "path": str(write_texts(tmp_path / name, found))}} for name, found in texts.items()}
    made = prepare(tmp_path / "corpus", mixed(halves, few=1, many=1), shard_mb=0.05)
    shares = {part.name: part.share for part in made.payload.parts}
    assert shares["few"] == pytest.approx(0.5, abs=0.1)


def test_shares_of_a_mixture() -> None:
    assert repeats([1, 1], [100, 300], 4) == pytest.approx((2.0, 2 / 3))
    assert repeats([3, 1], [100, 300], 64) == pytest.approx((3.0, 1 / 3))
    assert repeats([9, 1], [100, 900], 2) == pytest.approx((2.0, 2 * 100 / 9 / 900))


def test_one_pass_keeps_the_order_of_the_files_and_every_document(
    ray_session: None, dataset: Artifact[TokenDataset], corpus: Path, tmp_path: Path
) -> None:
    tokenizer = {"type": "pretrained", "path": str(dataset.path / "tokenizer")}
    source = {"type": "text", "path": str(corpus)}
    made = prepare(tmp_path, source, tokenizer=tokenizer, deduplicate={"exact": False}, validation_fraction=0.1)
    read = [normalise(part) for path in sorted(corpus.glob("*.txt")) for part in path.read_text().split("\n\n") if part.strip()]
    held_out = set(documents(made, "validation"))
    assert documents(made, "train") == [text for text in read if text not in held_out]
    assert made.payload.removed == {}
    assert made.payload.n_documents + made.payload.n_validation_documents == len(read)
    assert made.payload.n_words == words_in(read)
    assert np.load(made.path / "document_hashes.npy").tolist() == sorted({document_hash(t) for t in documents(made, "train")})
    # The same texts fall on the same side as in two passes with the same seed.
    assert held_out == set(documents(dataset, "validation"))


def test_filters_account_for_what_they_remove(ray_session: None, corpus: Path, tmp_path: Path) -> None:
    source = {"type": "text", "path": str(corpus)}
    made = prepare(tmp_path, source, filters=[{"type": "length", "min_chars": 80}])
    n_short = sum(len(normalise(t)) < 80 for t in topics())
    assert sum(n for rule, n in made.payload.removed.items() if rule.startswith("length/")) == n_short
    assert all(len(text) >= 80 for text in documents(made, "train"))
    none = prepare(tmp_path / "none", source, filters=[{"type": "length", "min_chars": 80, "sources": ["all"]}], vocab_size=300)
    assert none.payload.removed == made.payload.removed
    listed = [json.loads(line) for line in (made.path / "removed.jsonl").read_text().splitlines()]
    assert 0 < len(listed) <= 20
    assert all(len(row["text"]) < 80 and row["rule"].startswith("length/") for row in listed)


def test_near_duplicates_go_across_files(ray_session: None, tmp_path: Path) -> None:
    long = [normalise(t) for t in topics() if len(t.split()) > 60][:60]
    altered = [text.rsplit(" ", 1)[0] + " altered" for text in long]
    source = {"type": "text", "path": str(write_texts(tmp_path / "texts", [*long, *altered]))}
    near = {"exact": True, "near": {"threshold": 0.7}}
    made = prepare(tmp_path / "runs", source, deduplicate=near, validation_fraction=0.2, vocab_size=300)
    kept = [*documents(made, "train"), *documents(made, "validation")]
    distinct = set(long)
    assert made.payload.removed["near_duplicate"] == pytest.approx(len(distinct), abs=3)
    assert len(kept) == pytest.approx(len(distinct), abs=3)


def test_bias_is_measured_and_corrected(ray_session: None, tmp_path: Path) -> None:
    he = [f"The doctor said that he would see patient number {i} in his room before noon." for i in range(300)]
    she = [f"The nurse said that she had met visitor number {i} and her friend in the hall." for i in range(60)]
    source = {"type": "text", "path": str(write_texts(tmp_path / "texts", he + she))}
    config = {"vocab_size": 300, "seq_len": 32, "validation_fraction": 0.1, "shard_mb": 0.01}

    def distance(artifact: Artifact[TokenDataset], when: str) -> float:
        return float(json.loads((artifact.path / "bias.json").read_text())[when]["representation"]["distance_from_uniform"])

    plain = prepare(tmp_path / "plain", source, bias={}, **config)
    assert distance(plain, "before") == distance(plain, "after") > 0.2
    even = prepare(tmp_path / "even", source, bias={"correct": "rebalance"}, **config)
    assert distance(even, "before") == distance(plain, "before")
    assert distance(even, "after") < distance(even, "before") / 2
    assert even.payload.n_repeated > 0
    both = prepare(tmp_path / "both", source, bias={"correct": "augment"}, **config)
    assert distance(both, "after") < 0.01
    train = documents(both, "train")
    assert sum("she would see" in text for text in train) == sum("he would see" in text and "she" not in text for text in train)
    assert both.payload.n_repeated == len(train) // 2


def images(folder: Path, n: int = 60) -> dict[str, Any]:
    from PIL import Image

    draw = np.random.default_rng(0)
    for i in range(n):
        (folder / str(i % 3)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (6, 5), np.uint8)).save(folder / str(i % 3) / f"{i}.png")
    shutil.copy(folder / "0" / "0.png", folder / "1" / "again.png")
    return {"type": "image_folder", "path": str(folder)}


def prepare_images(storage: Path, source: dict[str, Any], **config: Any) -> Artifact[TokenDataset]:
    return prepare(storage, source, **{"seq_len": None, "vocab_size": None, "image": {"height": 6, "width": 5, "channels": 1}, "validation_fraction": 0.2} | config)


def test_images_become_rows_of_pixels(ray_session: None, tmp_path: Path) -> None:
    from PIL import Image

    source = images(tmp_path / "images")
    made = prepare_images(tmp_path / "runs", source)
    assert (made.payload.modality, made.payload.image_shape) == ("image", (6, 5, 1))
    assert made.payload.removed == {"exact_duplicate": 1}
    found: dict[bytes, int] = {}
    for shard in made.payload.shards:
        table = pq.read_table(made.path / shard.name)
        assert [str(t) for t in table.schema.types] == ["fixed_size_list<element: uint8>[30]", "int64"]
        found |= {bytes(p): label for p, label in zip(table["pixels"].to_pylist(), table["labels"].to_pylist(), strict=True)}
    wanted = {np.asarray(Image.open(path)).tobytes(): int(path.parent.name) for path in sorted((tmp_path / "images").rglob("*.png")) if path.stem != "again"}
    assert found == wanted
    assert made.payload.splits["validation"] > 0
    assert (made.path / "README.md").exists()
    # A picture of another size.
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "images" / "0" / "odd.png")
    with pytest.raises(DataError, match=r"odd\.png.* is 9 x 9 pixels, not 6 x 5"):
        prepare_images(tmp_path / "other", source)
    skipped = prepare_images(tmp_path / "third", source | {"on_error": "skip", "max_bad_fraction": 0.1})
    assert skipped.payload.n_skipped == 1
    assert "odd.png" in skipped.payload.skipped[0]
    resized = prepare_images(tmp_path / "fourth", source, image={"height": 6, "width": 5, "channels": 3, "fit": "resize"})
    assert sum(resized.payload.splits.values()) == 61


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seq_len": None}, "text needs seq_len and vocab_size"),
        ({"image": {"height": 2, "width": 2}}, "image is for sources of images"),
        ({"filters": [{"type": "lenght"}]}, "unknown filter 'lenght', did you mean 'length'?"),
        ({"filters": [{"type": "length", "sources": ["web"]}]}, "filters name the source 'web'; the sources are all"),
        ({"vocab_size": 100}, "vocab_size is 100, and a tokenizer of this type has at least 260 tokens"),
        ({"packing": {"type": "bestfit"}}, "unknown packing 'bestfit', did you mean 'best_fit'?"),
        ({"deduplicate": {"near": {"threshold": 2}}}, "deduplicate.near.threshold"),
        ({"source": {"type": "idx", "images": "x", "path": "x"}}, "corpus.source"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        prepare(tmp_path, config.pop("source", {"type": "python_docs"}), **config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_too_much_unreadable_input_stops_the_run(ray_session: None, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"a line that says {i} and goes on for a while"}) for i in range(400)]
    for i in range(0, 400, 50):
        lines[i] = "{broken"
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    source = {"type": "jsonl", "path": str(tmp_path / "x.jsonl"), "on_error": "skip"}
    with pytest.raises(DataError, match=r"8 of 400 inputs cannot be read, the first: .*x\.jsonl"):
        prepare(tmp_path / "runs", source, vocab_size=300)
    made = prepare(tmp_path / "runs", source | {"max_bad_fraction": 0.02}, vocab_size=300, validation_fraction=0.2)
    assert made.payload.n_skipped == len(made.payload.skipped) == 8


def test_a_full_disk_is_said_in_one_line_and_nothing_is_taken_for_finished(ray_session: None, corpus: Path, tmp_path: Path) -> None:
    import subprocess

    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(small)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system can be mounted by root alone")
    try:
        with pytest.raises(ResourceError, match="no space is left on the disk") as error:
            prepare(small, {"type": "text", "path": str(corpus)})
        assert "\n" not in str(error.value)
        assert not list(small.rglob("record.json"))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_copy_lies_in_one_range_and_far_from_the_first(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(500)]
    lay_down(documents_table(texts, text_hashes(texts), 5, Place(0, 0)), tmp_path, Place(0, 0))
    for copy in (0, 1, 3):
        found = [documents_between(tmp_path, low, high, copy) for low, high in key_ranges(7)]
        assert sorted(text for table in found for text in table["text"].to_pylist()) == sorted(texts)
        for (low, high), table in zip(key_ranges(7), found, strict=True):
            keys = table["key"].to_pylist()
            assert keys == sorted(keys)
            assert all(low <= k <= high for k in keys)
            if copy:
                assert all((first + copy * COPY_STEP) % 2**64 == k for first, k in zip(table["first_key"].to_pylist(), keys, strict=True))
    assert len(first_of_each(documents_between(tmp_path, 0, 2**64 - 1))) == 500


def test_blocks_take_about_a_mebibyte() -> None:
    assert [block_rows(12 * seq_len) for seq_len in (128, 512, 2048, 8192, 131_072)] == [256, 128, 32, 8, 8]


def kill_behind(argv: list[str], environment: dict[str, str], parts: Path) -> None:
    """Runs a command until three parts of a pass are done, and kills it."""
    import os
    import signal
    import subprocess
    import time

    with subprocess.Popen(argv, env=environment, start_new_session=True, stdout=subprocess.DEVNULL) as run:
        try:
            deadline = time.monotonic() + 120
            while len(list(parts.glob("*.pkl"))) < 3:
                assert run.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.002)
        finally:
            os.killpg(run.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("passes", [("ingested", "shards"), ("direct",)])
def test_a_prepare_that_is_killed_in_each_pass_goes_on_and_ends_in_the_same_bytes(
    ray_session: None, dataset: Artifact[TokenDataset], tmp_path: Path, passes: tuple[str, ...]
) -> None:
    import os
    import subprocess
    import sys

    source = {"type": "text", "path": str(write_texts(tmp_path / "texts", topics(), n_files=12))}
    step: dict[str, Any] = {"stage": "prepare", "source": source, "seq_len": 64, "vocab_size": 400, "shard_mb": 0.04}
    if passes == ("direct",):
        tokenizer = {"type": "pretrained", "path": str(dataset.path / "tokenizer")}
        step |= {"tokenizer": tokenizer, "deduplicate": {"exact": False}}
    (tmp_path / "file.json").write_text(json.dumps({"name": "data", "steps": {"corpus": step}}))
    argv = [sys.executable, "-m", "fmray", "run", str(tmp_path / "file.json"), "--storage", str(tmp_path / "killed")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    root = tmp_path / "killed" / "data" / "corpus"
    for which in passes:
        kill_behind(argv, environment, root / "work" / which)
    kept = {path.stem for path in (root / "work" / passes[-1]).glob("*.pkl")}
    written = {path: path.stat().st_mtime_ns for path in root.glob("train/part-*.parquet")}
    assert not (root / "record.json").exists()
    subprocess.run(argv, env=environment, check=True, timeout=200, stdout=subprocess.DEVNULL)
    again: Artifact[TokenDataset] = load(root, TokenDataset)
    for path, mtime in written.items():
        if path.name.removeprefix("part-").split(".")[0].zfill(6) in kept:
            assert path.stat().st_mtime_ns == mtime, "a finished shard was made again"
    whole = prepare(tmp_path / "whole", **step)
    assert hashes_of(again) == hashes_of(whole)
    assert again.payload == whole.payload
    assert columns(again, "train", "input_ids").shape[1] == 64
