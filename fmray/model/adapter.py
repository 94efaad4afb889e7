"""A low-rank adapter (Hu et al. 2021, https://arxiv.org/abs/2106.09685) as the two files that peft writes: read without peft or pickle.

Legend: D features in, R rank, O features out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmray.core.artifact import tree_digest, write_json
from fmray.core.errors import ArtifactError
from fmray.model.checkpoint import tensor_shapes

if TYPE_CHECKING:
    import torch

ADAPTER = "adapter"
"""The folder, beside the merged model, that holds the unmerged adapter."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
OUTPUTS = ("lm_head", "embed_out")
PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
# What makes W + s B A, with one s for each rank, another sum than that; of what else peft knows the names of the weights tell.
OTHER_SUMS = (
    "alpha_pattern", "layer_replication", "alora_invocation_tokens", "arrow_config", "monteclora_config", "kasa_config", "use_bdlora",
    "use_dora", "use_qalora",
)  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """An adapter's directory: each layer that it adds to, by its name in the base, with the shapes [R, D] and [O, R] of A and B."""

    folder: Path
    alpha: float
    rank_stabilised: bool
    layers: Mapping[str, tuple[tuple[int, int], tuple[int, int]]]

    def scaling(self, layer: str) -> float:
        """What B A is scaled by: alpha / R, or alpha / sqrt(R) where it is rank-stabilised (https://arxiv.org/abs/2312.03732)."""
        rank = self.layers[layer][0][0]
        return self.alpha / (rank**0.5 if self.rank_stabilised else rank)

    def weights(self) -> "dict[str, tuple[torch.Tensor, torch.Tensor]]":
        """A [R, D] and B [O, R] of each layer, on the CPU."""
        from safetensors.torch import load_file

        tensors = load_file(self.folder / WEIGHTS)
        return {layer: (tensors[PREFIX + layer + DOWN], tensors[PREFIX + layer + UP]) for layer in self.layers}


def is_adapter(folder: Path) -> bool:
    """Whether a directory holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: Path) -> Adapter:
    """What an adapter's directory says of itself, from its config and the header of its weights.

    Raises:
        ArtifactError: there is none, its weights are pickled or damaged, or it is more than low-rank sums to linear layers.
    """
    config = _config(folder)
    if not (folder / WEIGHTS).is_file():
        pickled = any(file for pattern in PICKLED for file in folder.glob(pattern))
        what = "holds pickled weights, which can run code when they are read" if pickled else f"has no {WEIGHTS}"
        raise ArtifactError(what, where=str(folder), todo="save the adapter with safe_serialization=True (safetensors)")
    shapes = tensor_shapes(folder / WEIGHTS)
    layers = {}
    for name in sorted(shapes):
        layer = name.removeprefix(PREFIX).removesuffix(DOWN)
        up = PREFIX + layer + UP
        if name == PREFIX + layer + DOWN and up in shapes:
            down_RD, up_OR = shapes[name], shapes[up]
            if len(down_RD) != 2 or len(up_OR) != 2 or down_RD[0] != up_OR[1] or not down_RD[0]:
                raise ArtifactError(f"its layer {layer} has shapes {list(down_RD)} and {list(up_OR)}, which do not multiply", where=str(folder))
            layers[layer] = ((down_RD[0], down_RD[1]), (up_OR[0], up_OR[1]))
    other = sorted(set(shapes) - {PREFIX + layer + end for layer in layers for end in (DOWN, UP)})
    other += sorted(set(layers) & set(OUTPUTS))
    if other or not layers:
        what = f"holds {other[0]}, which is no low-rank sum to a linear layer of the model's body" if other else "holds no layer"
        raise ArtifactError(what, where=str(folder), todo="tune low-rank adapters alone (LoRA without biases, saved modules, embeddings and the output layer)")
    return Adapter(folder, float(config["lora_alpha"]), bool(config.get("use_rslora")), layers)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, alpha = config["peft_type"], float(config["lora_alpha"])
    except FileNotFoundError:
        raise ArtifactError(f"is no adapter (it has no {CONFIG})", where=str(folder), todo="give a directory that peft wrote") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"is no adapter that can be read ({CONFIG}: {type(error).__name__} {error})", where=str(folder)) from None
    used = [name for name in OTHER_SUMS if config.get(name)]
    if kind != "LORA" or used:
        raise ArtifactError(f"is {kind}{''.join(f' with {name}' for name in used[:1])}; plain LORA is known", where=str(folder))
    return dict(config) | {"lora_alpha": alpha}


def require_fit(adapter: Adapter, base: Path) -> None:
    """Holds an adapter to the weights of the base in a Hugging Face directory, by the headers of its files.

    Raises:
        ArtifactError: the base has no such layer, or one of another size.
    """
    shapes = {name: shape for file in sorted(base.glob("*.safetensors")) for name, shape in tensor_shapes(file).items()}
    for layer, (down_RD, up_OR) in adapter.layers.items():
        # Some hubs' checkpoints leave the name of the model's body out.
        shape = shapes.get(f"{layer}.weight", shapes.get(f"{layer.partition('.')[2]}.weight"))
        fits = shape in ((up_OR[0], down_RD[1]), (down_RD[1], up_OR[0]))  # GPT-2's layers are stored transposed
        if not fits:
            has = "has no such layer" if shape is None else f"has {list(shape)} there"
            what = f"does not fit the base: its layer {layer} maps {down_RD[1]} to {up_OR[0]} features, and {base.name} {has}"
            raise ArtifactError(what, where=str(adapter.folder), todo="name the base that the adapter was tuned on")


def merge(adapter: Adapter, model: Any) -> None:
    """Adds s B A to the weights of a model that the adapter fits."""
    import torch

    with torch.no_grad():
        for path, (down_RD, up_OR) in adapter.weights().items():
            layer = model.get_submodule(path)
            added_OD = adapter.scaling(path) * (up_OR.float() @ down_RD.float())
            # In float32, so that a model in half precision is rounded once.
            added = added_OD.T if type(layer).__name__ == "Conv1D" else added_OD
            layer.weight.copy_(layer.weight.float() + added)


def adapter_digest(folder: Path) -> str:
    """sha256 over the two files of an adapter."""
    return tree_digest(folder, [CONFIG, WEIGHTS])


def save_adapter(model: Any, folder: Path) -> None:
    """Writes the adapter of peft's model. Its config names no base: a directory of this machine means nothing elsewhere, and a
    checkpoint's record says what its parent is.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"].to_dict() | {"base_model_name_or_path": None, "inference_mode": True}
    # peft keeps the names of layers in sets, whose order would differ from run to run.
    write_json(folder / CONFIG, {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()})
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
