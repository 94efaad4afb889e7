"""Masked image modelling. Shapes: B rows, H height, W width, C channels, N patches, P values of a patch."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmray.data.dataset import Modality
from fmray.model.architectures import Family, Reads
from fmray.model.checkpoint import Head
from fmray.objectives import ALONE, Batch, Forward, LossParts, Objective, Rows, Setting, row_generators

if TYPE_CHECKING:
    import torch

NORM_EPSILON = 1e-6


class MaskedImage(Objective):
    """Paint the hidden patches of an image from the others (He et al. 2022). Pixels are given from -1 to 1.

    Attributes:
        mask_ratio: the share of patches that are hidden, anew in every epoch; the same number in every image.
        normalised: each patch is to be told with mean 0 and variance 1 of its own (section 3, "Reconstruction target").
    """

    type: Literal["masked_image"] = "masked_image"
    head: ClassVar[Head] = "masked_image"
    auto_class: ClassVar[str] = "AutoModelForPreTraining"
    modality: ClassVar[Modality] = "image"
    family: ClassVar[Family | None] = "image_autoencoder"
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    normalised: bool = True

    def configure(self, hf_config: Any) -> None:
        """The model hides by the ranks that it is given, as many as this share comes to."""
        hf_config.mask_ratio, hf_config.norm_pix_loss = self.mask_ratio, self.normalised

    @property
    def reads(self) -> Reads:
        """See `Objective`."""
        return 1 - self.mask_ratio, 1.0

    def collate(self, rows: Rows, setting: Setting = ALONE) -> Batch:
        """`pixels_BCHW` (-1 to 1), `ranks_BN` (the order in which patches stay), `masked_BN`, and `targets_BNP` of all patches."""
        import torch

        pixels_BHWC = np.asarray(rows["pixels_BHWC"], dtype=np.float32) / 127.5 - 1.0
        targets_BNP = patches(pixels_BHWC, setting.patch_size)
        if self.normalised:
            # The unbiased variance, as transformers computes it.
            variance = targets_BNP.var(axis=-1, keepdims=True, ddof=1)
            targets_BNP = (targets_BNP - targets_BNP.mean(axis=-1, keepdims=True)) / np.sqrt(variance + NORM_EPSILON)
        n_patches = targets_BNP.shape[1]
        ranks_BN = np.stack([draw.permutation(n_patches) for draw in row_generators(rows, setting.seed)])
        return {
            "row_ids_B": torch.from_numpy(np.asarray(rows["row_ids_B"], dtype=np.int64)),
            "pixels_BCHW": torch.from_numpy(np.ascontiguousarray(pixels_BHWC.transpose(0, 3, 1, 2))),
            "ranks_BN": torch.from_numpy(ranks_BN),
            "masked_BN": torch.from_numpy(ranks_BN >= int(n_patches * (1 - self.mask_ratio))),
            "targets_BNP": torch.from_numpy(targets_BNP),
        }

    def count(self, batch: Batch) -> int:
        """The number of hidden patches."""
        return int(batch["masked_BN"].sum())

    def loss(self, model: Forward, batch: Batch) -> LossParts:
        """The squared error, averaged within a patch and summed over the hidden ones."""
        # Whole numbers: an engine may round fractions to bf16, and ties would change which patches stay.
        logits_BNP = model(pixel_values=batch["pixels_BCHW"], noise=batch["ranks_BN"]).logits
        error_BN: torch.Tensor = ((logits_BNP.float() - batch["targets_BNP"].float()) ** 2).mean(dim=-1)
        return LossParts((error_BN * batch["masked_BN"]).sum(), batch["masked_BN"].sum())


def patches(pixels_BHWC: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Images as patches [B, N, P] in reading order, the values of each by row, column and channel."""
    n, height, width, channels = pixels_BHWC.shape
    cut = pixels_BHWC.reshape(n, height // side, side, width // side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(cut).reshape(n, -1, side * side * channels)
