"""Files of questions about passages, in the JSON of SQuAD."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fmray.core.errors import DataError
from fmray.data.sources import Counts, Document, Partition
from fmray.data.sources._blocks import BLOCK, LINE, too_large
from fmray.data.sources._files import Bad, compressible
from fmray.data.sources._spans import Span, TextFileSource, TextStream


class Squad(TextFileSource):
    """Questions of .json files like those of SQuAD 1.1 and 2.0, XQuAD, DRCD and CMRC 2018, also compressed.

    A document is one question: `text` is the passage, `question` what is asked, and `answers` a list of `{text, answer_start}`, empty
    for a question without an answer. An answer that does not stand in the passage where it is said to is an unreadable input.
    """

    type: Literal["squad"] = "squad"
    suffixes: ClassVar[tuple[str, ...]] = compressible(".json")

    def partitions(self) -> Sequence[Partition]:
        """One part a file."""
        return self.parts(Questions(self.encoding, self.limit), LINE, may_cut=lambda file: False)


@dataclass(frozen=True)
class Questions:
    """Reads the questions of a file."""

    encoding: str | None
    limit: int

    def documents(self, piece: Span, counts: Counts, bad: Bad) -> Iterator[Document]:
        """One document a question."""
        place, parts, size = piece.file.place, list[bytes](), 0
        with TextStream(piece, self.encoding, counts) as stream:
            while size <= self.limit and (part := stream.read(BLOCK)):
                parts.append(part)
                size += len(part)
            if size > self.limit:
                raise too_large(place, 0, self.limit)
            try:
                held = json.loads(stream.decode(b"".join(parts), stream.offset))
                asked = [(passage["context"], one) for article in held["data"] for passage in article["paragraphs"] for one in passage["qas"]]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"is no SQuAD JSON ({type(error).__name__}: {error})", where=place, todo="data > paragraphs > context and qas are needed") from None
        for number, (context, one) in enumerate(asked):
            try:
                yield _document(context, one, f"{piece.file.name}#{number}", f"{place} at question {number}")
            except DataError as error:
                bad(error)


def _document(context: Any, one: Any, key: str, where: str) -> Document:
    if not isinstance(one, Mapping) or not str(one.get("question") or "").strip() or not isinstance(context, str):
        raise DataError("has no question, or no passage", where=where)
    answers = [] if one.get("is_impossible") else one.get("answers") or []
    if not isinstance(answers, list) or not all(isinstance(answer, Mapping) for answer in answers):
        raise DataError("has answers that are no list of text and answer_start", where=where)
    for answer in answers:
        text, start = answer.get("text"), answer.get("answer_start")
        if not isinstance(text, str) or not isinstance(start, int):
            raise DataError("has an answer without text or answer_start", where=where)
        if start < 0 or context[start : start + len(text)] != text:
            found = context[max(0, start) : max(0, start) + len(text)]
            raise DataError(f"the answer {text[:40]!r} does not stand at {start} of the passage, where {found[:40]!r} does", where=where, todo="mend the offsets, or set source.on_error to skip")
    return {"text": context, "id": f"{key}/{one.get('id', '')}", "question": one["question"], "answers": [{"text": a["text"], "answer_start": a["answer_start"]} for a in answers]}
