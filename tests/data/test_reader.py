"""The reader: one global order for any number of workers, each row once an epoch, from any cursor, each worker its own blocks."""

import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmray.core.artifact import Artifact
from fmray.core.cursor import Cursor
from fmray.core.errors import ArtifactError, ConfigError, DataError
from fmray.data.dataset import COLUMNS, TokenDataset
from fmray.data.reader import LIVE_BYTES, TokenReader, n_lanes
from tests.data import made

BATCH = 12
TRAIN = [300, 1, 256, 5, 400]
N_ROWS = sum(TRAIN)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Artifact[TokenDataset]:
    return made.dataset(tmp_path_factory.mktemp("plain"), TRAIN, 30)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Artifact[TokenDataset]:
    return made.dataset(tmp_path_factory.mktemp("mixture"), [("web", 900), ("books", 300), ("web", 900), ("code", 150)], 20)


@pytest.fixture(scope="module")
def reader(dataset: Artifact[TokenDataset]) -> TokenReader:
    return TokenReader(dataset.path, "train", seed=7, global_batch_size=BATCH)


def test_an_epoch_is_a_permutation_by_seed_and_epoch_alone(dataset: Artifact[TokenDataset], reader: TokenReader) -> None:
    orders = [reader.order(0), reader.order(1), TokenReader(dataset.path, "train", 8, BATCH).order(0)]
    for order in orders:
        assert sorted(order) == list(range(reader.n_rows))
        assert not (order == np.arange(reader.n_rows)).mean() > 0.01
    assert all((a != b).any() for a, b in [(orders[0], orders[1]), (orders[0], orders[2])])
    np.testing.assert_array_equal(TokenReader(dataset.path, "train", 7, BATCH).order(0), orders[0])


def test_a_pinned_order(reader: TokenReader) -> None:
    assert reader.n_lanes == 12
    assert [*reader.order(0)[:5], *reader.order(0)[-3:], *reader.order(1)[:2]] == [314, 558, 764, 527, 694, 352, 559, 761, 141, 155]


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_any_number_of_workers_sees_the_same_global_batch(reader: TokenReader, row: int, world_size: int) -> None:
    cursor = Cursor(epoch=row % 3, row=row % reader.n_rows)
    whole = reader.batch(cursor)
    for rank in range(world_size):
        part = reader.batch(cursor, rank, world_size)
        for name in whole:
            assert whole[name].dtype == np.int64
            np.testing.assert_array_equal(part[name], whole[name][rank::world_size])


def test_batches_follow_the_order_across_epochs(reader: TokenReader) -> None:
    cursor, seen = Cursor(), list[int]()
    n_batches = 2 * reader.n_rows // BATCH + 1
    for _ in range(n_batches):
        seen += reader.batch(cursor)["row_ids_B"].tolist()
        cursor = reader.advance(cursor)
    expected = np.concatenate([reader.order(epoch) for epoch in range(3)])[: n_batches * BATCH]
    assert seen == expected.tolist()
    assert cursor == Cursor(epoch=len(seen) // reader.n_rows, row=len(seen) % reader.n_rows)
    assert reader.n_rows % BATCH, "the rows happen to divide: no batch crossed an epoch"


def test_a_batch_may_be_as_large_as_the_split_and_cross(dataset: Artifact[TokenDataset]) -> None:
    reader = TokenReader(dataset.path, "validation", 0, 30)
    cursor = Cursor(epoch=1, row=28)
    assert reader.batch(cursor)["row_ids_B"].tolist() == [*reader.order(1)[-2:], *reader.order(2)[:28]]
    assert reader.advance(cursor) == Cursor(epoch=2, row=28)
    assert [(epoch, len(ids)) for epoch, ids in reader.places(cursor, 1, 2)] == [(1, 1), (2, 14)]


def test_rows_hold_what_the_shards_hold(dataset: Artifact[TokenDataset], reader: TokenReader) -> None:
    batch, sequential = reader.batch(Cursor(row=100)), reader.rows(250, 700)
    assert sequential["row_ids_B"].tolist() == list(range(250, 700))
    files = [dataset.path / shard.name for shard in dataset.payload.shards if shard.split == "train"]
    for name in COLUMNS:
        stored = np.concatenate([pq.read_table(path)[name].combine_chunks().flatten().to_numpy().reshape(-1, 8) for path in files])
        np.testing.assert_array_equal(batch[f"{name}_BT"], stored[batch["row_ids_B"]])
        np.testing.assert_array_equal(sequential[f"{name}_BT"], stored[250:700])
    assert len(reader.rows(reader.n_rows - 3, reader.n_rows + 50)["row_ids_B"]) == 3
    assert reader.rows(5, 5)["input_ids_BT"].shape == (0, 8)


def test_going_on_reads_only_what_the_next_batch_needs(dataset: Artifact[TokenDataset], mixture: Artifact[TokenDataset]) -> None:
    for artifact in (dataset, mixture):
        reader = TokenReader(artifact.path, "train", 7, BATCH)
        reader.batch(Cursor(epoch=5, row=reader.n_rows // 2))
        assert 1 <= reader.blocks_read <= BATCH < reader.n_blocks
        alone = TokenReader(artifact.path, "train", 7, BATCH)
        alone.batch(Cursor(epoch=5, row=reader.n_rows // 2), 1, 4)
        assert 1 <= alone.blocks_read <= BATCH // 4


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_worker_reads_only_its_part_of_the_blocks(tmp_path: Path, world_size: int) -> None:
    path = made.dataset(tmp_path / "even", [2048] * 4).path
    read = []
    for rank in range(world_size):
        reader, cursor = TokenReader(path, "train", 3, 8), Cursor()
        assert (reader.n_lanes, reader.n_blocks) == (8, 512)
        for _ in range(reader.n_rows // 8):
            reader.batch(cursor, rank, world_size)
            cursor = reader.advance(cursor)
        assert cursor == Cursor(epoch=1, row=0)
        # Of each of its lanes it holds the block that it reads and the one before.
        assert len(reader._held) <= 2 * 8 // world_size + 1
        read.append(reader.blocks_read)
    # A block on the border of two lanes, or of two stripes, is read for both.
    assert max(read) <= 1.35 * 512 / world_size


def test_a_mixture_is_interleaved_in_every_batch(mixture: Artifact[TokenDataset]) -> None:
    reader = TokenReader(mixture.path, "train", 1, 20)
    sources = np.repeat([0, 1, 0, 2], [900, 300, 900, 150])
    seen, cursor = list[int](), Cursor()
    for _ in range(2 * reader.n_rows // 20):
        ids = reader.batch(cursor)["row_ids_B"]
        assert abs(np.bincount(sources[ids], minlength=3) - 20 * np.array([1800, 300, 150]) / 2250).max() < 2
        seen, cursor = [*seen, *ids], reader.advance(cursor)
    assert sorted(seen[: reader.n_rows]) == list(range(reader.n_rows))


def test_images_are_read_in_their_shape(tmp_path: Path) -> None:
    reader = TokenReader(made.dataset(tmp_path / "images", [40, 33], image_shape=(4, 5, 3)).path, "train", 0, 6)
    batch = reader.batch(Cursor(row=70))
    assert sorted(batch) == ["labels_B", "pixels_BHWC", "row_ids_B"]
    assert (batch["pixels_BHWC"].shape, batch["pixels_BHWC"].dtype) == ((6, 4, 5, 3), np.uint8)
    np.testing.assert_array_equal(batch["labels_B"], batch["row_ids_B"])
    np.testing.assert_array_equal(batch["pixels_BHWC"][:, 3, 4, 2], batch["row_ids_B"])
    assert sorted(reader.order(0)) == list(range(73))


def test_lanes_divide_the_batch_and_are_bounded_by_blocks_and_memory() -> None:
    assert n_lanes(8, 1000, 1, 2**20) == 8
    assert n_lanes(512, 10_000, 1, 2**20) == 64
    assert n_lanes(96, 10_000, 1, 2**20) == 48
    assert n_lanes(512, 10_000, 3, 2**20) == 16
    assert n_lanes(8, 9, 1, 2**20) == 2
    assert n_lanes(8, 3, 1, 2**20) == n_lanes(509, 10_000, 1, 2**20) == n_lanes(8, 10_000, 1, 2 * LIVE_BYTES) == 1


def test_ten_million_rows_open_at_any_cursor_within_two_seconds(tmp_path: Path) -> None:
    path = made.large(tmp_path / "large", {"web": 300, "books": 150, "code": 39}).path
    begun = time.monotonic()
    reader = TokenReader(path, "train", 0, 512)
    batch = reader.batch(Cursor(epoch=3, row=7_654_321))
    assert time.monotonic() - begun < 2.0
    assert reader.n_rows == 10_014_720
    assert reader.blocks_read <= 3 * reader.n_lanes
    np.testing.assert_array_equal(batch["input_ids_BT"][:, 0], batch["row_ids_B"] % 20_480)


def test_fewer_rows_than_a_global_batch(dataset: Artifact[TokenDataset]) -> None:
    with pytest.raises(DataError, match="has 30 rows, fewer than one global batch of 31"):
        TokenReader(dataset.path, "validation", 0, 31)


def test_batches_that_do_not_divide_and_cursors_from_elsewhere(dataset: Artifact[TokenDataset], reader: TokenReader) -> None:
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
    shard = copy / "train" / "all-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"all-00000\.parquet: cannot be read as a shard") as error:
        TokenReader(copy, "train", 0, 1).rows(0, 1)
    assert "\n" not in str(error.value)
    shard.unlink()
    with pytest.raises(ArtifactError, match="cannot be read as a shard"):
        TokenReader(copy, "train", 0, 1).rows(0, 1)
