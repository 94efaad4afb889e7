"""What a worker trains on: its part of each global batch, the cursor behind it, read ahead, and put down when asked."""

import threading

import numpy as np
import pytest

from fmray.core.cursor import Cursor
from fmray.core.errors import ArtifactError
from fmray.data.ledger import LedgerWriter, check_ledger
from fmray.data.reader import TokenReader
from fmray.objectives import Setting, setting_for
from fmray.objectives.causal_lm import CausalLM
from fmray.objectives.masked_lm import MaskedLM
from fmray.train.batches import recorded, row_batches
from tests.data import made
from tests.train.dataset import token_dataset

START = Cursor()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return made.dataset(tmp_path_factory.mktemp("data") / "corpus", [300, 200, 101]).path


def batches(path, cursor=START, rank=0, world_size=1, micro_batch_size=2):
    return row_batches(TokenReader(path, "train", 5, 8), CausalLM(), Setting(), cursor, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size)


def test_micro_batches_of_a_worker_are_its_part_and_the_cursor_is_that_of_the_step_given(path):
    reader = TokenReader(path, "train", 5, 8)
    cursor = Cursor(epoch=0, row=590)
    running = batches(path, cursor, rank=1, world_size=2)
    for _ in range(4):
        micro, behind = next(running)
        assert [len(part["input_ids_BT"]) for part in micro] == [2, 2]
        ids = np.concatenate([part["row_ids_B"].numpy() for part in micro])
        np.testing.assert_array_equal(ids, reader.batch(cursor, 1, 2)["row_ids_B"])
        cursor = reader.advance(cursor)
        assert behind == cursor
    assert cursor == Cursor(epoch=1, row=590 + 32 - 601)
    running.close()
    assert not any(thread.name == "fmray-prefetch" for thread in threading.enumerate())


def test_what_is_drawn_for_a_row_depends_on_its_epoch_and_not_on_the_number_of_workers(tmp_path):
    dataset = token_dataset(tmp_path / "corpus", n_rows=20)
    setting = setting_for(dataset.path, dataset.payload, {}, 7)

    def drawn(world_size):
        """Step, row and hidden tokens, sorted. A step that goes on into the next epoch may read a row twice."""
        found = []
        for rank in range(world_size):
            running = row_batches(TokenReader(dataset.path, "train", 5, 8), MaskedLM(), setting, START, rank=rank, world_size=world_size, micro_batch_size=2)
            for step in range(6):
                for batch in next(running)[0]:
                    found += [(step, row, tuple(labels)) for row, labels in zip(batch["row_ids_B"].tolist(), batch["labels_BT"].tolist(), strict=True)]
            running.close()
        return sorted(found)

    one = drawn(1)
    assert one == drawn(2) == drawn(4)
    assert len(one) == 48
    of_a_row = [labels for _, row, labels in one if row == 3]
    assert 2 <= len(of_a_row) == len(set(of_a_row))


def test_a_shard_that_cannot_be_read_is_told_to_the_consumer(tmp_path):
    artifact = made.dataset(tmp_path / "corpus", [64])
    (artifact.path / artifact.payload.shards[0].name).write_bytes(b"torn")
    with pytest.raises(ArtifactError, match="cannot be read as a shard"):
        next(batches(artifact.path))


def test_what_is_given_is_put_down_and_what_was_only_read_ahead_is_not(path, tmp_path):
    for rank in (0, 1):
        ledger = LedgerWriter(tmp_path, attempt=0, rank=rank, world_size=2, from_step=0, n_rows=601)
        steps = recorded(batches(path, rank=rank, world_size=2), ledger, Cursor(), 0)
        for _ in range(80):
            next(steps)
        steps.close()
        ledger.close()
    report = check_ledger(tmp_path, n_rows=601, global_batch_size=8, last_step=80)
    assert report.proven
    assert (report.n_read, report.n_void) == (640, 0)
