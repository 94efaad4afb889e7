"""Low-rank adapters of the tiny base, by peft itself: merged models as artifacts with the adapter beside them, and their gates."""

import shutil
from pathlib import Path
from typing import Any

from fmray.core.artifact import Artifact
from fmray.model.adapter import ADAPTER, adapter_digest, save_adapter
from fmray.model.checkpoint import Checkpoint, hf_digest, tokenizer_files
from tests.serve.conftest import make_decision, save_record

SHAPES: dict[str, dict[str, Any]] = {
    "first": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "second": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
}


def tuned(base: Path, seed: int, **shape: Any) -> Any:
    """peft's model of the base with random weights in both halves of its adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), LoraConfig(**shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return model


def make_adapter(folder: Path, base: Artifact[Checkpoint], seed: int, **shape: Any) -> Artifact[Checkpoint]:
    """What finetune leaves: the merged model, its tokenizer, the adapter beside it, and a record that names the base."""
    model = tuned(base.path, seed, **shape)
    save_adapter(model, folder / ADAPTER)
    model.merge_and_unload().save_pretrained(folder)
    for name in tokenizer_files(base.path):
        shutil.copyfile(base.path / name, folder / name)
    payload = Checkpoint(
        head="causal_lm", architecture="llama", digest=hf_digest(folder), n_params=1, vocab_size=320, parent=base.fingerprint,
        adapter_digest=adapter_digest(folder / ADAPTER),
    )  # fmt: skip
    return save_record(folder, folder.name, payload)


def family(root: Path, base: Artifact[Checkpoint]) -> Path:
    """A copy of the base with its gate, and below the same root both adapters of `SHAPES` with theirs."""
    shutil.copytree(base.path, root / "base")
    shutil.copytree(base.path.parent / "base_gate", root / "base_gate")
    for seed, (name, shape) in enumerate(SHAPES.items()):
        make_decision(root / f"{name}_gate", make_adapter(root / name, base, seed, **shape))
    return root
