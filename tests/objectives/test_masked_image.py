"""Masked image modelling: pixels, patches, which ones are hidden, and transformers' own loss."""

import numpy as np
import pytest
import torch

from fmray.objectives import Setting
from fmray.objectives.masked_image import MaskedImage, patches
from tests.objectives.cases import CASES, IMAGE, image_rows

MINE = [case for case in CASES if isinstance(case.objective, MaskedImage)]


@pytest.mark.parametrize("case", MINE, ids=lambda case: case.name)
def test_loss_gradients_and_hidden_patches_are_those_of_transformers(case):
    ours, theirs, rows = case.model(), case.model(), image_rows(5)
    batch = case.objective.collate(rows, case.setting(ours))
    parts = case.objective.loss(ours, batch)
    (parts.sum / parts.count).backward()
    out = theirs(pixel_values=batch["pixels_BCHW"], noise=batch["ranks_BN"])
    out.loss.backward()
    assert torch.equal(out.mask.bool(), batch["masked_BN"])
    assert (parts.sum / parts.count).item() == pytest.approx(out.loss.item(), rel=1e-5)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_three_quarters_of_every_image_are_hidden_and_pixels_go_from_minus_one_to_one():
    rows = image_rows(50)
    batch = MaskedImage().collate(rows, Setting(patch_size=4))
    assert batch["masked_BN"].sum(dim=1).tolist() == [12] * 50
    assert batch["masked_BN"].float().mean(dim=0).min() > 0.5
    assert (batch["pixels_BCHW"].min().item(), batch["pixels_BCHW"].max().item()) == (-1.0, 1.0)
    assert batch["pixels_BCHW"][3, 2, 5, 7].item() == pytest.approx(int(rows["pixels_BHWC"][3, 5, 7, 2]) / 127.5 - 1)


def test_patches_are_squares_in_reading_order():
    pixels = np.arange(np.prod(IMAGE), dtype=np.float32).reshape(1, *IMAGE)
    cut = patches(pixels, 4)
    assert cut.shape == (1, 16, 48)
    np.testing.assert_array_equal(cut[0, 6], pixels[0, 4:8, 8:12].reshape(-1))
