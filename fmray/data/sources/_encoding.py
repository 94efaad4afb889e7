"""Text from bytes: which encoding a file has, decided once from its beginning, and strict decoding with offsets."""

import codecs
from collections import Counter
from dataclasses import dataclass

from fmray.core.errors import DataError

HEAD = 256 * 1024
"""So many bytes at the beginning of a file (uncompressed) decide how all of it is read."""
LEGACY = ("cp1252", "gb18030")
_SAMPLE = 64 * 1024

_BOMS = (
    # The mark of UTF-32-LE begins with that of UTF-16-LE.
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def detect(head: bytes) -> str:
    """The encoding of a file by its first bytes: by byte order mark, UTF-8, or what it looks like of cp1252 and GB18030.

    A beginning that is none of them counts as UTF-8, so that the first document that is no text is named with its offset.
    """
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return _legacy(head) or "utf-8"
    return "utf-8"


def _legacy(raw: bytes) -> str | None:
    """Which of the older encodings bytes look like, by their lines that are not ASCII; None when they are none."""
    if b"\0" in raw:
        return None
    import charset_normalizer

    lines = b"\n".join(line for line in raw.split(b"\n") if not line.isascii())
    best = charset_normalizer.from_bytes(lines[:_SAMPLE], cp_isolation=list(LEGACY), enable_fallback=False).best()
    return best.encoding if best and best.encoding in LEGACY else None


def is_bytewise(encoding: str) -> bool:
    """Whether lines of this encoding end in the byte of a newline, so that bytes can be cut into lines without decoding them."""
    return "a\n".encode(encoding) == b"a\n" or encoding == "utf-8-sig"


@dataclass(frozen=True)
class Decoder:
    """Decodes pieces of one file strictly.

    A piece that is not UTF-8 in a file that began as UTF-8 is read as the older encoding that this piece looks like. Pieces read as
    an older encoding are counted in the notes, `decoded_as_cp1252` and the like.

    Attributes:
        place: the file's name in errors.
        encoding: the file's, as `detect` gave it or the config named it.
    """

    place: str
    encoding: str
    notes: Counter[str]

    @property
    def is_utf8(self) -> bool:
        """Whether the file is read as UTF-8."""
        return self.encoding in ("utf-8", "utf-8-sig")

    def is_sound(self, block: bytes) -> bool:
        """Whether all of a block is UTF-8 text, so that its pieces can be decoded without a look at each."""
        if not self.is_utf8 or b"\0" in block:
            return False
        try:
            block.decode()
        except UnicodeDecodeError:
            return False
        return True

    def __call__(self, raw: bytes, offset: int) -> str:
        """The text of bytes that stand at `offset` in the uncompressed file.

        Raises:
            DataError: they are no text, naming the file and the offset of the first byte that is none.
        """
        if (at := raw.find(b"\0")) >= 0:
            raise DataError(f"is not text at offset {offset + at} (null byte)", where=self.place)
        if self.is_utf8:
            try:
                return raw.decode()
            except UnicodeDecodeError as error:
                first = error.start
            encoding = _legacy(raw)
        else:
            encoding, first = self.encoding, 0
        try:
            text = raw.decode(encoding or "utf-8")
        except UnicodeDecodeError as error:
            first = first or error.start
            tried = "UTF-8 text, nor cp1252 or GB18030," if self.is_utf8 else f"{self.encoding} text"
            raise DataError(
                f"is not {tried} at offset {offset + first} (byte 0x{raw[first]:02x})", where=self.place, todo="name its encoding in source.encoding"
            ) from None
        if encoding in LEGACY and not raw.isascii():
            self.notes[f"decoded_as_{encoding}"] += 1
        return text
