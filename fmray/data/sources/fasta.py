"""Biological sequences in FASTA and FASTQ files."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from fmray.core.errors import DataError
from fmray.data.sources import Counts, Document, Partition
from fmray.data.sources._blocks import BLOCK, LINE, RECORD, too_large
from fmray.data.sources._files import Bad, compressible
from fmray.data.sources._spans import Span, TextFileSource, TextStream
from fmray.data.sources._store import File
from fmray.data.sources._streams import Stream

Alphabet = Literal["protein", "dna", "rna"]

LETTERS: dict[Alphabet, bytes] = {
    "protein": b"ABCDEFGHIJKLMNOPQRSTUVWXYZ*-",
    "dna": b"ACGTRYSWKMBDHVN-",
    "rna": b"ACGURYSWKMBDHVN-",
}
"""What may stand in a sequence: the codes of IUPAC with those for several residues, `*` for a stop and `-` for a gap."""

FASTQ = compressible(".fastq", ".fq")
_UPPER = bytes.maketrans(bytes(range(97, 123)), bytes(range(65, 91)))
_SPACE = b" \t\r\n\v\f"


class Fasta(TextFileSource):
    """Sequences of FASTA (.fasta, .fa, .faa, .fna) and FASTQ (.fastq, .fq) files, also compressed.

    A document is one record: `text` is its sequence without line ends in upper case, `id` the first word of its header, and
    `description` the rest of the header. Lower-case letters (soft masking) are read as upper case. Qualities are left out.
    """

    type: Literal["fasta"] = "fasta"
    suffixes: ClassVar[tuple[str, ...]] = (*compressible(".fasta", ".fa", ".faa", ".fna"), *FASTQ)

    alphabet: Alphabet

    def partitions(self) -> Sequence[Partition]:
        """One part a file; large plain FASTA files in several."""
        return self.parts(Records(self.alphabet, self.limit), RECORD, may_cut=lambda file: not _is_fastq(file))


def _is_fastq(file: File) -> bool:
    return file.name.lower().endswith(FASTQ)


@dataclass(frozen=True)
class Records:
    """Reads the records of a span."""

    alphabet: Alphabet
    limit: int

    def documents(self, piece: Span, counts: Counts, bad: Bad) -> Iterator[Document]:
        """One document a record. An empty sequence, an illegal letter, or a record without a header is an unreadable input."""
        with TextStream(piece, "utf-8", counts) as stream:
            records = self._fastq(stream, bad) if _is_fastq(piece.file) else self._fasta(stream, bad)
            for line, header, body in records:
                try:
                    yield self._document(header, body, piece.file, line + _lines_before(piece))
                except DataError as error:
                    bad(error)

    def _fasta(self, stream: TextStream, bad: Bad) -> Iterator[tuple[int, bytes, bytes]]:
        """Records with the number of their first line in the span, from 1."""
        place, line = stream.span.file.place, 1
        for start, block in stream.blocks(RECORD, self.limit, bad):
            at = 0
            for record in block.split(b"\n>"):
                if len(record) > self.limit:
                    bad(too_large(place, start + at, self.limit))
                elif at or record.startswith(b">"):
                    header, _, body = record[not at :].partition(b"\n")
                    yield line, header, body
                elif record.strip():
                    what = f"does not begin with '>' at offset {start}, line {line + _lines_before(stream.span)}"
                    bad(DataError(what, where=place, todo="check that it is FASTA"))
                line += record.count(b"\n") + 1
                at += len(record) + 2
            line -= block.endswith(b"\n")

    def _fastq(self, stream: TextStream, bad: Bad) -> Iterator[tuple[int, bytes, bytes]]:
        """Records of four lines: `@header`, sequence, `+`, and as many qualities as there are letters.

        Raises:
            DataError: four lines are none, from where on nothing tells records from qualities.
        """
        place, lines, number = stream.span.file.place, list[bytes](), 0
        for _, block in stream.blocks(LINE, self.limit, bad):
            for text in block.splitlines():
                number += 1
                if not lines and not text.strip():
                    continue
                lines.append(text.rstrip())
                if len(lines) < 4:
                    continue
                header, sequence, plus, qualities = lines
                if not header.startswith(b"@") or not plus.startswith(b"+") or len(sequence) != len(qualities):
                    raise DataError(f"lines {number - 3} to {number} are no FASTQ record", where=place)
                yield number - 3, header[1:], sequence
                lines = []
        if lines:
            raise DataError(f"is cut off in the record at line {number - len(lines) + 1}", where=place)

    def _document(self, header: bytes, body: bytes, file: File, line: int) -> Document:
        name, _, rest = header.decode("utf-8", "replace").strip().partition(" ")
        sequence = body.translate(_UPPER, _SPACE)
        where = f"{file.place} at line {line}"
        if not name or not sequence:
            raise DataError(f"record '{name}' has no {'sequence' if name else 'id'}", where=where)
        if illegal := sequence.translate(None, LETTERS[self.alphabet]):
            letter = chr(illegal[0])
            at = line + 1 + _line_of(illegal[:1], body)
            what = f"record '{name}' has the letter {letter!r} in line {at}, which is none of {self.alphabet}"
            raise DataError(what, where=file.place, todo="check source.alphabet")
        return {"text": sequence.decode("ascii"), "id": name, "description": rest.strip()}


def _line_of(letter: bytes, body: bytes) -> int:
    return body.count(b"\n", 0, body.translate(_UPPER).index(letter))


@functools.lru_cache(maxsize=64)
def _lines_before(span: Span) -> int:
    """How many lines of the file lie in front of a span, so that errors name lines of the file; read when one does."""
    if not span.start:
        return 0
    lines, left = 0, span.start
    with Stream(span.file) as stream:
        while left and (block := stream.read(min(BLOCK, left))):
            lines += block.count(b"\n")
            left -= len(block)
    return lines
