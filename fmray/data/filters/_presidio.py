"""Finders of personal data by Microsoft Presidio's pattern recognisers: no language model is loaded and nothing is downloaded."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fmray.core.errors import ConfigError
from fmray.data.filters._pii_rules import Finder, Span

if TYPE_CHECKING:
    from presidio_analyzer import EntityRecognizer


def presidio_finders() -> dict[str, Finder]:
    """Finders by kind, for the kinds that Presidio knows.

    Raises:
        ConfigError: Presidio is not installed.
    """
    try:
        from presidio_analyzer.predefined_recognizers import (
            CreditCardRecognizer,
            EmailRecognizer,
            IbanRecognizer,
            IpRecognizer,
            PhoneRecognizer,
        )
    except ImportError:
        raise ConfigError(
            "engine presidio needs a package that is not installed", where="filters.pii.engine", todo="pip install 'fmray[presidio]'"
        ) from None

    class Emails(EmailRecognizer):
        """Without the check of the domain, for which Presidio would fetch a list from the Internet."""

        def validate_result(self, pattern_text: str) -> bool:
            return True

    recognisers = {
        "email": Emails(),
        "iban": IbanRecognizer(),
        "card": CreditCardRecognizer(),
        "ip": IpRecognizer(),
        "phone": PhoneRecognizer(supported_regions=("US", "GB", "DE", "FR", "IN", "CN")),
    }
    return {kind: _finder(recogniser) for kind, recogniser in recognisers.items()}


def _finder(recogniser: "EntityRecognizer") -> Finder:
    def find(text: str) -> Iterator[Span]:
        found = recogniser.analyze(text, recogniser.supported_entities, None)  # type: ignore[arg-type]  # patterns need no language model
        return ((result.start, result.end) for result in found)

    return find
