"""Writes safetensors files tensor by tensor: hashed while they are written, on the device when it returns, no more than one tensor held.

The library's own writer wants every tensor of a file in memory at once, and what it wrote must be read again to be hashed. The format
is eight bytes of length, that much JSON and the tensors behind each other: https://github.com/huggingface/safetensors#format.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fmray.core.artifact import write_json

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SHARD_GB = 5.0
# Written and hashed at once: the interpreter's lock is free meanwhile.
BLOCK = 16 * 1024**2
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: `read` gives it when its turn comes, on any device, with this dtype and so many elements."""

    name: str
    dtype: "torch.dtype"
    shape: tuple[int, ...]
    read: Callable[[], "torch.Tensor"]

    @property
    def n_bytes(self) -> int:
        """The bytes that it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def held_entry(name: str, tensor: "torch.Tensor") -> Entry:
    """The entry of a tensor that lies in memory."""
    return Entry(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


def write_tensors(path: Path, entries: Iterable[Entry], metadata: Mapping[str, str]) -> str:
    """Writes a safetensors file, flushed to the device; its sha256.

    Raises:
        OSError: the storage refuses it.
    """
    import torch

    # The widest first, so that every tensor begins at a multiple of its element's size.
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def put(content: bytes | memoryview) -> None:
            file.write(content)
            digest.update(content)

        put(_header(ordered, metadata))
        for entry in ordered:
            flat = entry.read().detach().contiguous().cpu().view(-1)
            if (flat.dtype, flat.numel()) != (entry.dtype, math.prod(entry.shape)):
                raise ValueError(f"{entry.name} is {flat.dtype} of {flat.numel()} elements, not {entry.dtype} of {entry.shape}")
            if flat.numel():
                content = memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
                for start in range(0, len(content), BLOCK):
                    put(content[start : start + BLOCK])
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    head: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for entry in entries:
        dtype = DTYPES[str(entry.dtype).removeprefix("torch.")]
        head[entry.name] = {"dtype": dtype, "shape": list(entry.shape), "data_offsets": [at, at + entry.n_bytes]}
        at += entry.n_bytes
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_sharded(root: Path, entries: Sequence[Entry], *, shard_gb: float = SHARD_GB) -> None:
    """Writes a model's weights as Hugging Face does: `model.safetensors`, or shards of at most `shard_gb` 10^9 bytes with their index.

    A tensor that is larger has a shard of its own.
    """
    shards = [list[Entry]()]
    for entry in entries:
        if shards[-1] and sum(e.n_bytes for e in shards[-1]) + entry.n_bytes > shard_gb * 1e9:
            shards.append([])
        shards[-1].append(entry)
    if len(shards) == 1:
        write_tensors(root / "model.safetensors", shards[0], {"format": "pt"})
        return
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        write_tensors(root / file, shard, {"format": "pt"})
    weight_map = {entry.name: file for file, shard in zip(files, shards, strict=True) for entry in shard}
    write_json(root / INDEX, {"metadata": {"total_size": sum(entry.n_bytes for entry in entries)}, "weight_map": weight_map})
