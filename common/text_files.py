"""What a text file holds instead of UTF-8 lines: another encoding, one JSON array, old line ends; with the way out.

Judged by the beginning of the file, so that a few broken rows in a sound file stay the reader's to count.
"""

import codecs
import json
import re

from common.errors import InputError

SNIFFED_BYTES = 2**16
_MARKS = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"))
_JAPANESE = (("EUC-JP", "euc_jp"), ("SHIFT_JIS", "cp932"))
"""Names for iconv and for Python, the stricter one first: most EUC-JP also decodes as Shift_JIS."""
_LETTER, _FEWEST_LETTERS = re.compile("[\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff]"), 4


def require_utf8_lines(start: bytes, name: str) -> None:
    """Refuse a file whose first bytes are not lines of JSON in UTF-8.

    Raises:
        InputError ("wrong-format"): with the command that converts the file.
    """
    encoding = encoding_of(start)
    if encoding is not None:
        raise _refusal(name, f"text in {encoding}", f"iconv -f {encoding} -t UTF-8")
    if _is_one_array(start.removeprefix(codecs.BOM_UTF8).strip()):
        raise _refusal(name, "one JSON array", "jq -c '.[]'")
    if b"\n" not in start and b"\r" in start[:-1]:  # the last one may be the first half of CR LF
        raise _refusal(name, "lines that end with CR alone", "tr '\\r' '\\n'")


def encoding_of(start: bytes) -> str | None:
    """The name that iconv has for the encoding of a text that begins so; None for UTF-8 and what is not known."""
    encoding = next((known for mark, known in _MARKS if start.startswith(mark)), None)
    if encoding is None and 0 in start[:2] and len(start) > 1:  # an ASCII character and a zero byte
        return "UTF-16LE" if start[1] == 0 else "UTF-16BE"
    if encoding is None and not _is_mostly_utf8(start):
        return next((known for known, codec in _JAPANESE if _is_japanese(start, codec)), None)
    return encoding


def _is_one_array(start: bytes) -> bool:
    """Whether a JSON array begins here that is no line of its own: a row that is an array is a bad row."""
    first, _, rest = start.partition(b"\n")
    if first[:1] != b"[":
        return False
    try:
        json.loads(first)
    except ValueError:
        return True
    return not rest


def _is_mostly_utf8(start: bytes) -> bool:
    """Whether at least half of the whole lines, or a single one but for its cut end, are UTF-8."""
    lines = start.splitlines()
    whole = lines[:-1] if len(lines) > 1 else lines
    return 2 * sum(_decodes(line, "utf-8") for line in whole) >= len(whole)


def _decodes(data: bytes, codec: str) -> bool:
    """Whether the bytes are text in this encoding; the last character may be cut."""
    try:
        codecs.getincrementaldecoder(codec)().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def _is_japanese(data: bytes, codec: str) -> bool:
    """Whether the bytes are Japanese text in this encoding, which nearly any bytes are otherwise."""
    if not _decodes(data, codec):
        return False
    return len(_LETTER.findall(codecs.getincrementaldecoder(codec)().decode(data))) >= _FEWEST_LETTERS


def _refusal(name: str, got: str, command: str) -> InputError:
    """The error, with the shell command that writes a converted copy."""
    out = f"converted-{name}"
    for suffix, tool in ((".gz", "gzip"), (".zst", "zstd")):
        if name.endswith(suffix):
            shell = f"{tool} -dc {name} | {command} | {tool} > {out}"
            break
    else:
        shell = f"{command} < {name} > {out}"
    return InputError("wrong-format", wanted=f"{name} as lines of UTF-8", got=got, next_step=f"convert it: {shell}")
