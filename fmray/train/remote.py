"""States on object storage: each worker's file is copied there, `state.json` last, and an empty folder is filled from there.

`pyarrow.fs` speaks to the store (s3, gs, abfs, hdfs; and file, a folder that is mounted); it is configured as its own tools are, see
`fmray.data.sources`. An object shows only when it is whole, a state only when its `state.json` does, and what is loaded is hashed first.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from fmray.core.errors import ArtifactError, ConfigError, DataError
from fmray.data.sources._store import filesystem, locate
from fmray.train.metrics import METRICS
from fmray.train.retention import Keep
from fmray.train.state import STATE, TrainState, commit_state, last_good_state, state_folder
from fmray.train.storage import persist

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

logger = logging.getLogger(__name__)

BLOCK = 16 * 1024**2
# They have no folders to make, and asking for one may ask for more rights than writing.
OBJECT_STORES = ("s3", "gcs", "abfs")
# In a state's folder there: the figures of its steps, and the ledger of its rows, without which no later run could prove what this one read.
BESIDE = "beside"
LEDGER_FOLDER = "work/ledger"
TOLD = (METRICS, f"{LEDGER_FOLDER}/attempt-*")


def checked_uri(uri: str) -> str:
    """The URI itself.

    Raises:
        ValueError: it is none, or holds credentials.
    """
    if "://" not in uri:
        raise ValueError(f"'{uri}' is no URI such as s3://bucket/prefix; states lie below --storage in any case")
    try:
        locate(uri)
    except DataError as error:
        raise ValueError(f"{error.what}; {error.todo}") from None
    return uri.rstrip("/")


class RemoteStates:
    """The states of one run below a URI. What is written is tried again as long as `persist` does.

    Args:
        run: the run's folder here. What it tells of its steps (`TOLD`) goes along with every state, and comes back with the one that is fetched.
    """

    def __init__(self, uri: str, run: Path | None = None) -> None:
        self.uri, self._run = uri, run
        self._known: dict[str, TrainState] = {}

    def _at(self, *names: str) -> "tuple[FileSystem, str]":
        store, key = filesystem(self.uri)
        return store, "/".join((key, *names))

    def upload(self, file: Path) -> None:
        """Copies a file of a state's folder.

        Raises:
            RunError: the store refuses it for too long.
        """

        self._copy(file, file.parent.name, file.name)

    def _copy(self, file: Path, *names: str) -> None:
        def copy() -> None:
            store, key = self._at(*names)
            if store.type_name not in OBJECT_STORES:
                store.create_dir(key.rpartition("/")[0], recursive=True)
            with file.open("rb") as source, store.open_output_stream(key) as target:
                shutil.copyfileobj(source, target, BLOCK)

        persist(copy, "/".join((self.uri, *names)))

    def commit(self, state: TrainState) -> None:
        """Makes a state count whose files are all there.

        Raises:
            RunError: the store refuses it for too long.
        """
        name = state_folder(Path(), state.step).name
        if self._run is not None:
            for file in sorted(path for pattern in TOLD for path in self._run.glob(pattern)):
                self._copy(file, name, BESIDE, file.relative_to(self._run).as_posix())

        def put() -> None:
            store, key = self._at(name, STATE)
            with store.open_output_stream(key) as target:
                target.write(json.dumps(state.model_dump(mode="json"), indent=2).encode())

        persist(put, f"{self.uri}/{name}/{STATE}")
        self._known[name] = state

    def states(self) -> dict[str, TrainState]:
        """Every state that counts, by its folder's name, oldest first.

        Raises:
            OSError: the store cannot be read.
        """
        found = {name: self._state(name) for name in self._folders()}
        return {name: state for name, state in found.items() if state is not None}

    def _folders(self) -> list[str]:
        from pyarrow.fs import FileSelector, FileType

        store, key = self._at()
        infos = store.get_file_info(FileSelector(key, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.type == FileType.Directory and info.base_name.startswith("step-"))

    def _state(self, name: str) -> TrainState | None:
        if name not in self._known:
            store, key = self._at(name, STATE)
            try:
                with store.open_input_stream(key, compression=None) as stream:
                    self._known[name] = TrainState.model_validate_json(stream.read())
            except (FileNotFoundError, ValidationError):
                return None
        return self._known[name]

    def prune(self, keep: Keep, *, before: int) -> None:
        """Removes what is older than step `before` and not kept.

        Raises:
            RunError: the store refuses it for too long.
        """

        def remove() -> None:
            whole = self.states()
            kept = keep.steps(whole.values())
            for name in self._folders():
                if name < state_folder(Path(), before).name and not (name in whole and whole[name].step in kept):
                    self._known.pop(name, None)
                    store, key = self._at(name)
                    if name in whole:
                        # First what makes it count.
                        store.delete_file(f"{key}/{STATE}")
                    store.delete_dir(key)

        persist(remove, self.uri)

    def fetch(self, root: Path) -> None:
        """Brings the newest good state of the store below `root`, unless one there is as new.

        Raises:
            ConfigError: the store cannot be read.
            ArtifactError: there are states, here or there, and every one is damaged.
        """
        here, damaged = -1, None
        try:
            good = last_good_state(root)
            here = good[1].step if good is not None else -1
        except ArtifactError as error:
            damaged = error
        try:
            self._check_bucket()
            for name, state in reversed(self.states().items()):
                if state.step <= here:
                    return
                if self._download(name, state, root / name):
                    self._bring(name)
                    return
                logger.warning("%s/%s is damaged: its files are not those that were written; an older state is taken", self.uri, name)
                damaged = damaged or ArtifactError("every state there is damaged", where=self.uri, todo="name another place for the states to train from the start")
        except OSError as error:
            raise ConfigError(f"cannot be read ({' '.join(str(error).split())[:200]})", where=self.uri, todo="check the address, the bucket and the credentials") from None
        if damaged is not None and here < 0:
            raise damaged

    def _bring(self, name: str) -> None:
        """What the run told up to this state, in place of what it told here up to an older one."""
        from pyarrow.fs import FileSelector, FileType

        if self._run is None:
            return
        for stale in [path for pattern in TOLD for path in self._run.glob(pattern)]:
            stale.unlink()
        store, key = self._at(name, BESIDE)
        for info in store.get_file_info(FileSelector(key, allow_not_found=True, recursive=True)):
            if info.type == FileType.File:
                target = self._run / info.path.partition(f"{name}/{BESIDE}/")[2]
                target.parent.mkdir(parents=True, exist_ok=True)
                with store.open_input_stream(info.path, compression=None) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, BLOCK)

    def _check_bucket(self) -> None:
        """A listing of a bucket that does not exist may be just empty."""
        from pyarrow.fs import FileType

        store, key = self._at()
        if store.type_name in OBJECT_STORES and store.get_file_info(key.split("/")[0]).type == FileType.NotFound:
            raise FileNotFoundError("the bucket does not exist")

    def _download(self, name: str, state: TrainState, folder: Path) -> bool:
        """Whether all files were what `state` says; then `folder` counts."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file, digest in state.files.items():
            store, key = self._at(name, file)
            hashed = hashlib.sha256()
            try:
                with store.open_input_stream(key, compression=None) as source, (folder / file).open("wb") as target:
                    while block := source.read(BLOCK):
                        target.write(block)
                        hashed.update(block)
                    target.flush()
                    os.fsync(target.fileno())
            except FileNotFoundError:
                return False
            if hashed.hexdigest() != digest:
                return False
        commit_state(folder, state)
        return True
