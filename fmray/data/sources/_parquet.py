"""Parquet files in parts of some row groups each, read as a stream of batches of the columns that are wanted."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmray.core.errors import DataError
from fmray.data.sources import OnError
from fmray.data.sources._arrow import (
    BATCH_ROWS,
    READ_AHEAD,
    arrow_errors,
    need_columns,
    open_random,
    refuse_parquet_extensions,
)
from fmray.data.sources._files import Bad, Part, Reader, grouped, part_bytes
from fmray.data.sources._store import File

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SUFFIXES = (".parquet", ".pq")
FOOTER = "the footer"


@dataclass(frozen=True)
class Groups:
    """The row groups from `first` up to but not including `stop` of a file (None: to the last)."""

    file: File
    first: int = 0
    stop: int | None = None


def parquet_parts(files: Sequence[File], reader: Reader[Groups], on_error: OnError) -> list[Part[Groups]]:
    """Files as parts of whole row groups; the footers of large files are read to cut them.

    Raises:
        DataError: under `fail`, such a footer cannot be read.
    """
    size = part_bytes(files)
    pieces: list[tuple[Groups, int]] = []
    for file in files:
        try:
            pieces.extend(_cut(file, size))
        except DataError:
            if on_error == "fail":
                raise
            pieces.append((Groups(file), file.size))  # Reading it says what is wrong, and counts it.
    return grouped(pieces, reader, on_error)


def _cut(file: File, size: int) -> list[tuple[Groups, int]]:
    if file.size <= size:
        return [(Groups(file), file.size)]
    with ExitStack() as stack, arrow_errors(file.place, FOOTER):
        metadata = _opened(file, stack).metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        sizes = [sum(group.column(i).total_compressed_size for i in range(group.num_columns)) for group in groups]
    pieces: list[tuple[Groups, int]] = []
    first, held = 0, 0
    for number, group_size in enumerate(sizes):
        if number > first and held + group_size > size:
            pieces.append((Groups(file, first, number), held))
            first, held = number, 0
        held += group_size
    return [*pieces, (Groups(file, first, None), held)]


def _opened(file: File, stack: ExitStack) -> "pq.ParquetFile":
    import pyarrow.parquet as pq

    raw = stack.enter_context(open_random(file))
    refuse_parquet_extensions(raw, file.place)
    return stack.enter_context(pq.ParquetFile(raw, buffer_size=READ_AHEAD, pre_buffer=False))


def batches(piece: Groups, columns: Sequence[str], bad: Bad) -> Iterator[tuple[int, "pa.RecordBatch"]]:
    """The rows of some row groups in batches of the wanted columns, each with the number of its first row in the file.

    A row group that cannot be read goes to `bad`, and the next one is read.

    Raises:
        DataError: the file or its footer cannot be read, has extension types, or lacks a column.
    """
    place = piece.file.place
    with ExitStack() as stack:
        with arrow_errors(place, FOOTER):
            file = _opened(piece.file, stack)
            metadata = file.metadata
            wanted = need_columns(file.schema_arrow, columns, place)
            counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        for number in range(piece.first, len(counts) if piece.stop is None else piece.stop):
            at = sum(counts[:number])
            found = file.iter_batches(BATCH_ROWS, row_groups=[number], columns=wanted, use_threads=False)
            while True:
                try:
                    with arrow_errors(place, f"row group {number}"):
                        batch = next(found, None)
                except DataError as error:
                    bad(error)
                    break
                if batch is None:
                    break
                yield at, batch
                at += batch.num_rows
