"""Text that was decoded in the wrong encoding, repaired."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from fmray.core.errors import ConfigError
from fmray.data.filters import Apply, Filter, Outcome


class Mojibake(Filter):
    """Repairs mojibake such as `cafÃ©` with ftfy; removes nothing. Documents that it changed are noted as `mojibake_repaired`.

    It sees texts in normal form, without control characters: what was decoded as Windows-1252 comes back whole, of what was decoded
    as Latin-1 only characters whose bytes are none of the controls between 0x80 and 0x9F (`Ã©` does, the three of `’` do not).

    Attributes:
        scope: `encoding` only undoes wrong decodings; `text` lets ftfy also do the rest of what it does: entities of HTML in text
            without tags, curly quotes made straight, ligatures and full-width letters spelt out, terminal escapes dropped.
    """

    type: Literal["mojibake"] = "mojibake"
    scope: Literal["encoding", "text"] = "encoding"

    def open(self) -> Apply:
        """Imports ftfy.

        Raises:
            ConfigError: it is not installed.
        """
        try:
            import ftfy
        except ImportError:
            raise ConfigError("the package ftfy is not installed", where="filters.mojibake", todo="pip install ftfy") from None
        config = ftfy.TextFixerConfig(explain=False)
        fix = ftfy.fix_encoding if self.scope == "encoding" else ftfy.fix_text

        def repair(texts: Sequence[str]) -> Outcome:
            # Wrong decodings leave letters outside ASCII behind, so ASCII text needs no look at its encoding.
            repaired = [text if self.scope == "encoding" and text.isascii() else fix(text, config) for text in texts]
            n = sum(new is not old and new != old for new, old in zip(repaired, texts, strict=True))
            return Outcome(repaired, [None] * len(texts), Counter(mojibake_repaired=n) if n else Counter())

        return repair
