"""Serving compared in one run, from the repository's directory:

    python -m benchmarks.serve [--size 20m|smollm2|tiny] [--parts speed latency load] [--repeats 3] [--minutes 10] [--write FILE]

speed: the same mixed requests, all at once, greedily in float32 on one thread, through fmray over HTTP, a plain FastAPI + `generate`
server, transformers' own server, and without a network through `generate` one by one and in padded batches of 32, in turn, `--repeats`
times, each after the same once to warm up. Tokens a CPU-second count every process of a server (for fmray: replica, face and proxy) and not the client.
latency: streams; what HTTP adds to the bare engine's first token with one client, and percentiles at 16 clients.
load: 16 clients for `--minutes`, whole answers and streams in turn, each asked once; faults, and the slope of the memory.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fmray.cluster import ENVIRONMENT

# Set, and not only where missing: a second thread would make every way slower, and each in its own measure.
os.environ |= {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
# As fmray sets it where it starts a Ray of its own; what is set already holds, so that other settings can be measured beside.
os.environ.update({**ENVIRONMENT, **os.environ})
os.environ.pop("RAY_ADDRESS", None)

from benchmarks.serve import client, servers, work
from benchmarks.serve.inprocess import FIRST
from benchmarks.serve.report import CLIENTS, Found, report
from benchmarks.serve.watching import watched

PARTS = ("speed", "latency", "load")
INPROCESS_S = 1800.0
OTHERS = {"plain": servers.plain, "transformers": servers.transformers_serve}


def inprocess(way: str, folder: Path, known: argparse.Namespace) -> dict[str, Any]:
    """What one of the ways without a network measured, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serve.inprocess", way, str(folder), known.size, str(known.requests), str(known.shrink)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=INPROCESS_S)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def asked_of(server: servers.Server, asked: list[work.Request]) -> dict[str, Any]:
    """All requests at once, after the same once to warm up: tokens, seconds, CPU-seconds and texts."""
    client.whole(server.url, server.model, asked)
    before = server.cpu_s()
    answers, wall_s = client.whole(server.url, server.model, asked)
    cpu_s = server.cpu_s() - before
    return {"tokens": sum(one.n_tokens for one in answers), "wall_s": wall_s, "cpu_s": cpu_s, "texts": [one.text for one in answers]}


def streamed(server: servers.Server, asked: list[work.Request], clients: int) -> dict[str, Any]:
    """Times of streams in ms, after the same once to warm up, and what they took altogether."""
    client.streams(server.url, server.model, asked, clients)
    began, before = time.perf_counter(), server.cpu_s()
    found = client.streams(server.url, server.model, asked, clients)
    spent = {"wall_s": time.perf_counter() - began, "cpu_s": server.cpu_s() - before}
    return {"ttft_ms": [1e3 * one.ttft_s for one in found], "gap_ms": [1e3 * gap for one in found for gap in one.gaps_s], **spent}


def speed(folder: Path, asked: list[work.Request], known: argparse.Namespace, found: Found) -> None:
    """One round of every way but fmray's."""
    for way in ("one_by_one", "static"):
        found.add(way, inprocess(way, folder, known))
    for name, start in OTHERS.items():
        try:
            with start(folder) as server:
                found.add(name, asked_of(server, asked))
        except client.FAULTS as error:
            found.failed[name] = (str(error) or type(error).__name__).splitlines()[0][:160]


def latency(server: servers.Server, asked: list[work.Request], found: Found) -> None:
    """What streams of fmray take, with one client and with 16."""
    found.latency["alone"] = streamed(server, asked[:FIRST], 1)
    # Each client asks several times, so that there is a percentile to tell.
    found.latency["fmray"] = streamed(server, asked * 4, CLIENTS)


def measure(folder: Path, known: argparse.Namespace) -> Found:
    """Everything that was asked for."""
    asked, found = work.requests(known.size, known.requests, shrink=known.shrink), Found()
    for repeat in range(known.repeats if "speed" in known.parts else 0):
        with servers.fmray_serve(folder) as server:
            found.add("fmray", asked_of(server, asked))
        speed(folder, asked, known, found)
        print(f"round {repeat + 1}: " + ", ".join(f"{way} {rates[-1]:.0f}" for way, rates in found.rates().items()) + " tokens a CPU-second", file=sys.stderr, flush=True)
    if "latency" in known.parts:
        found.latency["engine"] = inprocess("engine", folder, known)
        try:
            with servers.transformers_serve(folder) as server:
                found.latency["transformers"] = streamed(server, asked * 4, CLIENTS)
        except client.FAULTS as error:
            found.failed["transformers"] = (str(error) or type(error).__name__).splitlines()[0][:160]
    if "latency" in known.parts or "load" in known.parts:
        with servers.fmray_serve(folder) as server:
            if "latency" in known.parts:
                latency(server, asked, found)
            if "load" in known.parts:
                with watched(server) as found.memory:
                    found.load = client.load(server.url, server.model, asked, CLIENTS, 60 * known.minutes)
    return found


def main() -> None:
    """Measures and prints; with --write also into a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=work.NAMES, default="20m")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["speed", "latency"])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of speed")
    parser.add_argument("--minutes", type=float, default=10.0, help="of load")
    parser.add_argument("--shrink", type=int, default=1, help="divides the lengths, for a try")
    parser.add_argument("--write", type=Path)
    known = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp) / "bench"
        n_params = work.save(folder, known.size)
        found = measure(folder, known)
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "ray"))
    model = f"Model {known.size}: {n_params / 1e6:.1f} M parameters, float32, one thread; {known.requests} requests."
    text = "\n".join([f"{model} Python {platform.python_version()}, {names}; {os.cpu_count()} cores.", *report(found)])
    print(text)
    if known.write is not None:
        said = " ".join((__doc__ or "").partition("\n\nspeed: ")[2].split())
        command = f"`python -m benchmarks.serve --size {known.size} --parts {' '.join(known.parts)}`"
        known.write.write_text(f"# Serving\n\n{command}. Speed: {said}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
