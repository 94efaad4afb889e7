"""Prepare for images: a corpus of pictures becomes shards of pixels of one shape, shuffled, without exact duplicates."""

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmray.core.artifact import tree_digest
from fmray.core.config import Config
from fmray.core.errors import DataError
from fmray.core.stage import Out
from fmray.data.card import card, licences
from fmray.data.dataset import CARD, HASHES, IMAGE_COLUMNS, SPLITS, Part, TokenDataset
from fmray.data.documents import Place, key_ranges, lay_down
from fmray.data.flow import Kept, each
from fmray.data.ingest import SPILL_BYTES, Ingested, Reading
from fmray.data.order import key, mix
from fmray.data.shards import Selection, ShardJob
from fmray.data.sources import Counts, Document, OnError
from fmray.data.summary import checked_shards, save_hashes
from fmray.data.watch import Watch, check_documents, n_shards, readings
from fmray.data.writing import ShardWriter, SplitPart, block_rows, sealed

if TYPE_CHECKING:
    import pyarrow as pa

NO_LABEL = -1


class ImageRows(Config):
    """The shape of all images: `height` x `width` pixels of `channels` (1: grey, 3: red, green, blue), 8 bits each.

    Attributes:
        fit: `exact` takes an image of another size for unreadable input; `resize` scales it (bicubic), whatever its proportions.
    """

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    channels: Literal[1, 3] = 3
    fit: Literal["exact", "resize"] = "exact"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.height, self.width, self.channels

    @property
    def n_values(self) -> int:
        """Bytes of an image."""
        return self.height * self.width * self.channels

    def pixels(self, document: Document) -> NDArray[np.uint8]:
        """A document's image in this shape, uint8 [H, W, C].

        Raises:
            DataError: its size is another and `fit` is exact.
        """
        image: NDArray[np.uint8] = document["image"]
        if image.shape[:2] != (self.height, self.width) and self.fit == "exact":
            raise DataError(
                f"is {image.shape[0]} x {image.shape[1]} pixels, not {self.height} x {self.width}",
                where=document["id"], todo="set image.height and image.width, or image.fit: resize",
            )
        if image.shape == self.shape:
            return image
        from PIL import Image

        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("L" if self.channels == 1 else "RGB")
        if picture.size != (self.width, self.height):
            picture = picture.resize((self.width, self.height), Image.Resampling.BICUBIC)
        return np.asarray(picture, np.uint8).reshape(self.shape)


def prepare_images(config: Any, out: Out) -> TokenDataset:
    """Reads, fits, removes exact duplicates if told to, shuffles, splits and writes images.

    Args:
        config: a `PrepareConfig` whose source holds images.

    Raises:
        DataError: the corpus is unreadable or empty, an image has another size, or a split gets no row.
    """
    shares = dict(config.source.mixture())
    todo = readings(shares)
    watch = Watch(out, "reading", len(todo), shares)
    work = partial(ingest_images, config.image, out.work / "documents", key(config.seed, 0))
    for part in each(work, todo, Kept[Ingested](out.work / "ingested")):
        watch(part)
    check_documents(watch.read)
    selection = Selection(
        documents=out.work / "documents", exact=config.deduplicate.exact, dropped=None, split_key=key(config.seed, 1),
        copy_key=key(config.seed, 3), validation_fraction=config.validation_fraction,
    )  # fmt: skip
    layout = ImageLayout(out.path, out.work / "hashes", config.image, tuple(shares))
    jobs = [ShardJob(i, low, high, ()) for i, (low, high) in enumerate(key_ranges(n_shards(config.shard_mb, watch.read.n_bytes)))]
    parts: list[ImagePart] = []
    out.progress("writing images", done=0, total=len(jobs))
    for made in each(partial(write_images, layout, selection), jobs, Kept[ImagePart](out.work / "shards")):
        parts.append(made)
        out.progress("writing images", done=len(parts), total=len(jobs))
    parts.sort(key=lambda part: part.index)
    out.spend(device="cpu", count=1, seconds=watch.read.task_s + sum(part.task_s for part in parts))
    save_hashes(out.work / "hashes", out.path / HASHES)
    payload = _payload(config, layout, watch.read, parts)
    (out.path / CARD).write_text(card(payload, name=out.name, licences=licences(shares)), encoding="utf-8")
    return payload


def ingest_images(rows: ImageRows, folder: Path, order_key: int, reading: Reading) -> Ingested:
    """Reads one part into Parquet files sorted by key."""
    started = time.monotonic()
    done = Ingested(source=reading.source)
    pending: list[tuple[bytes, int]] = []
    first = 0
    for document in reading.partition.read(done.counts):
        done.n_read += 1
        pixels = _fitting(rows, document, reading.on_error, done.counts)
        if pixels is not None:
            pending.append((pixels.tobytes(), int(document.get("label", NO_LABEL))))
        if len(pending) * rows.n_values >= SPILL_BYTES:
            _spill(folder, order_key, Place(reading.source, reading.part, first), pending)
            first, pending = first + len(pending), []
    if pending:
        _spill(folder, order_key, Place(reading.source, reading.part, first), pending)
    done.n_documents = first + len(pending)
    done.n_bytes = done.n_documents * rows.n_values
    done.task_s = time.monotonic() - started
    return done


def _fitting(rows: ImageRows, document: Document, on_error: OnError, counts: Counts) -> NDArray[np.uint8] | None:
    try:
        return rows.pixels(document)
    except DataError as error:
        counts.bad_input(error, on_error)
        return None


def _spill(folder: Path, order_key: int, place: Place, images: list[tuple[bytes, int]]) -> None:
    import pyarrow as pa

    n = len(images)
    hashes = np.array([int.from_bytes(hashlib.sha256(pixels).digest()[:8], "big") for pixels, _ in images], np.uint64)
    table = pa.table(
        {
            "pixels": pa.array([pixels for pixels, _ in images], pa.large_binary()),
            "label": pa.array([label for _, label in images], pa.int64()),
            "hash": hashes,
            "key": mix(hashes, order_key),
            "source": pa.array(np.full(n, place.source, np.int16)),
            "part": pa.array(np.full(n, place.part, np.int32)),
            "ordinal": pa.array(np.arange(place.first, place.first + n)),
        }
    )
    lay_down(table, folder, place)


@dataclass(frozen=True)
class ImageLayout:
    """What all shards of a dataset of images share."""

    root: Path
    hashes: Path
    rows: ImageRows
    sources: tuple[str, ...]

    @property
    def block_rows(self) -> int:
        """Rows of a row group."""
        return block_rows(self.rows.n_values)

    def schema(self) -> "pa.Schema":
        """The columns of a shard."""
        import pyarrow as pa

        return pa.schema([(IMAGE_COLUMNS[0], pa.list_(pa.uint8(), self.rows.n_values)), (IMAGE_COLUMNS[1], pa.int64())])


@dataclass
class ImagePart:
    """What one task of the second pass made."""

    index: int
    parts: list[SplitPart]
    removed: Counter[str] = field(default_factory=Counter)
    task_s: float = 0.0


def write_images(layout: ImageLayout, selection: Selection, job: ShardJob) -> ImagePart:
    """Selects, splits and writes the images of a range of keys; the same job writes the same bytes."""
    started = time.monotonic()
    table, removed = selection.distinct(job.low, job.high)
    made = ImagePart(job.index, [], removed)
    is_validation = selection.in_validation(table)
    np.save(layout.hashes / f"part-{job.index:06d}.npy", np.unique(table.filter(~is_validation)["hash"].to_numpy()))
    sources = table["source"].to_numpy()
    for split, mask in zip(SPLITS, (~is_validation, is_validation), strict=True):
        for number, source in enumerate(layout.sources):
            mine = table.filter(mask & (sources == number))
            if not len(mine):
                continue
            name = f"{split}/part-{job.index:05d}{f'-{source}' if len(layout.sources) > 1 else ''}.parquet"
            writer = ShardWriter(layout.root / name, layout.schema(), layout.block_rows)
            pixels = np.frombuffer(b"".join(mine["pixels"].to_pylist()), np.uint8).reshape(len(mine), -1)
            writer.write((pixels, mine["label"].to_numpy()))
            shard = sealed(writer, layout.root, split, name, source)
            made.parts.append(SplitPart(split, source, n_documents=len(mine), n_bytes=pixels.nbytes, shard=shard))
    made.task_s = time.monotonic() - started
    return made


def _payload(config: Any, layout: ImageLayout, read: Ingested, made: list[ImagePart]) -> TokenDataset:
    parts = [part for shard in made for part in shard.parts]
    shards = checked_shards(parts, config.validation_fraction)
    rows = {split: sum(shard.rows for shard in shards if shard.split == split) for split in SPLITS}
    removed = sum((part.removed for part in made), read.counts.removed)
    by_source = {name: [p for p in parts if p.split == "train" and p.source == name] for name in layout.sources}
    return TokenDataset(
        modality="image",
        image_shape=layout.rows.shape,
        n_documents=rows["train"],
        n_tokens=0,
        n_rows=rows["train"],
        n_bytes=rows["train"] * layout.rows.n_values,
        n_words=0,
        n_planted=0,
        n_validation_documents=rows["validation"],
        n_validation_tokens=0,
        n_validation_bytes=rows["validation"] * layout.rows.n_values,
        seq_len=0,
        vocab_size=0,
        special_ids={},
        shards=shards,
        splits=dict(rows),
        columns=IMAGE_COLUMNS,
        block_rows=layout.block_rows,
        packing="unpacked",
        parts=tuple(
            Part(
                name=name, weight=None, n_documents=(n := sum(p.n_documents for p in mine)), n_tokens=0, n_rows=n,
                n_bytes=sum(p.n_bytes for p in mine), repeats=1.0, share=n / max(1, rows["train"]),
            )
            for name, mine in by_source.items()
        ),
        removed=dict(sorted(removed.items())),
        notes=dict(sorted(read.counts.notes.items())),
        skipped=tuple(sorted(read.counts.bad)),
        n_skipped=read.counts.n_bad,
        canaries=None,
        source=config.source.identity(),
        digest=tree_digest(layout.root, [shard.name for shard in shards]),
    )


