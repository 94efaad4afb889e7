"""Bytes in blocks that end where a document ends: nothing is held beyond the largest document and one block."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fmray.core.errors import DataError
from fmray.data.sources._files import Bad

BLOCK = 1024**2
_OVERLAP = 64
_PROBE = 64 * 1024

_BLANK = re.compile(rb"\n(?:[ \t\r\f\v]*\n)+")
_LEADING = re.compile(rb"(?:[ \t\r\f\v]*\n)+")


@dataclass(frozen=True)
class Boundary:
    """What stands between documents.

    Attributes:
        first: the place behind the first boundary in some bytes, where a document begins; -1 where there is none.
        last: likewise for the last one.
    """

    first: Callable[[bytes], int]
    last: Callable[[bytes], int]


def _last_blank(data: bytes) -> int:
    for end in (b"\n\n", b"\n\r\n"):
        if (at := data.rfind(end)) >= 0:
            return at + len(end)
    return max((m.end() for m in _BLANK.finditer(data)), default=-1)


def _behind(at: int) -> int:
    return at + 1 if at >= 0 else -1


LINE = Boundary(lambda data: _behind(data.find(b"\n")), lambda data: _behind(data.rfind(b"\n")))
"""Each line is a document."""
BLANK_LINE = Boundary(lambda data: m.end() if (m := _BLANK.search(data)) else -1, _last_blank)
"""Blank lines stand between documents."""
RECORD = Boundary(lambda data: _behind(data.find(b"\n>")), lambda data: _behind(data.rfind(b"\n>")))
"""A document begins with `>` at the start of a line."""


def blocks(read: Callable[[int], bytes], start: int, boundary: Boundary, limit: int, place: str, bad: Bad) -> Iterator[tuple[int, bytes]]:
    """Whole documents in blocks of about 1 MiB, each with its offset; `read` gives the bytes from `start` on.

    A document larger than `limit` bytes goes to `bad` and is read over, up to the next boundary, without being held.
    """
    offset, tail, dropping = start, b"", False
    while chunk := read(max(BLOCK, len(tail))):
        data = tail + chunk
        if dropping:
            at = boundary.first(data)
            if at < 0:
                tail = data[-_OVERLAP:]
                offset += len(data) - len(tail)
                continue
            offset, data, dropping = offset + at, data[at:], False
        at = boundary.last(data)
        if at > 0:
            yield offset, data[:at]
            offset, data = offset + at, data[at:]
        tail = data
        if len(tail) > limit:
            bad(too_large(place, offset, limit))
            dropping = True
            tail, offset = tail[-_OVERLAP:], offset + len(tail) - _OVERLAP
    if tail and not dropping:
        yield offset, tail


def too_large(place: str, offset: int, limit: int) -> DataError:
    """The error of a document beyond the limit."""
    what = f"has a document of more than {limit / 1e6:g} MB at offset {offset}"
    return DataError(what, where=place, todo="raise source.max_document_mb if it is meant")


def lines_in(block: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a block that hold more than white space, without their ends, each with its place in the block."""
    at = 0
    for line in block.split(b"\n"):
        if line and not line.isspace():
            yield at, line
        at += len(line) + 1


def paragraphs_in(block: bytes) -> Iterator[tuple[int, bytes]]:
    """The parts of a block between blank lines, without line ends around them, each with its place in the block."""
    at = m.end() if (m := _LEADING.match(block)) else 0
    for blank in _BLANK.finditer(block, at):
        yield at, block[at : blank.start()].rstrip(b"\r")
        at = blank.end()
    rest = block[at:].rstrip(b"\r\n")
    if rest.strip():
        yield at, rest


def next_boundary(read: Callable[[int], bytes], boundary: Boundary) -> int:
    """How far behind the place of `read` the next document begins; the rest of the bytes when none does."""
    passed, tail = 0, b""
    while chunk := read(_PROBE if not passed else BLOCK):
        data = tail + chunk
        at = boundary.first(data)
        if at >= 0:
            return passed - len(tail) + at
        passed += len(chunk)
        tail = data[-_OVERLAP:]
    return passed
