"""Writes a model as a Hugging Face directory that `from_pretrained` opens with no further step."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmray.core.artifact import write_json
from fmray.model.checkpoint import hf_files, tokenizer_files
from fmray.model.tensor_file import Entry, write_sharded


def save_model(root: Path, model: Any, weights: Sequence[Entry], tokenizer: Path | None) -> None:
    """Writes config, float32 weights and the tokenizer's files into `root`. The weights are read and written one after the other.

    Args:
        model: a transformers model of the right class and config; its own weights are not read.
        weights: tensors that are shared named once.
        tokenizer: the directory whose tokenizer files (or image processor) are copied; None writes the processor of the images.
    """
    for name in hf_files(root):
        (root / name).unlink()
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = "float32"
    config.save_pretrained(root)
    if model.can_generate():
        model.generation_config.save_pretrained(root)
    write_sharded(root, weights)
    if tokenizer is None:
        write_json(root / "preprocessor_config.json", image_processor(config))
        return
    for name in tokenizer_files(tokenizer):
        shutil.copyfile(tokenizer / name, root / name)


def image_processor(config: Any) -> dict[str, Any]:
    """What transformers' image processor must do to give a model the pixels that it was trained on: from 0...255 to -1...1."""
    height, width = (config.image_size, config.image_size) if isinstance(config.image_size, int) else config.image_size
    half = [0.5] * config.num_channels
    return {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": height, "width": width}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": half, "image_std": half,
    }  # fmt: skip
