"""Contrastive learning of representations. Shapes: B rows of this worker, W rows of all workers, T positions, D width of the model."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fmray.core.errors import ConfigError
from fmray.model.architectures import Family
from fmray.model.checkpoint import Head
from fmray.objectives import ALONE, Batch, Forward, LossParts, Objective, Rows, Setting

if TYPE_CHECKING:
    import torch

# What transformers' encoders call the dropout that acts while an encoder without a head is trained.
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "embedding_dropout", "mlp_dropout", "attention_dropout")


class Contrastive(Objective):
    """Find a text again among others by what another dropout leaves of it (SimCSE, unsupervised: Gao et al. 2021, section 3).

    Every row is read twice in one pass, with dropout drawn anew. Its first reading has to tell its second from the second readings of
    all other rows of the global batch, those of other workers included, by cosine similarity; gradients flow back into all of them, so
    that two workers compute what one does. Rows hold one document.

    Negatives are those of one batch, so a batch cannot be split: gradients are not accumulated. Which units are dropped depends on the
    number of workers, as with any dropout; the texts and the loss do not.

    Attributes:
        temperature: what similarities are divided by.
        pooling: `mean` takes the mean over a text's tokens, and trains no pooler; `cls` what stands over the first token, behind the
            model's own pooler where it has one, as the paper's dense layer. A fresh model's first token says little of its text, so `cls`
            is for models that were pretrained.
        dropout: of hidden states and attention; it takes the place of the architecture's.
    """

    type: Literal["contrastive"] = "contrastive"
    head: ClassVar[Head] = "encoder"
    auto_class: ClassVar[str] = "AutoModel"
    family: ClassVar[Family | None] = "encoder"
    continues: ClassVar[tuple[Head, ...]] = ("masked_lm",)
    adds_up: ClassVar[bool] = False
    passes: ClassVar[int] = 2
    temperature: float = Field(0.05, gt=0)
    pooling: Literal["mean", "cls"] = "mean"
    dropout: float = Field(0.1, gt=0, lt=1)

    def check(self, setting: Setting, seq_len: int) -> None:
        """Wants rows of one document."""
        if not setting.one_a_row:
            raise ConfigError("contrastive tells documents apart and trains on rows of one document each", where="objective", todo="prepare the dataset with packing: {type: unpacked}")

    def configure(self, hf_config: Any) -> None:
        """Two readings of a text differ by dropout alone, so the model has that of the objective.

        Raises:
            ConfigError: the model has no dropout that is known here.
        """
        known = [name for name in DROPOUTS if hasattr(hf_config, name)]
        if not known:
            raise ConfigError(f"a {hf_config.model_type} model has no dropout by which two readings of a text would differ", where="model")
        for name in known:
            setattr(hf_config, name, self.dropout)

    def collate(self, rows: Rows, setting: Setting = ALONE) -> Batch:
        """`row_ids_B`, and `input_ids_BT` with `attention_mask_BT`, cut to the longest row of this batch. Nothing is drawn."""
        import torch

        mask_BT = (np.asarray(rows["segment_ids_BT"]) != 0).astype(np.int64)
        width = max(1, int(mask_BT.sum(axis=1).max()))
        batch: dict[str, torch.Tensor] = {"row_ids_B": torch.from_numpy(np.asarray(rows["row_ids_B"], dtype=np.int64))}
        for name, values in (("input_ids_BT", np.asarray(rows["input_ids_BT"], dtype=np.int64)), ("attention_mask_BT", mask_BT)):
            batch[name] = torch.from_numpy(np.ascontiguousarray(values[:, :width]))
        return batch

    def count(self, batch: Batch) -> int:
        """The number of rows."""
        return len(batch["row_ids_B"])

    def loss(self, model: Forward, batch: Batch) -> LossParts:
        """Summed cross-entropy (nats) of each row's second reading among those of all workers, in float32 whatever the model computes in."""
        import torch
        import torch.nn.functional as F

        first_BD, second_BD = self.readings(model, batch)
        second_WD, before = _gathered(second_BD)
        scores_BW = first_BD @ second_WD.T / self.temperature
        own_B = before + torch.arange(len(first_BD), device=first_BD.device)
        return LossParts(F.cross_entropy(scores_BW, own_B, reduction="sum"), self.count(batch))

    def readings(self, model: Forward, batch: Batch) -> "tuple[torch.Tensor, torch.Tensor]":
        """Two representations [B, D] of every row, of length 1 and in float32; they differ where the model drops units."""
        import torch
        import torch.nn.functional as F

        mask_BT = torch.cat([batch["attention_mask_BT"]] * 2)
        output = model(input_ids=torch.cat([batch["input_ids_BT"]] * 2), attention_mask=mask_BT)
        if self.pooling == "mean":
            weights_BT = mask_BT.float()
            pooled_BD = torch.einsum("btd,bt->bd", output.last_hidden_state.float(), weights_BT) / weights_BT.sum(dim=1, keepdim=True).clamp(min=1)
        else:
            own = getattr(output, "pooler_output", None)
            pooled_BD = (output.last_hidden_state[:, 0] if own is None else own).float()
        first_BD, second_BD = F.normalize(pooled_BD, dim=-1).chunk(2)
        return first_BD, second_BD


def _gathered(values_BD: "torch.Tensor") -> "tuple[torch.Tensor, int]":
    """The values of all workers in the order of their ranks, and how many stand before this worker's; alone, its own."""
    import torch

    spread = torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    if not spread:
        return values_BD, 0
    return _gather(values_BD), torch.distributed.get_rank() * len(values_BD)


def _gather(values_BD: "torch.Tensor") -> "torch.Tensor":
    """[W, D] of [B, D] from every worker (all of one B). Backward sums what all workers' losses say of this worker's values.

    torch.distributed.nn.functional.all_gather does the same and is deprecated.
    """
    import torch

    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: "torch.Tensor") -> "torch.Tensor":
            parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(parts, values.contiguous())
            return torch.cat(parts)

        @staticmethod
        def backward(ctx: Any, *grads: "torch.Tensor") -> "torch.Tensor":
            total = grads[0].contiguous().clone()
            torch.distributed.all_reduce(total)
            return total.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]

    gathered: torch.Tensor = Gather.apply(values_BD)
    return gathered
