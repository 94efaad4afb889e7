"""Plain text and Markdown files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fmray.data.sources import Counts, Document, Partition, Source
from fmray.data.sources._files import Span, decode, find, identify, spans

SUFFIXES = (".txt", ".md", ".txt.gz", ".md.gz")


class Text(Source):
    """A file, a folder (searched below for .txt and .md, also .gz) or a glob.

    With `documents: paragraph`, each part between blank lines is a document: good to shuffle and to find repeated boilerplate.
    With `documents: file`, each file is one, which keeps long contexts together.
    """

    type: Literal["text"] = "text"
    path: str
    documents: Literal["paragraph", "file"] = "paragraph"

    def identity(self) -> dict[str, Any]:
        """Relative names and contents of the files instead of the path."""
        return {"type": self.type, "documents": self.documents, "files": identify(find(self.path, SUFFIXES))}

    def partitions(self) -> Sequence[Partition]:
        """One part a file; big plain files in several when documents are paragraphs."""
        files = find(self.path, SUFFIXES)
        if self.documents == "file":
            return [WholeFile(Span(file)) for file in files]
        return [Paragraphs(span) for span in spans(files, blank_line=True)]


@dataclass(frozen=True)
class WholeFile:
    """Reads a file as one document."""

    span: Span

    def read(self, counts: Counts) -> Iterator[Document]:
        """The file's text."""
        raw = b"".join(line for _, line in self.span.lines())
        yield {"text": decode(raw, self.span, 0, counts), "id": self.span.file.name}


@dataclass(frozen=True)
class Paragraphs:
    """Reads the paragraphs of a span: runs of lines that hold more than white space."""

    span: Span

    def read(self, counts: Counts) -> Iterator[Document]:
        """The span's paragraphs, each with its offset in its id; counts an encoding fallback once a paragraph."""
        start, lines = 0, list[bytes]()
        for offset, line in self.span.lines():
            if line.strip():
                if not lines:
                    start = offset
                lines.append(line)
            elif lines:
                yield self._document(start, lines, counts)
                lines = []
        if lines:
            yield self._document(start, lines, counts)

    def _document(self, start: int, lines: list[bytes], counts: Counts) -> Document:
        return {"text": decode(b"".join(lines), self.span, start, counts), "id": f"{self.span.file.name}@{start}"}
