"""The sample ledger: which row was trained on at which step, and the proof that each was read exactly once an epoch.

Every attempt of every worker appends to a file of its own. An attempt that goes on from step s voids what earlier ones put down
behind s. Integers are little-endian.
"""

import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmray.core.cursor import Cursor
from fmray.core.errors import ArtifactError

I64 = NDArray[np.int64]

MAGIC = b"fmray-l1"
_HEAD = struct.Struct("<8sIIIIQQ")  # magic, attempt, rank, world size, check sum of the rest, step that it goes on from, rows of the split
_ENTRY = struct.Struct("<QQII")  # step, epoch, row ids in all, row ids of this epoch (the others belong to the next)
_SUM = struct.Struct("<I")
NAMED = 10
"""How many of the rows that were repeated or are missing are named."""


class Entry(NamedTuple):
    """What one worker read for one step: row ids by epoch."""

    step: int
    rows: dict[int, I64]


@dataclass(frozen=True)
class Attempt:
    """One worker's file: its whole entries, and how many bytes of a torn one lie behind them."""

    attempt: int
    rank: int
    world_size: int
    from_step: int
    entries: list[Entry]
    torn_bytes: int


def next_attempt(folder: Path) -> int:
    """The number of the attempt that begins now. One worker asks, and tells it to the others."""
    return 1 + max((int(path.name.split("-")[1]) for path in folder.glob("attempt-*")), default=-1)


class LedgerWriter:
    """Appends one worker's row ids, step by step. An entry reaches the operating system at once, and the disk with `sync`."""

    def __init__(self, folder: Path, *, attempt: int, rank: int, world_size: int, from_step: int, n_rows: int) -> None:
        """Begins the file of this attempt, which goes on behind `from_step`, over a split of `n_rows`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._rank, self._world_size, self._n_rows = rank, world_size, n_rows
        self._file = (folder / f"attempt-{attempt:05d}-rank-{rank:05d}").open("xb", buffering=0)
        self._file.write(_HEAD.pack(MAGIC, attempt, rank, world_size, _head_sum(attempt, rank, world_size, from_step, n_rows), from_step, n_rows))

    def add(self, step: int, cursor: Cursor, row_ids: I64) -> None:
        """Puts down what this worker reads for a step whose global batch begins at `cursor`, in the order of `TokenReader.batch`."""
        positions = cursor.row + self._rank + self._world_size * np.arange(len(row_ids))
        head = _ENTRY.pack(step, cursor.epoch, len(row_ids), int((positions < self._n_rows).sum()))
        body = head + row_ids.astype("<i8").tobytes()
        self._file.write(body + _SUM.pack(zlib.crc32(body)))

    def sync(self) -> None:
        """Returns when all entries lie on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


def _head_sum(*values: int) -> int:
    return zlib.crc32(struct.pack("<5Q", *values))


def read_attempt(path: Path) -> Attempt | None:
    """One worker's file up to its first entry that is not whole; None when not even its head is, as a kill at its birth leaves it.

    Raises:
        ArtifactError: the file is no ledger.
    """
    data = path.read_bytes()
    if len(data) < _HEAD.size:
        return None
    magic, attempt, rank, world_size, check, from_step, n_rows = _HEAD.unpack_from(data)
    if magic != MAGIC or check != _head_sum(attempt, rank, world_size, from_step, n_rows):
        raise ArtifactError("is no ledger of samples", where=str(path), todo="move it away")
    entries, at = list[Entry](), _HEAD.size
    for entry, end in _entries(data):
        entries.append(entry)
        at = end
    return Attempt(attempt, rank, world_size, from_step, entries, len(data) - at)


def _entries(data: bytes) -> Iterator[tuple[Entry, int]]:
    """Whole entries with the place behind each; ends at the first that is not."""
    at = _HEAD.size
    while at + _ENTRY.size <= len(data):
        step, epoch, n, n_here = _ENTRY.unpack_from(data, at)
        end = at + _ENTRY.size + 8 * n
        if end + _SUM.size > len(data) or _SUM.unpack_from(data, end)[0] != zlib.crc32(data[at:end]):
            return
        ids = np.frombuffer(data, "<i8", n, at + _ENTRY.size)
        yield Entry(step, {e: part for e, part in ((epoch, ids[:n_here]), (epoch + 1, ids[n_here:])) if len(part)}), end + _SUM.size
        at = end + _SUM.size


@dataclass(frozen=True)
class LedgerReport:
    """What a ledger proves.

    Attributes:
        n_read: rows that count, of `n_void` more that later attempts read again.
        n_repeated: readings of a row beyond its first in an epoch; `repeated` names some as (epoch, row id).
        n_missing: readings that should be there and are not; `missing` names some, of epochs that are over.
        strange_steps: steps that hold more or fewer rows than a global batch, the first of them.
        torn_bytes: of entries that were being written when their worker died.
        world_sizes: numbers of workers of the attempts, in order.
    """

    n_read: int
    n_void: int
    n_repeated: int
    n_missing: int
    repeated: tuple[tuple[int, int], ...]
    missing: tuple[tuple[int, int], ...]
    strange_steps: tuple[int, ...]
    torn_bytes: int
    world_sizes: tuple[int, ...]

    @property
    def proven(self) -> bool:
        """Whether each row was read exactly once an epoch."""
        return not (self.n_repeated or self.n_missing or self.strange_steps)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "proven": self.proven}


def check_ledger(folder: Path, *, n_rows: int, global_batch_size: int, last_step: int, start: Cursor | None = None, first_step: int = 0) -> LedgerReport:
    """Proves that steps `first_step` + 1 to `last_step` read each row of the split exactly once an epoch, over all attempts.

    Args:
        start: where the data stood behind `first_step`; at its beginning, unless told.

    Raises:
        ArtifactError: there is no ledger, or a file of it is none.
    """
    files = [found for path in sorted(folder.glob("attempt-*")) if (found := read_attempt(path)) is not None]
    if not files:
        raise ArtifactError("holds no ledger of samples", where=str(folder), todo="train with ledger: true")
    counting, n_void = _counting(files, last_step)
    sizes = np.zeros(last_step - first_step + 1, np.int64)
    rows = defaultdict[int, list[I64]](list)
    for entry in counting:
        sizes[min(max(entry.step - first_step, 0), len(sizes) - 1)] += sum(map(len, entry.rows.values()))
        for epoch, ids in entry.rows.items():
            rows[epoch].append(ids)
    strange = first_step + np.flatnonzero(sizes != np.where(np.arange(len(sizes)) > 0, global_batch_size, 0))
    begin = start or Cursor()
    first = begin.epoch * n_rows + begin.row
    repeated, missing, n_repeated, n_missing = _faults(rows, first, first + (last_step - first_step) * global_batch_size, n_rows)
    world_sizes = {attempt.attempt: attempt.world_size for attempt in files}
    return LedgerReport(
        n_read=int(sizes.sum()), n_void=n_void, n_repeated=n_repeated, n_missing=n_missing, repeated=tuple(repeated[:NAMED]),
        missing=tuple(missing[:NAMED]), strange_steps=tuple(int(step) for step in strange[:NAMED]),
        torn_bytes=sum(attempt.torn_bytes for attempt in files), world_sizes=tuple(world_sizes[n] for n in sorted(world_sizes)),
    )  # fmt: skip


def _counting(files: Sequence[Attempt], last_step: int) -> tuple[list[Entry], int]:
    """The entries that no later attempt voids, up to the last step, and how many rows the others hold."""
    starts = {attempt.attempt: attempt.from_step for attempt in files}
    void_behind = {n: min([last_step, *(from_step for later, from_step in starts.items() if later > n)]) for n in starts}
    counting = [entry for a in files for entry in a.entries if entry.step <= void_behind[a.attempt]]
    every = sum(len(ids) for a in files for entry in a.entries for ids in entry.rows.values())
    return counting, every - sum(len(ids) for entry in counting for ids in entry.rows.values())


Named = list[tuple[int, int]]


def _faults(rows: dict[int, list[I64]], first: int, last: int, n_rows: int) -> tuple[Named, Named, int, int]:
    """Repeated and missing rows of all epochs when the positions `first` to `last` (exclusive, over all epochs) were to be read."""
    repeated, missing, n_repeated, n_missing = Named(), Named(), 0, 0
    for epoch in sorted({*rows, *range(first // n_rows, -(-last // n_rows))}):
        ids = np.concatenate([np.empty(0, np.int64), *rows.get(epoch, [])])
        seen = np.bincount(ids, minlength=n_rows)
        wanted = max(0, min(last, (epoch + 1) * n_rows) - max(first, epoch * n_rows))
        n_repeated += int(np.maximum(seen - 1, 0).sum())
        n_missing += max(0, wanted - int((seen > 0).sum()))
        repeated += [(epoch, int(row)) for row in np.flatnonzero(seen > 1)[:NAMED]]
        if wanted == n_rows:
            missing += [(epoch, int(row)) for row in np.flatnonzero(seen == 0)[:NAMED]]
    return repeated, missing, n_repeated, n_missing
