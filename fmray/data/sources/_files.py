"""Sources that lie in files: finding and identifying the files, and cutting a corpus into parts of them."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import Field

from fmray.core.artifact import sha256_file
from fmray.core.errors import DataError
from fmray.data.sources import Counts, Document, OnError, Source
from fmray.data.sources._store import File, content_tag, locate, open_file, search, unreadable

MB = 10**6
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
"""Endings of names that say how a text file is compressed."""

SMALLEST_PART, LARGEST_PART, N_PARTS = 4 * 1024**2, 128 * 1024**2, 128
MOST_PIECES = 1000
AT_ONCE = 16

Bad = Callable[[DataError], None]
"""What a reader calls with an input that it cannot read: raises under `on_error: fail`, counts and names it under `skip`."""

P = TypeVar("P")
P_contra = TypeVar("P_contra", contravariant=True)


class FileSource(Source):
    """A source of files: a file, a folder (searched below), or a glob; a path or a URI such as `s3://bucket/prefix/*.jsonl`.

    Attributes:
        path: where it lies; it never enters the fingerprint, the files' relative names and contents do.
        max_document_mb: a document larger than this (millions of bytes as stored, uncompressed) is an unreadable input; none is
            ever held in memory beyond it.
    """

    suffixes: ClassVar[tuple[str, ...]]

    path: str = Field(min_length=1)
    max_document_mb: float = Field(64.0, gt=0, le=2000)

    def files(self) -> list[File]:
        """The source's files, sorted by relative name.

        Raises:
            DataError: there are none, or they cannot be listed.
        """
        return find(self.path, self.suffixes)

    def identity(self) -> dict[str, Any]:
        """The fields that decide what is read, and the files' relative names and contents instead of the path."""
        own = {k: v for k, v in super().identity().items() if k not in ("path", "on_error", "max_bad_fraction")}
        return {**own, "files": identify(self.files(), on_error=self.on_error)}

    @property
    def limit(self) -> int:
        """The largest document in bytes."""
        return int(self.max_document_mb * MB)


def compressible(*suffixes: str) -> tuple[str, ...]:
    """Name endings, and the same followed by the ending of each compression."""
    return (*suffixes, *(f"{suffix}{packed}" for suffix in suffixes for packed in COMPRESSED))


def find(pattern: str, suffixes: Sequence[str]) -> list[File]:
    """The files that a path, a folder (searched below), a glob or a URI names, sorted by relative name.

    Args:
        suffixes: which files of a folder count, as name endings; a file named directly may end as it likes.

    Raises:
        DataError: nothing is there, it cannot be listed, or nothing in it counts.
    """
    place = locate(pattern)
    try:
        found, searched = search(place, suffixes)
    except OSError as error:
        raise unreadable(place, error) from None
    if not found:
        plain = [s for s in suffixes if not s.endswith(COMPRESSED)]
        raise DataError(f"{searched} {' or '.join(plain)} file" if searched.endswith(" no") else searched, where=place)
    return sorted(found, key=lambda f: f.name)


def identify(files: Sequence[File], *, on_error: OnError = "fail") -> dict[str, Any]:
    """What identifies files in a fingerprint: how many they are, and sha256 over their relative names and contents.

    The content of a local file enters by its sha256. That of an object in a store enters by the store's own content tag (ETag)
    and its size, which costs no download: the same bytes uploaded in other parts, or to another store, may bear another tag. A
    store without tags is read, and sha256 taken. A file that cannot be read enters as such under `skip`.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        tag = partial(_content, on_error=on_error)
        contents = threads.map(tag, files) if any(f.remote for f in files) else map(tag, files)
        for file, content in zip(files, contents, strict=True):
            digest.update(f"{file.name}\0{content}\n".encode())
    return {"n_files": len(files), "sha256": digest.hexdigest()}


def _content(file: File, on_error: OnError) -> str:
    try:
        if file.remote:
            return content_tag(file) or _sha256_remote(file)
        stat = Path(file.place).stat()
        return _sha256_local(file.place, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        if on_error == "skip":
            return "unreadable"
        raise unreadable(file.place, error) from None


@lru_cache(maxsize=65536)
def _sha256_local(place: str, size: int, mtime_ns: int) -> str:
    return sha256_file(place)


def _sha256_remote(file: File) -> str:
    digest = hashlib.sha256()
    with open_file(file) as stream:
        while block := stream.read(SMALLEST_PART):
            digest.update(block)
    return digest.hexdigest()


class Reader(Protocol[P_contra]):
    """Reads the documents of one piece (a file, a span of one, some of its row groups)."""

    def documents(self, piece: P_contra, counts: Counts, bad: Bad) -> Iterator[Document]:
        """The piece's documents in order. An error raised ends the piece; one given to `bad` only leaves out an input."""


@dataclass(frozen=True)
class Part(Generic[P]):
    """A partition: pieces that one task reads one after the other."""

    pieces: tuple[P, ...]
    reader: Reader[P]
    on_error: OnError

    def read(self, counts: Counts) -> Iterator[Document]:
        """The documents of all pieces. Under `skip`, a piece that breaks off is counted once and the next one is read."""
        bad = partial(counts.bad_input, on_error=self.on_error)
        for piece in self.pieces:
            try:
                yield from self.reader.documents(piece, counts, bad)
            except DataError as error:
                bad(error)


def part_bytes(files: Sequence[File]) -> int:
    """How large a part of these files should be: a 128th of them, at least 4 MiB and at most 128 MiB."""
    return min(LARGEST_PART, max(SMALLEST_PART, sum(file.size for file in files) // N_PARTS))


def grouped(pieces: Sequence[tuple[P, int]], reader: Reader[P], on_error: OnError) -> list[Part[P]]:
    """Pieces (with their sizes in bytes) as parts: one each, or small neighbours together where there would be very many parts."""
    target = sum(size for _, size in pieces) // (2 * N_PARTS)
    parts: list[list[P]] = []
    held = 0
    for piece, size in pieces:
        if parts and held + size <= target and len(parts[-1]) < MOST_PIECES:
            parts[-1].append(piece)
            held += size
        else:
            parts.append([piece])
            held = size
    return [Part(tuple(part), reader, on_error) for part in parts]
