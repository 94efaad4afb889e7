"""IDX files of pictures, the format of MNIST."""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fmray.core.errors import DataError
from fmray.data.sources import Counts, Document, Partition, Source
from fmray.data.sources._files import Bad, compressible, find, grouped, identify
from fmray.data.sources._store import File
from fmray.data.sources._streams import Stream, is_compressed

UNSIGNED_BYTE = 0x08
IN_A_PART = 10_000
AT_ONCE = 256


class Idx(Source):
    """Pictures and labels in IDX files, also compressed: `images` idx3 (or idx4 with channels last), `labels` idx1, unsigned bytes.

    A document has `image` (uint8, height x width x channels), `id` (the number in the file) and, with labels, `label`.
    """

    type: Literal["idx"] = "idx"
    modality: ClassVar[Literal["text", "image"]] = "image"

    images: str = Field(min_length=1)
    labels: str | None = Field(None, min_length=1)

    def identity(self) -> dict[str, Any]:
        """The contents of the files instead of their paths."""
        images, labels = self._files()
        return {"type": self.type, "files": identify([images, *([labels] if labels else [])], on_error=self.on_error)}

    def _files(self) -> tuple[File, File | None]:
        return _only(self.images), _only(self.labels) if self.labels else None

    def partitions(self) -> Sequence[Partition]:
        """A compressed file as one part, others in parts of 10,000 pictures."""
        images, labels = self._files()
        cuts: list[tuple[int, int | None]] = [(0, None)]
        if not is_compressed(images):
            try:
                with Stream(images) as stream:
                    n = _header(stream, (3, 4))[0]
            except DataError:
                if self.on_error == "fail":
                    raise
                n = 0  # Reading it says what is wrong, and counts it.
            cuts = [(first, first + IN_A_PART) for first in range(0, n, IN_A_PART)] or cuts
        return grouped([(Range(images, labels, *cut), 1) for cut in cuts], Pictures(), self.on_error)


def _only(pattern: str) -> File:
    files = find(pattern, compressible(".idx", "ubyte"))
    if len(files) > 1:
        raise DataError(f"names {len(files)} files where one belongs", where=pattern)
    return files[0]


@dataclass(frozen=True)
class Range:
    """The pictures from number `first` up to but not including `stop` (None: to the last)."""

    images: File
    labels: File | None
    first: int
    stop: int | None


@dataclass(frozen=True)
class Pictures:
    """Reads a range of pictures with their labels."""

    def documents(self, piece: Range, counts: Counts, bad: Bad) -> Iterator[Document]:
        """One document a picture.

        Raises:
            DataError: a file is not of the format, is cut off, or there are not as many labels as pictures.
        """
        with Stream(piece.images) as stream:
            n, *shape = _header(stream, (3, 4))
            labels = _labels(piece.labels, n) if piece.labels else None
            size = math.prod(shape)
            _pass_over(stream, piece.first * size)
            stop = n if piece.stop is None else min(n, piece.stop)
            for first in range(piece.first, stop, AT_ONCE):
                pixels = _exactly(stream, min(AT_ONCE, stop - first) * size)
                for i, image in enumerate(np.frombuffer(pixels, np.uint8).reshape(-1, *shape, *([1] if len(shape) == 2 else [])), start=first):
                    labelled = {} if labels is None else {"label": labels[i]}
                    yield {"image": image, "id": f"{piece.images.name}#{i}", **labelled}


def _header(stream: Stream, dimensions: tuple[int, ...]) -> list[int]:
    """The sizes of the array in an IDX file: two null bytes, the type, the number of dimensions, and their sizes, big-endian."""
    zero, kind, n = struct.unpack(">HBB", _exactly(stream, 4))
    if zero or kind != UNSIGNED_BYTE or n not in dimensions:
        wanted = " or ".join(str(d) for d in dimensions)
        raise DataError(f"is no IDX file of unsigned bytes in {wanted} dimensions (offset 0)", where=stream.file.place)
    sizes = list(struct.unpack(f">{n}I", _exactly(stream, 4 * n)))
    if 0 in sizes[1:] or math.prod(sizes[1:]) > 2**28:
        raise DataError(f"claims pictures of the size {sizes[1:]} (offset 4)", where=stream.file.place)
    return sizes


def _labels(file: File, n: int) -> bytes:
    with Stream(file) as stream:
        (found,) = _header(stream, (1,))
        if found != n:
            raise DataError(f"holds {found} labels for {n} pictures", where=file.place)
        return _exactly(stream, n)


def _exactly(stream: Stream, size: int) -> bytes:
    start = stream.offset
    parts: list[bytes] = []
    while size > 0 and (part := stream.read(min(size, 1024**2))):
        parts.append(part)
        size -= len(part)
    if size:
        raise DataError(f"is cut off at offset {stream.offset}, {size} bytes before the end of what begins at {start}", where=stream.file.place)
    return b"".join(parts)


def _pass_over(stream: Stream, size: int) -> None:
    while size:
        size -= len(_exactly(stream, min(size, 1024**2)))
