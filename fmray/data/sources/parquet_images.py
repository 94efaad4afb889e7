"""Parquet files of pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fmray.core.errors import DataError
from fmray.data.sources import Counts, Document, Partition
from fmray.data.sources._arrow import rows
from fmray.data.sources._blocks import too_large
from fmray.data.sources._files import Bad, FileSource
from fmray.data.sources._images import Channels, decode_image
from fmray.data.sources._parquet import SUFFIXES, Groups, batches, parquet_parts


class ParquetImages(FileSource):
    """PNG and JPEG pictures in a column of Parquet files: bytes, or records with a field `bytes` as Hugging Face writes them.

    A document has `image` (uint8, height x width x channels), `id`, and `label` where a column is named.

    Attributes:
        image: the column of pictures.
        label: the column of labels, whole numbers; None: there are none.
        id: the column of ids; by default the row's number in its file.
        channels: 1 for grey, 3 for colour; by default grey pictures have 1 and others 3.
    """

    type: Literal["parquet_images"] = "parquet_images"
    modality: ClassVar[Literal["text", "image"]] = "image"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    image: str = "image"
    label: str | None = None
    id: str | None = None
    channels: Channels | None = None

    def partitions(self) -> Sequence[Partition]:
        """One part a file; large ones in several of whole row groups."""
        return parquet_parts(self.files(), PictureRows(self.image, self.label, self.id, self.channels, self.limit), self.on_error)


@dataclass(frozen=True)
class PictureRows:
    """Reads the pictures of some row groups."""

    image: str
    label: str | None
    id: str | None
    channels: Channels | None
    limit: int

    def documents(self, piece: Groups, counts: Counts, bad: Bad) -> Iterator[Document]:
        """One document a row."""
        columns = [column for column in (self.image, self.label, self.id) if column is not None]
        for first, batch in batches(piece, columns, bad):
            for n, row in enumerate(rows(batch), start=first):
                try:
                    yield self._document(row, f"{piece.file.name}#{n}", f"{piece.file.place} at row {n}")
                except DataError as error:
                    bad(error)

    def _document(self, row: Mapping[str, Any] | UnicodeDecodeError, place: str, where: str) -> Document:
        if isinstance(row, UnicodeDecodeError):
            raise DataError("has an id or path that is not UTF-8", where=where)
        value = row[self.image]
        raw = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(raw, bytes):
            raise DataError(f"column '{self.image}' holds {type(value).__name__}, not the bytes of a picture", where=where)
        if len(raw) > self.limit:
            raise too_large(where, 0, self.limit)
        document: Document = {"image": decode_image(raw, where, self.channels), "id": place if self.id is None else str(row[self.id])}
        if self.label is not None:
            if not isinstance(row[self.label], int):
                raise DataError(f"column '{self.label}' holds {type(row[self.label]).__name__}, not a whole number", where=where)
            document["label"] = int(row[self.label])
        return document
