"""The bytes of a file as text holds them: decompressed by the file's ending, with the offset at which anything goes wrong."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import IO, Self, cast

from fmray.core.errors import DataError
from fmray.data.sources._files import COMPRESSED
from fmray.data.sources._store import READ_AHEAD, File, open_file, unreadable

STEP = 64 * 1024
_DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)


def is_compressed(file: File) -> bool:
    """Whether a file's name says that it is compressed."""
    return file.place.lower().endswith(COMPRESSED)


class Stream:
    """Reads a file from its beginning or, if it is not compressed, from `start`. Members of gzip and zstd files follow each other.

    `offset` is the place in the uncompressed bytes. What lies in front of a damaged place is given before the error is raised.

    Raises:
        DataError: the file cannot be opened or read, or its compressed data are damaged or cut off.
    """

    def __init__(self, file: File, start: int = 0, ahead: int = READ_AHEAD) -> None:
        self.file, self.offset = file, start
        self._failed: DataError | None = None
        with ExitStack() as stack:
            try:
                raw = stack.enter_context(open_file(file, start, ahead=ahead))
                self._read = self._decompressed(raw, stack)
            except OSError as error:
                raise unreadable(file.place, error) from None
            self._stack = stack.pop_all()

    def _decompressed(self, raw: IO[bytes], stack: ExitStack) -> Callable[[int], bytes]:
        ending = self.file.place.lower().rpartition(".")[2]
        if not is_compressed(self.file):
            return raw.read
        if ending == "zst":
            import pyarrow as pa

            return cast(Callable[[int], bytes], stack.enter_context(pa.CompressedInputStream(raw, "zstd")).read)
        watched = cast(IO[bytes], _Watched(self.file, raw))
        if ending == "gz":
            return stack.enter_context(gzip.GzipFile(fileobj=watched)).read1
        if ending == "bz2":
            return stack.enter_context(bz2.BZ2File(watched)).read1
        return stack.enter_context(lzma.LZMAFile(watched)).read1

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end or before a damaged place."""
        if self._failed:
            raise self._failed
        parts, missing = [], size
        while missing > 0:
            try:
                part = self._read(min(missing, STEP) if is_compressed(self.file) else missing)
            except _DAMAGE as error:
                self._failed = self._error(error)
                break
            if not part:
                break
            parts.append(part)
            self.offset += len(part)
            missing -= len(part)
        if self._failed and not parts:
            raise self._failed
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _error(self, error: Exception) -> DataError:
        if not is_compressed(self.file) or "AWS Error" in str(error):
            return unreadable(self.file.place, error)
        kind = {"gz": "gzip", "zst": "zstd", "bz2": "bzip2", "xz": "xz"}[self.file.place.lower().rpartition(".")[2]]
        return DataError(f"is not whole {kind} data: {str(error).rstrip('.')} (after {self.offset} bytes of text)", where=self.file.place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()


class _Watched(io.RawIOBase):
    """Tells an error of the disk or the store from damage in the data, which decompressors raise as OSError too."""

    def __init__(self, file: File, raw: IO[bytes]) -> None:
        self._file, self._raw = file, raw

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            return self._raw.read(size)
        except OSError as error:
            raise unreadable(self._file.place, error) from None
