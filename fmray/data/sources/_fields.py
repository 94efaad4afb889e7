"""Fields of a record: finding the text in it, and making a document of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fmray.core.errors import DataError
from fmray.data.sources import Document

JOIN = "\n"


@dataclass(frozen=True)
class Fields:
    """Where a record keeps its text and its id.

    Attributes:
        text: names of fields, the first of which that a record has holds its text. A dotted name goes into nested records
            (`body.text`), and through lists of them (`messages.content`, `data.paragraphs.context`). The items of a list of texts, or
            of lists of them, are put together with newlines between them.
        id: the field of the id; None: the place in the file.
    """

    text: tuple[str, ...]
    id: str | None = None

    def names(self, more: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The fields that are needed, and some more."""
        return (*self.text, *((self.id,) if self.id else ()), *more)

    def document(self, record: Mapping[str, Any], place: str, where: str) -> Document:
        """The record as a document; its other fields stay as metadata.

        Raises:
            DataError: a field is missing (those present are named), or is no text.
        """
        name, text = self.text[0], record.get(self.text[0])
        if not isinstance(text, str):
            name, text = self._text(record, where)
        if self.id is None:
            key = place
        else:
            found = _value(record, self.id)
            if found is None:
                raise _missing(self.id, record, where)
            key = str(found)
        document = {**record, "text": text, "id": key}
        if name != "text" and name in record:
            del document[name]
        return document

    def _text(self, record: Mapping[str, Any], where: str) -> tuple[str, str]:
        for name in self.text:
            value = _value(record, name)
            if isinstance(value, str):
                return name, value
            if value is not None:
                return name, _joined(value, name, where)
        if any(name in record for name in self.text):
            raise DataError(f"field '{' or '.join(self.text)}' is NoneType, not text", where=where)
        raise _missing(" or ".join(self.text), record, where)


def _value(record: Any, name: str) -> Any:
    if isinstance(record, list):
        found = [_value(item, name) for item in record]
        return None if None in found else found
    if not isinstance(record, Mapping):
        return None
    if name in record:
        return record[name]
    head, dot, rest = name.partition(".")
    return _value(record[head], rest) if dot and head in record else None


def _joined(value: Any, name: str, where: str) -> str:
    pending, texts = [value], list[str]()
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, list):
            pending.extend(reversed(item))
        else:
            within = f"{type(value).__name__} of " if item is not value else ""
            raise DataError(f"field '{name}' is {within}{type(item).__name__}, not text", where=where)
    return JOIN.join(texts)


def _missing(field: str, record: Mapping[str, Any], where: str) -> DataError:
    has = ", ".join(map(str, record)) or "none"
    return DataError(f"has no field '{field}'; it has: {has}", where=where, todo="set source.text and source.id")
