"""Work on parts of a corpus as Ray Data tasks, results as they finish."""

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fmray.cluster import require
from fmray.core.errors import FmrayError, RunError

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
R = TypeVar("R")


def each(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Applies `function` to every item, one Ray Data task of one CPU each, and yields the results as they finish.

    Ray bundles small inputs into few tasks unless it is told otherwise, and then one core works: so the items are the blocks.
    Tasks may run twice when a node is lost; a function that writes files must write the same again.

    Raises:
        FmrayError: a task raised it.
        RunError: a task failed otherwise.
    """
    import ray.data

    if not items:
        return
    require([{"CPU": 1.0}], wait_s=60.0)
    _quiet()
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    try:
        with ray.data.DataContext.current(context):
            dataset = ray.data.from_items(
                [{"item": pickle.dumps(item)} for item in items], override_num_blocks=len(items)
            )
            done = dataset.map_batches(partial(_apply, function), batch_size=1, batch_format="pyarrow")
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


def _apply(function: Callable[[Any], Any], batch: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    (item,) = batch["item"].to_pylist()
    try:
        result = function(pickle.loads(item))
    except FmrayError as error:
        # Travels as a result: bad input is no fault of the task, and Ray wraps what a task raises until its parts are lost.
        result = error
    return pa.table({"result": pa.array([pickle.dumps(result)], pa.binary())})
