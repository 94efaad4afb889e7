"""Models with fresh weights, complete."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def fresh_model(auto: Any, hf_config: Any, **options: Any) -> Any:
    """A model of a transformers `Auto...` class with weights drawn from torch's generator; `options` are those of its `from_config`.

    transformers 5.23 leaves the fixed position tables of a fresh ViT-MAE at zero (its `_init_weights` clears the decoder's, and passes over the
    encoder's once the patch projection is drawn), without which no hidden patch could be told from another; they are filled in here.
    """
    model = auto.from_config(hf_config, **options)
    if hf_config.model_type == "vit_mae":
        for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
            side = round((table.shape[1] - 1) ** 0.5)
            table.data[0, 1:] = sine_positions(side, table.shape[2])
    return model


def sine_positions(side: int, width: int) -> "Tensor":
    """[side^2, width] fixed positions of a square of patches in reading order: sines and cosines of the column, then of the row.

    He et al. 2022 (https://arxiv.org/abs/2111.06377, appendix A) with the frequencies of Vaswani et al. 2017, in the order in which published weights have them.
    """
    import torch

    rates = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([waves.repeat(side, 1), waves.repeat_interleave(side, 0)], dim=1)
