"""From the packed rows of a dataset to the micro-batches of one worker."""

from collections.abc import Iterator

from fmray.core.cursor import Cursor
from fmray.data.reader import TokenReader
from fmray.objectives import Objective
from fmray.train.loop import Step


def token_batches(reader: TokenReader, objective: Objective, cursor: Cursor, *, rank: int, world_size: int, micro_batch_size: int) -> Iterator[Step]:
    """Endless steps from `cursor` on: this rank's part of each global batch in micro-batches, and the cursor behind it."""
    while True:
        rows = reader.batch(cursor, rank, world_size)
        cursor = reader.advance(cursor)
        n_rows = len(rows["row_ids_B"])
        parts = [{name: column[start : start + micro_batch_size] for name, column in rows.items()} for start in range(0, n_rows, micro_batch_size)]
        yield [objective.collate(part) for part in parts], cursor
