"""What `fmray check` says of memory, the largest micro-batch, time and price."""

from types import SimpleNamespace

import pytest

from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.model.architectures.decoder import Decoder
from fmray.model.architectures.encoder import Encoder
from fmray.model.target_loss import fused_bytes
from fmray.train.config import PretrainConfig
from fmray.train.device import Device
from fmray.train.plan import (
    AUTOCAST,
    GIB,
    USABLE,
    bucket_bytes,
    held_by,
    largest_micro_batch,
    plan,
    size,
    state_bytes_per_param,
    update_bytes_per_param,
    worker_bytes_per_param,
)

DATASET = {"dataset": SimpleNamespace(vocab_size=1000, seq_len=128)}


def config(**changes):
    fields = {"model": {"type": "decoder", "size": "nano"}, "global_batch_size": 64, "max_steps": 10, "num_workers": 2} | changes
    return load_config(PretrainConfig, fields, "base")


def held(rows, *, precision="bf16", autocast=False, device="cpu"):
    """What rows of the plan's model and dataset hold with a fused loss."""
    row = Decoder().activation_bytes(0, 128, precision=precision, attention="sdpa")
    return rows * row * (AUTOCAST if autocast else 1) + fused_bytes(rows * 128, 1024, 192, precision=precision, device=device)


def test_activations_are_told_by_row_and_micro_batch():
    def told(of_eight, of_one):
        return f"{of_eight / 2**20:.3g} MiB a micro-batch of 8 rows ({of_one / 2**20:.3g} MiB a row alone)"

    row = Decoder().activation_bytes(1024, 128, precision="bf16", attention="sdpa")
    assert plan(config(micro_batch_size=8, fused_loss=False), DATASET)["activations"] == told(8 * row, row)
    assert plan(config(micro_batch_size=8), DATASET)["activations"] == told(held(8), held(1))
    for changes in ({"engine": "torch", "num_workers": 1}, {"zero": {"stage": 0}}):
        assert plan(config(micro_batch_size=8, **changes), DATASET)["activations"] == told(held(8, autocast=True), held(1, autocast=True))
    wide = Decoder().activation_bytes(1024, 128, precision="fp32", attention="sdpa")
    assert wide > 1.3 * row
    assert plan(config(micro_batch_size=8, fused_loss=False, precision="fp32", zero={"stage": 0}), DATASET)["activations"] == told(8 * wide, wide)


def test_a_fused_loss_is_counted_as_what_it_holds():
    big = {"dataset": SimpleNamespace(vocab_size=32_000, seq_len=512)}
    fused, table = (held_by(config(fused_loss=choice), Decoder(), 32_000, 512) for choice in (True, False))
    assert table(16) == 16 * table(1)
    assert fused(16) < 0.5 * table(16)
    # What belongs to the head's weight is there for one row as well.
    assert fused(16) < 15 * fused(1)
    for choice, of_rows in ((True, fused), (False, table)):
        assert f"{size(of_rows(8))} a micro-batch of 8 rows" in plan(config(micro_batch_size=8, fused_loss=choice), big)["activations"]


def test_an_objective_without_a_head_has_no_logits():
    encoder = {"model": {"type": "encoder"}, "objective": {"type": "contrastive"}}
    alone = Encoder().activation_bytes(0, 128, precision="bf16", attention="sdpa")
    for fused in (True, False):
        assert held_by(config(fused_loss=fused, **encoder), Encoder(), 1024, 128)(2) == 2 * alone


def test_sizes_have_the_unit_that_reads_best():
    assert [size(n) for n in (2**19, 1005 * 2**20, 5.56 * 2**30, 1234 * 2**30)] == ["0.5 MiB", "1005 MiB", "5.56 GiB", "1234 GiB"]


def test_the_largest_micro_batch_fits_and_the_next_does_not():
    state = 1_967_808 * state_bytes_per_param(1, 2, "bf16")
    memory_gb = (state + held(9)) / USABLE / GIB
    said = plan(config(device={"memory_gb": memory_gb}), DATASET)["largest micro-batch"]
    # Nine rows would fit, but must divide the 32 of a worker.
    assert said.startswith("8 of the 32 rows of a worker, in 90% of the declared ")
    assert "largest micro-batch" not in plan(config(), DATASET)
    said = plan(config(device={"memory_gb": state / GIB}), DATASET)["largest micro-batch"]
    assert said.startswith("none: a row takes")


@pytest.mark.parametrize(("rows", "row_bytes", "room", "largest"), [(32, 10, 95, 8), (32, 10, 80, 8), (32, 10, 79, 4), (30, 10, 155, 15), (7, 10, 69, 1), (7, 10, 70, 7), (4, 10, 9, 0), (4, 10, -5, 0)])
def test_a_micro_batch_divides_the_rows(rows, row_bytes, room, largest):
    assert largest_micro_batch(rows, lambda n: n * row_bytes, room) == largest


def test_memory_is_what_deepspeed_was_counted_to_hold():
    """The figures of benchmarks/results/zero_memory_2cpu_202611.md: stages 0 to 3, bytes a parameter."""

    def told(workers, precision, accumulates):
        return [round(state_bytes_per_param(stage, workers, precision, accumulates=accumulates), 2) for stage in range(4)]

    assert told(1, "bf16", False) == [16, 16, 16, 16]
    assert told(2, "bf16", False) == [16, 9, 9, 8]
    assert told(4, "bf16", False) == [16, 5.5, 5.5, 4]
    assert told(2, "bf16", True) == [16, 14, 10, 9]
    assert told(2, "fp32", False) == [16, 12, 12, 10]
    assert update_bytes_per_param(config()) == 3
    assert update_bytes_per_param(config(micro_batch_size=8)) == 0
    assert update_bytes_per_param(config(micro_batch_size=8, zero={"stage": 2})) == 2
    assert update_bytes_per_param(config(zero={"stage": 0})) == 0
    foreach = {"optim": {"implementation": "foreach"}}
    assert update_bytes_per_param(config(**foreach)) == 3 + 4 / 2
    assert update_bytes_per_param(config(zero={"stage": 0}, **foreach)) == 4
    assert update_bytes_per_param(config(zero={"stage": 2, "offload_optimizer": True}, **foreach)) == 0


def test_on_a_gpu_room_is_left_for_the_reduction_of_gradients():
    assert bucket_bytes(config()) == 0
    assert bucket_bytes(config(use_gpu=True)) == 1e9
    assert bucket_bytes(config(use_gpu=True, deepspeed={"zero_optimization": {"reduce_bucket_size": 1000, "overlap_comm": True}})) == 4000
    assert plan(config(use_gpu=True), DATASET)["memory a worker"].endswith("; DeepSpeed sets 954 MiB aside for reducing gradients")
    fits = config(device={"memory_gb": 0.5})
    assert "of the 32 rows" in plan(fits, DATASET)["largest micro-batch"]
    assert plan(fits.model_copy(update={"use_gpu": True}), DATASET)["largest micro-batch"].startswith("none: ")


def test_offloading_takes_masters_and_moments_off_the_device():
    kept = worker_bytes_per_param(config(zero={"stage": 2}))
    assert kept == 2 + 14 / 2
    assert worker_bytes_per_param(config(zero={"stage": 2, "offload_optimizer": True})) == kept - 12 / 2
    assert worker_bytes_per_param(config(engine="torch", num_workers=1, precision="fp32")) == 16
    assert worker_bytes_per_param(config(zero={"stage": 0})) == 16 + 2


def test_time_and_price_follow_from_what_is_declared():
    flops = float(plan(config(), DATASET)["FLOPs"].split()[0])
    device = {"peak_tflops": 1e-3, "mfu": 0.4, "usd_per_hour": 3.0}
    lines = plan(config(device=device), DATASET)
    hours = flops / (1e9 * 0.4) / 3600
    assert float(lines["time"].split()[0]) == pytest.approx(hours / 2, rel=0.01)
    assert float(lines["price"].split()[0].strip("$")) == pytest.approx(3 * hours, abs=0.01)
    assert "time" not in plan(config(device={"usd_per_hour": 3.0}), DATASET)
    assert "price" not in plan(config(device={"peak_tflops": 1.0, "mfu": 0.5}), DATASET)


def test_what_is_declared_is_no_part_of_the_identity_and_is_checked():
    assert config(device={"memory_gb": 80.0}).identity() == config().identity()
    assert Device().hours(1e20) is None
    with pytest.raises(ConfigError, match="mfu"):
        config(device={"mfu": 40.0})
