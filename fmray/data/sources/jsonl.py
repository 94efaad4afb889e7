"""JSON Lines files."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fmray.core.errors import DataError
from fmray.data.sources import Counts, Document, Partition, Source
from fmray.data.sources._files import Span, decode, find, identify, spans

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


class Jsonl(Source):
    """One JSON object a line, in a file, a folder or a glob, also .gz. Fields other than the text stay as metadata."""

    type: Literal["jsonl"] = "jsonl"
    path: str
    text: str = "text"
    id: str | None = None

    def identity(self) -> dict[str, Any]:
        """Relative names and contents of the files instead of the path."""
        return {"type": self.type, "text": self.text, "id": self.id, "files": identify(find(self.path, SUFFIXES))}

    def partitions(self) -> Sequence[Partition]:
        """One part a file; big plain files in several."""
        return [Lines(span, self.text, self.id) for span in spans(find(self.path, SUFFIXES), blank_line=False)]


@dataclass(frozen=True)
class Lines:
    """Reads the objects of a span of lines."""

    span: Span
    text: str
    id: str | None

    def read(self, counts: Counts) -> Iterator[Document]:
        """One document a line that is not blank."""
        for offset, line in self.span.lines():
            if line.strip():
                yield self._document(offset, decode(line, self.span, offset, counts))

    def _document(self, offset: int, line: str) -> Document:
        where = f"{self.span.file.path} at offset {offset}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"is not JSON ({error})", where=where) from None
        if not isinstance(value, dict):
            raise DataError(f"holds a JSON {type(value).__name__} where an object belongs", where=where)
        for field in (self.text, self.id):
            if field is not None and field not in value:
                raise DataError(
                    f"has no field '{field}'; it has: {', '.join(map(str, value)) or 'none'}",
                    where=where,
                    todo="set source.text and source.id",
                )
        text = value[self.text]
        if not isinstance(text, str):
            raise DataError(f"field '{self.text}' is {type(text).__name__}, not text", where=where)
        name = f"{self.span.file.name}@{offset}" if self.id is None else str(value[self.id])
        return {**{k: v for k, v in value.items() if k != self.text}, "text": text, "id": name}
