"""What the contenders share: the model, the batches, the peak of the same process, and the speed between steps."""

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

SEQ_LEN, ROWS, VOCAB = 256, 16, 8192
# About 10 M parameters, embeddings included; wide enough that matrix products and not their dispatch take the time.
MODEL = {"type": "decoder", "num_hidden_layers": 4, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1024}
OPTIM = {"lr": 1e-3, "warmup_steps": 5}
CORPUS = Path("bench") / "corpus"
PEAK_SIZE, PEAK_REPEATS = 2048, 12
Speeds = dict[str, float]


def experiment(folder: Path, steps: dict[str, Any]) -> Any:
    """An experiment whose artifacts lie below `folder`."""
    from fmray.core.experiment import Experiment

    return Experiment({"name": "bench", "steps": steps}, where="bench", storage=str(folder))


def prepare(text: Path, folder: Path) -> None:
    """The packed rows that all contenders but the padding Trainer train on."""
    step = {
        "stage": "prepare", "source": {"type": "text", "path": str(text.absolute())}, "seq_len": SEQ_LEN, "vocab_size": VOCAB,
        "tokenizer_sample_mb": 4, "validation_fraction": 0.01,
    }  # fmt: skip
    experiment(folder, {"corpus": step}).run()


def use_all_cores() -> None:
    """As many threads as cores, in this process."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)


def peak_flops() -> float:
    """FLOP/s of the best of some bf16 matrix products of 2,048 cubed: the limit of this process on this machine, now."""
    import torch

    use_all_cores()
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE).to(torch.bfloat16) for _ in range(2))
    spent = []
    for _ in range(PEAK_REPEATS):
        began = time.perf_counter()
        a @ b
        spent.append(time.perf_counter() - began)
    return 2 * PEAK_SIZE**3 / min(spent)


def architecture() -> Any:
    """fmray's description of the model."""
    from fmray.model.architectures.decoder import Decoder

    return Decoder(**{key: value for key, value in MODEL.items() if key != "type"})  # type: ignore[arg-type]


def flops_per_position() -> float:
    """FLOPs of one trained position: 6 N and the attention's (Kaplan et al. 2020; Chowdhery et al. 2022, appendix B)."""
    return float(architecture().flops_per_token(VOCAB, SEQ_LEN))


def fresh_model() -> Any:
    """The model with seeded weights, as transformers builds it."""
    import torch
    from transformers import AutoModelForCausalLM

    use_all_cores()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(architecture().hf_config(VOCAB, SEQ_LEN), attn_implementation="sdpa")


def batches(folder: Path, steps: int) -> Iterator[Any]:
    """fmray's batches."""
    from fmray.core.cursor import Cursor
    from fmray.data.reader import TokenReader
    from fmray.objectives.causal_lm import CausalLM

    reader, cursor = TokenReader(folder / CORPUS, "train", 0, ROWS), Cursor(epoch=0, row=0)
    for _ in range(steps):
        yield CausalLM().collate(reader.batch(cursor, 0, 1))
        cursor = reader.advance(cursor)


def timed(steps: list[float], effective: float = 1.0) -> Speeds:
    """The median speed of steps behind the first third; `effective` is the share of positions that are no padding."""
    rate = SEQ_LEN * ROWS / statistics.median(steps[len(steps) // 3 :])
    return {"positions_per_s": rate, "effective_per_s": rate * effective}


def between(stamps: list[float]) -> list[float]:
    """Seconds from the end of one step to that of the next."""
    return [b - a for a, b in pairwise(stamps)]


def one_process() -> None:
    """A process group of this process alone."""
    import torch

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    torch.distributed.init_process_group("gloo")


@contextlib.contextmanager
def watched_processes() -> Iterator[list[tuple[float, dict[int, float]]]]:
    """Every two seconds of the block: the time, and the CPU-seconds until then of this process and of all below it but Ray Train's workers."""
    samples: list[tuple[float, dict[int, float]]] = []
    ended, this = threading.Event(), psutil.Process()

    def watch() -> None:
        while not ended.wait(2.0):
            spent: dict[int, float] = {}
            for process in [this, *this.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    if "RayTrainWorker" not in "".join(process.cmdline()):
                        times = process.cpu_times()
                        spent[process.pid] = times.user + times.system
            samples.append((time.time(), spent))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def beside_share(samples: list[tuple[float, dict[int, float]]], begin: float, end: float) -> float:
    """The CPU time between two times of the processes that were there at both, as a part of what all cores have."""
    within = [sample for sample in samples if begin <= sample[0] <= end]
    (first, before), (last, after) = within[0], within[-1]
    spent = sum(after[pid] - before[pid] for pid in before if pid in after)
    return spent / ((last - first) * (os.cpu_count() or 1))
