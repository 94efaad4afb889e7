"""What holds for every source: one harness over all registered members, so that a new one is tested by existing."""

import gzip
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fmray.core.artifact import fingerprint
from fmray.data.sources import Counts, Document, Source
from fmray.data.sources.python_docs import library, modules
from tests.data.reading import read, source

N = 700
WORDS = [f"document number {n} of these, " * (1 + n % 5) for n in range(N)]


def picture(n: int) -> bytes:
    out = BytesIO()
    Image.fromarray(np.full((3, 4), n % 256, np.uint8)).save(out, "PNG")
    return out.getvalue()


def text(folder: Path) -> dict[str, Any]:
    (folder / "a.txt").write_text("\n\n".join(WORDS[:500]))
    (folder / "b.md.gz").write_bytes(gzip.compress("\n\n".join(WORDS[500:]).encode()))
    return {"path": str(folder)}


def jsonl(folder: Path) -> dict[str, Any]:
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": word}) + "\n" for word in WORDS[:500]))
    (folder / "b.json").write_text(json.dumps([{"text": word} for word in WORDS[500:]]))
    return {"path": str(folder)}


def table(folder: Path) -> dict[str, Any]:
    for name, words in (("a", WORDS[:500]), ("b", WORDS[500:])):
        (folder / f"{name}.csv").write_text("n,text\n" + "".join(f'{n},"{word}"\n' for n, word in enumerate(words)))
    return {"path": str(folder)}


def parquet(folder: Path) -> dict[str, Any]:
    pq.write_table(pa.table({"text": WORDS}), folder / "a.parquet", row_group_size=50)
    return {"path": str(folder)}


def hf_dataset(folder: Path) -> dict[str, Any]:
    rows = pa.table({"text": WORDS})
    for n in range(2):
        with pa.OSFile(str(folder / f"{n}.arrow"), "wb") as out, pa.ipc.new_stream(out, rows.schema) as writer:
            writer.write_table(rows.slice(n * 350, 350), max_chunksize=100)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "0.arrow"}, {"filename": "1.arrow"}]}))
    return {"path": str(folder)}


def fasta(folder: Path) -> dict[str, Any]:
    (folder / "a.fa").write_text("".join(f">r{n} a record\n{'ACGT' * (1 + n % 9)}\nAC\n" for n in range(N)))
    return {"path": str(folder), "alphabet": "dna"}


def image_folder(folder: Path) -> dict[str, Any]:
    for n in range(N):
        (folder / str(n % 3)).mkdir(exist_ok=True)
        (folder / str(n % 3) / f"{n}.png").write_bytes(picture(n))
    return {"path": str(folder)}


def parquet_images(folder: Path) -> dict[str, Any]:
    pq.write_table(pa.table({"image": [picture(n) for n in range(N)]}), folder / "a.parquet", row_group_size=50)
    return {"path": str(folder)}


def idx(folder: Path) -> dict[str, Any]:
    (folder / "images").write_bytes(b"\0\0\x08\x03" + np.array([N, 3, 4], ">u4").tobytes() + np.arange(N * 12, dtype=np.uint8).tobytes())
    return {"images": str(folder / "images")}


def conll(folder: Path) -> dict[str, Any]:
    sentences = ["# a comment\n" + "".join(f"{word}\tO\n" for word in document.split()) for document in WORDS]
    (folder / "a.conll").write_text("\n".join(sentences[:500]))
    (folder / "b.iob2.gz").write_bytes(gzip.compress("\n".join(sentences[500:]).encode()))
    return {"path": str(folder)}


def squad(folder: Path) -> dict[str, Any]:
    asked = [{"context": word, "qas": [{"id": str(n), "question": "which?", "answers": [{"text": "document", "answer_start": 0}]}]} for n, word in enumerate(WORDS)]
    for name, part in (("a", asked[:500]), ("b", asked[500:])):
        (folder / f"{name}.json").write_text(json.dumps({"data": [{"paragraphs": part}]}))
    return {"path": str(folder)}


def mixture(folder: Path) -> dict[str, Any]:
    for name in ("a", "b"):
        (folder / name).mkdir()
    (folder / "a" / "a.txt").write_text("\n\n".join(WORDS[:300]))
    (folder / "b" / "a.txt").write_text("\n\n".join(WORDS[300:]))
    return {"sources": {name: {"weight": 1, "source": {"type": "text", "path": str(folder / name)}} for name in ("a", "b")}}


def python_docs(folder: Path) -> dict[str, Any]:
    return {}


CORPORA: dict[str, Callable[[Path], dict[str, Any]]] = {
    "text": text,
    "jsonl": jsonl,
    "csv": table,
    "parquet": parquet,
    "hf_dataset": hf_dataset,
    "fasta": fasta,
    "image_folder": image_folder,
    "parquet_images": parquet_images,
    "idx": idx,
    "conll": conll,
    "squad": squad,
    "mixture": mixture,
    "python_docs": python_docs,
}
MEMBERS = list(Source.members())


@pytest.fixture(scope="module", params=MEMBERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Source, Path]]:
    folder = tmp_path_factory.mktemp(request.param)
    some = tuple(item for item in modules(library()) if item[0].startswith(("a", "l")))
    with pytest.MonkeyPatch.context() as patch:
        # All of the standard library takes seconds, each time.
        patch.setattr("fmray.data.sources.python_docs.modules", lambda root: some)
        yield source(type=request.param, **CORPORA[request.param](folder)), folder


def plain(document: Document) -> dict[str, Any]:
    return {k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in document.items()}


def documents(parts: list[Any]) -> list[dict[str, Any]]:
    return [plain(document) for part in parts for document in part.read(Counts())]


def test_it_is_tried_with_a_corpus_of_its_own() -> None:
    assert sorted(CORPORA) == MEMBERS


def test_documents_are_what_they_should_be(made: tuple[Source, Path]) -> None:
    found, counts = read(made[0])
    assert len(found) == N or made[0].type == "python_docs"  # type: ignore[attr-defined]
    assert not counts.n_bad
    content = "image" if made[0].modality == "image" else "text"
    for document in found:
        assert isinstance(document["id"], str)
        if content == "text":
            assert isinstance(document["text"], str)
            assert document["text"].strip()
        else:
            assert document["image"].dtype == np.uint8
            assert document["image"].ndim == 3
    assert max(Counter(document["id"] for document in found).values()) == 1


def test_partitions_are_small_and_survive_a_pickle(made: tuple[Source, Path]) -> None:
    parts = list(made[0].partitions())
    again = [pickle.loads(pickle.dumps(part)) for part in parts]
    assert documents(again) == documents(parts)
    n_files = max(1, sum(1 for p in made[1].rglob("*") if p.is_file()))
    assert sum(len(pickle.dumps(part)) for part in parts) < 200_000 + 400 * n_files


def test_reading_twice_gives_the_same_in_any_order_of_partitions(made: tuple[Source, Path]) -> None:
    first = list(made[0].partitions())
    assert first == list(made[0].partitions())
    by_part = {n: documents([first[n]]) for n in reversed(range(len(first)))}
    assert [d for n in range(len(first)) for d in by_part[n]] == documents(first)


def test_smaller_partitions_cover_the_corpus_exactly_once(made: tuple[Source, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = documents(list(made[0].partitions()))
    monkeypatch.setattr("fmray.data.sources._files.SMALLEST_PART", 1500)
    monkeypatch.setattr("fmray.data.sources.idx.IN_A_PART", 99)
    parts = list(made[0].partitions())
    assert len(parts) > 1
    assert documents(parts) == whole


def test_the_identity_is_plain_stable_and_free_of_paths(made: tuple[Source, Path]) -> None:
    identity = made[0].identity()
    assert identity["type"] == made[0].type  # type: ignore[attr-defined]
    assert fingerprint(identity) == fingerprint(json.loads(json.dumps(made[0].identity())))
    for path in (made[1], Path.cwd(), Path.home()):
        assert len(str(path)) < 6 or str(path) not in json.dumps(identity)


def test_what_does_not_change_the_documents_does_not_change_the_identity(made: tuple[Source, Path]) -> None:
    borne = made[0].model_copy(update={"on_error": "skip", "max_bad_fraction": 0.5})
    assert borne.identity() == made[0].identity()
    assert documents(list(borne.partitions())) == documents(list(made[0].partitions()))


def test_a_source_is_itself_its_only_share_unless_it_is_a_mixture(made: tuple[Source, Path]) -> None:
    shares = made[0].mixture()
    parts = [part for share in shares.values() for part in share.source.partitions()]
    assert sum(1 for part in parts for _ in part.read(Counts())) == len(documents(list(made[0].partitions())))
    assert len(shares) == (2 if made[0].type == "mixture" else 1)  # type: ignore[attr-defined]
