"""Fine-tuning in one process: what is resumed, what changes nothing, and in which order rows come."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fmray.core.errors import ConfigError
from fmray.train.tuning import Epochs, Tuned, epoch_order, tune_classifier
from tests.train.tiny import config_of, tune


def weights(tuned: Tuned) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in tuned.classifier.model.state_dict().items()}


def test_a_resumed_tuning_equals_an_uninterrupted_one(start: Path, path: Path, tmp_path: Path) -> None:
    config = config_of(path)
    epochs = Epochs(tmp_path)

    def stop_after_first(tuned: Tuned) -> bool:
        epochs.add(tuned)
        return False

    tune_classifier(config, start, config.task.load(), on_epoch=stop_after_first)
    resumed = tune(config, start, resume=epochs.latest())
    whole = tune(config, start)
    assert resumed.progress == whole.progress
    assert whole.progress.epoch == 3
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())


def test_the_size_of_micro_batches_changes_nothing(start: Path, path: Path) -> None:
    one, two = (tune(config_of(path, epochs=1, micro_batch_size=size), start) for size in (None, 3))
    np.testing.assert_allclose(one.progress.losses, two.progress.losses, rtol=1e-4)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, atol=2e-4, rtol=1e-3)


def test_it_learns_and_bf16_learns_as_well(start: Path, path: Path) -> None:
    for precision in ("fp32", "bf16"):
        tuned = tune(config_of(path, precision=precision, epochs=6), start)
        assert tuned.progress.losses[-1] < 0.3 * tuned.progress.losses[0]
        assert tuned.progress.history[-1] > 0.9


def test_only_the_latest_and_the_best_epoch_are_kept(start: Path, path: Path, tmp_path: Path) -> None:
    config = config_of(path, epochs=4)
    epochs, scores = Epochs(tmp_path), iter([0.2, 0.9, 0.9, 0.5])

    def on_epoch(tuned: Tuned) -> bool:
        tuned.progress.history[-1] = next(scores)
        epochs.add(tuned)
        return True

    tune_classifier(config, start, config.task.load(), on_epoch=on_epoch)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch_0003", "epoch_0004"]
    assert epochs.best().name == "epoch_0003"
    assert epochs.history() == (0.2, 0.9, 0.9, 0.5)


def test_an_epoch_holds_every_row_once_and_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 1003)
    batches = epoch_order(lengths, 16, seed=0, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1003))
    assert all(len(b) <= 16 for b in batches)
    assert len(batches) == -(-1003 // 16)
    padded = sum(len(b) * lengths[b].max() for b in batches)
    permuted = np.random.default_rng(0).permutation(1003)
    plain = sum(len(b) * lengths[b].max() for b in np.array_split(permuted, len(batches)))
    assert padded < 1.15 * lengths.sum() < 0.75 * plain
    again, later, other = (epoch_order(lengths, 16, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0)))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not np.array_equal(np.concatenate(batches), np.concatenate(later))
    assert not np.array_equal(np.concatenate(batches), np.concatenate(other))


def test_wrong_configs_are_refused(start: Path, path: Path) -> None:
    with pytest.raises(ConfigError, match="metric: the task topics has no metric 'macro_f2', did you mean 'macro_f1'"):
        config_of(path, metric="macro_f2")
    with pytest.raises(ConfigError, match="max_length: is 100, but the model has 64 positions"):
        tune(config_of(path, max_length=100), start)


def test_where_and_how_it_runs_stays_out_of_the_fingerprint(path: Path) -> None:
    here = config_of(path).identity()
    assert here == config_of(path, num_cpus=2, micro_batch_size=4).identity()
    assert here != config_of(path, epochs=4).identity()
    assert str(path.parent) not in str(here)
