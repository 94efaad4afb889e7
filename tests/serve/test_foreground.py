"""`fmray serve`: up until Ctrl-C, then gone; and a waiver that everyone can see."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmray.serve import application, smoke
from fmray.serve.admission import WAIVERS
from fmray.serve.foreground import APP, serve_foreground

Copy = Callable[..., Path]


def metadata(url: str) -> Any:
    with urllib.request.urlopen(f"{url}/metadata", timeout=30) as answer:
        return json.load(answer)


def test_it_stays_until_ctrl_c_and_shows_its_waiver(serve_port: int, copy_of: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    """On a Ray that runs Serve already: only its own application comes and goes."""
    url = f"http://127.0.0.1:{serve_port}"
    seen: dict[str, Any] = {"printed": ""}

    def visit() -> None:
        deadline = time.monotonic() + 120
        while "Ctrl-C" not in seen["printed"] and time.monotonic() < deadline:
            time.sleep(0.2)
            seen["printed"] += capsys.readouterr().out
        try:
            seen["metadata"] = metadata(url)
            seen["answer"] = smoke.post(f"{url}/v1/completions", {"model": "base", "prompt": "Return", "max_tokens": 4})
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    root = copy_of("base")
    visitor = threading.Thread(target=visit)
    visitor.start()
    with pytest.raises(KeyboardInterrupt):
        serve_foreground([root / "base"], port=serve_port, waive="a first look", by="Ada")
    visitor.join()
    assert not application.is_up(APP)
    [model] = seen["metadata"]["models"]
    assert (model["waiver"], model["decision"]) == ({"by": "Ada", "reason": "a first look"}, None)
    assert seen["answer"]["usage"]["completion_tokens"] == 4
    assert json.loads((root / WAIVERS).read_text())["reason"] == "a first look"
    for words in (f"serving at {url}", f"curl {url}/v1/completions", "waived by Ada: a first look"):
        assert words in seen["printed"]


SCRIPT = """
import sys
from pathlib import Path
from fmray.core.errors import FmrayError
from fmray.serve.foreground import serve_foreground
try:
    serve_foreground([Path(p) for p in sys.argv[2:]], port=int(sys.argv[1]))
except FmrayError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""


def start(port: int, *targets: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", SCRIPT, str(port), *map(str, targets)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.slow
def test_on_a_private_ray_everything_ends_with_it(experiment: Path) -> None:
    """A process of its own: it starts Ray and Serve, serves both models, and Ctrl-C leaves nothing behind."""
    port = application.free_port("127.0.0.1")
    process = start(port, experiment / "base", experiment / "tuned")
    url = f"http://127.0.0.1:{port}"
    assert process.stdout is not None
    printed = ""
    try:
        while "Ctrl-C" not in printed:
            line = process.stdout.readline()
            assert line, "it ended by itself"
            printed += line
        assert [m["decision"]["name"] for m in metadata(url)["models"]] == ["base_gate", "tuned_gate"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert "admitted by base_gate" in printed
    assert process.returncode == 130
    application.check_port("127.0.0.1", port)


@pytest.mark.slow
def test_a_port_in_use_ends_it_with_one_line(experiment: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(port, experiment / "base")
        out, err = process.communicate(timeout=180)
    assert (process.returncode, out) == (2, "")
    assert f"cannot listen on 127.0.0.1:{port}" in err.strip().splitlines()[-1]
