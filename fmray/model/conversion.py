"""Brings a checkpoint into another form or precision, tensor by tensor: no more than one of them is in memory at a time."""

import functools
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fmray.core.artifact import STARTED, load, write_json
from fmray.core.errors import ArtifactError, ConfigError, RunError
from fmray.model.checkpoint import Checkpoint, hf_digest, hf_files, read_hf_config
from fmray.model.gguf_file import check_gguf, write_gguf
from fmray.model.tensor_file import SHARD_GB, Entry, write_sharded

if TYPE_CHECKING:
    import torch

Format = Literal["safetensors", "gguf"]
FORMATS, DTYPES = ("safetensors", "gguf"), ("float32", "bfloat16", "float16")
UNITS_GB = {"KB": 1e-6, "MB": 1e-3, "GB": 1.0}
SOURCE = "export.json"


def export_checkpoint(checkpoint: Path, out: Path, *, form: str = "safetensors", dtype: str | None = None, shard_size: str = f"{SHARD_GB:g}GB") -> None:
    """Writes the model of a Hugging Face directory anew, with a note on where it comes from.

    Args:
        out: a directory to be made, or for GGUF a file.
        form: `safetensors` (a Hugging Face directory) or `gguf` (one file with the tokenizer in it, as llama.cpp and transformers read it).
        dtype: of the weights; None keeps what they are.
        shard_size: of a weight file at most, such as 5GB or 200MB.

    Raises:
        ConfigError: an option is wrong, or `out` is taken.
        ArtifactError: the checkpoint is unfinished or damaged, or cannot be told in this form.
        RunError: `out` cannot be written.
    """
    for name, value, known in (("--format", form, FORMATS), ("--dtype", dtype, DTYPES)):
        if value is not None and value not in known:
            raise ConfigError(f"'{value}' is none of {', '.join(known)}", where=name)
    shard_gb = _gb(shard_size)
    if (checkpoint / STARTED).exists():
        load(checkpoint, Checkpoint)
    hf_config = read_hf_config(checkpoint)
    if form == "gguf":
        check_gguf(checkpoint, hf_config)
    if out.exists():
        raise ConfigError("is there already", where=str(out), todo="name another place or move it away")
    partial = out.with_name(f".{out.name}.partial")
    try:
        _remove(partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        entries = [_cast(entry, dtype) for entry in stored_entries(checkpoint)]
        if form == "gguf":
            write_gguf(partial, checkpoint, hf_config, entries)
        else:
            _write_directory(partial, checkpoint, entries, dtype, shard_gb)
        partial.rename(out)
    except OSError as error:
        raise RunError(f"cannot be written ({error.strerror or error})", where=str(out), todo="make room, or name another place") from error
    finally:
        _remove(partial)


def stored_entries(root: Path) -> list[Entry]:
    """The tensors of a directory's safetensors files, each read when its turn comes.

    Raises:
        ArtifactError: a file is damaged, or one of the index is missing.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool}

    def reader(file: Path, name: str) -> "torch.Tensor":
        with safe_open(file, "pt") as opened:
            return opened.get_tensor(name)

    found = []
    for file in _weight_files(root):
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  it is no mapping
                    part = opened.get_slice(name)
                    found.append(Entry(name, dtypes[part.get_dtype()], tuple(part.get_shape()), functools.partial(reader, file, name)))
        except (OSError, SafetensorError, KeyError) as error:
            raise ArtifactError(f"is not a whole safetensors file ({type(error).__name__}: {error})", where=str(file), todo="copy the checkpoint again") from None
    return found


def _weight_files(root: Path) -> list[Path]:
    try:
        return sorted({root / name for name in json.loads((root / "model.safetensors.index.json").read_text())["weight_map"].values()})
    except FileNotFoundError:
        return sorted(root.glob("*.safetensors"))


def _cast(entry: Entry, dtype: str | None) -> Entry:
    import torch

    to = getattr(torch, dtype) if dtype is not None else entry.dtype
    if not entry.dtype.is_floating_point or to == entry.dtype:
        return entry
    return Entry(entry.name, to, entry.shape, lambda: entry.read().to(to))


def _write_directory(folder: Path, checkpoint: Path, entries: Sequence[Entry], dtype: str | None, shard_gb: float) -> None:
    folder.mkdir()
    for name in hf_files(checkpoint):
        if not name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.copyfile(checkpoint / name, folder / name)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if dtype is not None:
        config.pop("torch_dtype", None)
        write_json(folder / "config.json", config | {"dtype": dtype})
    write_sharded(folder, entries, shard_gb=shard_gb)
    write_json(folder / SOURCE, {"from": str(checkpoint), "digest": hf_digest(checkpoint), "dtype": dtype})


def _gb(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(KB|MB|GB)", text, re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"'{text}' is no size such as 5GB or 200MB", where="--shard-size")
    return float(found[1]) * UNITS_GB[found[2].upper()]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
