"""Models with fresh weights, complete."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def fresh_model(auto: Any, hf_config: Any, **options: Any) -> Any:
    """A model of a transformers `Auto...` class with weights drawn from torch's generator; `options` are those of its `from_config`.

    transformers 5.23 leaves the position tables, the class token and the mask token of a fresh ViT-MAE at zero, and draws all else with a
    standard deviation of 0.02 whatever the width: no hidden patch can be told from another, and a narrow model hardly learns. Here they are drawn as He et al. 2022 do (https://arxiv.org/abs/2111.06377, appendix A).
    """
    model = auto.from_config(hf_config, **options)
    if hf_config.model_type == "vit_mae":
        _draw_autoencoder(model)
    return model


def _draw_autoencoder(model: Any) -> None:
    import torch
    from torch.nn import init

    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        side = round((table.shape[1] - 1) ** 0.5)
        table.data[0, 1:] = sine_positions(side, table.shape[2])
    for token in (model.vit.embeddings.cls_token, model.decoder.mask_token):
        init.normal_(token, std=0.02)
    # A patch's projection is a matrix over its pixels, though it stands as a convolution.
    init.xavier_uniform_(model.vit.embeddings.patch_embeddings.projection.weight.data.flatten(1))
    for module in model.modules():
        # What predicts pixels stays small, so that a fresh model is as good as chance.
        if isinstance(module, torch.nn.Linear) and module is not model.decoder.decoder_pred:
            init.xavier_uniform_(module.weight)


def sine_positions(side: int, width: int) -> "Tensor":
    """[side^2, width] fixed positions of a square of patches in reading order: sines and cosines of the column, then of the row.

    He et al. 2022 (https://arxiv.org/abs/2111.06377, appendix A) with the frequencies of Vaswani et al. 2017, in the order in which published weights have them.
    """
    import torch

    rates = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([waves.repeat(side, 1), waves.repeat_interleave(side, 0)], dim=1)
