"""Unicode normal form."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from fmray.data.filters import Apply, Filter, Outcome


class Unicode(Filter):
    """Brings texts into a Unicode normal form; notes how many it `changed`.

    NFC, which prepare applies in any case, keeps every distinction that a reader sees. NFKC folds look-alikes such as full-width
    letters, ligatures and superscripts into plain ones: a smaller vocabulary, but `x²` becomes `x2`.
    """

    type: Literal["unicode"] = "unicode"
    form: Literal["NFC", "NFKC"] = "NFC"

    def open(self) -> Apply:
        """Needs nothing."""
        form = self.form

        def apply(texts: Sequence[str]) -> Outcome:
            new = [text if unicodedata.is_normalized(form, text) else unicodedata.normalize(form, text) for text in texts]
            n = sum(a is not b for a, b in zip(new, texts, strict=True))
            return Outcome(new, [None] * len(texts), Counter(changed=n) if n else Counter())

        return apply
