"""Fresh models are complete: no table that they look up or multiply by is left empty."""

import pytest
import torch
import transformers

from fmray.model.architectures.vit_mae import VitMae
from fmray.model.fresh import fresh_model, sine_positions


def vit_mae():
    config = VitMae(size="nano", patch_size=4).fit((28, 28, 1)).hf_config(0, 49)
    return fresh_model(transformers.AutoModelForPreTraining, config)


def test_patches_of_a_fresh_image_model_have_positions():
    model = vit_mae()
    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert not table[0, 0].any()
        apart = torch.cdist(table[0, 1:], table[0, 1:]) + torch.eye(49)
        assert apart.min() > 0.1


def test_positions_are_those_of_published_weights():
    from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

    theirs = build_2d_sinusoidal_position_embedding(height=7, width=7, embed_dim=64, cls_token=False)
    # Published weights have the columns' waves in front of the rows'.
    torch.testing.assert_close(sine_positions(7, 64), torch.cat([theirs[:, 32:], theirs[:, :32]], dim=1), rtol=1e-5, atol=1e-5)


def test_an_image_model_is_drawn_by_its_width():
    model = vit_mae()
    assert model.vit.embeddings.cls_token.any()
    assert model.decoder.mask_token.any()
    for layer in (model.vit.layers[0].attention.q_proj, model.decoder.decoder_layers[1].mlp.fc1):
        assert layer.weight.std().item() == pytest.approx((2 / (layer.in_features + layer.out_features)) ** 0.5, rel=0.05)
    # Predictions begin near nothing, which is as good as chance.
    assert model.decoder.decoder_pred.weight.std() < 0.03
