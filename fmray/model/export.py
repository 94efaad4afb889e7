"""Writes a model as a Hugging Face directory that `from_pretrained` opens with no further step."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmray.model.checkpoint import hf_files, tokenizer_files

if TYPE_CHECKING:
    import torch


def save_model(root: Path, model: Any, state_dict: "Mapping[str, torch.Tensor]", tokenizer: Path) -> None:
    """Writes config, float32 weights and the tokenizer's files into `root`.

    Args:
        model: a transformers model of the right class and config; its own weights are not read.
        state_dict: the weights, tensors that are shared named once.
        tokenizer: the directory whose tokenizer files are copied.
    """
    from huggingface_hub import save_torch_state_dict

    for name in hf_files(root):
        (root / name).unlink()
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = "float32"
    config.save_pretrained(root)
    if model.can_generate():
        model.generation_config.save_pretrained(root)
    save_torch_state_dict(dict(state_dict), root)
    for name in tokenizer_files(tokenizer):
        shutil.copyfile(tokenizer / name, root / name)
