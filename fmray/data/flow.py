"""Work on parts of a corpus as Ray Data tasks: results as they finish, and those of an interrupted run taken up again."""

import errno
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fmray.cluster import require
from fmray.core.errors import FmrayError, ResourceError, RunError

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
R = TypeVar("R")

MOST_ITEMS = 8
"""How many items a task takes at most."""


@dataclass(frozen=True)
class Kept(Generic[R]):
    """Results of tasks, kept in a folder of scratch as one file an item, so that a killed run repeats no finished task."""

    folder: Path

    def path(self, index: int) -> Path:
        """The file of an item's result."""
        return self.folder / f"{index:06d}.pkl"

    def load(self, index: int) -> R | None:
        """The result of an item that finished, else None."""
        path = self.path(index)
        return pickle.loads(path.read_bytes()) if path.exists() else None

    def save(self, index: int, result: R) -> None:
        """Keeps a result, whole or not at all."""
        path = self.path(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".{path.name}.{os.getpid()}")
        hidden.write_bytes(pickle.dumps(result))
        hidden.rename(path)


def each(function: Callable[[T], R], items: Sequence[T], kept: Kept[R]) -> Iterator[R]:
    """Applies `function` to every item in Ray Data tasks of one CPU each, and yields the results as they finish.

    Results that an interrupted run kept come first and are not made again. Tasks may run twice when a node is lost; a function
    that writes files must write the same again.

    Raises:
        FmrayError: a task raised it.
        ResourceError: the disk is full.
        RunError: a task failed otherwise.
    """
    missing: list[tuple[int, T]] = []
    found: R | None
    for index, item in enumerate(items):
        found = kept.load(index)
        if found is None:
            missing.append((index, item))
        else:
            yield found
    if missing:
        require([{"CPU": 1.0}], wait_s=60.0)
        yield from _run(function, missing, kept)


def _run(function: Callable[[T], R], items: Sequence[tuple[int, T]], kept: Kept[R]) -> Iterator[R]:
    import ray
    import ray.data

    _quiet()
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    # Every result is a block of its own, which leaves its task at once.
    context.target_max_block_size = 1
    try:
        with ray.data.DataContext.current(context):
            n_cpus = int(ray.cluster_resources().get("CPU", 1))
            tasks = [{"items": pickle.dumps(items[low:high])} for low, high in bundles(len(items), n_cpus)]
            # Ray puts small inputs into few tasks unless it is told otherwise, and then one core works.
            dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks))
            done = dataset.map_batches(partial(_apply, function, kept), batch_size=1, batch_format="pyarrow")
            # Rows that are fetched ahead would keep the latest result waiting for the next one.
            batches: Any = iter(done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
            with closing(batches):
                for batch in batches:
                    for data in batch["result"].to_pylist():
                        result = pickle.loads(data)
                        if isinstance(result, FmrayError):
                            raise result
                        yield result
    except FmrayError:
        raise
    except Exception as error:
        cause = getattr(error, "cause", None) or error
        message = str(cause).splitlines()[0] if str(cause) else "no message"
        raise RunError(f"a task over the corpus failed: {type(cause).__name__}: {message}") from error


def bundles(n_items: int, n_cpus: int) -> list[tuple[int, int]]:
    """Which items each task takes, as ranges: one at the start and at the end, up to eight in between.

    Ray Data looks for finished tasks ten times a second, and a core waits 0.15 to 0.2 s for its next one. So tasks shall be long, but
    the first results soon, and no core shall have much left to do when the others are done.
    """
    found: list[tuple[int, int]] = []
    at = 0
    while at < n_items:
        size = 1 if len(found) < n_cpus else min(MOST_ITEMS, max(1, (n_items - at) // (3 * n_cpus)))
        found.append((at, at + size))
        at += size
    return found


def _quiet() -> None:
    """Keeps Ray Data's log off the terminal; all of it stays in the session's ray-data log file."""
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.CRITICAL)


def _apply(function: Callable[[Any], Any], kept: Kept[Any], batch: "pa.Table") -> "Iterator[pa.Table]":
    import pyarrow as pa

    (items,) = batch["items"].to_pylist()
    for index, value in pickle.loads(items):
        result = _result(function, kept, index, value)
        yield pa.table({"result": pa.array([pickle.dumps(result)], pa.binary())})
        if isinstance(result, FmrayError):
            return


def _result(function: Callable[[Any], Any], kept: Kept[Any], index: int, value: Any) -> Any:
    """What the function makes of an item, kept; or its error, which travels as a result.

    Bad input is no fault of the task, and Ray wraps what a task raises until its parts are lost.
    """
    try:
        result = function(value)
        kept.save(index, result)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return ResourceError(f"no space is left on the disk ({error.strerror or error})", where=str(kept.folder.parent), todo="make room and run it again: it goes on")
    except FmrayError as error:
        return error
    return result
