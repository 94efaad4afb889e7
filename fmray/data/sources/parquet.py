"""Parquet files of texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from fmray.data.sources import Counts, Document, Partition
from fmray.data.sources._arrow import row_documents
from fmray.data.sources._fields import Fields
from fmray.data.sources._files import Bad, FileSource
from fmray.data.sources._parquet import SUFFIXES, Groups, batches, parquet_parts


class Parquet(FileSource):
    """Rows of Parquet files. Only the columns named here are read, batch by batch; extension types are refused.

    Attributes:
        text: the column of texts, or of lists of them, which are put together with newlines; a dotted name goes into records.
        id: the column of ids; by default the row's number in its file.
        columns: further columns to keep as metadata.
    """

    type: Literal["parquet"] = "parquet"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    text: str = "text"
    id: str | None = None
    columns: tuple[str, ...] = ()

    def partitions(self) -> Sequence[Partition]:
        """One part a file; large ones in several of whole row groups."""
        return parquet_parts(self.files(), Rows(Fields((self.text,), self.id), self.columns, self.limit), self.on_error)


@dataclass(frozen=True)
class Rows:
    """Reads the rows of some row groups."""

    fields: Fields
    columns: tuple[str, ...]
    limit: int

    def documents(self, piece: Groups, counts: Counts, bad: Bad) -> Iterator[Document]:
        """One document a row."""
        for first, batch in batches(piece, self.fields.names(self.columns), bad):
            yield from row_documents(batch, first, self.fields, piece.file, self.limit, bad)
