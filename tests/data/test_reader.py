"""The reader: one global order for any number of workers, each row once an epoch, from any cursor."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmray.core.artifact import Artifact, write_json
from fmray.core.cursor import Cursor
from fmray.core.errors import ArtifactError, ConfigError, DataError
from fmray.data.dataset import BLOCK_ROWS, COLUMNS, TokenDataset
from fmray.data.packing import Rows
from fmray.data.reader import TokenReader
from fmray.data.shards import ShardWriter
from tests.data.corpora import columns

BATCH = 12


@pytest.fixture(scope="module")
def reader(dataset: Artifact[TokenDataset]) -> TokenReader:
    return TokenReader(dataset.path, "train", seed=7, global_batch_size=BATCH)


def test_an_epoch_is_a_permutation_by_seed_and_epoch_alone(
    dataset: Artifact[TokenDataset], reader: TokenReader
) -> None:
    orders = [reader.order(0), reader.order(1), TokenReader(dataset.path, "train", 8, BATCH).order(0)]
    for order in orders:
        assert sorted(order) == list(range(reader.n_rows))
        assert not (order == np.arange(reader.n_rows)).mean() > 0.01
    assert all((a != b).any() for a, b in [(orders[0], orders[1]), (orders[0], orders[2])])
    np.testing.assert_array_equal(TokenReader(dataset.path, "train", 7, 4 * BATCH).order(0), orders[0])


def test_blocks_are_read_one_after_the_other(dataset: Artifact[TokenDataset], reader: TokenReader) -> None:
    sizes = [
        min(BLOCK_ROWS, s.rows - g)
        for s in dataset.payload.shards
        if s.split == "train"
        for g in range(0, s.rows, BLOCK_ROWS)
    ]
    assert sum(sizes) == reader.n_rows
    assert len(sizes) > 4
    block_of = np.repeat(np.arange(len(sizes)), sizes)[reader.order(3)]
    assert (np.diff(block_of) != 0).sum() == len(sizes) - 1
    assert block_of[np.flatnonzero(np.diff(block_of))].tolist() != sorted(range(len(sizes) - 1))


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_any_number_of_workers_sees_the_same_global_batch(reader: TokenReader, row: int, world_size: int) -> None:
    cursor = Cursor(epoch=row % 3, row=row % reader.n_rows)
    whole = reader.batch(cursor)
    parts = [reader.batch(cursor, rank, world_size) for rank in range(world_size)]
    for name in whole:
        assert whole[name].dtype == np.int64
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_batches_follow_the_order_across_epochs(reader: TokenReader) -> None:
    cursor, seen = Cursor(), list[int]()
    n_batches = 2 * reader.n_rows // BATCH + 1
    for _ in range(n_batches):
        seen += reader.batch(cursor)["row_ids_B"].tolist()
        cursor = reader.advance(cursor)
    expected = np.concatenate([reader.order(epoch) for epoch in range(3)])[: n_batches * BATCH]
    assert seen == expected.tolist()
    assert cursor == Cursor(epoch=len(seen) // reader.n_rows, row=len(seen) % reader.n_rows)
    assert reader.n_rows % BATCH, "the corpus happens to divide: no batch crossed an epoch"


def test_a_batch_may_be_as_large_as_the_split_and_cross(dataset: Artifact[TokenDataset]) -> None:
    n = dataset.payload.splits["validation"]
    reader = TokenReader(dataset.path, "validation", 0, n)
    cursor = Cursor(epoch=1, row=n - 2)
    assert reader.batch(cursor)["row_ids_B"].tolist() == [*reader.order(1)[-2:], *reader.order(2)[: n - 2]]
    assert reader.advance(cursor) == Cursor(epoch=2, row=n - 2)


def test_rows_hold_what_the_shards_hold(dataset: Artifact[TokenDataset], reader: TokenReader) -> None:
    batch = reader.batch(Cursor(row=100))
    sequential = reader.rows(250, 700)
    assert sequential["row_ids_B"].tolist() == list(range(250, 700))
    for name in COLUMNS:
        stored = columns(dataset, "train", name)
        np.testing.assert_array_equal(batch[f"{name}_BT"], stored[batch["row_ids_B"]])
        np.testing.assert_array_equal(sequential[f"{name}_BT"], stored[250:700])
    assert len(reader.rows(reader.n_rows - 3, reader.n_rows + 50)["row_ids_B"]) == 3
    assert reader.rows(5, 5)["input_ids_BT"].shape == (0, 64)


def test_going_on_reads_only_what_the_next_batch_needs(dataset: Artifact[TokenDataset]) -> None:
    reader = TokenReader(dataset.path, "train", 7, BATCH)
    reader.batch(Cursor(epoch=5, row=reader.n_rows // 2))
    assert reader.blocks_read <= 2


def with_rows(dataset: Artifact[TokenDataset], path: Path, rows: list[int]) -> TokenReader:
    """A dataset of the same record whose train shards have these many rows, row i full of the number i."""
    (path / "train").mkdir(parents=True)
    shards, first = list[dict[str, object]](), 0
    for n in rows:
        name = f"train/part-{len(shards):05d}.parquet"
        ids = np.repeat(np.arange(first, first + n, dtype=np.int32)[:, None], 64, axis=1)
        with ShardWriter(path / name, 64) as writer:
            for part in np.array_split(ids, 3):
                writer.write(Rows(part, np.ones_like(part), np.zeros_like(part)))
        assert writer.rows == n
        shards.append({"split": "train", "name": name, "rows": n, "sha256": "0" * 64})
        first += n
    payload = dataset.record.payload | {"shards": shards, "splits": {"train": first, "validation": 0}}
    write_json(path / "record.json", dataset.record.model_copy(update={"payload": payload}).model_dump(mode="json"))
    return TokenReader(path, "train", seed=11, global_batch_size=4)


def test_shards_of_any_length_and_a_pinned_order(dataset: Artifact[TokenDataset], tmp_path: Path) -> None:
    reader = with_rows(dataset, tmp_path / "made", [300, 1, 256, 5])
    assert reader.rows(0, 562)["input_ids_BT"][:, 63].tolist() == list(range(562))
    assert sorted(reader.order(2)) == list(range(562))
    order = [*reader.order(0)[:5], *reader.order(0)[-3:], *reader.order(1)[:2]]
    assert order == [559, 561, 558, 560, 557, 217, 31, 254, 189, 237]
    assert reader.batch(Cursor())["input_ids_BT"][:, 0].tolist() == order[:4]


def test_fewer_rows_than_a_global_batch(dataset: Artifact[TokenDataset]) -> None:
    n = dataset.payload.splits["validation"]
    with pytest.raises(DataError, match=f"has {n} rows, fewer than one global batch of {n + 1}"):
        TokenReader(dataset.path, "validation", 0, n + 1)


def test_batches_that_do_not_divide_and_cursors_from_elsewhere(
    dataset: Artifact[TokenDataset], reader: TokenReader
) -> None:
    with pytest.raises(ConfigError, match="12 rows do not divide among 5 workers"):
        reader.batch(Cursor(), 0, 5)
    with pytest.raises(DataError, match="the cursor stands at row"):
        reader.batch(Cursor(row=reader.n_rows))
    with pytest.raises(DataError, match="has no test split; it has: train, validation"):
        TokenReader(dataset.path, "test", 0, 1)


def test_a_folder_that_is_no_dataset_and_a_damaged_shard(dataset: Artifact[TokenDataset], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a fmray artifact"):
        TokenReader(tmp_path, "train", 0, 1)
    copy = shutil.copytree(dataset.path, tmp_path / "copy")
    shard = copy / "train" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"part-00000\.parquet: cannot be read as a shard") as error:
        TokenReader(copy, "train", 0, 1).rows(0, 1)
    assert "\n" not in str(error.value)
    shard.unlink()
    with pytest.raises(ArtifactError, match="cannot be read as a shard"):
        TokenReader(copy, "train", 0, 1).rows(0, 1)
