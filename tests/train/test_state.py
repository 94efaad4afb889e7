"""States count only when whole, and damaged ones are never loaded."""

import pytest

from fmray.core.artifact import sha256_file
from fmray.core.cursor import Cursor
from fmray.core.errors import ArtifactError
from fmray.train.retention import Keep
from fmray.train.state import (
    STATE,
    TrainState,
    commit_state,
    last_good_state,
    latest_state,
    prune_states,
    read_state,
    state_folder,
)


def write(root, step, *, commit=True, **told):
    folder = state_folder(root, step)
    (folder / "deepspeed").mkdir(parents=True)
    (folder / "deepspeed" / "rank0.pt").write_bytes(b"%d" % step)
    if commit:
        files = {"deepspeed/rank0.pt": sha256_file(folder / "deepspeed" / "rank0.pt")}
        commit_state(folder, TrainState(step=step, cursor=Cursor(epoch=0, row=step), engine="torch fp32", world_size=1, files=files, **told))
    return folder


def test_the_newest_whole_state_is_taken_and_a_torn_one_is_not(tmp_path):
    assert last_good_state(tmp_path) is None
    write(tmp_path, 10)
    good = write(tmp_path, 20)
    write(tmp_path, 30, commit=False)
    folder, state = last_good_state(tmp_path)
    assert folder == good
    assert state.step == 20
    assert state.cursor == Cursor(epoch=0, row=20)
    assert latest_state(tmp_path) == (folder, state)


def test_a_torn_state_json_does_not_count(tmp_path):
    write(tmp_path, 10)
    folder = write(tmp_path, 20)
    (folder / STATE).write_text((folder / STATE).read_text()[:40])
    assert read_state(folder) is None
    assert last_good_state(tmp_path)[1].step == 10


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"x"), lambda file: file.unlink()])
def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, damage):
    write(tmp_path, 10)
    damage(write(tmp_path, 20) / "deepspeed" / "rank0.pt")
    assert last_good_state(tmp_path)[1].step == 10


def test_when_all_are_damaged_it_stops_rather_than_start_anew(tmp_path):
    (write(tmp_path, 10) / "deepspeed" / "rank0.pt").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="every saved state is damaged"):
        last_good_state(tmp_path)


def test_pruning_keeps_the_newest_whole_ones(tmp_path):
    for step in (10, 20, 30):
        write(tmp_path, step)
    write(tmp_path, 40, commit=False)
    prune_states(tmp_path, Keep(last=2).steps)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000020", "step-000000030"]


def test_pruning_beside_workers_that_write_leaves_later_states_alone(tmp_path):
    write(tmp_path, 10)
    write(tmp_path, 15, commit=False)
    write(tmp_path, 20)
    write(tmp_path, 30, commit=False)
    prune_states(tmp_path, Keep(last=1).steps, before=20)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000020", "step-000000030"]
