"""The image autoencoder: counts against the built model, FLOPs against torch's counter, images that do not fit."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForPreTraining

from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.model.architectures.vit_mae import SIZES, VitMae
from fmray.objectives.masked_image import MaskedImage
from tests.model.test_decoder import Holder


@pytest.mark.parametrize(("size", "image", "patch"), [*((size, (224, 224, 3), 16) for size in SIZES), ("nano", (28, 28, 1), 4)])
def test_every_size_counts_its_parameters_exactly(size, image, patch):
    model = VitMae(size=size, patch_size=patch).fit(image)
    with torch.device("meta"):
        built = AutoModelForPreTraining.from_config(model.hf_config(0, 0))
    assert model.count_params(0) == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize("hidden", [0.75, 0.5])
def test_flops_agree_with_torchs_counter(hidden):
    model = VitMae(size="micro").fit((32, 32, 3))
    config = model.hf_config(0, 0)
    config.mask_ratio = hidden
    built = AutoModelForPreTraining.from_config(config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        built(pixel_values=torch.randn(2, 3, 32, 32)).loss.backward()
    assert model.positions(0) == 64
    assert model.flops_per_token(0, 64, MaskedImage(mask_ratio=hidden).reads) == pytest.approx(counter.get_total_flops() / (2 * 64), rel=0.05)


@pytest.mark.parametrize(("image", "said"), [((28, 32, 1), "not square"), ((30, 30, 1), "not a multiple of patch_size 4"), (None, "holds text")])
def test_images_that_do_not_fit_are_named(image, said):
    with pytest.raises(ConfigError, match=said):
        VitMae().fit(image)


def test_bad_dimensions_are_named():
    with pytest.raises(ConfigError, match="decoder_hidden_size 66 must be a multiple of 4"):
        load_config(Holder, {"model": {"type": "vit_mae", "decoder_hidden_size": 66}}, "base")
