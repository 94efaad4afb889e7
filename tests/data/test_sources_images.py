"""Sources of images, and every way of being no image."""

import gzip
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fmray.core.errors import ConfigError
from tests.data.reading import SHARED, assert_refused, needs_shared, read, skipped, source

NOISE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def png(pixels: np.ndarray, form: str = "PNG", mode: str | None = None) -> bytes:
    out = BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(out, form)
    return out.getvalue()


def idx(array: np.ndarray, cut: int = 0) -> bytes:
    raw = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    return raw[: len(raw) - cut]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
    (tmp_path / "dog" / "1.png").write_bytes(png(NOISE))
    (tmp_path / "dog" / "2.JPG").write_bytes(png(NOISE, "JPEG"))
    (tmp_path / "cat" / "1.png").write_bytes(png(NOISE[:, :, 0]))
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_of_pictures_with_labels_by_name(folder: Path) -> None:
    made = source(type="image_folder", path=str(folder))
    assert made.modality == "image"
    documents, _ = read(made)
    assert [(d["id"], d["label"], d["label_name"]) for d in documents] == [("cat/1.png", 0, "cat"), ("dog/1.png", 1, "dog"), ("dog/2.JPG", 1, "dog")]
    assert [d["image"].shape for d in documents] == [(4, 6, 1), (4, 6, 3), (4, 6, 3)]
    assert all(d["image"].dtype == np.uint8 and d["image"].flags["C_CONTIGUOUS"] for d in documents)
    np.testing.assert_array_equal(documents[1]["image"], NOISE)
    np.testing.assert_array_equal(documents[0]["image"][:, :, 0], NOISE[:, :, 0])


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_can_be_made_the_same(folder: Path, channels: int) -> None:
    (folder / "cat" / "alpha.png").write_bytes(png(NOISE, mode="RGBA"))
    (folder / "cat" / "palette.png").write_bytes(png(NOISE, mode="P"))
    (folder / "cat" / "deep.png").write_bytes(png((NOISE[:, :, 0].astype(np.uint16) << 8) + 7))
    documents, _ = read(source(type="image_folder", path=str(folder), channels=channels))
    assert {d["image"].shape for d in documents} == {(4, 6, channels)}
    (deep,) = [d for d in documents if d["id"] == "cat/deep.png"]
    np.testing.assert_array_equal(deep["image"][:, :, 0], NOISE[:, :, 0])


def test_pictures_without_folders_have_no_label(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(NOISE))
    (document,) = read(source(type="image_folder", path=str(tmp_path / "*.png")))[0]
    assert set(document) == {"image", "id"}


@pytest.mark.parametrize("column", ["bytes", "record"])
def test_parquet_of_pictures(tmp_path: Path, column: str) -> None:
    raw = [png(NOISE), png(NOISE[:, :, 0])]
    pictures = pa.array(raw) if column == "bytes" else pa.array([{"bytes": r, "path": f"{i}.png"} for i, r in enumerate(raw)])
    pq.write_table(pa.table({"image": pictures, "label": [3, 4]}), tmp_path / "x.parquet")
    documents, _ = read(source(type="parquet_images", path=str(tmp_path), label="label"))
    assert [(d["id"], d["label"], d["image"].shape) for d in documents] == [("x.parquet#0", 3, (4, 6, 3)), ("x.parquet#1", 4, (4, 6, 1))]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_pictures_and_labels(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmray.data.sources.idx.IN_A_PART", 300)
    array = np.random.default_rng(1).integers(0, 256, (1000, 5, 4), dtype=np.uint8)
    labels = np.arange(1000, dtype=np.uint8) % 7
    for name, content in [("images", idx(array)), ("labels", idx(labels))]:
        (tmp_path / f"{name}{ending}").write_bytes(gzip.compress(content) if ending else content)
    made = source(type="idx", images=str(tmp_path / f"images{ending}"), labels=str(tmp_path / f"labels{ending}"))
    assert len(made.partitions()) == (1 if ending else 4)
    documents, _ = read(made)
    np.testing.assert_array_equal(np.stack([d["image"] for d in documents]), array[..., None])
    assert [d["label"] for d in documents] == labels.tolist()
    assert documents[999]["id"] == f"images{ending}#999"


@needs_shared
def test_mnist_of_the_shared_data() -> None:
    root = SHARED / "images/mnist"
    documents, _ = read(source(type="idx", images=str(root / "t10k-images-idx3-ubyte.gz"), labels=str(root / "t10k-labels-idx1-ubyte.gz")))
    assert len(documents) == 10_000
    assert documents[0]["image"].shape == (28, 28, 1)
    assert [d["label"] for d in documents[:5]] == [7, 2, 1, 0, 4]


# --- bad input --------------------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """A picture of 60,000 by 60,000 pixels in a few hundred bytes: its header alone."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(NOISE)[:60], "not a whole PNG or JPEG picture"),
        (b"", "unknown format"),
        (b"GIF89a not allowed", "unknown format"),
        (png(np.zeros((500, 500), np.uint8), "JPEG")[:-300], "truncated"),
        (bomb(), "decompression bomb"),
        (png(NOISE).replace(b"IDAT", b"IDAX"), "not a whole"),
    ],
)
def test_what_is_no_picture_is_named_or_skipped(folder: Path, content: bytes, message: str) -> None:
    (folder / "cat" / "bad.png").write_bytes(content)
    made = source(type="image_folder", path=str(folder))
    assert_refused(made, "cat/bad.png", message)
    assert len(skipped(made, "cat/bad.png", message)) == 3
    pq.write_table(pa.table({"image": [png(NOISE), content]}), folder / "x.parquet")
    made = source(type="parquet_images", path=str(folder))
    assert_refused(made, "x.parquet at row 1", message)
    assert len(skipped(made, "at row 1", message)) == 1


def test_a_picture_just_beyond_pillows_limit_is_refused_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pillow itself only warns up to twice its limit.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert_refused(source(type="image_folder", path=str(folder)), "decompression bombs")


def test_idx_files_that_are_cut_off_or_do_not_belong_together(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    made = source(type="idx", images=str(images), labels=str(labels))
    array = np.zeros((300, 2, 2), np.uint8)
    labels.write_bytes(idx(np.zeros(300, np.uint8)))
    images.write_bytes(idx(array, cut=10))
    assert_refused(made, "images", "cut off at offset 1206")
    assert len(skipped(made, "cut off at offset 1206")) == 256
    images.write_bytes(b"\x00\x00\x0d\x03" + idx(array)[4:])
    assert_refused(made, "images", "no IDX file of unsigned bytes")
    assert skipped(made, "no IDX file") == []
    images.write_bytes(idx(array))
    labels.write_bytes(idx(np.zeros(299, np.uint8)))
    assert_refused(made, "labels", "299 labels for 300 pictures")
    images.write_bytes(struct.pack(">HBBIII", 0, 8, 3, 1, 2**31, 2**31))
    assert_refused(made, "claims pictures of the size")
    images.write_bytes(b"")
    assert_refused(made, "cut off at offset 0")


def test_a_label_that_is_no_number_and_a_column_that_holds_no_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(NOISE)], "label": ["cat"]}), tmp_path / "x.parquet")
    assert_refused(source(type="parquet_images", path=str(tmp_path), label="label"), "column 'label' holds str")
    assert_refused(source(type="parquet_images", path=str(tmp_path), image="label"), "holds str, not the bytes")
    assert_refused(source(type="parquet_images", path=str(tmp_path), image="img"), "no column 'img'; it has: image, label")


# --- mixtures ---------------------------------------------------------------------------------------------------------


def test_a_mixture_names_its_sources_and_scales_its_weights(tmp_path: Path, folder: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("one\n\ntwo")
    parts = {name: {"weight": w, "source": {"type": "text", "path": str(tmp_path / f"{name}.txt")}} for name, w in (("b", 3.0), ("a", 1.0))}
    made = source(type="mixture", sources=parts)
    assert made.modality == "text"
    assert {name: share.weight for name, share in made.mixture().items()} == {"a": 0.25, "b": 0.75}
    assert [(d["source"], d["id"]) for d in read(made)[0]] == [("a", "a/a.txt@0"), ("a", "a/a.txt@5"), ("b", "b/b.txt@0"), ("b", "b/b.txt@5")]
    scaled = {name: {**part, "weight": part["weight"] * 2} for name, part in parts.items()}  # type: ignore[operator]
    assert source(type="mixture", sources=scaled).identity() == made.identity()
    free = {name: {"source": part["source"]} for name, part in parts.items()}
    assert {share.weight for share in source(type="mixture", sources=free).mixture().values()} == {None}
    assert source(type="mixture", sources=free).identity() != made.identity()
    pictures = source(type="mixture", sources={"p": {"source": {"type": "image_folder", "path": str(folder)}}})
    assert pictures.modality == "image"


TEXT = {"type": "text", "path": "x"}


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, "sources"),
        ({"a": {"weight": 1, "source": TEXT}, "b": {"source": TEXT}}, "b have no weight and others have"),
        ({"a": {"weight": 0, "source": TEXT}}, "weight"),
        ({"a": {"weight": -1.0, "source": TEXT}}, "weight"),
        ({"A b": {"source": TEXT}}, "sources"),
        ({"a": {"source": {"type": "mixture", "sources": {"b": {"source": TEXT}}}}}, "sources.a is a mixture itself"),
        ({"a": {"source": TEXT}, "b": {"source": {"type": "image_folder", "path": "x"}}}, "different modalities: a text, b image"),
        ({"a": {"weight": 1, "source": {"type": "text"}}}, "path"),
    ],
)
def test_mixtures_that_do_not_fit_together(sources: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        source(type="mixture", sources=sources)
    assert "\n" not in str(error.value)
