"""Writes states while training goes on: the training thread only copies this worker's tensors, and a thread writes, flushes and hashes them.

Every worker says in a small file beside its own that it is done, with the hash; rank 0's thread waits for all of them and makes the state
count. No collective runs in these threads: a process group has one user, the training thread.
"""

import json
import logging
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fmray.core.artifact import write_json
from fmray.train.engine import Engine
from fmray.train.layout import Part, rank_file, write_part
from fmray.train.remote import RemoteStates
from fmray.train.retention import Keep
from fmray.train.state import TrainState, commit_state, prune_states, state_folder
from fmray.train.storage import persist

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

POLL_S = 0.05
# As long as torch waits in a collective; a worker that is lost ends all others long before.
PEERS_WITHIN_S = 1800.0
# The same when this worker's own training has ended in an error, which the others most likely share.
LEAVE_WITHIN_S = 10.0


class HostCopies:
    """Copies of a worker's part in the host's memory, in the same buffers each time: as many bytes again as its file has.

    Of tensors on a GPU the buffers are pinned, so that the copy runs at the bus's speed; torch rounds each of them up to a power of two.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, part: Part) -> Part:
        """The same part, which the next step leaves as it is. The copies of the one before are overwritten."""
        import torch

        for name, tensor in part.tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                buffer = self._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            buffer.copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in part.tensors.values()):
            torch.cuda.synchronize()
        return Part(part.rank, {name: self._buffers[name] for name in part.tensors}, part.metadata)


class StateWriter:
    """Saves this worker's part of every state below `root`, one at a time; leaving the block waits for the one that is being written.

    Args:
        attempt: the same new name for all workers of this start, by which they know each other's files.
        keep: which states stay.
        asynchronous: whether training goes on meanwhile.
        remote: where each file is copied to before the state counts; below `root` the last states alone are kept then.
    """

    def __init__(
        self, root: Path, *, rank: int, world_size: int, attempt: str, keep: Keep, asynchronous: bool = True, remote: RemoteStates | None = None
    ) -> None:
        self._root, self._rank, self._world_size, self._attempt = root, rank, world_size, attempt
        self._keep, self._asynchronous, self._remote = keep, asynchronous, remote
        self._copies = HostCopies()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._leave_at = float("inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            # The error that ended training is the one to tell; what is being written is finished for its sake.
            self._leave_at = time.monotonic() + LEAVE_WITHIN_S
            self._thread.join()

    def save(self, engine: Engine, state: TrainState, *, wait: bool = False) -> None:
        """Saves what `engine` holds now; returns once it is copied, or with `wait` once it is written (on rank 0: by all workers).

        A state that is still being written is waited for first.

        Raises:
            RunError: the storage refuses this state or the one before for longer than `persist` waits; or see `Engine.part`.
            TimeoutError: other workers did not write their parts.
        """
        self.wait()
        part = engine.part()
        if wait or not self._asynchronous:
            self._write(part, state)
            return
        self._thread = threading.Thread(target=self._beside, args=(self._copies.take(part), state), daemon=True, name="fmray-save")
        self._thread.start()

    def wait(self) -> None:
        """Returns when the state that is being written is; raises what `save` raises."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises what has gone wrong in writing, if anything has."""
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _beside(self, part: Part, state: TrainState) -> None:
        try:
            self._write(part, state)
        except BaseException as error:
            self._failure = error

    def _write(self, part: Part, state: TrainState) -> None:
        folder = state_folder(self._root, state.step)
        file, done = folder / rank_file(part.rank), folder / _done_file(part.rank)
        digests = list[str]()
        persist(lambda: folder.mkdir(parents=True, exist_ok=True), folder)
        persist(lambda: digests.append(write_part(folder, part)), file)
        if self._remote is not None:
            self._remote.upload(file)
        persist(lambda: write_json(done, {"attempt": self._attempt, "sha256": digests[-1]}), done)
        if self._rank == 0:
            self._commit(folder, state.model_copy(update={"files": self._files(folder), "written_at": time.time()}))

    def _files(self, folder: Path) -> dict[str, str]:
        """The sha256 of every worker's file, once all have written."""
        found, deadline = dict[int, str](), time.monotonic() + PEERS_WITHIN_S
        while True:
            for rank in set(range(self._world_size)) - set(found):
                if (digest := _done(folder / _done_file(rank), self._attempt)) is not None:
                    found[rank] = digest
            if len(found) == self._world_size:
                return {rank_file(rank): found[rank] for rank in sorted(found)}
            if time.monotonic() > min(deadline, self._leave_at):
                missing = sorted(set(range(self._world_size)) - set(found))
                raise TimeoutError(f"{folder.name} is not whole: workers {missing} did not write their parts")
            time.sleep(POLL_S)

    def _commit(self, folder: Path, state: TrainState) -> None:
        if self._remote is not None:
            self._remote.commit(state)
            self._remote.prune(self._keep, before=state.step)
        persist(lambda: commit_state(folder, state), folder)
        for rank in range(self._world_size):
            (folder / _done_file(rank)).unlink(missing_ok=True)
        here = self._keep if self._remote is None else Keep(last=self._keep.last)
        persist(lambda: prune_states(self._root, here.steps, before=state.step), self._root)


def _done_file(rank: int) -> str:
    return f"rank-{rank:05d}.done.json"


def _done(path: Path, attempt: str) -> str | None:
    """The sha256 that a worker of this attempt told."""
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return str(told["sha256"]) if told["attempt"] == attempt else None
