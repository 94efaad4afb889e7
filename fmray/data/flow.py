"""Work on parts of a corpus as Ray Data tasks: results as they finish, and those of an interrupted run taken up again."""

import errno
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
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
    """Applies `function` to every item, one Ray Data task of one CPU each, and yields the results as they finish.

    Results that an interrupted run kept come first and are not made again. Ray bundles small inputs into few tasks unless it is
    told otherwise, and then one core works: so the items are the blocks. Tasks may run twice when a node is lost; a function that
    writes files must write the same again.

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
    import ray.data

    _quiet()
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    try:
        with ray.data.DataContext.current(context):
            dataset = ray.data.from_items([{"item": pickle.dumps(item)} for item in items], override_num_blocks=len(items))
            done = dataset.map_batches(partial(_apply, function, kept), batch_size=1, batch_format="pyarrow")
            for row in done.iter_rows():
                result = pickle.loads(row["result"])
                if isinstance(result, FmrayError):
                    raise result
                yield result
    except FmrayError:
        raise
    except Exception as error:
        cause = getattr(error, "cause", None) or error
        message = str(cause).splitlines()[0] if str(cause) else "no message"
        raise RunError(f"a task over the corpus failed: {type(cause).__name__}: {message}") from error


def _quiet() -> None:
    """Keeps Ray Data's log off the terminal; all of it stays in the session's ray-data log file."""
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.CRITICAL)


def _apply(function: Callable[[Any], Any], kept: Kept[Any], batch: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    (item,) = batch["item"].to_pylist()
    index, value = pickle.loads(item)
    try:
        result = function(value)
        kept.save(index, result)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        result = ResourceError(f"no space is left on the disk ({error.strerror or error})", where=str(kept.folder.parent), todo="make room and run it again: it goes on")
    except FmrayError as error:
        # Travels as a result: bad input is no fault of the task, and Ray wraps what a task raises until its parts are lost.
        result = error
    return pa.table({"result": pa.array([pickle.dumps(result)], pa.binary())})
