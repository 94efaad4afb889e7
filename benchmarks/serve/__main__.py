"""Serving compared in one run: `python -m benchmarks.serve [--size 20m] [--write FILE]` from the repository.

The same mixed requests, greedily in float32 on one thread, through fmray over HTTP, a plain FastAPI + `generate` server, transformers'
own server, and without a network through `generate` one by one and in padded batches of 32. Tokens a CPU-second count every process
of a server (for fmray: replica, face and proxy), and not the client. Then the times of streams: what HTTP adds to the bare engine's
first token, and the percentiles at 16 clients.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np

from benchmarks.serve import client, servers, work

CLIENTS = 16


def inprocess(way: str, folder: Path, n: int, shrink: int) -> dict[str, Any]:
    """What one of the ways without a network measured, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serve.inprocess", way, str(folder), str(n), str(shrink)]
    return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1]))


def asked_of(server: servers.Server, asked: list[work.Request]) -> dict[str, Any]:
    """All requests at once, after one to warm up: tokens, seconds, CPU-seconds and texts."""
    client.whole(server.url, server.model, asked[:1])
    before = server.cpu_s()
    texts, wall_s = client.whole(server.url, server.model, asked)
    # Nothing ends an answer early; that all of it came is seen when it is compared.
    return {"tokens": sum(request.max_tokens for request in asked), "wall_s": wall_s, "cpu_s": server.cpu_s() - before, "texts": texts}


def measure(folder: Path, n: int, shrink: int) -> dict[str, dict[str, Any]]:
    """Everything, by way."""
    asked = work.requests(n, shrink=shrink)
    found = {way: inprocess(way, folder, n, shrink) for way in ("one_by_one", "static", "engine")}
    with servers.fmray_serve(folder) as server:
        found["fmray"] = asked_of(server, asked)
        alone = client.streams(server.url, server.model, asked[:16], 1)
        crowd = client.streams(server.url, server.model, asked, CLIENTS)
    found["alone"] = {"ttft_ms": [1e3 * one.ttft_s for one in alone]}
    found["crowd"] = {"ttft_ms": [1e3 * one.ttft_s for one in crowd], "gap_ms": [1e3 * gap for one in crowd for gap in one.gaps_s]}
    for name, start in (("plain", servers.plain), ("transformers", servers.transformers_serve)):
        try:
            with start(folder) as server:
                found[name] = asked_of(server, asked)
        except RuntimeError as error:
            found[name] = {"failed": str(error).splitlines()[0][:160]}
    return found


def same(found: dict[str, Any], name: str) -> str:
    """How many of a server's answers are `generate`'s, token for token."""
    # The padding token may be drawn as any other, and some servers leave it out of their texts.
    expected = [[f"w{i}" for i in ids if i] for ids in found["one_by_one"]["answers"]]
    said = [[word for word in text.split() if word != "w0"] for text in found[name]["texts"]]
    return f"{sum(a == b for a, b in zip(said, expected, strict=True))} of {len(expected)}"


def report(found: dict[str, dict[str, Any]], size: str, n_params: int) -> str:
    """The results as Markdown."""
    named = {
        "fmray": "fmray over HTTP (replica, face and proxy counted)", "one_by_one": "`generate` one by one, no network",
        "static": "`generate` in padded batches of 32, no network", "plain": "FastAPI + `generate`", "transformers": "`transformers serve`",
    }  # fmt: skip
    base = found["one_by_one"]["tokens"] / found["one_by_one"]["cpu_s"]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "ray"))
    lines = [
        f"Model {size}: {n_params / 1e6:.1f} M parameters, float32; {len(found['one_by_one']['answers'])} requests. Python {platform.python_version()}, {versions}.",
        "", "| | tokens/s | tokens per CPU-second | times one by one | answers equal to `generate` |", "|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    for name, shown in named.items():
        one = found[name]
        if "failed" in one:
            lines.append(f"| {shown} | did not run: {one['failed']} | | | |")
            continue
        rate = one["tokens"] / one["cpu_s"]
        equal = same(found, name) if "texts" in one else ""
        lines.append(f"| {shown} | {one['tokens'] / one['wall_s']:,.0f} | {rate:,.0f} | {rate / base:.2f} | {equal} |")
    bare, alone = found["engine"]["ttft_ms"], float(np.mean(found["alone"]["ttft_ms"]))
    ttft, gaps = (np.percentile(found["crowd"][key], (50, 99)) for key in ("ttft_ms", "gap_ms"))
    lines += [
        "", f"First token, one client: {alone:.1f} ms over HTTP, {bare:.1f} ms from the bare engine: {alone - bare:.1f} ms added (means of {len(found['alone']['ttft_ms'])}).",
        "", f"{CLIENTS} clients, streams: first token p50 {ttft[0]:.0f} ms, p99 {ttft[1]:.0f} ms; between tokens p50 {gaps[0]:.1f} ms, p99 {gaps[1]:.1f} ms.",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Measures and prints; with --write also into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(work.SIZES), default="20m")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--shrink", type=int, default=1, help="divides the lengths, for a try")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp) / "bench"
        n_params = work.save(folder, given.size)
        text = report(measure(folder, given.requests, given.shrink), given.size, n_params)
    print(text)
    if given.write is not None:
        head = f"# Serving\n\n`python -m benchmarks.serve --size {given.size} --write FILE`. {' '.join((__doc__ or '').split()[12:])}\n\n"
        given.write.write_text(head + text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
