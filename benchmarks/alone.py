"""Worker processes of one machine without Ray: forked from a process that has imported everything, joined by gloo."""

import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRELOADED = ["torch", "deepspeed", "transformers.models.llama.modeling_llama", "fmray.train.worker"]
# What a freed tensor took goes back to the system at once, so that resident memory tells what is held.
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}


def run(work: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """What `work(rank, world_size, *arguments)` gives on each of the ranks; an error of one ends all and is raised here."""
    import torch.multiprocessing as mp

    os.environ.update(ENVIRONMENT)
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory(prefix="fmray-alone-") as folder:
        mp.start_processes(_enter, (work, world_size, folder, arguments), nprocs=world_size, start_method="forkserver")
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(world_size)]


def _enter(rank: int, work: Callable[..., Any], world_size: int, folder: str, arguments: tuple[Any, ...]) -> None:
    import torch

    from fmray.train.deepspeed_engine import prepare_process

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    prepare_process(local_world_size=world_size, use_gpu=False)
    found = work(rank, world_size, *arguments)
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
