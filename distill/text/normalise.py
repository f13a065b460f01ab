"""One normal form for Japanese text: equal characters get equal code points, and Japanese typography is kept.

Everything is NFC. In addition, half-width katakana become full-width, and full-width ASCII letters and digits become
ASCII: both are remains of old encodings and mean the same as their counterparts. NFKC would do this too, but also turns
full-width punctuation into ASCII (half of a corpus would end its questions with another mark than the other half) and
the ideographic space at the start of a paragraph into a plain one, and it spells out square, circled and raised
characters, which loses their meaning: a circled 1 becomes a bare 1, square metres become "m2", the one character for
"Inc." three. All of these are kept. Spaces inside a line are never merged: they are the indentation of code.
"""

import re
import unicodedata

# Escapes, since most of these characters are invisible.
_CONTROLS = r"\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"
_ZERO_WIDTH = (
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
)
_NOT_CHARACTERS = r"\ufff0-\ufffc\ufffe\uffff"
_LINE_ENDS = r"\x0b\x0c\r\x85\u2028\u2029"
_SURROGATES = r"\ud800-\udfff"
_FULL_WIDTH = r"\uff10-\uff19\uff21-\uff3a\uff41-\uff5a"
_HALF_WIDTH_KANA = r"\uff61-\uff9f"
_VARIATION = r"\ufe00-\ufe0f\U000e0100-\U000e01ef"
_TAGS = r"\U000e0020-\U000e007f"
_JOINER = r"\u200d"
# Parts of emoji sequences: pictographs, arrows and signs that have an emoji form, keycaps, skin tones.
_EMOJI = (
    r"#*0-9\xa9\xae\u203c\u2049\u20e3\u2122\u2139\u2194-\u21aa\u231a-\u2328\u23cf-\u23f3\u23f8-\u23fa\u24c2\u25aa-\u25fe"
    r"\u2600-\u27bf\u2934\u2935\u2b05-\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
_PICTURE = _EMOJI.removeprefix("#*0-9")

# Most documents have none of these, and need one search only.
_UNUSUAL = re.compile(
    f"[{_CONTROLS}{_LINE_ENDS}\xa0{_ZERO_WIDTH}{_JOINER}{_NOT_CHARACTERS}{_SURROGATES}"
    f"{_FULL_WIDTH}{_HALF_WIDTH_KANA}{_VARIATION}{_TAGS}]"
)
_REMOVED = re.compile(f"[{_CONTROLS}{_ZERO_WIDTH}{_NOT_CHARACTERS}]+")
_EMOJI_PARTS = re.compile(f"[{_JOINER}{_VARIATION}{_TAGS}]")
_STRAY_EMOJI_PART = re.compile(
    # A selector right after an emoji chooses its form (text or picture); other selectors choose a glyph's variant.
    f"[\ufe00-\ufe0d\U000e0100-\U000e01ef]|(?<![{_EMOJI}])[\ufe0e\ufe0f]"
    # A joiner is valid between two pictures, the first optionally with its selector.
    f"|(?<![{_PICTURE}])(?<![{_PICTURE}]\ufe0f){_JOINER}|{_JOINER}(?![{_PICTURE}])"
    # Regional flags are a black flag followed by tags.
    f"|(?<![\U0001f3f4{_TAGS}])[{_TAGS}]+"
)
_LINE_END = re.compile(f"\r\n|[{_LINE_ENDS}]")
_SURROGATE = re.compile(f"[{_SURROGATES}]")
_FULL_WIDTH_RUN = re.compile(f"[{_FULL_WIDTH}]+")
_TO_ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_HALF_WIDTH_RUN = re.compile(f"[{_HALF_WIDTH_KANA}]+")
# A half-width voiced mark after anything but kana is a separate mark; NFKC would attach it to that character.
_LONE_MARK = re.compile("(?<![\u3041-\u3096\u30a1-\u30fa\u30fd\uff66-\uff9d])[\uff9e\uff9f]")
_SPACING_MARKS = {0xFF9E: 0x309B, 0xFF9F: 0x309C}
_LINE_CLOSED_BY_SPACE = re.compile(r"[^\S\n](?:\n|\Z)")
_MANY_BLANK_LINES = re.compile(r"\n{4,}")


def normalise(text: str) -> str:
    """The normal form of `text`; the same object if it is normal already. Idempotent.

    - Line ends of every kind become a line feed; no line ends in white space; at most two blank lines in a row, none
      before the first line or after the last. White space at the start of a line is kept, the ideographic one too.
    - Removed: control characters except tab and line feed, zero-width characters, soft hyphens, byte-order marks,
      direction marks and code points that are not characters. Kept: joiners and selectors inside an emoji.
    - A no-break space becomes a space. A lone surrogate becomes U+FFFD, which the quality rules count as damage.

    If the result is another object, character offsets into `text` are invalid for it.
    """
    normal = text
    if _UNUSUAL.search(normal):
        normal = _without_oddities(normal)
    if not unicodedata.is_normalized("NFC", normal):
        normal = unicodedata.normalize("NFC", normal)
    if _LINE_CLOSED_BY_SPACE.search(normal):
        normal = "\n".join(map(str.rstrip, normal.split("\n")))
    if "\n\n\n\n" in normal:
        normal = _MANY_BLANK_LINES.sub("\n\n\n", normal)
    normal = normal.strip("\n")
    return text if normal == text else normal


def _without_oddities(text: str) -> str:
    """`text` with normal line ends, widths and invisible characters, not yet in NFC."""
    text = _LINE_END.sub("\n", text).replace("\xa0", " ")
    text = _SURROGATE.sub("\ufffd", text)
    text = _REMOVED.sub("", text)
    if _EMOJI_PARTS.search(text):
        text = _STRAY_EMOJI_PART.sub("", text)
    text = _LONE_MARK.sub(lambda found: found[0].translate(_SPACING_MARKS), text)
    text = _HALF_WIDTH_RUN.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return _FULL_WIDTH_RUN.sub(lambda found: found[0].translate(_TO_ASCII), text)
