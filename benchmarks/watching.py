"""What looking on costs a step: `python -m benchmarks.watching` from the repository. No model runs; the figures are microseconds.

The worker's share is everything that rank 0 does beside training for a step: its clock, its line of metrics.jsonl, the question whether an
evaluation or a profile is due. The driver's is the processor time of following the lines into TensorBoard, outside of the workers' cores
where there are any to spare. Both beside 1 % of a step of 10 M parameters and 4,096 tokens on 2 cores, which takes about 800 ms.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path

from fmray.core.config import load_config
from fmray.objectives import ALONE
from fmray.train.config import PretrainConfig
from fmray.train.device import Device
from fmray.train.engine import StepStats
from fmray.train.evaluation import HeldOut
from fmray.train.metrics import METRICS, Meter, MetricsLog, Waited
from fmray.train.profiling import Profiler
from fmray.train.ranks import RankClock, rank_path
from fmray.train.trackers import TrackedRun
from fmray.train.trackers.tensorboard import Tensorboard
from fmray.train.tracking import Tracking
from fmray.train.watching import Watching

STEP_MS = 800.0
CONFIG = {"model": {"type": "decoder", "size": "nano"}, "global_batch_size": 8, "max_steps": 10**6, "eval_every_steps": 10**6, "num_workers": 1}


def watching_us(folder: Path, steps: int) -> list[float]:
    """Microseconds of each of so many steps that do nothing but be watched."""
    device = Device(peak_tflops=0.4, power_w=65.0, usd_per_hour=0.1)
    config = load_config(PretrainConfig, CONFIG, "base")
    waited = Waited(iter([([], None)] * steps))  # type: ignore[list-item]
    meter = Meter(1, steps, 6e7, device, lambda: 1.0, waited.take_s)
    log = MetricsLog(folder / METRICS, from_step=0, tokens_per_step=4096, meter=meter)
    clock = RankClock(rank_path(folder / "ranks", 0), rank=0, waited_s=lambda: waited.total_s, use_gpu=False)
    held_out = HeldOut(config, folder, ALONE, rank=0, world_size=1)
    profiler = Profiler(None, folder, rank=0, first_step=0, use_gpu=False)
    watched = Watching(None, log, clock, held_out, profiler, last_step=steps + 1, hold=contextlib.nullcontext)  # type: ignore[arg-type]
    taken, begun = [], time.perf_counter()
    for step, _ in enumerate(clock.timed(waited), start=1):
        watched.finished(step, StepStats(4096 * 3.0, 4096, 1.0, 1e-3))
        now = time.perf_counter()
        taken.append((now - begun) * 1e6)
        begun = now
    clock.close()
    return taken


def tracking_us(folder: Path, steps: int) -> float:
    """Microseconds of processor time a step of this process while it shows lines in TensorBoard; the library's import is left out."""
    import tensorboardX  # noqa: F401

    begun = time.process_time()
    with Tracking([Tensorboard()], TrackedRun("bench", "base", folder, {}), folder / METRICS) as tracking:
        pass
    assert not tracking.notes
    return (time.process_time() - begun) * 1e6 / steps


def main() -> None:
    """Measures and prints one line of JSON."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=3000)
    steps = arguments.parse_args().steps
    with tempfile.TemporaryDirectory() as name:
        taken, shown = watching_us(Path(name), steps), tracking_us(Path(name), steps)
    found = {
        "worker_us_median": round(statistics.median(taken), 1), "worker_us_p99": round(statistics.quantiles(taken, n=100)[-1], 1), "driver_us": round(shown, 1),
        "worker_share_of_step": statistics.median(taken) / 1e3 / STEP_MS, "both_share_of_step": (statistics.median(taken) + shown) / 1e3 / STEP_MS,
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
