"""Files of one token a line: CoNLL, IOB2 and their kin."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from fmray.core.errors import DataError
from fmray.data.sources import Counts, Document, Partition
from fmray.data.sources._blocks import BLANK_LINE, paragraphs_in
from fmray.data.sources._files import Bad, compressible
from fmray.data.sources._spans import Span, TextFileSource, TextStream, documents_in


class Conll(TextFileSource):
    """Sentences of .conll, .iob2, .iob and .bio files, also compressed: a token a line in columns, a blank line between sentences.

    Columns stand apart by tabs, or by spaces in lines without a tab. A line that begins with `#` and has no tab is a comment (`#tag`
    with its columns is a token); in lines apart by spaces a comment begins with `#` and a space.

    A document is one sentence: `words` and `tags` are lists of the same length, `text` the words with spaces between.

    Attributes:
        word, tag: the numbers of the columns, from 0: 0 and 1 for CoNLL-2003-like files of two columns, 1 and 2 for those of Universal NER.
    """

    type: Literal["conll"] = "conll"
    suffixes: ClassVar[tuple[str, ...]] = compressible(".conll", ".iob2", ".iob", ".bio")

    word: int = Field(0, ge=0)
    tag: int = Field(1, ge=0)

    def partitions(self) -> Sequence[Partition]:
        """One part a file or several."""
        return self.parts(Sentences(self.word, self.tag, self.encoding, self.limit), BLANK_LINE)


@dataclass(frozen=True)
class Sentences:
    """Reads the sentences of a span."""

    word: int
    tag: int
    encoding: str | None
    limit: int

    def documents(self, piece: Span, counts: Counts, bad: Bad) -> Iterator[Document]:
        """One document a sentence that has a token; one with a line of too few columns is an unreadable input."""
        with TextStream(piece, self.encoding, counts) as stream:
            for offset, block in documents_in(stream, BLANK_LINE, paragraphs_in, self.limit, bad):
                try:
                    tokens = [self._token(line) for line in block.splitlines() if not _is_comment(line)]
                except DataError as error:
                    bad(DataError(f"{error.what}, in the sentence at offset {offset}", where=piece.file.place, todo=error.todo))
                    continue
                if tokens:
                    words, tags = [word for word, _ in tokens], [tag for _, tag in tokens]
                    yield {"text": " ".join(words), "id": f"{piece.file.name}@{offset}", "words": words, "tags": tags}

    def _token(self, line: str) -> tuple[str, str]:
        columns = line.split("\t") if "\t" in line else line.split()
        if len(columns) <= max(self.word, self.tag) or not columns[self.word].strip() or not columns[self.tag].strip():
            shown = line if len(line) <= 40 else line[:40] + " ..."
            todo = "set source.word and source.tag to the numbers of their columns, from 0"
            raise DataError(f"no word in column {self.word} with a tag in column {self.tag}: {shown!r}", todo=todo)
        return columns[self.word], columns[self.tag].strip()


def _is_comment(line: str) -> bool:
    return not line.strip() or (line.startswith("#") and "\t" not in line and (line.startswith("# ") or len(line.split()) == 1))
