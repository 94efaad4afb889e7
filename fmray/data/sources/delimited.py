"""CSV and TSV files."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from fmray.core.errors import DataError
from fmray.data.sources import Counts, Document, Partition
from fmray.data.sources._blocks import LINE
from fmray.data.sources._files import Bad, compressible
from fmray.data.sources._spans import Span, TextFileSource, TextStream
from fmray.data.sources._store import File

EMPTY = "\n"


class Csv(TextFileSource):
    """Rows of CSV or TSV files, also compressed, quoted as RFC 4180 says. All values are text.

    Columns other than the text stay as metadata under their own names; the text may be any column, so a table with a sequence a
    row (`text: seq`) is read too.

    Attributes:
        header: the columns' names, for files without a header line.
        quoting: whether `"` quotes; many TSV files use it as any other character.
    """

    type: Literal["csv"] = "csv"
    suffixes: ClassVar[tuple[str, ...]] = compressible(".csv", ".tsv")

    text: str = "text"
    id: str | None = None
    header: tuple[str, ...] | None = None
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="default: a tab for .tsv, else a comma")
    quoting: bool = True

    def partitions(self) -> Sequence[Partition]:
        """One part a file: a quoted field may hold line ends, so a file cannot be cut without reading it."""
        reader = Table(self.text, self.id, self.header, self.delimiter, self.quoting, self.encoding, self.limit)
        return self.parts(reader, LINE, may_cut=lambda file: False)


def _delimiter(file: File) -> str:
    return "\t" if any(file.name.lower().endswith(s) for s in compressible(".tsv")) else ","


@dataclass(frozen=True)
class Table:
    """Reads the rows of a file."""

    text: str
    id: str | None
    header: tuple[str, ...] | None
    delimiter: str | None
    quoting: bool
    encoding: str | None
    limit: int

    def documents(self, piece: Span, counts: Counts, bad: Bad) -> Iterator[Document]:
        """One document a row; empty lines are passed over."""
        csv.field_size_limit(self.limit)
        file = piece.file
        delimiter = self.delimiter or _delimiter(file)
        with TextStream(piece, self.encoding, counts) as stream:
            rows = csv.reader(
                _lines(stream, self.limit, bad), delimiter=delimiter, strict=True, quoting=csv.QUOTE_MINIMAL if self.quoting else csv.QUOTE_NONE
            )
            names = self._checked(list(self.header), file) if self.header else None
            while True:
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    kind = "TSV" if delimiter == "\t" else "CSV"
                    todo = "set source.quoting to false if quotes are letters in it" if kind == "TSV" else ""
                    bad(DataError(f"line {rows.line_num} is not {kind} ({error})", where=file.place, todo=todo))
                    continue
                if not row or (len(row) == 1 and not row[0].strip()):
                    continue
                if names is None:
                    names = self._checked([row[0].removeprefix("\ufeff"), *row[1:]], file)
                elif len(row) != len(names):
                    bad(DataError(f"line {rows.line_num} has {len(row)} columns, the header {len(names)}", where=file.place))
                else:
                    yield self._document(dict(zip(names, row, strict=True)), file, rows.line_num)

    def _checked(self, names: list[str], file: File) -> list[str]:
        for column in (self.text, self.id):
            if column is not None and column not in names:
                raise DataError(
                    f"has no column '{column}'; it has: {', '.join(names)}", where=file.place, todo="set source.text, source.id or source.header"
                )
        return names

    def _document(self, row: dict[str, str], file: File, line: int) -> Document:
        key = f"{file.name}:{line}" if self.id is None else row[self.id]
        text = row.pop(self.text)
        row["text"], row["id"] = text, key
        return row


def _lines(stream: TextStream, limit: int, bad: Bad) -> Iterator[str]:
    """The decoded lines with their ends; a line that is no text is left empty, so that later lines keep their numbers."""
    for start, block in stream.blocks(LINE, limit, bad):
        if stream.decode.is_sound(block):
            yield from io.StringIO(block.decode(), newline="")
            continue
        at = start
        for line in block.splitlines(keepends=True):
            try:
                yield stream.decode(line, at)
            except DataError as error:
                bad(error)
                yield EMPTY
            at += len(line)

