"""Files written tensor by tensor are what the library reads, hashed as they lie, and split as Hugging Face splits."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fmray.core.artifact import sha256_file
from fmray.model.tensor_file import INDEX, Entry, held_entry, write_sharded, write_tensors

TENSORS = {
    "half": torch.randn(3, 5).to(torch.bfloat16), "odd": torch.arange(3, dtype=torch.uint8), "whole": torch.randn(4, 2), "turned": torch.randn(6, 4).t(),
    "one": torch.tensor(3.5), "none": torch.zeros(0, 4), "long": torch.arange(5), "flag": torch.tensor([True, False, True]),
}  # fmt: skip


def test_the_library_reads_what_was_written(tmp_path):
    digest = write_tensors(tmp_path / "x.safetensors", [held_entry(*item) for item in TENSORS.items()], {"format": "pt", "é": "ü"})
    assert digest == sha256_file(tmp_path / "x.safetensors")
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "é": "ü"}
    head = int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little")
    assert head % 8 == 0


def test_a_tensor_that_is_not_what_was_said_is_refused(tmp_path):
    with pytest.raises(ValueError, match="wrong is"):
        write_tensors(tmp_path / "x.safetensors", [Entry("wrong", torch.float32, (3,), lambda: torch.zeros(4))], {})


def test_shards_stay_below_their_size_and_hold_everything_once(tmp_path):
    many = {f"w{i}": torch.full((250,), float(i)) for i in range(5)} | {"large": torch.zeros(2000)}
    write_sharded(tmp_path, [held_entry(*item) for item in many.items()], shard_gb=2e-6)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 4 * (5 * 250 + 2000)}
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    found = {name: file.name for file in files for name in load_file(file)}
    assert found == index["weight_map"]
    assert [sorted(load_file(file)) for file in files] == [["w0", "w1"], ["w2", "w3"], ["w4"], ["large"]]
    (tmp_path / "small").mkdir()
    write_sharded(tmp_path / "small", [held_entry(*item) for item in many.items()])
    assert [file.name for file in (tmp_path / "small").iterdir()] == ["model.safetensors"]
