"""CSV and TSV files."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from fmray.core.errors import DataError
from fmray.data.sources import Counts, Document, Partition, Source
from fmray.data.sources._files import File, Span, decode, find, identify

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
FIELD_BYTES = 2**31 - 1


class Csv(Source):
    """Rows of CSV or TSV files (a file, a folder or a glob, also .gz), quoted as RFC 4180 says. All values are text.

    Columns other than the text stay as metadata under their own names. A file without a header line names its columns in `header`.
    """

    type: Literal["csv"] = "csv"
    path: str
    text: str = "text"
    id: str | None = None
    header: tuple[str, ...] | None = None
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="default: a tab for .tsv, else a comma")

    def identity(self) -> dict[str, Any]:
        """Relative names and contents of the files instead of the path."""
        how = {
            "type": self.type,
            "text": self.text,
            "id": self.id,
            "header": self.header and list(self.header),
            "delimiter": self.delimiter,
        }
        return {**how, "files": identify(find(self.path, SUFFIXES))}

    def partitions(self) -> Sequence[Partition]:
        """One part a file: a quoted field may hold line ends, so a file cannot be cut without reading it."""
        return [
            Table(Span(file), self.text, self.id, self.header, self.delimiter or _delimiter(file))
            for file in find(self.path, SUFFIXES)
        ]


def _delimiter(file: File) -> str:
    return "\t" if file.name.lower().removesuffix(".gz").endswith(".tsv") else ","


@dataclass(frozen=True)
class Table:
    """Reads the rows of one file."""

    span: Span
    text: str
    id: str | None
    header: tuple[str, ...] | None
    delimiter: str

    def read(self, counts: Counts) -> Iterator[Document]:
        """One document a row; empty lines are passed over."""
        csv.field_size_limit(FIELD_BYTES)
        rows = csv.reader(
            (decode(raw, self.span, offset, counts) for offset, raw in self.span.lines()),
            delimiter=self.delimiter,
            strict=True,
        )
        names: list[str] | None = self._checked(list(self.header)) if self.header else None
        try:
            for row in rows:
                if not row:
                    continue
                if names is None:
                    names = self._checked(row)
                    continue
                if len(row) != len(names):
                    raise DataError(
                        f"line {rows.line_num} has {len(row)} columns, the header {len(names)}",
                        where=str(self.span.file.path),
                    )
                yield self._document(dict(zip(names, row, strict=True)), rows.line_num)
        except csv.Error as error:
            raise DataError(
                f"line {rows.line_num} is not {'TSV' if self.delimiter == chr(9) else 'CSV'} ({error})",
                where=str(self.span.file.path),
            ) from None

    def _checked(self, names: list[str]) -> list[str]:
        for column in (self.text, self.id):
            if column is not None and column not in names:
                raise DataError(
                    f"has no column '{column}'; it has: {', '.join(names)}",
                    where=str(self.span.file.path),
                    todo="set source.text, source.id or source.header",
                )
        return names

    def _document(self, row: dict[str, str], line: int) -> Document:
        name = f"{self.span.file.name}:{line}" if self.id is None else row[self.id]
        return {**{k: v for k, v in row.items() if k != self.text}, "text": row[self.text], "id": name}
