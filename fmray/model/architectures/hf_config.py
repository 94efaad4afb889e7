"""Any shape that a Hugging Face `config.json` describes: GPT-2, Qwen, Mistral and others of the families that objectives train."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import PrivateAttr, model_validator

from fmray.core.errors import ConfigError
from fmray.model.architectures import Architecture, Family, Reads
from fmray.model.flops import READ, flops_per_token
from fmray.model.positions import max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Which family of objectives trains a `model_type`, and the class with the head that this family begins from.
FAMILIES: dict[Family, tuple[str, ...]] = {
    "decoder": ("llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "olmo2", "gemma2"),
    "encoder": ("bert", "roberta", "modernbert", "esm"),
    "encoder_decoder": ("t5", "bart"),
}
AUTO_CLASSES: dict[Family, str] = {"decoder": "AutoModelForCausalLM", "encoder": "AutoModelForMaskedLM", "encoder_decoder": "AutoModelForSeq2SeqLM"}
# Keep documents that share a row apart: decoders by positions that restart, and the encoders that take a mask of pairs.
PACKING = ("bert", "roberta", "modernbert")
FILE = "config.json"


class HFConfig(Architecture):
    """The shape in a `config.json`, with fresh weights and the dataset's own vocabulary.

    Attributes:
        path: the file, or the directory that holds it; its content enters the fingerprint, and no weights are read.
    """

    type: Literal["hf_config"] = "hf_config"
    path: str
    _told: dict[str, Any] | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _readable(self) -> Self:
        kind = self.read().get("model_type")
        if not any(kind in kinds for kinds in FAMILIES.values()):
            known = ", ".join(kind for kinds in FAMILIES.values() for kind in kinds)
            raise ValueError(f"path: {self.path} describes a {kind!r}, which no objective here trains; known: {known}")
        return self

    def read(self) -> dict[str, Any]:
        """The file's content, as it was when this was made: workers elsewhere, and those started again later, build the same.

        Raises:
            ValueError: there is none, or it is no JSON object.
        """
        if self._told is None:
            self._told = self._parsed()
        return self._told

    def _parsed(self) -> dict[str, Any]:
        file = Path(self.path).expanduser()
        file = file / FILE if file.is_dir() else file
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"path: {file} cannot be read as a Hugging Face config ({type(error).__name__})") from None
        if not isinstance(found, dict):
            raise ValueError(f"path: {file} holds no JSON object")
        return found

    def identity(self) -> dict[str, Any]:
        """What the file says, wherever it lies."""
        return {"type": self.type, "config": self.read()}

    @property
    def family(self) -> Family:  # type: ignore[override]
        """That of the file's `model_type`."""
        kind = self.read()["model_type"]
        return next(family for family, kinds in FAMILIES.items() if kind in kinds)

    @property
    def packs(self) -> bool:
        """Of encoders those that take a mask of pairs; encoder-decoders never."""
        return self.family == "decoder" or self.read()["model_type"] in PACKING

    def check(self, seq_len: int) -> None:
        """Wants as many positions as a row has, where positions come from a table or are limited."""
        told = self.read()
        positions = max_positions(told)
        if positions is not None and positions < seq_len:
            raise ConfigError(f"{self.path} has {positions} positions and a row {seq_len}", where="model", todo="prepare shorter rows (seq_len)")

    def hf_config(self, vocab_size: int, max_positions: int) -> "PreTrainedConfig":
        """The file's config for this vocabulary, without special tokens of another."""
        from transformers import AutoConfig

        told = {key: value for key, value in self.read().items() if key not in ("architectures", "dtype", "torch_dtype")}
        config: PreTrainedConfig = AutoConfig.for_model(told.pop("model_type"), **told | {"vocab_size": vocab_size})
        for name in [name for name in vars(config) if name.endswith("_token_id")]:
            setattr(config, name, None)
        return config

    def count_params(self, vocab_size: int, max_positions: int = 0) -> int:
        """The parameters of the model itself, built without memory."""
        import torch
        import transformers

        with torch.device("meta"):
            model = getattr(transformers, AUTO_CLASSES[self.family]).from_config(self.hf_config(vocab_size, max_positions))
        return sum(parameter.numel() for parameter in model.parameters())

    def flops_per_token(self, vocab_size: int, seq_len: int, reads: Reads | None = None) -> float:
        """6 N + 12 L d T by the config; of an encoder-decoder as if every position went through both halves.

        Raises:
            ConfigError: the config does not name its layers and width.
        """
        config = self.hf_config(vocab_size, seq_len)
        # By attribute: classes map the names of their own (n_layer, d_model) to these.
        told = {name: getattr(config, name, None) for name in READ}
        found = flops_per_token(told, self.count_params(vocab_size, seq_len), seq_len)
        if found is None:
            raise ConfigError(f"{self.path} does not name its layers and its width", where="model")
        return found
