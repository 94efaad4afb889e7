"""Attention implementations side by side, on a CPU or a GPU with the same command: `python -m benchmarks.attention --out benchmarks/results`.

Every implementation that transformers can be told to use (eager, torch's scaled_dot_product_attention as it chooses and held to each
of its backends, flex_attention, flash attention 2 and 3 where installed), forward and backward, on causal, full and packed rows, up to
32k positions, in fp32 and bf16. A cell that should not fit in memory or into the time is not tried, one that takes too long is
stopped, and each is shown with its reason. Each is compared with float64 in the same run.
"""

import argparse
import datetime
import shlex
import sys
from pathlib import Path

from benchmarks.attention.cells import ELEMENT_BYTES, IMPLEMENTATIONS, MASKS, grid
from benchmarks.attention.report import write
from benchmarks.attention.sweep import START_S, Row, Worker, sweep

SEQ_LENS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
# Positions of a cell and its width (heads x head dimension), by device: on a CPU that of a small model.
SIZES = {"cpu": (4096, 256), "cuda": (16384, 2048)}


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the GPU where there is one, if left out")
    parser.add_argument("--implementations", nargs="+", default=list(IMPLEMENTATIONS), choices=IMPLEMENTATIONS)
    parser.add_argument("--masks", nargs="+", default=list(MASKS), choices=MASKS)
    parser.add_argument("--dtypes", nargs="+", default=list(ELEMENT_BYTES), choices=ELEMENT_BYTES)
    parser.add_argument("--seq-lens", nargs="+", type=int, default=list(SEQ_LENS))
    parser.add_argument("--head-dims", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--tokens", type=int, help="positions of a cell over all its rows; a longer row stands alone")
    parser.add_argument("--width", type=int, help="heads x head dimension")
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring a cell")
    parser.add_argument("--limit-s", type=float, default=120.0, help="after which a cell is given up")
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="after which no further cell is tried; short rows come first")
    parser.add_argument("--memory-gb", type=float, help="that a cell may take, GiB; what is free, if left out")
    parser.add_argument("--out", type=Path, help="folder for the result files")
    parser.add_argument("--stem", help="name of the result files without their ending")
    return parser.parse_args()


def default_device() -> str:
    """cuda where torch finds a GPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Measures, prints, and writes the result files."""
    known = arguments()
    device = known.device or default_device()
    tokens, width = known.tokens or SIZES[device][0], known.width or SIZES[device][1]
    cells = grid(known.implementations, known.masks, known.dtypes, known.seq_lens, known.head_dims, tokens=tokens, width=width)
    worker = Worker(device)
    rows: list[Row] = []
    try:
        about = worker.ask("about", limit_s=START_S)
        about["peaks"] = {dtype: worker.ask("peak", dtype, limit_s=START_S) for dtype in known.dtypes}
        print(f"{about['name']}, {about['threads']} threads; matrix product " + ", ".join(f"{d} {p / 1e12:.3g} TFLOP/s" for d, p in about["peaks"].items()), flush=True)
        for row in sweep(cells, about["peaks"], worker, seconds=known.seconds, limit_s=known.limit_s, budget_s=known.budget_s, memory_gb=known.memory_gb, tell=lambda text: print(text, flush=True)):
            rows.append(row)
    finally:
        worker.close()
    if known.out:
        stem = known.stem or f"attention_{about['threads']}cpu_{datetime.date.today():%Y%m}" if device == "cpu" else known.stem or f"attention_gpu_{datetime.date.today():%Y%m}"
        settings = {"tokens": tokens, "width": width, "seconds": known.seconds, "limit_s": known.limit_s, "budget_s": None if known.budget_s == float("inf") else known.budget_s, "memory_gb": known.memory_gb}
        command = f"python -m benchmarks.attention {shlex.join(sys.argv[1:])}".strip()
        for path in write(known.out, stem, about, rows, command=command, settings=settings):
            print(path)


if __name__ == "__main__":
    main()
