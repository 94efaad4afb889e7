"""How fast rows are read, against what training takes: `python -m benchmarks.reader --base runs/quickstart/base` from the repository.

Synthetic rows of 128 tokens in blocks of about 1 MiB. Variants run in turn, five rounds, and medians are told; ranks are processes
that start together and whose rows add up. The page cache is warm, as it is from the second epoch on.
"""

import argparse
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fmray.data.reader as reading
from fmray.core.artifact import load
from fmray.core.cursor import Cursor
from fmray.data.dataset import COLUMNS, Shard
from fmray.data.prefetch import Prefetched
from fmray.data.reader import Batch, TokenReader
from fmray.model.checkpoint import Checkpoint
from tests.data import made

SEQ_LEN, BLOCK_ROWS, SHARD_ROWS = 128, 682, 16_384
ROUNDS, SECONDS = 5, 1.5
QUICKSTART_BATCH = 8


@dataclass(frozen=True)
class Variant:
    """One way of reading. `lanes` False reads block after block, which every rank then does in full."""

    name: str
    dataset: Path
    batch: int = QUICKSTART_BATCH
    ranks: int = 1
    prefetch: bool = True
    lanes: bool = True


def packed(path: Path, n: int, seed: int) -> None:
    """A shard of rows whose tokens fall off as words do, in documents of about 50 tokens."""
    draw = np.random.default_rng(seed)
    ids = np.minimum(draw.zipf(1.3, n * SEQ_LEN), 1023).astype(np.int32)
    starts = draw.random((n, SEQ_LEN)) < 0.02
    starts[:, 0] = True
    at = np.arange(SEQ_LEN, dtype=np.int32)
    columns = (ids, np.cumsum(starts, axis=1, dtype=np.int32), at - np.maximum.accumulate(np.where(starts, at, 0), axis=1))
    arrays = [pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(column, np.int32).reshape(-1)), SEQ_LEN) for column in columns]
    pq.write_table(pa.table(arrays, names=list(COLUMNS)), path, row_group_size=BLOCK_ROWS, compression="zstd")


def dataset(root: Path, sources: dict[str, int]) -> Path:
    """A dataset of so many shards of each source."""
    (root / "train").mkdir(parents=True)
    shards = []
    for source, n in sources.items():
        for i in range(n):
            name = f"train/{source}-{i:05d}.parquet"
            packed(root / name, SHARD_ROWS, len(shards))
            shards.append(Shard(split="train", name=name, rows=SHARD_ROWS, sha256="0" * 64, source=source))
    return made.commit(root, made.described(shards, block_rows=BLOCK_ROWS, seq_len=SEQ_LEN)).path


def batches(reader: TokenReader, rank: int, world_size: int) -> Iterator[Batch]:
    """Endless batches of one rank, from a cursor in the middle of an epoch."""
    cursor = Cursor(epoch=1, row=reader.n_rows // 3)
    while True:
        yield reader.batch(cursor, rank, world_size)
        cursor = reader.advance(cursor)


def speed(variant: Variant, rank: int, seconds: float = SECONDS) -> float:
    """Rows a second of one rank, its first batch apart."""
    reading.MAX_LANES = 64 if variant.lanes else 1
    running = batches(TokenReader(variant.dataset, "train", 0, variant.batch), rank, variant.ranks)
    items: Iterator[Batch] = Prefetched(running) if variant.prefetch else running
    next(items)
    begun, n = time.perf_counter(), 0
    while (took := time.perf_counter() - begun) < seconds:
        n += len(next(items)["row_ids_B"])
    items.close()  # type: ignore[attr-defined]
    return n / took


def _rank(variant: Variant, rank: int, start: float, told: "multiprocessing.Queue[float]") -> None:
    speed(variant, rank, 0.1)
    time.sleep(max(0.0, start - time.time()))
    told.put(speed(variant, rank))


def rows_per_s(variant: Variant) -> float:
    """Rows a second of all ranks together, each a process of its own."""
    context = multiprocessing.get_context("spawn")
    told: multiprocessing.Queue[float] = context.Queue()
    start = time.time() + 4.0
    ranks = [context.Process(target=_rank, args=(variant, rank, start, told)) for rank in range(variant.ranks)]
    for process in ranks:
        process.start()
    found = sum(told.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join()
    return found


def waits_ms(path: Path, prefetch: bool, step_s: float, steps: int = 100) -> tuple[float, float]:
    """Mean and longest wait for a batch in a loop that computes for `step_s` a step, in milliseconds."""
    running = batches(TokenReader(path, "train", 0, QUICKSTART_BATCH), 0, 1)
    items: Iterator[Batch] = Prefetched(running) if prefetch else running
    next(items)
    matrix, waits = np.ones((256, 256), np.float32), list[float]()
    for _ in range(steps):
        until = time.perf_counter() + step_s
        while time.perf_counter() < until:
            matrix @ matrix
        begun = time.perf_counter()
        next(items)
        waits.append(1000 * (time.perf_counter() - begun))
    items.close()  # type: ignore[attr-defined]
    return statistics.mean(waits), max(waits)


def resume_s(path: Path, batch: int, row: int) -> float:
    """Seconds to open a dataset and serve the batch at a cursor."""
    begun = time.perf_counter()
    TokenReader(path, "train", 0, batch).batch(Cursor(epoch=3, row=row))
    return time.perf_counter() - begun


def share_read(path: Path, world_size: int) -> float:
    """The largest share of the blocks that a rank fetches in an epoch."""
    found = []
    for rank in range(world_size):
        reader, cursor = TokenReader(path, "train", 0, 64), Cursor()
        while cursor.epoch == 0:
            reader.batch(cursor, rank, world_size)
            cursor = reader.advance(cursor)
        found.append(reader.blocks_read / reader.n_blocks)
    return max(found)


def medians(measures: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Runs all measures in turn, ROUNDS times; each one's values, sorted."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(ROUNDS):
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: sorted(values) for name, values in found.items()}


def consumed(base: Path) -> tuple[float, float]:
    """Rows a second that a pretraining of the quickstart's shape took, and seconds a step; start-up left out."""
    payload = load(base, Checkpoint).payload
    step_s = payload.figures["train/steps_s"] / payload.step
    return QUICKSTART_BATCH / step_s, step_s


def report(folder: Path, base: Path) -> str:
    """Measures everything and tells it as Markdown."""
    wanted, step_s = consumed(base)
    plain = dataset(folder / "plain", {"all": 4})
    mixture = dataset(folder / "mixture", {"web": 4, "books": 2, "code": 1})
    large = {n: made.large(folder / f"large{n}", parts, seq_len=SEQ_LEN).path for n, parts in ((1, {"all": 489}), (3, {"web": 300, "books": 150, "code": 39}))}
    variants = [
        Variant("1 rank", plain), Variant("1 rank, no reading ahead", plain, prefetch=False), Variant("1 rank, no lanes", plain, lanes=False),
        Variant("2 ranks", plain, ranks=2), Variant("2 ranks, no lanes", plain, ranks=2, lanes=False),
        Variant("1 rank, mixture of 3", mixture), Variant("2 ranks, mixture of 3", mixture, ranks=2),
        Variant("1 rank, batch of 512", plain, batch=512), Variant("2 ranks, batch of 512", plain, batch=512, ranks=2),
        Variant("2 ranks, batch of 512, mixture of 3", mixture, batch=512, ranks=2),
    ]  # fmt: skip
    speeds = medians({v.name: lambda v=v: rows_per_s(v) for v in variants})  # type: ignore[misc]
    cursors = iter(np.random.default_rng(0).integers(0, 10_000_000, 10_000).tolist())
    resumes = medians({f"{n} source{'s' if n > 1 else ''}, batch of {b}": lambda n=n, b=b: resume_s(large[n], b, next(cursors)) for n in large for b in (8, 512)})  # type: ignore[misc]
    waits = {ahead: [waits_ms(mixture, ahead, step_s) for _ in range(3)] for ahead in (False, True)}
    lines = [
        "# Reading rows", "",
        (__doc__ or "").split("\n\n", 1)[1].strip(), "",
        f"Machine: {multiprocessing.cpu_count()} virtual {platform.machine()} cores, no GPU. Python {platform.python_version()}, "
        f"numpy {version('numpy')}, pyarrow {version('pyarrow')}, torch {version('torch')}.", "",
        f"The quickstart's training takes {wanted:.1f} rows a second ({QUICKSTART_BATCH} rows in {1000 * step_s:.0f} ms, from its record).", "",
        "| reading | rows/s, median | lowest to highest | times what training takes |", "|---|--:|--:|--:|",
        *(f"| {name} | {v[ROUNDS // 2]:,.0f} | {v[0]:,.0f} to {v[-1]:,.0f} | {v[ROUNDS // 2] / wanted:,.0f} |" for name, v in speeds.items()), "",
        "| ten million rows: open, and the first batch at a random cursor | s, median | longest |", "|---|--:|--:|",
        *(f"| {name} | {v[ROUNDS // 2]:.2f} | {v[-1]:.2f} |" for name, v in resumes.items()), "",
        "| blocks that a rank fetches in an epoch, of all (batch of 64) | largest share |", "|---|--:|",
        *(f"| {n} rank{'s' if n > 1 else ''}, {name} | {share_read(path, n):.3f} |" for name, path in (("plain", plain), ("mixture of 3", mixture)) for n in (1, 2, 4)), "",
        f"| wait for a batch in a loop that computes for {1000 * step_s:.0f} ms a step (median of three runs) | mean, ms | longest, ms |", "|---|--:|--:|",
        *(f"| {'read ahead' if ahead else 'not read ahead'} | {statistics.median(w[0] for w in found):.2f} | {statistics.median(w[1] for w in found):.1f} |" for ahead, found in waits.items()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the result file that is named, or prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="a finished `base` of the quickstart")
    parser.add_argument("--out", type=Path, help="the result file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = report(Path(folder), arguments.base)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
