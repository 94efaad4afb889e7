"""What resumes a run: the engine's sharded state, hashed, in a folder that counts only once its `state.json` is written."""

import logging
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fmray.core.artifact import sha256_file, write_json
from fmray.core.cursor import Cursor
from fmray.core.errors import ArtifactError

logger = logging.getLogger(__name__)

STATE = "state.json"


class TrainState(BaseModel):
    """Where a run stood after `step` optimizer steps, and the layout of workers that wrote it, which need not be the one that reads it.

    `engine` says which engine and sharding wrote the files; `files` maps each one to its sha256.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    cursor: Cursor
    engine: str
    world_size: int
    files: dict[str, str] = {}


def state_folder(root: Path, step: int) -> Path:
    """Where the state after `step` lies."""
    return root / f"step-{step:09d}"


def commit_state(folder: Path, state: TrainState) -> None:
    """Makes a folder that all workers have written count, by hashing its files and writing `state.json` last."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != STATE)
    whole = state.model_copy(update={"files": {name: sha256_file(folder / name) for name in names}})
    write_json(folder / STATE, whole.model_dump(mode="json"))


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


def prune_states(root: Path, keep: int) -> None:
    """Removes all but the newest `keep` complete states, and every torn one. No worker may be writing."""
    complete = [folder for folder in sorted(root.glob("step-*"), reverse=True) if read_state(folder) is not None]
    for folder in set(root.glob("step-*")) - set(complete[:keep]):
        shutil.rmtree(folder)
