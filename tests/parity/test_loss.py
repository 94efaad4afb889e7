"""Our loss is transformers' own, where rows are not packed."""

import numpy as np
import pytest
import torch

from fmray.train.engine import TorchEngine
from fmray.train.optim import Optim
from tests.parity.workers import OBJECTIVE, SEQ_LEN, model
from tests.train.rows import VOCAB


def unpacked():
    draw = np.random.default_rng(0)
    return {
        "row_ids_B": np.arange(4),
        "input_ids_BT": draw.integers(0, VOCAB, (4, SEQ_LEN)),
        "segment_ids_BT": np.ones((4, SEQ_LEN), np.int64),
        "position_ids_BT": np.tile(np.arange(SEQ_LEN), (4, 1)),
    }


def test_loss_and_gradients_equal_transformers():
    ours, theirs, rows = model(), model(), unpacked()
    parts = OBJECTIVE.loss(ours, OBJECTIVE.collate(rows))
    (parts.sum / parts.count).backward()
    ids = torch.as_tensor(rows["input_ids_BT"])
    loss = theirs(input_ids=ids, labels=ids).loss
    loss.backward()
    assert (parts.sum / parts.count).item() == pytest.approx(loss.item(), rel=1e-6)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_one_step_of_the_engine_is_one_step_of_torchs_adamw():
    # Unfused: where a gradient is nearly zero, the first step of AdamW makes much of the last digits.
    ours, theirs, rows = model(fused=False), model(fused=False), unpacked()
    optim = Optim(lr=1e-2, weight_decay=0.0, max_grad_norm=0.5)
    stats = TorchEngine(ours, optim, lambda step: optim.lr, precision="fp32").train_batch([OBJECTIVE.collate(rows)], OBJECTIVE)
    ids = torch.as_tensor(rows["input_ids_BT"])
    loss = theirs(input_ids=ids, labels=ids).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.0, betas=optim.betas).step()
    assert stats.loss == pytest.approx(loss.item(), rel=1e-6)
    assert stats.grad_norm == pytest.approx(norm.item(), rel=1e-5)
    assert norm > 0.5
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5, msg=name)
