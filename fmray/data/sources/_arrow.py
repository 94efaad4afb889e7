"""Reading Arrow's and Parquet's records: named columns of plain types alone, so that nothing in a file can make code run."""

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from fmray.core.errors import DataError
from fmray.data.sources import Document
from fmray.data.sources._blocks import too_large
from fmray.data.sources._fields import Fields
from fmray.data.sources._files import Bad
from fmray.data.sources._store import File, open_file, unreadable

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 256
READ_AHEAD = 4 * 1024**2
_EXTENSION = b"ARROW:extension:name"
_TOKENS = tuple(base64.b64encode(bytes(shift) + _EXTENSION)[-(-shift * 4 // 3) : -4] for shift in range(3))
"""The characters that do not depend on the bytes around the name."""


def refuse_extensions(schema: bytes, place: str) -> None:
    """Refuses a serialised Arrow schema with extension types: their classes would be called with bytes from the file.

    Some of them unpickle those bytes, and a library that registers such a type need only be imported for that to happen.

    Raises:
        DataError: the schema has one.
    """
    if _EXTENSION in schema:
        raise DataError(
            "has columns of an Arrow extension type, which may run code when it is read", where=place, todo="write it again with plain columns"
        )


def refuse_parquet_extensions(raw: IO[bytes], place: str) -> None:
    """Likewise for the schema that Arrow keeps in a Parquet file's footer, in base64.

    pyarrow makes Arrow's schema of it as soon as it opens the file, even for the metadata alone; so the footer's bytes are searched
    here, for what the name comes to in base64 at each of its three alignments.

    Raises:
        DataError: the schema has one, or the file does not end in a footer.
    """
    size = raw.seek(0, io.SEEK_END)
    raw.seek(max(0, size - 8))
    end = raw.read(8)
    length = int.from_bytes(end[:4], "little")
    if len(end) < 8 or end[4:] != b"PAR1" or length > size - 12:
        raise DataError(f"is no whole Parquet file (its last bytes, at offset {max(0, size - 8)}, tell no footer)", where=place)
    raw.seek(size - 8 - length)
    footer = raw.read(length)
    raw.seek(0)
    if any(token in footer for token in _TOKENS):
        refuse_extensions(_EXTENSION, place)


@contextmanager
def arrow_errors(place: str, what: str) -> Iterator[None]:
    """Turns what pyarrow raises over a damaged or unreadable file into one DataError; `what` says what is damaged."""
    import pyarrow as pa

    try:
        yield
    except DataError:
        raise
    except OSError as error:
        if error.errno is not None or "AWS Error" in str(error):
            raise unreadable(place, error) from None
        raise DataError(f"{what} is damaged ({error})", where=place) from None
    except (pa.ArrowException, EOFError, ValueError, KeyError, MemoryError) as error:
        raise DataError(f"{what} is damaged ({error})", where=place) from None


def open_random(file: File) -> IO[bytes]:
    """The file open for random access.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        return open_file(file, seekable=True)
    except OSError as error:
        raise unreadable(file.place, error) from None


def need_columns(schema: "pa.Schema", columns: Sequence[str], place: str) -> list[str]:
    """The top-level columns that hold the wanted fields; a dotted name goes into a column of records.

    Raises:
        DataError: a column is missing; names those present.
    """
    wanted: list[str] = []
    for column in columns:
        top = column if column in schema.names else column.split(".")[0]
        if top not in schema.names:
            has = ", ".join(schema.names) or "none"
            raise DataError(f"has no column '{column}'; it has: {has}", where=place, todo="set the source's names of columns")
        if top not in wanted:
            wanted.append(top)
    return wanted


def row_documents(batch: "pa.RecordBatch", first: int, fields: Fields, file: File, limit: int, bad: Bad) -> Iterator[Document]:
    """The rows of a batch as documents; `first` is the number of its first row in the file."""
    for n, row in enumerate(rows(batch), start=first):
        where = f"{file.place} at row {n}"
        try:
            if isinstance(row, UnicodeDecodeError):
                raise DataError(f"is not UTF-8 text at offset {row.start} of the value", where=where)
            document = fields.document(row, f"{file.name}#{n}", where)
            if len(document["text"]) * 4 > limit and len(document["text"].encode("utf-8", "surrogatepass")) > limit:
                raise too_large(where, 0, limit)
        except DataError as error:
            bad(error)
            continue
        yield document


def rows(batch: "pa.RecordBatch") -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """The rows of a batch as Python values; in place of a row with text that is not UTF-8, the error."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for n in range(batch.num_rows):
            try:
                row = batch.slice(n, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield error
            else:
                yield row
