"""Where personal data and secrets stand in a text: patterns that take linear time, and checks of what they find.

Every repetition is bounded and starts only where nothing of its own kind stands before, so no text makes a pattern slow.
"""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

Span = tuple[int, int]
Finder = Callable[[str], Iterator[Span]]

# The first character is matched before what must not stand in front of it: so the engine can skip to it.
_EMAIL = re.compile(
    r"[A-Za-z0-9_](?<![\w.%+-].)[\w.%+-]{0,63}(?<!\.)@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,6}[A-Za-z]{2,24}(?![\w@-])", re.ASCII
)
_PHONE = re.compile(
    r"[+(0-9](?<![\w+./#$=-].)(?:"
    r"(?<=\+)\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}"
    r"|(?<=\()\d{3}\)[ .-]?\d{3}[ .-]\d{4}"
    r"|(?<=[2-9])\d{2}([ .-])\d{3}\1\d{4}"
    r"|(?<=1)[ .-]\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}"
    r"|(?<=1)[3-9]\d{9}"
    r")(?![\w-]|\.\d)",
    re.ASCII,
)
_CARD = re.compile(r"[2-6](?<![\w.+-].)(?:[ -]?[0-9]){12,18}(?![\w-]|\.\d)", re.ASCII)
_IPV4 = re.compile(r"[0-9](?<![\w.-].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![\w-]|\.\d)", re.ASCII)
_IPV6 = re.compile(r"[0-9A-Fa-f](?<![\w:.].)[0-9A-Fa-f]{0,3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])", re.ASCII)
_IBAN = re.compile(r"[A-Z](?<![A-Za-z0-9].)[A-Z][0-9]{2}", re.ASCII)
_KEYS = re.compile(
    r"(?:AKIA|ASIA)(?<![A-Za-z0-9]....)[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}|xox[abposr]-[A-Za-z0-9-]{10,250}|AIza[A-Za-z0-9_-]{35}"
    r"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,128}|hf_[A-Za-z0-9]{30,64}|sk-[A-Za-z0-9_-]{20,200}",
    re.ASCII,
)
_ASSIGNED = re.compile(
    r"(?:key|secret|token|password|passwd|pwd|credential)[A-Za-z0-9_-]{0,20}[\"']?[ \t]{0,4}[:=]{1,2}>?[ \t]{0,4}[\"']?([A-Za-z0-9+/_=.~-]{16,256})",
    re.ASCII | re.IGNORECASE,
)
_BLOCK = re.compile(r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
_BLOCK_END = re.compile(r"-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----")

_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20, "ES": 24, "FI": 18, "FR": 27,
    "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31,
    "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "TR": 26, "UA": 29,
}  # fmt: skip
"""Characters of an IBAN by country (ISO 13616)."""

SECRET_BITS = 3.2
"""Entropy of its characters, in bits each, from which an assigned value counts as a secret rather than a name."""


def emails(text: str) -> Iterator[Span]:
    """E-mail addresses."""
    return (match.span() for match in _EMAIL.finditer(text)) if "@" in text else iter(())


def phones(text: str) -> Iterator[Span]:
    """Telephone numbers: international ones behind a plus, North American ones in groups, Chinese mobiles."""
    return (m.span() for m in _PHONE.finditer(text) if 9 <= sum(map(str.isdigit, m[0])) <= 15)


def cards(text: str) -> Iterator[Span]:
    """Payment cards: an issuer's first digits, its length, and the check digit (Luhn, ISO/IEC 7812)."""
    for match in _CARD.finditer(text):
        digits = re.sub(r"[ -]", "", match[0])
        if _issued(digits) and luhn(digits):
            yield match.span()


def ips(text: str) -> Iterator[Span]:
    """IP addresses, versions 4 and 6, but for loopback, multicast and reserved ones."""
    for match in (*_IPV4.finditer(text), *(_IPV6.finditer(text) if ":" in text else ())):
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        bland = address.is_loopback or address.is_unspecified or address.is_multicast or (address.version == 4 and address.is_reserved)
        # Names such as `bad::cafe` are valid addresses of version 6: three groups or more are asked for.
        if not bland and (address.version == 4 or sum(map(bool, match[0].split(":"))) >= 3):
            yield match.span()


def ibans(text: str) -> Iterator[Span]:
    """International bank account numbers, plain or in groups, with the right length and check digits (ISO 7064, mod 97-10)."""
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(match[0][:2])
        if length is None:
            continue
        end, compact = match.start(), ""
        while len(compact) < length and end < len(text):
            char = text[end]
            if char.isascii() and (char.isupper() or char.isdigit()):
                compact += char
            elif not (char == " " and text[end - 1] != " "):
                break
            end += 1
        if len(compact) == length and not text[end : end + 1].isalnum() and _mod_97(compact) == 1:
            yield match.start(), end


def keys(text: str) -> Iterator[Span]:
    """Keys and passwords: blocks of private keys, tokens of known services, and values of high entropy assigned to such names."""
    yield from (match.span() for match in _KEYS.finditer(text))
    yield from _blocks(text)
    for match in _ASSIGNED.finditer(text):
        if _is_random(match[1]):
            yield match.span(1)


def _blocks(text: str) -> Iterator[Span]:
    at = 0
    while start := _BLOCK.search(text, at):
        end = _BLOCK_END.search(text, start.end())
        if end is None:
            return
        yield start.start(), end.end()
        at = end.end()


def _is_random(value: str) -> bool:
    n = len(value)
    bits = -sum(count / n * math.log2(count / n) for count in Counter(value).values())
    return bits >= SECRET_BITS and any(map(str.isdigit, value)) and any(map(str.isalpha, value))


def luhn(digits: str) -> bool:
    """Whether the check digit of a payment card number is right."""
    doubled = [2 * int(digit) for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(d - 9 if d > 9 else d for d in doubled)) % 10 == 0


def _issued(digits: str) -> bool:
    n, two, four = len(digits), int(digits[:2]), int(digits[:4])
    return (
        (digits[0] == "4" and n in (13, 16, 19))
        or (n == 16 and (51 <= two <= 55 or 2221 <= four <= 2720 or four == 6011 or two in (35, 65) or 644 <= four // 10 <= 649))
        or (n == 15 and two in (34, 37))
        or (n == 14 and two in (30, 36, 38))
        or (two == 62 and 16 <= n <= 19)
    )


def _mod_97(iban: str) -> int:
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97


FINDERS: dict[str, Finder] = {"key": keys, "email": emails, "iban": ibans, "card": cards, "ip": ips, "phone": phones}
"""By kind; where two overlap, the kind named first counts."""

NEEDS_DIGITS = {"iban": 12, "card": 13, "phone": 9}
"""Digits without which a text cannot hold one of a kind."""
