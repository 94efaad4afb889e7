"""Masked autoencoders of images (ViT-MAE), by named sizes."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fmray.core.config import Config
from fmray.core.errors import ConfigError
from fmray.model.activations import LOGIT_BYTES, Precision, attention_bytes, kept_bytes
from fmray.model.architectures import Architecture, Family, Reads, overridden

if TYPE_CHECKING:
    from transformers import ViTMAEConfig

Size = Literal["nano", "micro", "base", "large", "huge"]
KEPT = 0.25
"""The share of patches that the encoder sees when the objective hides three quarters, for which FLOPs are counted."""


class Shape(Config):
    """Every dimension of an encoder and its decoder, named as Hugging Face names them."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    decoder_num_hidden_layers: int
    decoder_hidden_size: int
    decoder_num_attention_heads: int
    decoder_intermediate_size: int


def _shape(layers: int, hidden: int, heads: int, decoder_layers: int, decoder_hidden: int, decoder_heads: int) -> Shape:
    return Shape(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=4 * hidden,
        decoder_num_hidden_layers=decoder_layers, decoder_hidden_size=decoder_hidden, decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * decoder_hidden,
    )  # fmt: skip


# base, large and huge are those of He et al. 2022 with their decoder of eight layers.
SIZES: dict[str, Shape] = {
    "nano": _shape(4, 128, 2, 2, 64, 2),
    "micro": _shape(6, 192, 3, 2, 96, 3),
    "base": _shape(12, 768, 12, 8, 512, 16),
    "large": _shape(24, 1024, 16, 8, 512, 16),
    "huge": _shape(32, 1280, 16, 8, 512, 16),
}


class VitMae(Architecture):
    """A named size; any dimension may be overridden. The images' size comes from the dataset, and they must be square.

    Attributes:
        patch_size: the side of a patch in pixels, which must divide that of the image.
    """

    type: Literal["vit_mae"] = "vit_mae"
    family: ClassVar[Family] = "image_autoencoder"
    size: Size = "nano"
    patch_size: int = Field(4, ge=1)
    image_shape: tuple[int, int, int] | None = None
    num_hidden_layers: int | None = Field(None, ge=1)
    hidden_size: int | None = Field(None, ge=4)
    num_attention_heads: int | None = Field(None, ge=1)
    intermediate_size: int | None = Field(None, ge=1)
    decoder_num_hidden_layers: int | None = Field(None, ge=1)
    decoder_hidden_size: int | None = Field(None, ge=4)
    decoder_num_attention_heads: int | None = Field(None, ge=1)
    decoder_intermediate_size: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _dimensions_fit(self) -> Self:
        shape = self.shape
        for part in ("", "decoder_"):
            width, heads = getattr(shape, f"{part}hidden_size"), getattr(shape, f"{part}num_attention_heads")
            # Positions are sines and cosines of rows and columns: four parts.
            if width % heads or width % 4:
                raise ValueError(f"{part}hidden_size {width} must be a multiple of 4 and of {part}num_attention_heads {heads}")
        return self

    @property
    def shape(self) -> Shape:
        """The named size with the overrides applied."""
        return overridden(SIZES[self.size], self)

    def fit(self, image_shape: tuple[int, int, int] | None) -> Self:
        """The architecture for images of this shape.

        Raises:
            ConfigError: they are not square, or patches do not divide them.
        """
        if image_shape is None:
            raise ConfigError("vit_mae reads images, and the dataset holds text", where="model")
        height, width, _ = image_shape
        if height != width or height % self.patch_size:
            raise ConfigError(f"images of {height} x {width} are not square or not a multiple of patch_size {self.patch_size}", where="model.patch_size", todo="set another patch_size, or prepare other images")
        return self.model_copy(update={"image_shape": image_shape})

    def positions(self, seq_len: int) -> int:
        """The patches of an image."""
        side = self._fitted[0] // self.patch_size
        return side * side

    def hf_config(self, vocab_size: int, max_positions: int) -> "ViTMAEConfig":
        """A `ViTMAEConfig` for the images that this was fitted to."""
        from transformers import ViTMAEConfig

        height, _, channels = self._fitted
        shape: dict[str, Any] = self.shape.model_dump()
        return ViTMAEConfig(**shape, image_size=height, patch_size=self.patch_size, num_channels=channels, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

    def count_params(self, vocab_size: int, max_positions: int = 0) -> int:
        """Both halves with their fixed tables of positions, which are stored though they are not trained."""
        shape, patches, values = self.shape, self.positions(0), self.patch_size**2 * self._fitted[2]
        total = 0
        for part in ("", "decoder_"):
            layers, width, inner = self._half(part)
            # Four matrices of attention and two of the MLP with their biases, two norms; the table, a token of its own, the last norm.
            total += layers * (4 * width * width + 2 * width * inner + 9 * width + inner) + (patches + 1) * width + width + 2 * width
        width, decoder_width = shape.hidden_size, shape.decoder_hidden_size
        return total + (values * width + width) + (width * decoder_width + decoder_width) + (decoder_width * values + values)

    def flops_per_token(self, vocab_size: int, seq_len: int, reads: Reads | None = None) -> float:
        """6 N + 12 L d T of each half over the positions it sees (a quarter of the patches, all of them), shared among `seq_len` patches.

        Both see a token more, which stands for the whole image.
        """
        values, total = self.patch_size**2 * self._fitted[2], 0.0
        for part, seen in (("", int(seq_len * (reads or (KEPT,))[0]) + 1), ("decoder_", seq_len + 1)):
            layers, width, inner = self._half(part)
            n = layers * (4 * width * width + 2 * width * inner)
            n += values * width if part else width * self.shape.decoder_hidden_size
            total += seen * (6.0 * n + 12.0 * layers * width * seen)
        # All patches are embedded before three quarters of them are dropped; no gradient flows back into pixels.
        return total / seq_len + 4.0 * values * self.shape.hidden_size

    def activation_bytes(self, vocab_size: int, seq_len: int, *, precision: Precision, attention: str, reads: Reads | None = None) -> float:
        """A layer of either half keeps the inputs of norms and matrices, q, k and v, attention's output twice, and the MLP's inside twice."""
        values, total = self.patch_size**2 * self._fitted[2], 0.0
        for part, seen in (("", int(seq_len * (reads or (KEPT,))[0]) + 1), ("decoder_", seq_len + 1)):
            layers, width, inner = self._half(part)
            heads = getattr(self.shape, f"{part}num_attention_heads")
            total += seen * kept_bytes(layers * (9 * width + 2 * inner) + 3 * width, 0, precision)
            total += attention_bytes(layers, heads, seen, seen, precision=precision, attention=attention, masked=False)
        # Predictions and their targets take the place of logits.
        return total + seq_len * (LOGIT_BYTES * values + kept_bytes(self.shape.hidden_size, 0, precision))

    def _half(self, part: str) -> tuple[int, int, int]:
        shape = self.shape
        return tuple(getattr(shape, f"{part}{name}") for name in ("num_hidden_layers", "hidden_size", "intermediate_size"))

    @property
    def _fitted(self) -> tuple[int, int, int]:
        if self.image_shape is None:
            raise ConfigError("does not know the images that it is for", where="model", todo="train it on a dataset of images")
        return self.image_shape
