"""Put in front of Python's path by benchmarks/startup.py: every process of a run then writes down when it reached what."""

import builtins
import functools
import json
import os
import sys
import time

# Which functions are marked at their begin and end, by module.
WATCHED = {
    "fmray.cli": ("main",),
    "fmray.cluster": ("connect",),
    "fmray.train.launch": ("launch", "_trainer", "_worker"),
    "fmray.train.stopping": ("install",),
    "fmray.train.worker": ("run_pretraining", "build_model", "prepare_process", "build_engine", "train"),
}


def mark(name):
    """A line of this process: what, and when."""
    with open(f"{os.environ['FMRAY_MARKS']}/{os.getpid()}.jsonl", "a") as file:
        file.write(json.dumps([name, time.time()]) + "\n")


def marked(function):
    """The function, with marks around it."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        mark(f"{function.__name__} begins")
        try:
            return function(*args, **kwargs)
        finally:
            mark(f"{function.__name__} ends")

    return run


def install():
    """Marks the watched functions as soon as their modules are imported."""
    plain, left = builtins.__import__, dict(WATCHED)

    def watching(name, *args, **kwargs):
        found = plain(name, *args, **kwargs)
        for module_name in [n for n in left if n in sys.modules and not sys.modules[n].__spec__._initializing]:
            module = sys.modules[module_name]
            for function in left.pop(module_name):
                setattr(module, function, marked(getattr(module, function)))
        return found

    builtins.__import__ = watching


if "FMRAY_MARKS" in os.environ:
    mark("python")
    install()
