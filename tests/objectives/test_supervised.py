"""The supervised objective: sums and counts over rows, and padding that costs and changes nothing."""

import numpy as np
import pytest
import torch

from fmray.objectives.supervised import Supervised


class Counting(torch.nn.Module):
    """Logits that depend on every token that is not masked, and on nothing else."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(50, 4)
        self.widths: list[int] = []

    def forward(self, input_ids, attention_mask):
        self.widths.append(input_ids.shape[1])
        logits = (self.table(input_ids) * attention_mask[..., None]).sum(dim=1)
        return type("Output", (), {"logits": logits})


def rows(lengths=(3, 9, 5, 2), width=12):
    draw = np.random.default_rng(0)
    mask_BT = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    return {
        "input_ids_BT": draw.integers(1, 50, mask_BT.shape) * mask_BT, "attention_mask_BT": mask_BT,
        "labels_B": draw.integers(0, 4, len(lengths)), "row_ids_B": np.arange(len(lengths)),
    }  # fmt: skip


def test_splitting_a_batch_changes_nothing_but_its_width():
    objective, model, data = Supervised(), Counting(), rows()
    whole = objective.loss(model, objective.collate(data))
    parts = [objective.loss(model, objective.collate({k: v[i : i + 1] for k, v in data.items()})) for i in range(4)]
    assert whole.count == sum(p.count for p in parts) == objective.count(objective.collate(data)) == 4
    assert whole.sum.item() == pytest.approx(sum(p.sum.item() for p in parts), rel=1e-5)
    assert model.widths == [9, 3, 9, 5, 2]


def test_it_is_the_cross_entropy_of_the_labels():
    objective, model, data = Supervised(), Counting(), rows()
    batch = objective.collate(data)
    logits = model(batch["input_ids_BT"], batch["attention_mask_BT"]).logits
    wanted = -sum(torch.log_softmax(logits, 1)[i, label] for i, label in enumerate(data["labels_B"]))
    assert objective.loss(model, batch).sum.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert batch["row_ids_B"].tolist() == [0, 1, 2, 3]
