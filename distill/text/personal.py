"""Personal data that has a recognisable form, replaced by a fixed placeholder in Japanese, so that no model learns it.

Found are e-mail addresses, Japanese telephone numbers, public IPv4 addresses, payment card numbers and individual
numbers ("My Number"). Names and street addresses are not: no pattern finds them reliably. If a form is ambiguous, its
context decides, and in doubt the text is kept: dates, prices, ISBNs, versions and section numbers are not personal
data. Full-width digits, letters and hyphens count as ASCII.
"""

import ipaddress
import re
from collections.abc import Callable

_EMAIL, _PHONE, _ADDRESS, _CARD, _INDIVIDUAL = (
    f"\u3014{name}\u3015" for name in ("メールアドレス", "電話番号", "IPアドレス", "カード番号", "個人番号")
)

# One character for one, so that offsets in the plain text are offsets in the text. The prolonged sound mark of katakana
# means a hyphen only after a digit.
_HYPHENS = r"\u2010-\u2015\u2212\uff0d"
_SPACES = r"\xa0\u3000"
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | dict.fromkeys((0xA0, 0x3000), 0x20)
_PLAIN_HYPHENS = dict.fromkeys((*range(0x2010, 0x2016), 0x2212), 0x2D)
_PROLONGED = re.compile("(?<=[0-9])[\u30fc\uff70]")
# Every rule below needs one of these: an at sign, nine digits close together, four numbers with dots.
_LETTER = r"A-Za-z0-9\uff10-\uff5a"
_DIGIT = r"[0-9\uff10-\uff19]"
_DOT = r"[.\uff0e]"
_BETWEEN = rf"[-() .{_HYPHENS}{_SPACES}\u30fc\uff70\uff08\uff09]{{0,3}}"
_SUSPECT = re.compile(
    rf"(?<=[{_LETTER}_%+-])[@\uff20][{_LETTER}]|{_DIGIT}(?:{_BETWEEN}{_DIGIT}){{8}}"
    rf"|{_DIGIT}{_DOT}{_DIGIT}{{1,3}}{_DOT}{_DIGIT}{{1,3}}{_DOT}{_DIGIT}"
)

_MAIL = re.compile(
    r"(?<![A-Za-z0-9.!#$%&'*+/=?^_`{|}~-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}\.))+"
    r"[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_BEFORE = r"(?<![0-9A-Za-z_+/])(?<![0-9][-.,])"
_AFTER = r"(?![0-9A-Za-z_])(?![-.,/][0-9])"
_NATIONAL = re.compile(
    rf"{_BEFORE}(?:"
    r"(?P<first>0[1-9][0-9]{0,3})-(?P<second>[0-9]{1,4})-(?P<third>[0-9]{3,4})"
    r"|\((?P<first_b>0[1-9][0-9]{0,3})\) ?(?P<second_b>[0-9]{1,4})-?(?P<third_b>[0-9]{4})"
    r"|(?P<first_c>0[1-9][0-9]{0,3})\((?P<second_c>[0-9]{1,4})\)(?P<third_c>[0-9]{4})"
    r"|(?P<mobile>0[5789]0(?P<space> ?)[0-9]{4}(?P=space)[0-9]{4})"
    rf"){_AFTER}"
)
_INTERNATIONAL = re.compile(
    rf"(?<![0-9A-Za-z])\+81[- ]?(?:\(0\))?[- ]?([1-9][0-9]{{0,3}}(?:[- ]?[0-9]{{1,4}}){{1,3}}){_AFTER}"
)
# After a word for telephone, a number of any shape is a telephone number.
_LABELLED = re.compile(
    r"(?:(?<![A-Za-z])(?:TEL|Tel|tel|FAX|Fax|fax)|電話番号|電話|携帯|ファックス|ファクス)[ .:=]{0,3}"
    rf"(?P<number>0[1-9](?:[- ]?[0-9]){{8,9}}){_AFTER}"
)
# Digits of area code, exchange and subscriber: fixed lines, mobile and IP telephony, free and shared-cost ranges.
_SHAPES = {(2, 4, 4), (3, 3, 4), (4, 2, 4), (5, 1, 4)}
_MOBILE_SHAPE, _MOBILE_CODES = (3, 4, 4), ("020", "050", "060", "070", "080", "090")
_SERVICE_SHAPES = {(4, 3, 3), (4, 2, 4), (4, 3, 4)}
_SERVICE_CODES = ("0120", "0800", "0570", "0990", "0180", "0170")

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![0-9A-Za-z_])(?<![0-9.][.-])(?<!\.){_OCTET}(?:\.{_OCTET}){{3}}(?![0-9A-Za-z_])(?!\.[0-9])")
# Before four numbers that are a version or a section; these numbers are small.
_NUMBERED = re.compile(r"(?:[Vv]er(?:sion)?\.?|[Vv]|バージョン|版|第|節|章|項|§|[Ss]ection|[Rr]elease) ?\Z")
_SMALL_OCTET = 32

_CARD_NUMBER = re.compile(
    rf"{_BEFORE}(?:[0-9]{{4}}(?P<gap>[ -]?)[0-9]{{4}}(?P=gap)[0-9]{{4}}(?P=gap)[0-9]{{4}}"
    rf"|3[0-9]{{3}}(?P<wide>[ -]?)[0-9]{{6}}(?P=wide)[0-9]{{4,5}}){_AFTER}"
)
# First digits and lengths of issuers.
_ISSUED = re.compile(
    r"(?:4[0-9]{3}|5[1-5][0-9]{2}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)|35(?:2[89]|[3-8][0-9])|6011|64[4-9][0-9]|65[0-9]{2}"
    r"|62[0-9]{2})[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}"
)
_TWELVE = re.compile(rf"{_BEFORE}[0-9]{{4}}(?P<gap>[ -]?)[0-9]{{4}}(?P=gap)[0-9]{{4}}{_AFTER}")
_TIMESTAMP = re.compile(r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?:[01][0-9]|2[0-3])[0-5][0-9]")
_AMOUNT_BEFORE = re.compile(r"[\\$\xa5\u20ac#] ?\Z")
_AMOUNT_BEHIND = re.compile(r" ?(?:円|ドル|ユーロ|元|人|個|件|株|枚|回|バイト|ビット|byte|bit|秒|%)")


def redact(text: str) -> tuple[str, int]:
    """`text` with its personal data replaced, and the number of replacements; the same object if there are none."""
    if not _SUSPECT.search(text):
        return text, 0
    plain = _PROLONGED.sub("-", text.translate(_PLAIN | _PLAIN_HYPHENS))
    pieces: list[str] = []
    done = 0
    spans = (
        (*match.span(group), placeholder)
        for pattern, group, holds, placeholder in _RULES
        for match in pattern.finditer(plain)
        if holds(match)
    )
    for start, stop, placeholder in sorted(spans):  # they can overlap
        if start >= done:
            pieces += (text[done:start], placeholder)
            done = stop
    return "".join((*pieces, text[done:])), len(pieces) // 2


def _is_national(match: re.Match[str]) -> bool:
    groups = match.groupdict()
    if groups["mobile"]:
        return True
    first, second, third = (
        next(found for name, found in groups.items() if found and name.startswith(part))
        for part in ("first", "second", "third")
    )
    shape = (len(first), len(second), len(third))
    if first in _SERVICE_CODES:
        return shape in _SERVICE_SHAPES
    return shape in _SHAPES or (shape == _MOBILE_SHAPE and first in _MOBILE_CODES)


def _is_public_address(match: re.Match[str]) -> bool:
    """Whether it is a public address: manuals are full of loopback, private and mask addresses."""
    octets = [int(octet) for octet in match[0].split(".")]
    if max(octets) < _SMALL_OCTET or octets[0] in (0, 255) or _NUMBERED.search(match.string[: match.start()][-10:]):
        return False
    address, (first, second) = ipaddress.IPv4Address(match[0]), octets[:2]
    is_private = first == 10 or (first == 172 and 16 <= second < 32) or (first, second) == (192, 168)
    return not (address.is_loopback or address.is_link_local or address.is_multicast or is_private)


def _is_card(match: re.Match[str]) -> bool:
    digits = re.sub("[ -]", "", match[0])
    return bool(_ISSUED.fullmatch(digits)) and _luhn_holds(digits) and not _is_amount(match)


def _luhn_holds(digits: str) -> bool:
    """The check of ISO/IEC 7812-1: every second digit from the right counts double, its own digits added."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def _is_individual(match: re.Match[str]) -> bool:
    digits = re.sub("[ -]", "", match[0])
    is_sound = not _TIMESTAMP.fullmatch(digits) and len(set(digits)) > 2
    return is_sound and _check_digit_holds(digits) and not _is_amount(match)


def _check_digit_holds(digits: str) -> bool:
    """The check of an individual number (ordinance 85 of 2014, article 5): weights 2 to 7, twice, from the right."""
    weighed = sum((place % 6 + 2) * int(digit) for place, digit in enumerate(digits[-2::-1]))
    rest = weighed % 11
    return int(digits[-1]) == (0 if rest <= 1 else 11 - rest)


def _is_amount(match: re.Match[str]) -> bool:
    """Whether a unit or a currency sign marks the number as an amount."""
    text = match.string
    return bool(_AMOUNT_BEFORE.search(text[: match.start()][-2:]) or _AMOUNT_BEHIND.match(text, match.end()))


_RULES: tuple[tuple[re.Pattern[str], int | str, Callable[[re.Match[str]], bool], str], ...] = (
    (_MAIL, 0, lambda match: True, _EMAIL),
    (_CARD_NUMBER, 0, _is_card, _CARD),
    (_NATIONAL, 0, _is_national, _PHONE),
    (_INTERNATIONAL, 0, lambda match: sum(map(str.isdigit, match[1])) in (9, 10), _PHONE),
    (_LABELLED, "number", lambda match: True, _PHONE),
    (_TWELVE, 0, _is_individual, _INDIVIDUAL),
    (_IPV4, 0, _is_public_address, _ADDRESS),
)
