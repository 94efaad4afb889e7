"""Plain text and Markdown files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from fmray.data.sources import Counts, Document, Partition
from fmray.data.sources._blocks import BLANK_LINE, BLOCK, LINE, Boundary, lines_in, paragraphs_in, too_large
from fmray.data.sources._files import Bad, compressible
from fmray.data.sources._spans import Span, TextFileSource, TextStream, documents_in


class Text(TextFileSource):
    """A file, a folder (searched below for .txt, .md and .markdown, also compressed), a glob or a URI.

    With `documents: paragraph`, each part between blank lines is a document: good to shuffle and to find repeated boilerplate.
    With `documents: line`, each line is one. With `documents: file`, each file is one, which keeps long contexts together.
    """

    type: Literal["text"] = "text"
    suffixes: ClassVar[tuple[str, ...]] = compressible(".txt", ".md", ".markdown")

    documents: Literal["paragraph", "line", "file"] = "paragraph"

    def partitions(self) -> Sequence[Partition]:
        """One part a file or several; large plain files are cut unless each is a document."""
        if self.documents == "file":
            return self.parts(WholeFile(self.encoding, self.limit), BLANK_LINE, may_cut=lambda file: False)
        reader = Pieces(self.documents, self.encoding, self.limit)
        return self.parts(reader, reader.boundary)


@dataclass(frozen=True)
class WholeFile:
    """Reads a file as one document."""

    encoding: str | None
    limit: int

    def documents(self, piece: Span, counts: Counts, bad: Bad) -> Iterator[Document]:
        """The file's text, if it holds more than white space."""
        parts: list[bytes] = []
        size = 0
        with TextStream(piece, self.encoding, counts) as stream:
            while size <= self.limit and (part := stream.read(BLOCK)):
                parts.append(part)
                size += len(part)
            if size > self.limit:
                raise too_large(piece.file.place, 0, self.limit)
            raw = b"".join(parts)
            if raw.strip():
                yield {"text": stream.decode(raw, stream.offset), "id": piece.file.name}


@dataclass(frozen=True)
class Pieces:
    """Reads the paragraphs or lines of a span that hold more than white space, each with its offset in its id."""

    unit: Literal["paragraph", "line"]
    encoding: str | None
    limit: int

    @property
    def boundary(self) -> Boundary:
        """What stands between its documents."""
        return LINE if self.unit == "line" else BLANK_LINE

    def documents(self, piece: Span, counts: Counts, bad: Bad) -> Iterator[Document]:
        """The span's documents, without the line ends around them."""
        name = piece.file.name
        cut = lines_in if self.unit == "line" else paragraphs_in
        with TextStream(piece, self.encoding, counts) as stream:
            for offset, text in documents_in(stream, self.boundary, cut, self.limit, bad):
                yield {"text": text, "id": f"{name}@{offset}"}
