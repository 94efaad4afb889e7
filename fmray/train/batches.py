"""From the rows of a dataset to the micro-batches of one worker, read ahead while the worker computes."""

from collections.abc import Generator, Iterable, Iterator

import numpy as np

from fmray.core.cursor import Cursor
from fmray.data.ledger import LedgerWriter
from fmray.data.prefetch import Prefetched
from fmray.data.reader import Batch, TokenReader
from fmray.objectives import Objective, Setting
from fmray.train.loop import Step


def row_batches(
    reader: TokenReader, objective: Objective, setting: Setting, cursor: Cursor, *, rank: int, world_size: int, micro_batch_size: int
) -> Generator[Step, None, None]:
    """Endless steps from `cursor` on: this rank's part of each global batch in micro-batches, and the cursor behind it.

    Rows are read ahead in a thread, which ends when the iterator is closed. The cursor is that of the step given, whatever was read.
    """
    with Prefetched(_rows(reader, cursor, rank, world_size)) as ahead:
        for rows, behind in ahead:
            starts = range(0, len(rows["row_ids_B"]), micro_batch_size)
            parts = [{name: column[start : start + micro_batch_size] for name, column in rows.items()} for start in starts]
            yield [objective.collate(part, setting) for part in parts], behind


def _rows(reader: TokenReader, cursor: Cursor, rank: int, world_size: int) -> Iterator[tuple[Batch, Cursor]]:
    while True:
        rows = reader.batch(cursor, rank, world_size)
        # What an objective draws for a row depends on how often the row was read before, and not on who reads it.
        rows["epochs_B"] = cursor.epoch + (cursor.row + np.arange(rank, reader.global_batch_size, world_size)) // reader.n_rows
        cursor = reader.advance(cursor)
        yield rows, cursor


def recorded(batches: Iterable[Step], ledger: LedgerWriter, cursor: Cursor, step: int) -> Iterator[Step]:
    """The same steps, which begin at `cursor` behind optimizer step `step`; their row ids are put down as each is given."""
    for micro_batches, behind in batches:
        step += 1
        ledger.add(step, cursor, np.concatenate([batch["row_ids_B"].numpy() for batch in micro_batches]))
        cursor = behind
        yield micro_batches, behind
