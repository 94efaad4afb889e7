"""JSON Lines files, and files of a JSON array."""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from fmray.core.errors import DataError
from fmray.data.sources import Counts, Document, Partition
from fmray.data.sources._blocks import BLOCK, LINE, lines_in, too_large
from fmray.data.sources._encoding import LEGACY
from fmray.data.sources._fields import Fields
from fmray.data.sources._files import Bad, compressible
from fmray.data.sources._spans import Span, TextFileSource, TextStream, documents_in

ARRAYS = compressible(".json")
WHITESPACE = re.compile(r"[ \t\n\r]*")


class Jsonl(TextFileSource):
    """Records of JSON: one object a line (.jsonl, .ndjson), or files of an array of objects (.json), also compressed.

    Fields other than the text stay as metadata.

    Attributes:
        text: the field with the text, or several, the first present of which is taken. A dotted name goes into nested objects; the
            items of a list of texts are put together with newlines between them.
        id: the field with the document's id; by default its place in the file.
    """

    type: Literal["jsonl"] = "jsonl"
    suffixes: ClassVar[tuple[str, ...]] = (*compressible(".jsonl", ".ndjson"), *ARRAYS)

    text: str | tuple[str, ...] = Field("text", min_length=1)
    id: str | None = None

    def partitions(self) -> Sequence[Partition]:
        """One part a file; large plain files of lines in several."""
        names = (self.text,) if isinstance(self.text, str) else self.text
        return self.parts(Records(Fields(names, self.id), self.encoding, self.limit), LINE, may_cut=lambda f: not f.name.lower().endswith(ARRAYS))


@dataclass(frozen=True)
class Records:
    """Reads the objects of a span of lines, or of an array."""

    fields: Fields
    encoding: str | None
    limit: int

    def documents(self, piece: Span, counts: Counts, bad: Bad) -> Iterator[Document]:
        """One document an object; blank lines are passed over."""
        file = piece.file
        array = file.name.lower().endswith(ARRAYS)
        with TextStream(piece, self.encoding, counts) as stream:
            values: Iterator[tuple[str, str, Any]]
            if array:
                values = ((f"{file.name}#{n}", f"{file.place} at element {n}", value) for n, value in enumerate(_elements(stream, self.limit)))
            else:
                values = self._lines(stream, bad)
            for place, where, value in values:
                try:
                    if not isinstance(value, dict):
                        raise DataError(f"holds a JSON {type(value).__name__} where an object belongs", where=where)
                    document = self.fields.document(value, place, where)
                except DataError as error:
                    bad(error)
                    continue
                yield document

    def _lines(self, stream: TextStream, bad: Bad) -> Iterator[tuple[str, str, Any]]:
        file = stream.span.file
        for offset, line in documents_in(stream, LINE, lines_in, self.limit, bad):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                bad(DataError(f"is not JSON ({error})", where=f"{file.place} at offset {offset}"))
                continue
            yield f"{file.name}@{offset}", f"{file.place} at offset {offset}", value


def _elements(stream: TextStream, limit: int) -> Iterator[Any]:
    """The elements of an array, or JSON values that follow each other, decoded one by one as the file is read.

    Raises:
        DataError: the file is no JSON from some element on, or an element is larger than the limit.
    """
    place = stream.span.file.place
    scan = json.JSONDecoder().raw_decode
    text = _Ahead(stream)
    is_array = text.next() == "["
    text.at += is_array
    n = 0
    while (mark := text.next()) and not (is_array and mark == "]"):
        try:
            value, end = scan(text.held, text.at)
        except (ValueError, RecursionError) as error:
            if len(text.held) - text.at > limit:
                raise too_large(place, text.offset, limit) from None
            if text.more():
                continue
            raise DataError(f"is not JSON at element {n}, offset {text.offset} ({error})", where=place) from None
        if end == len(text.held) and text.more():
            continue  # A number that ends where the held text ends may go on.
        yield value
        n, text.at = n + 1, end
        if is_array and text.next() == ",":
            text.at += 1
    if is_array and mark != "]":
        raise DataError(f"is cut off at offset {text.offset}: the array does not end", where=place)
    text.at += is_array
    if text.next():
        raise DataError(f"has more behind its end at offset {text.offset}", where=place)


class _Ahead:
    """Decoded text that is read ahead of a scanner, in steps that double as long as a value is not whole."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(stream.decode.encoding)()
        self._base = stream.offset
        self.held, self.at = "", 0
        if stream.decode.encoding in LEGACY:
            stream.decode.notes[f"decoded_as_{stream.decode.encoding}"] += 1

    @property
    def offset(self) -> int:
        """Where the scanner stands, in bytes."""
        return self._base + len(self.held[: self.at].encode())

    def more(self) -> bool:
        """Reads on; False at the end of the file."""
        where = self._stream.span.file.place
        raw = self._stream.read(max(BLOCK, len(self.held)))
        self._base, self.held, self.at = self.offset, self.held[self.at :], 0
        if 0 in raw:
            raise DataError(f"is not text behind offset {self._base} (null byte)", where=where)
        try:
            self.held += self._decoder.decode(raw, not raw)
        except UnicodeDecodeError as error:
            raise DataError(f"is not {self._stream.decode.encoding} text behind offset {self._base} ({error.reason})", where=where) from None
        return bool(raw)

    def next(self) -> str:
        """The next character that is no white space, at which the scanner then stands; "" at the end of the file."""
        while True:
            self.at = WHITESPACE.match(self.held, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.held):
                return self.held[self.at]
            if not self.more():
                return ""
