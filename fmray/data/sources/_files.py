"""Files of a corpus: finding, identifying, opening (plain or gzip), cutting into parts and decoding them."""

import functools
import glob
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmray.core.artifact import sha256_file
from fmray.core.errors import DataError
from fmray.data.sources import Counts

PART_BYTES = 32 * 1024**2
"""Plain files above this size are read in several parts, each by its own task."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class File:
    """A file of a corpus. `name` is relative to the corpus, so it is the same wherever the corpus lies."""

    path: Path
    name: str


def find(pattern: str, suffixes: Sequence[str]) -> list[File]:
    """The files that a path, a folder (searched below) or a glob names, sorted by relative name.

    Args:
        suffixes: which files of a folder count, as name endings; a file named directly may end as it likes.

    Raises:
        DataError: nothing is there, it cannot be listed, or nothing in it counts.
    """
    path = Path(pattern).expanduser()
    try:
        found, wanted, root = _found(pattern, path, suffixes)
    except OSError as error:
        raise unreadable(File(path, path.name), error) from None
    if not found:
        raise DataError(wanted, where=str(path))
    return sorted((File(p, p.relative_to(root).as_posix()) for p in found), key=lambda f: f.name)


def _found(pattern: str, path: Path, suffixes: Sequence[str]) -> tuple[list[Path], str, Path]:
    if glob.has_magic(pattern) and not path.exists():
        root = Path(os.path.join(*_fixed_parts(path))).absolute()
        matches = [Path(p).absolute() for p in glob.glob(str(path), recursive=True) if os.path.isfile(p)]
        return matches, "the pattern matches no file", root
    if path.is_dir():
        counted = [p for p in _walk(path.absolute()) if p.name.lower().endswith(tuple(suffixes))]
        return counted, f"the folder holds no {' or '.join(suffixes)} file", path.absolute()
    if path.exists():
        return [path.absolute()], "", path.absolute().parent
    raise DataError(
        "there is no such file or folder",
        where=str(path),
        todo="check the path; a relative one starts at the current folder",
    )


def _fixed_parts(path: Path) -> list[str]:
    parts: list[str] = []
    for part in path.parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts or ["."]


def _walk(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(d for d in folders if not d.startswith("."))
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def identify(files: Sequence[File]) -> dict[str, Any]:
    """What identifies files in a fingerprint: how many they are, and sha256 over their relative names and contents."""
    digest = hashlib.sha256()
    for file in files:
        try:
            stat = file.path.stat()
            content = _content(file.path, stat.st_size, stat.st_mtime_ns)
        except OSError as error:
            raise unreadable(file, error) from None
        digest.update(f"{file.name}\0{content}\n".encode())
    return {"n_files": len(files), "sha256": digest.hexdigest()}


@functools.lru_cache(maxsize=65536)
def _content(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_file(path)


def unreadable(file: File, error: OSError) -> DataError:
    """The one-line error of a file that the system does not let us read."""
    return DataError(
        f"cannot be read ({error.strerror or error})",
        where=str(file.path),
        todo="it must be readable on every node that reads the corpus",
    )


@dataclass(frozen=True)
class Span:
    """The bytes from `start` to `end` of a file (None: to its end). Its boundaries stand where a document begins."""

    file: File
    start: int = 0
    end: int | None = None

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Each line with its offset (in the uncompressed text) and its line end; a byte order mark is left out.

        Raises:
            DataError: the file cannot be read, is damaged gzip, or is UTF-16.
        """
        offset = self.start
        try:
            with _open(self.file.path) as stream:
                stream.seek(self.start)
                while self.end is None or offset < self.end:
                    line = stream.readline()
                    if not line:
                        return
                    yield offset, line if offset else self._without_bom(line)
                    offset += len(line)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"is not whole gzip data: {str(error).rstrip('.')} (after {offset} bytes of text)",
                where=str(self.file.path),
            ) from None
        except OSError as error:
            raise unreadable(self.file, error) from None

    def _without_bom(self, line: bytes) -> bytes:
        if line.startswith(_UTF16):
            raise DataError(
                "is UTF-16 text (byte order mark at offset 0)", where=str(self.file.path), todo="convert it to UTF-8"
            )
        return line.removeprefix(_BOM)


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def spans(files: Sequence[File], *, blank_line: bool, part_bytes: int = PART_BYTES) -> list[Span]:
    """Files cut into spans of about `part_bytes` at line ends, or behind blank lines; compressed files stay whole."""
    return [span for file in files for span in _cut(file, blank_line, part_bytes)]


def _cut(file: File, blank_line: bool, part_bytes: int) -> list[Span]:
    try:
        size = file.path.stat().st_size
        if size <= part_bytes or file.path.name.lower().endswith(".gz"):
            return [Span(file)]
        cuts = [0]
        with file.path.open("rb") as stream:
            while cuts[-1] + part_bytes < size:
                stream.seek(cuts[-1] + part_bytes)
                stream.readline()
                while blank_line and (line := stream.readline()) and line.strip():
                    pass
                if stream.tell() >= size:
                    break
                cuts.append(stream.tell())
    except OSError as error:
        raise unreadable(file, error) from None
    return [Span(file, start, end) for start, end in zip(cuts, [*cuts[1:], None], strict=True)]


def decode(raw: bytes, span: Span, offset: int, counts: Counts) -> str:
    """Text from bytes: UTF-8, else Windows-1252 (counted in the notes) when it holds nothing that no text holds.

    Raises:
        DataError: neither, naming the file and the offset of the first such byte.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        first = error.start
    try:
        if b"\0" in raw:
            raise UnicodeDecodeError("cp1252", raw, raw.index(b"\0"), raw.index(b"\0") + 1, "null byte")
        text = raw.decode("cp1252")
    except UnicodeDecodeError:
        raise DataError(
            f"is not UTF-8 text at offset {offset + first} (byte 0x{raw[first]:02x}), nor Windows-1252",
            where=str(span.file.path),
        ) from None
    counts.notes["decoded_as_cp1252"] += 1
    return text
