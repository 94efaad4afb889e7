"""Which node every fault of a run came from, and which nodes the run has had enough of.

Every worker says where it runs; Ray Train's controller tells which workers it lost; the watchdog tells which rank hung, and the guard of
losses on which workers alone a loss was no number. A node that reaches its number of faults is left out when workers are started again,
by a selector of labels, as long as the other nodes have room for as many workers as are to be started.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fmray.core.artifact import write_json
from fmray.core.errors import FmrayError
from fmray.train.watchdog import HANGS, VERDICT

logger = logging.getLogger(__name__)

FAULTS = "faults"
PLACES = "places"
LEFT_OUT = "nodes_left_out.json"
NODE_ID = "ray.io/node-id"


@dataclass(frozen=True)
class Fault:
    """One fault of one worker. `hang` is the number of the hang that it was."""

    node: str
    host: str
    rank: int
    kind: Literal["lost", "hung", "failed", "no_number"]
    what: str
    time: float
    hang: str = ""


def tell_place(folder: Path, rank: int) -> None:
    """Puts down on which node this worker runs."""
    import ray
    import ray.util

    node = {"node": ray.get_runtime_context().get_node_id(), "host": ray.util.get_node_ip_address()}
    (folder / PLACES).mkdir(exist_ok=True)
    write_json(folder / PLACES / f"rank-{rank}.json", node)


def put_down(folder: Path, ranks: Iterable[int], kind: Literal["lost", "hung", "failed", "no_number"], what: str, hang: str = "") -> None:
    """Adds a fault of each of these ranks, of the attempt whose places were told last."""
    (folder / FAULTS).mkdir(exist_ok=True)
    for rank in ranks:
        place = json.loads((folder / PLACES / f"rank-{rank}.json").read_text())
        fault = Fault(place["node"], place["host"], rank, kind, what, time.time(), hang)
        write_json(folder / FAULTS / f"{time.time_ns()}-rank-{rank}.json", asdict(fault))
        logger.warning("a fault of rank %d on node %s (%s): %s, %s", rank, fault.node, fault.host, kind, what)


def read_faults(folder: Path) -> list[Fault]:
    """All faults of the run so far, in order."""
    return [Fault(**json.loads(path.read_text())) for path in sorted((folder / FAULTS).glob("*.json"))]


def over_limit(faults: Sequence[Fault], limit: int) -> list[str]:
    """The nodes that so many faults came from, or more."""
    counted = Counter(fault.node for fault in faults)
    return sorted(node for node, count in counted.items() if count >= limit)


def accuse(folder: Path, errors: Mapping[int, BaseException]) -> None:
    """Puts down who is to blame when Ray Train tells the errors of an attempt by rank.

    That is who hung, by the watchdog; else who died, for the others then fail in a collective; else who failed, where it is one alone.
    Faults of program and data are nobody's, and neither is a machine's that was taken back.
    """
    seen = {fault.hang for fault in read_faults(folder)}
    for path in sorted((folder / HANGS).glob(f"*/{VERDICT}")):
        if path.parent.name not in seen:
            told = json.loads(path.read_text())
            put_down(folder, told["ranks"], "hung", told["verdict"], hang=path.parent.name)
            return
    gone = {rank: failure for rank, error in errors.items() if (failure := _death(error)) is not None}
    if gone:
        put_down(folder, [rank for rank, failure in gone.items() if not failure.preempted], "lost", "its process or its node is gone")
    elif len(errors) == 1 and not isinstance(first := next(iter(errors.values())), FmrayError):
        put_down(folder, errors, "failed", f"{type(first).__name__}: {(str(first).strip().splitlines() or [''])[-1]}")


def _death(error: BaseException) -> Any:
    """Ray's word on how the process ended, if it did."""
    from ray.exceptions import RayActorError

    failure = getattr(error, "health_check_failure", error)
    return failure if isinstance(failure, RayActorError) else None


def room_outside(nodes: Sequence[Mapping[str, Any]], left_out: Sequence[str], worker: Mapping[str, float]) -> int:
    """How many workers the other living nodes have room for, as `ray.nodes()` tells them."""
    others = [node["Resources"] for node in nodes if node["Alive"] and node["NodeID"] not in left_out]
    return sum(int(min(has.get(key, 0.0) // amount for key, amount in worker.items() if amount)) for has in others)


def selector(folder: Path, limit: int, worker: Mapping[str, float], num_workers: int) -> dict[str, str] | None:
    """The labels of the nodes that may be used now; None when all may, or when the others have no room for so many workers."""
    import ray

    bad = over_limit(read_faults(folder), limit)
    if not bad:
        return None
    room = room_outside(ray.nodes(), bad, worker)
    enough = room >= num_workers
    write_json(folder / LEFT_OUT, {"nodes": bad if enough else [], "kept": [] if enough else bad, "faults": limit, "room_elsewhere": room, "num_workers": num_workers})
    return {NODE_ID: f"!in({','.join(bad)})"} if enough else None


def callbacks(folder: Path, limit: int, worker: Mapping[str, float]) -> list[Any]:
    """What Ray Train's controller calls: about the errors of workers, and before it starts them.

    The second hook is Ray's own for selectors of labels, and no part of its public face; the first one is.
    """
    from ray.train import UserCallback
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class Accusing(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            try:
                accuse(folder, worker_exceptions)
            except (OSError, ValueError, KeyError):
                # Training goes on without it; a worker may have died before it told its place.
                logger.warning("which node a fault came from could not be put down", exc_info=True)

    class Choosing(ControllerCallback):
        def on_controller_start_worker_group(self, *, scaling_config: Any, num_workers: int) -> dict[str, str] | None:
            return selector(folder, limit, worker, num_workers)

    return [Accusing(), Choosing()]


class Told:
    """The driver's side: says once, in the log, which nodes are left out, or would be if there were others."""

    def __init__(self, folder: Path) -> None:
        self._path, self._said = folder / LEFT_OUT, ""

    def __call__(self) -> None:
        """Looks, and says what is new."""
        if not self._path.exists() or (text := self._path.read_text()) == self._said:
            return
        self._said, told = text, json.loads(text)
        if told["nodes"]:
            logger.warning("%d faults or more came from %s: no worker of this run is started there again", told["faults"], ", ".join(told["nodes"]))
        else:
            logger.warning(
                "%d faults or more came from %s, which stay in use: the other nodes have room for %d of %d workers",
                told["faults"], ", ".join(told["kept"]), told["room_elsewhere"], told["num_workers"],
            )  # fmt: skip


def figures(folder: Path) -> dict[str, float]:
    """For a run's record: how many faults there were, and how many nodes are left out; nothing when there was no fault."""
    faults = read_faults(folder)
    if not faults:
        return {}
    left_out = json.loads((folder / LEFT_OUT).read_text())["nodes"] if (folder / LEFT_OUT).exists() else []
    return {"train/faults": float(len(faults)), "train/nodes_left_out": float(len(left_out))}
