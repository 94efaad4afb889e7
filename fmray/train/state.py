"""What resumes a run: the engine's sharded state, hashed, in a folder that counts only once its `state.json` is written."""

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fmray.core.artifact import sha256_file, write_json
from fmray.core.cursor import Cursor
from fmray.core.errors import ArtifactError

logger = logging.getLogger(__name__)

STATE = "state.json"


class TrainState(BaseModel):
    """Where a run stood after `step` optimizer steps, and the layout of workers that wrote it, which need not be the one that reads it.

    `engine` says which engine and sharding wrote the files; `files` maps each one to its sha256. `metrics` are those of the steps since
    the state before it; `written_at` is the time (seconds since 1970) at which it counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    cursor: Cursor
    engine: str
    world_size: int
    files: dict[str, str] = {}
    metrics: dict[str, float] = {}
    written_at: float = 0.0


def state_folder(root: Path, step: int) -> Path:
    """Where the state after `step` lies."""
    return root / f"step-{step:09d}"


def commit_state(folder: Path, state: TrainState) -> None:
    """Makes a folder count in which every file of `state.files` lies, by writing `state.json` last."""
    write_json(folder / STATE, state.model_dump(mode="json"))
    flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Brings the names in a folder to the device; what lies in the files is flushed by who writes them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_state(folder: Path) -> TrainState | None:
    """The state of a folder, or None when it is torn."""
    try:
        return TrainState.model_validate_json((folder / STATE).read_bytes())
    except (OSError, ValidationError):
        return None


def latest_state(root: Path) -> tuple[Path, TrainState] | None:
    """The newest complete state below `root`, without looking into its files."""
    for folder in sorted(root.glob("step-*"), reverse=True):
        if (state := read_state(folder)) is not None:
            return folder, state
    return None


def last_good_state(root: Path) -> tuple[Path, TrainState] | None:
    """The newest complete state below `root` whose files are what was written, or None when there is none.

    Raises:
        ArtifactError: there are complete states, and every one is damaged.
    """
    damaged = []
    for folder in sorted(root.glob("step-*"), reverse=True):
        state = read_state(folder)
        if state is None:
            continue
        if all((folder / name).is_file() and sha256_file(folder / name) == digest for name, digest in state.files.items()):
            return folder, state
        damaged.append(folder.name)
        logger.warning("%s is damaged: its files are not those that were written; an older state is taken", folder)
    if damaged:
        raise ArtifactError(f"every saved state is damaged ({', '.join(damaged)})", where=str(root), todo="move the folder away to train from the start")
    return None


def whole_states(root: Path) -> dict[Path, TrainState]:
    """Every complete state below `root`, without looking into its files."""
    return {folder: state for folder in sorted(root.glob("step-*")) if (state := read_state(folder)) is not None}


def prune_states(root: Path, steps: Callable[[Iterable[TrainState]], set[int]], *, before: int | None = None) -> None:
    """Removes the complete states whose steps are not among `steps` of them, and every torn one.

    Args:
        before: only folders of earlier steps are touched, for workers may be writing later ones; None when no worker writes.
    """
    whole = whole_states(root)
    kept = steps(whole.values())
    for folder in root.glob("step-*"):
        old = before is None or folder < state_folder(root, before)
        if old and not (folder in whole and whole[folder].step in kept):
            # First what makes it count: a state that is half removed must not look like a damaged one.
            (folder / STATE).unlink(missing_ok=True)
            shutil.rmtree(folder)
