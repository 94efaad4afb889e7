"""Artifacts: directories with a `record.json` that is written last, so that its existence means complete."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from fmray.core.errors import ArtifactError, ConfigError
from fmray.core.lock import live_holder

RECORD = "record.json"
STARTED = "started.json"


class Payload(BaseModel):
    """What an artifact says about itself, by kind. Subclass once a kind: `class Report(Payload, kind="report")`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    kind: ClassVar[str]
    _kinds: ClassVar[dict[str, type["Payload"]]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, kind: str = "", **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.kind = kind
        Payload._kinds[kind] = cls

    def __init_subclass__(cls, kind: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)

    @classmethod
    def of_kind(cls, kind: str) -> "type[Payload] | None":
        """The payload class of a kind, or None when no imported module defines it."""
        return Payload._kinds.get(kind)


class Provenance(BaseModel):
    """Where, when and with what an artifact was made. `device_hours` counts devices times hours, by the stage's own account."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    git_commit: str | None
    git_dirty: bool | None
    argv: tuple[str, ...]
    host: str
    python: str
    versions: dict[str, str]
    devices: tuple[str, ...]
    device_hours: float
    started_at: str


class Record(BaseModel):
    """The content of `record.json`. `identity` is exactly what was hashed into `fingerprint`; `config` holds every field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    name: str
    stage: str
    version: int
    round: int
    fingerprint: str
    identity: dict[str, Any]
    config: dict[str, Any]
    inputs: dict[str, str]
    payload: dict[str, Any]
    provenance: Provenance
    wall_s: float


P = TypeVar("P", bound=Payload)


@dataclass(frozen=True)
class Artifact(Generic[P]):
    """A complete artifact: where it lies, its record and its typed payload."""

    path: Path
    record: Record
    payload: P

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its config and inputs."""
        return self.record.fingerprint

    @property
    def name(self) -> str:
        """The name of the step that made it, without its round."""
        return self.record.name


def fingerprint(identity: Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of an identity, as 64 hexadecimal digits."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def local_path(storage: str | os.PathLike[str]) -> Path:
    """The absolute path of a storage: a local or shared folder, plain or as a file:// URI.

    Raises:
        ConfigError: a URI scheme that this version cannot write to.
    """
    text = os.fspath(storage)
    scheme = re.match(r"^([a-z][a-z0-9+.-]*)://", text)
    if scheme and scheme[1] != "file":
        raise ConfigError(f"storage '{text}' is not supported: only local and shared folders are", where="--storage", todo="mount it and give its path")
    return Path(text.removeprefix("file://")).expanduser().absolute()


def load(path: str | os.PathLike[str], kind: type[P] | None = None) -> Artifact[P]:
    """Opens a complete artifact.

    Raises:
        ArtifactError: no such directory, an unfinished one, a damaged record, or another kind than asked for.
    """
    root = local_path(path)
    record = read_record(root)
    if record is None:
        holder = live_holder(root)
        state = "is unfinished (it has no record.json)" if (root / STARTED).exists() else "is not a fmray artifact (it has no record.json)"
        if holder is not None:
            state = f"is still being written by {holder}"
        raise ArtifactError(state if root.is_dir() else "does not exist", where=str(root), todo="run the step that makes it, or check the path")
    cls = Payload.of_kind(record.kind)
    if cls is None:
        raise ArtifactError(f"is of the unknown kind '{record.kind}'", where=str(root), todo="import the plugin that defines it")
    if kind is not None and not issubclass(cls, kind):
        raise ArtifactError(f"is a {record.kind}, not a {kind.kind}", where=str(root))
    try:
        payload = cls.model_validate(record.payload)
    except ValidationError as error:
        raise ArtifactError(f"has a payload that this version cannot read ({error.errors()[0]['msg']})", where=str(root), todo="make it again") from None
    return Artifact(root, record, cast(P, payload))


def read_record(root: Path) -> Record | None:
    """The record of a directory, or None when it has none.

    Raises:
        ArtifactError: the record is there and damaged.
    """
    try:
        return Record.model_validate_json((root / RECORD).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise ArtifactError(f"record.json is damaged ({error.errors()[0]['msg']})", where=str(root), todo="move the folder away") from None


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old content or the new one, never a part (temporary file, fsync, rename)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(root: Path, names: Iterable[str]) -> str:
    """sha256 over the sorted relative names and the sha256 of each named file below `root`."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\0{sha256_file(root / name)}\n".encode())
    return digest.hexdigest()
