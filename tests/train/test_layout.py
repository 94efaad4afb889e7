"""Files of a state: every part is found again, and what is of another model or not whole is told in one line."""

import json

import pytest
import torch
from safetensors import safe_open

from fmray.core.errors import ArtifactError, RunError
from fmray.train.layout import Held, Piece, part_of, rank_file, read_held, write_part

COUNTS = {"step": 3, "skipped": 1}


def held(world_size, rank, *, fill=True, numel=(10, 3), padding=2):
    """Two parameters `a` and `b` side by side in one flat tensor that is cut evenly over the workers, as ZeRO cuts them."""
    total = sum(numel) + padding
    share = total // world_size
    flat = torch.arange(total, dtype=torch.float32) if fill else torch.full((total,), -1.0)
    mine = flat[rank * share : (rank + 1) * share].clone()
    pieces, start = [], 0
    for name, n in zip("ab", numel, strict=True):
        low, high = max(start, rank * share), min(start + n, (rank + 1) * share)
        if low < high:
            pieces.append(Piece(name, n, low - start, high - low, 0, low - rank * share))
        start += n
    state = {"step": torch.tensor(3.0), "exp_avg": mine * 2, "lazy_steps": 7} if fill else {}
    return Held([mine], [state], pieces, {"table": torch.full((2, 2), 5.0 if fill else 0.0)}, rank, world_size, replicated=False)


def write(folder, world_size, **options):
    for rank in range(world_size):
        write_part(folder, part_of(held(world_size, rank, **options), COUNTS))


@pytest.mark.parametrize(("wrote", "reads"), [(1, 3), (3, 1), (5, 3), (3, 5), (15, 1)])
def test_any_number_of_workers_reads_what_any_other_wrote(tmp_path, wrote, reads):
    write(tmp_path, wrote)
    for rank in range(reads):
        mine, there = held(reads, rank, fill=False), held(reads, rank)
        assert read_held(tmp_path, mine) == COUNTS
        for piece in mine.pieces:
            where = slice(piece.at, piece.at + piece.n)
            assert torch.equal(mine.tensors[0][where], there.tensors[0][where])
            assert torch.equal(mine.states[0]["exp_avg"][where], there.states[0]["exp_avg"][where])
        assert torch.equal(mine.states[0]["step"], torch.tensor(3.0))
        assert mine.states[0]["lazy_steps"] == 7
        assert isinstance(mine.states[0]["lazy_steps"], int)
        assert torch.equal(mine.buffers["table"], torch.full((2, 2), 5.0))


def test_a_file_that_more_workers_left_is_not_read(tmp_path):
    write(tmp_path, 3)
    write(tmp_path, 1)
    mine = held(1, 0, fill=False)
    read_held(tmp_path, mine)
    assert torch.equal(mine.tensors[0][:13], torch.arange(13.0))


def test_workers_that_hold_everything_write_it_once(tmp_path):
    def whole(rank):
        tensors = [torch.full((4, 2), float(i)) for i in range(3)]
        return Held(tensors, [{"step": torch.tensor(1.0), "exp_avg": t + 1} for t in tensors], [Piece(f"p{i}", 8, 0, 8, i, 0) for i in range(3)], {}, rank, 2, True)

    for rank in range(2):
        write_part(tmp_path, part_of(whole(rank), COUNTS))
    names = []
    for rank in range(2):
        with safe_open(tmp_path / rank_file(rank), "pt") as file:
            names.append(sorted(file.keys()))
    assert names == [["0.exp_avg", "0.weight", "2.exp_avg", "2.weight"], ["1.exp_avg", "1.weight"]]
    mine = whole(0)
    for tensor in mine.tensors:
        tensor.fill_(-1)
    read_held(tmp_path, mine)
    assert [t[0, 0].item() for t in mine.tensors] == [0, 1, 2]
    assert [s["exp_avg"][3, 1].item() for s in mine.states] == [1, 2, 3]


def test_another_model_is_refused(tmp_path):
    write(tmp_path, 3)
    with pytest.raises(ArtifactError, match="a has 10 elements there and 11 in this model"):
        read_held(tmp_path, held(1, 0, numel=(11, 3), padding=1))
    strange = held(1, 0)
    strange.pieces[1] = strange.pieces[1]._replace(name="c")
    with pytest.raises(ArtifactError, match="holds no weight of c from element 0 on"):
        read_held(tmp_path, strange)
    strange = held(1, 0)
    strange.buffers["other"] = torch.zeros(1)
    with pytest.raises(ArtifactError, match="holds no buffer other"):
        read_held(tmp_path, strange)


def test_a_storage_that_refuses_is_told_as_such(tmp_path):
    with pytest.raises(OSError, match="No such file or directory"):
        write_part(tmp_path / "away", part_of(held(1, 0), COUNTS))


def test_what_is_not_whole_is_refused(tmp_path):
    write(tmp_path, 3)
    (tmp_path / rank_file(1)).unlink()
    with pytest.raises(ArtifactError, match=f"{rank_file(1)}: is no worker's part of a state") as error:
        read_held(tmp_path, held(1, 0))
    assert "\n" not in str(error.value)
    (tmp_path / rank_file(1)).write_bytes(b"x" * 100)
    with pytest.raises(ArtifactError, match="is no worker's part of a state"):
        read_held(tmp_path, held(1, 0))


def test_another_form_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"0.weight": torch.zeros(2)}, tmp_path / rank_file(0), metadata={"fmray": json.dumps({"format": 99, "world_size": 1})})
    with pytest.raises(ArtifactError, match="has the form 99, and this fmray reads 1"):
        read_held(tmp_path, held(1, 0))


def test_an_optimizer_that_keeps_more_than_numbers_by_weight_is_refused(tmp_path):
    odd = held(1, 0)
    odd.states[0]["factors"] = torch.zeros(4)
    with pytest.raises(RunError, match="the optimizer's `factors` does not belong to single weights"):
        write_part(tmp_path, part_of(odd, COUNTS))
    odd.states[0].clear()
    with pytest.raises(RunError, match="state of a, b is not where fmray could save it"):
        write_part(tmp_path, part_of(odd, COUNTS))
    for nothing_applied in ({"step": 0}, {"step": 2, "skipped": 2}):
        write_part(tmp_path, part_of(odd, nothing_applied))
    fresh = held(1, 0)
    read_held(tmp_path, fresh)
    assert fresh.states == [{}]
