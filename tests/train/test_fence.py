"""A worker that an earlier start left behind ends, and one of the latest start does not."""

import subprocess
import sys
import time

from fmray.train.fence import LATEST, begin, inside

SCRIPT = """
import sys, time
from pathlib import Path
from fmray.train.fence import inside

with inside(Path(sys.argv[1]), sys.argv[2]):
    print("training", flush=True)
    time.sleep(30)
"""


def test_the_latest_start_is_the_only_one(tmp_path):
    first = begin(tmp_path)
    left = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path), first], stdout=subprocess.PIPE, text=True)
    assert left.stdout.readline() == "training\n"
    time.sleep(1.2)
    assert left.poll() is None
    second = begin(tmp_path)
    assert left.wait(10) == 1
    late = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), first], capture_output=True, timeout=20, check=False)
    assert late.returncode == 1
    with inside(tmp_path, second):
        time.sleep(0.6)


def test_a_storage_that_does_not_answer_ends_nobody_and_is_asked_again(tmp_path):
    left = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path), begin(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert left.stdout.readline() == "training\n"
    for trouble in (lambda: (tmp_path / LATEST).write_text("{torn"), (tmp_path / LATEST).unlink):
        trouble()
        time.sleep(1.2)
        assert left.poll() is None
    begin(tmp_path)
    assert left.wait(10) == 1
