"""Spans of text files: how a file is cut, and how the bytes and text of a span are read."""

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator

from fmray.core.errors import DataError
from fmray.data.sources import Counts, OnError
from fmray.data.sources._blocks import Boundary, blocks, next_boundary, too_large
from fmray.data.sources._encoding import HEAD, Decoder, detect, is_bytewise
from fmray.data.sources._files import Bad, FileSource, Part, Reader, grouped, part_bytes
from fmray.data.sources._store import READ_AHEAD, File, open_file, unreadable
from fmray.data.sources._streams import Stream, is_compressed


@dataclass(frozen=True)
class Span:
    """The bytes from `start` to `end` of a file (None: to its end). Its boundaries stand where a document begins."""

    file: File
    start: int = 0
    end: int | None = None


def _known(name: str) -> str:
    try:
        found = codecs.lookup(name).name
        "a\n".encode(found)
    except (LookupError, TypeError, ValueError):
        raise ValueError(f"'{name}' is no text encoding that Python knows") from None
    return found


class TextFileSource(FileSource):
    """A source of text files, plain or compressed (.gz, .zst, .bz2, .xz).

    Attributes:
        encoding: of all files; by default each file's is told by its byte order mark, else it is UTF-8, else cp1252 or GB18030, as
            the first 256 KiB look. Offsets are those in the uncompressed file; of a UTF-16 or UTF-32 file, those of it as UTF-8.
    """

    encoding: Annotated[str, AfterValidator(_known)] | None = None

    def parts(self, reader: Reader[Span], boundary: Boundary, may_cut: Callable[[File], bool] = lambda file: True) -> list[Part[Span]]:
        """The files as parts for a reader: large plain files that may be cut in several, many small files together.

        Raises:
            DataError: there are no files, or one cannot be read (under `skip`, reading says so).
        """
        files = self.files()
        size = part_bytes(files)
        pieces = [
            span for file in files for span in (spans([file], boundary, size, self.on_error, self.encoding) if may_cut(file) else [Span(file)])
        ]
        return grouped([(span, _size(span)) for span in pieces], reader, self.on_error)


def _size(span: Span) -> int:
    return (span.end if span.end is not None else span.file.size) - span.start


def spans(files: Sequence[File], boundary: Boundary, size: int, on_error: OnError = "fail", encoding: str | None = None) -> list[Span]:
    """Files cut into spans of about `size` bytes where documents begin; compressed, UTF-16 and UTF-32 files stay whole.

    Raises:
        DataError: a file cannot be read, under `fail`.
    """
    found: list[Span] = []
    for file in files:
        try:
            found.extend(_cut(file, boundary, size, encoding))
        except OSError as error:
            if on_error == "fail":
                raise unreadable(file.place, error) from None
            found.append(Span(file))
    return found


def _cut(file: File, boundary: Boundary, size: int, encoding: str | None) -> list[Span]:
    if file.size <= size or is_compressed(file):
        return [Span(file)]
    with open_file(file, ahead=HEAD) as stream:
        if not is_bytewise(encoding or detect(stream.read(HEAD))):
            return [Span(file)]
    cuts = [0]
    while cuts[-1] + size < file.size:
        with open_file(file, cuts[-1] + size, ahead=HEAD) as stream:
            at = cuts[-1] + size + next_boundary(stream.read, boundary)
        if at >= file.size:
            break
        cuts.append(at)
    return [Span(file, start, end) for start, end in zip(cuts, [*cuts[1:], None], strict=True)]


class TextStream:
    """The bytes of a span, without a byte order mark, and the decoder of its file.

    Bytes of UTF-16, UTF-32 and the like come as UTF-8. `offset` is where the first of them stands.

    Raises:
        DataError: the file cannot be read or is damaged.
    """

    def __init__(self, span: Span, encoding: str | None, counts: Counts) -> None:
        self.span = span
        if span.start and encoding is None:
            with Stream(span.file, ahead=HEAD) as beginning:
                encoding = detect(beginning.read(HEAD))
        # Not beyond the span's end: what lies there is another task's to fetch.
        ahead = READ_AHEAD if span.end is None else min(READ_AHEAD, max(HEAD, span.end - span.start))
        self._stream = Stream(span.file, span.start, ahead)
        self._head = b"" if encoding else self._stream.read(HEAD)
        found = encoding or detect(self._head)
        self.offset = span.start
        if found == "utf-8-sig" or (found == "utf-8" and not span.start):
            self._drop_mark()
        self._left = None if span.end is None else span.end - self.offset
        self._decoder = None if is_bytewise(found) else codecs.getincrementaldecoder(found)()
        self.decode = Decoder(span.file.place, "utf-8" if self._decoder else found, counts.notes)

    def _drop_mark(self) -> None:
        head = self._head or self._stream.read(HEAD)
        if not self.span.start and head.startswith(codecs.BOM_UTF8):
            head, self.offset = head[3:], 3
        self._head = head

    def read(self, size: int) -> bytes:
        """The next `size` bytes of the span or a little fewer; none at its end."""
        if self._decoder is None:
            return self._raw(size)
        while raw := self._raw(size):
            if text := self._transcoded(raw, final=False):
                return text
        return self._transcoded(b"", final=True)

    def _raw(self, size: int) -> bytes:
        if self._left is not None:
            size = min(size, self._left)
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
        else:
            data = self._stream.read(size)
        if self._left is not None:
            self._left -= len(data)
        return data

    def _transcoded(self, raw: bytes, *, final: bool) -> bytes:
        decoder: Any = self._decoder
        held = decoder.getstate()[0]
        try:
            return str(decoder.decode(raw, final)).encode()
        except UnicodeError as error:
            at = self._stream.offset - len(raw) - len(held) + getattr(error, "start", 0)
            name = type(decoder).__module__.rpartition(".")[2].replace("_", "-")
            raise DataError(f"is not {name} text at offset {at} of the file", where=self.span.file.place) from None

    def blocks(self, boundary: Boundary, limit: int, bad: Bad) -> Iterator[tuple[int, bytes]]:
        """The span's documents in blocks, each with its offset (see `_blocks.blocks`)."""
        return blocks(self.read, self.offset, boundary, limit, self.span.file.place, bad)

    def __enter__(self) -> "TextStream":
        return self

    def __exit__(self, *exc: object) -> None:
        self._stream.__exit__(None, None, None)


def documents_in(
    stream: TextStream,
    boundary: Boundary,
    pieces: Callable[[bytes], Iterator[tuple[int, bytes]]],
    limit: int,
    bad: Bad,
) -> Iterator[tuple[int, str]]:
    """The decoded documents of a stream, each with its offset; those that are too large or no text go to `bad`."""
    decode, place = stream.decode, stream.span.file.place
    for start, block in stream.blocks(boundary, limit, bad):
        sound = decode.is_sound(block)
        for at, raw in pieces(block):
            if len(raw) > limit:
                bad(too_large(place, start + at, limit))
                continue
            if sound:
                yield start + at, raw.decode()
                continue
            try:
                text = decode(raw, start + at)
            except DataError as error:
                bad(error)
                continue
            yield start + at, text
