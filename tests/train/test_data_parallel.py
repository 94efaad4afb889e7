"""Several workers that share every batch: what one process learns, two gloo processes learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fmray.train.tuning import ALONE, MODEL, Epochs, TuningConfig, global_batches, read_progress
from fmray.train.worker import Place
from tests.train.gloo import tune_together
from tests.train.tiny import config_of, tune


class TestTwoProcesses:
    """Trainings of two gloo processes beside the same ones of one process."""

    @pytest.fixture(scope="class")
    def cases(self, path: Path) -> dict[str, TuningConfig]:
        n_rows = len(config_of(path).task.load().splits["train"])
        # The last batch is one row, of which the second worker has none.
        size = next(size for size in range(11, n_rows) if n_rows % size == 1)
        return {
            "full": config_of(path, global_batch_size=size),
            "accumulated": config_of(path, global_batch_size=size, micro_batch_size=2, epochs=1),
            "weighted": config_of(path, epochs=1, class_weights="balanced"),
            "lora": config_of(path, epochs=1, method="lora", lora={"dropout": 0.0}),
            "resumed": config_of(path, global_batch_size=size),
        }

    @pytest.fixture(scope="class")
    def made(self, cases: dict[str, TuningConfig], start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
        """The folders of what one process made, and two."""
        alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("made") / "together"
        for name, config in cases.items():
            # Of the last one its first epoch alone, which two processes then go on from.
            tune(config, start, keep=Epochs(alone / name), stop_after=1 if name == "resumed" else None)
        tune_together(2, together, start, cases, {"resumed": Epochs(alone / "resumed").folder / "epoch_0001"})
        return alone, together

    @pytest.mark.parametrize(("name", "alike"), [("full", "full"), ("accumulated", "accumulated"), ("weighted", "weighted"), ("lora", "lora"), ("resumed", "full")])
    def test_they_learn_what_one_learns(self, made: tuple[Path, Path], name: str, alike: str) -> None:
        one, two = Epochs(made[0] / alike).latest(), Epochs(made[1] / name).latest()
        assert one is not None
        assert two is not None
        first, second = read_progress(one), read_progress(two)
        np.testing.assert_allclose(second.losses, first.losses, rtol=2e-4)
        assert second.n_tokens == first.n_tokens
        np.testing.assert_allclose(second.history, first.history, atol=0.05)
        theirs, ours = (load_file(folder / MODEL / "model.safetensors") for folder in (one, two))
        assert theirs.keys() == ours.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, atol=5e-4, rtol=1e-3)

    def test_what_two_saved_one_goes_on_from(self, made: tuple[Path, Path], cases: dict[str, TuningConfig], start: Path) -> None:
        saved = Epochs(made[1] / "full").latest()
        assert saved is not None
        longer = cases["full"].model_copy(update={"epochs": 4})
        tuned = tune(longer, start, resume=saved)
        assert tuned.progress.history[:3] == read_progress(saved).history
        assert len(tuned.progress.history) == 4
        assert tuned.engine.step == len(tuned.progress.losses)


def test_workers_share_the_rows_of_every_batch(path: Path) -> None:
    draw = np.random.default_rng(0)
    lengths_B = draw.integers(1, 9, 41)
    mask_BT = (np.arange(9) < lengths_B[:, None]).astype(np.int64)
    rows = {"attention_mask_BT": mask_BT, "row_ids_B": np.arange(41)}
    config = config_of(path, global_batch_size=8)

    def ids(place: Place) -> list[list[int]]:
        return [[int(i) for batch in parts for i in batch["row_ids_B"]] for parts, _ in global_batches(rows, config, 0, place)]

    whole, first, second, third = ids(ALONE), *(ids(Place(rank, 3, 3)) for rank in range(3))
    assert [sorted(a + b + c) for a, b, c in zip(first, second, third, strict=True)] == [sorted(batch) for batch in whole]
    assert {len(part) for part in (*first, *second, *third)} >= {0, 1, 2, 3}
