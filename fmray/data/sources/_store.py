"""The one file-system layer: local paths through Python's own files, URIs (s3, gs, hdfs, ...) through pyarrow.fs.

Object storage is configured as its own tools are: AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3), AWS_REGION or AWS_DEFAULT_REGION, and
the usual AWS credentials. A URI is taken literally (no %-escapes, no query), and may hold no secrets.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast
from urllib.parse import unquote

from fmray.core.errors import DataError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

CONNECT_S, STALL_S, ATTEMPTS = 5, 30, 4
"""A store that cannot be reached is an error after a few short attempts, not after minutes."""
READ_AHEAD = 8 * 1024**2
"""A request to a store takes long before its first byte comes, so that few large ones are made."""

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True)
class File:
    """A file of a corpus: its absolute path or URI, and its size in bytes as it lies there.

    `name` is relative to the corpus, so it is the same wherever the corpus lies.
    """

    place: str
    name: str
    size: int = 0

    @property
    def remote(self) -> bool:
        """Whether it lies behind a URI."""
        return _URI.match(self.place) is not None


def unreadable(place: str, error: Exception) -> DataError:
    """The one-line error of a file or store that cannot be read."""
    reason = getattr(error, "strerror", None) or str(error).split(" (Request ID")[0]
    if isinstance(error, FileNotFoundError):
        reason = "there is no such file or object"
    return DataError(f"cannot be read ({reason})", where=place, todo="it must be readable on every node that reads the corpus")


def locate(pattern: str) -> str:
    """A path or URI in the form that `File.place` has: paths absolute, `file://` resolved to a path, other URIs as they are.

    Raises:
        DataError: a URI that holds credentials.
    """
    scheme = _URI.match(pattern)
    if not scheme:
        return str(Path(pattern).expanduser().absolute())
    rest = pattern[scheme.end() :]
    if scheme[1].lower() == "file":
        return str(Path(unquote(rest.removeprefix("localhost"))).absolute())
    if "@" in rest.split("/")[0]:
        raise DataError("holds credentials", where=f"{scheme[0]}...@{rest.split('@', 1)[1]}", todo="put them into the store's environment variables")
    return pattern.rstrip("/") if "/" in rest else pattern


def search(place: str, suffixes: Sequence[str]) -> tuple[list[File], str]:
    """The files at a located path, folder or glob, unsorted, and in words what was searched.

    Args:
        suffixes: lower-case name endings of the files of a folder that count; other patterns name files themselves.

    Raises:
        OSError: it cannot be listed.
        DataError: there is no such path, or the store is unknown.
    """
    return (_search_store if _URI.match(place) else _search_local)(place, tuple(suffixes))


def _search_local(place: str, suffixes: tuple[str, ...]) -> tuple[list[File], str]:
    path = Path(place)
    if glob.has_magic(place) and not path.exists():
        root = Path(_fixed(place))
        found = [Path(p) for p in glob.glob(place, recursive=True) if not os.path.isdir(p)]
        return [_local(p, root) for p in found], "the pattern matches no file"
    if path.is_dir():
        found = [p for p in _walk(path) if p.name.lower().endswith(suffixes)]
        return [_local(p, path) for p in found], "the folder holds no"
    if path.exists() or path.is_symlink():
        return [_local(path, path.parent)], ""
    raise DataError("there is no such file or folder", where=place, todo="check the path; a relative one starts at the current folder")


def _local(path: Path, root: Path) -> File:
    try:
        size = path.stat().st_size
    except OSError:
        size = 0  # Reading it will say why, and then it can be skipped.
    return File(str(path), path.relative_to(root).as_posix(), size)


def _walk(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(d for d in folders if not d.startswith("."))
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _fixed(place: str) -> str:
    """The folders in front of the first part of a pattern that holds a wildcard."""
    parts = place.split("/")
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:first]) or "/"


def _search_store(place: str, suffixes: tuple[str, ...]) -> tuple[list[File], str]:
    import pyarrow.fs as pafs
    from fsspec.utils import glob_translate

    store, key = filesystem(place)
    scheme = place[: len(place) - len(key)]
    if glob.has_magic(key):
        root = _fixed(key)
        infos = store.get_file_info(pafs.FileSelector(root, recursive="/" in key[len(root) + 1 :], allow_not_found=False))
        matches = re.compile(glob_translate(key)).match
        return _shown(_remote(i, scheme, root) for i in infos if i.type == pafs.FileType.File and matches(i.path)), "the pattern matches no object"
    (info,) = store.get_file_info([key])
    if info.type == pafs.FileType.File:
        return [_remote(info, scheme, key.rpartition("/")[0])], ""
    if info.type == pafs.FileType.NotFound and "/" in key:
        # A bucket that is missing looks the same here, and is named when its listing fails.
        store.get_file_info(pafs.FileSelector(key.split("/")[0], recursive=False))
        raise DataError("there is no such object or prefix", where=place, todo="check the URI")
    infos = store.get_file_info(pafs.FileSelector(key, recursive=True))
    files = (_remote(i, scheme, key) for i in infos if i.type == pafs.FileType.File and i.path.lower().endswith(suffixes))
    return _shown(files), "the prefix holds no"


def _shown(files: Iterable[File]) -> list[File]:
    """Without hidden ones, as of a local folder."""
    return [f for f in files if not any(part.startswith(".") for part in f.name.split("/"))]


def _remote(info: "pafs.FileInfo", scheme: str, root: str) -> File:  # type: ignore[name-defined]  # noqa: F821
    return File(f"{scheme}{info.path}", info.path[len(root) :].lstrip("/"), info.size or 0)


def filesystem(place: str) -> tuple["FileSystem", str]:
    """The store of a URI, and the path in it.

    Raises:
        DataError: the scheme is unknown, or the store's address is wrong.
    """
    scheme = cast(re.Match[str], _URI.match(place))
    name, key = scheme[1].lower(), place[scheme.end() :].rstrip("/")
    if name in ("s3", "gs", "gcs"):
        variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID")
        return _object_store(name, *(os.environ.get(v) for v in variables)), key
    import pyarrow as pa
    import pyarrow.fs as pafs

    try:
        return pafs.FileSystem.from_uri(place)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"cannot be opened ({error})", where=place, todo="use a path, or a URI such as s3://bucket/prefix") from None


@lru_cache(maxsize=16)
def _object_store(
    scheme: str, s3_endpoint: str | None, endpoint: str | None, region: str | None, default_region: str | None, _key: str | None
) -> "FileSystem":
    import pyarrow.fs as pafs

    if scheme != "s3":
        return pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=STALL_S))
    url = s3_endpoint or endpoint or ""
    http, _, host = url.rpartition("://")
    return pafs.S3FileSystem(
        endpoint_override=host or None,
        scheme=http or "https",
        region=region or default_region,
        connect_timeout=CONNECT_S,
        request_timeout=STALL_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )


def open_file(file: File, start: int = 0, *, seekable: bool = False, ahead: int = READ_AHEAD) -> IO[bytes]:
    """The file's bytes as they lie there, from `start` on.

    Args:
        seekable: they are not read one after the other; a store is then asked for just what is read.
        ahead: so many bytes are fetched from a store at once.

    Raises:
        OSError: it cannot be opened.
    """
    if not file.remote:
        stream: IO[bytes] = open(file.place, "rb")  # noqa: SIM115  the caller closes it
        stream.seek(start)
        return stream
    import pyarrow as pa

    store, key = filesystem(file.place)
    if not (start or seekable):
        return cast(IO[bytes], store.open_input_stream(key, compression=None, buffer_size=ahead))
    opened = store.open_input_file(key)
    opened.seek(start)
    return cast(IO[bytes], opened if seekable else pa.BufferedInputStream(opened, ahead))


def content_tag(file: File) -> str | None:
    """What a store says identifies the content of an object (its ETag, with its size); None where there is no such thing.

    Raises:
        OSError: the object cannot be opened.
    """
    store, key = filesystem(file.place)
    with store.open_input_file(key) as stream:
        tags = {_text(k).lower(): _text(v) for k, v in (stream.metadata() or {}).items()}
        return f"{tags['etag']} {stream.size()}" if tags.get("etag") else None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
