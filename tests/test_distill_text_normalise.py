"""Normal form: what looks alike is written alike, Japanese typography stays, and twice is once."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.text.normalise import normalise

FAMILY = "👨‍👩‍👧‍👦"
FLAG = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"

CHANGED = [
    ("か\u3099は\u309aワ\u3099", "がぱ\u30f7", "combining marks"),
    ("ｶﾞｷﾞｸﾞﾊﾟﾋﾟｳﾞ", "ガギグパピヴ", "half-width voiced katakana"),
    ("ﾊﾝｶｸ｡｢ｶﾅ｣､･ｰ", "ハンカク。「カナ」、・ー", "half-width katakana and its punctuation"),
    ("かﾞとカﾟ", "がとカ\u309a", "a half-width mark behind a full-width kana"),
    ("5ﾞと ﾟ", "5\u309bと \u309c", "a half-width mark behind nothing that it could voice"),
    ("ＡＢＣｘｙｚ０１２９", "ABCxyz0129", "full-width letters and digits"),
    ("Ａ\u0301", "\u00c1", "a mark behind a full-width letter"),
    ("一\r\n二\r三\u2028四\u2029五\x85六\x0c七", "一\n二\n三\n四\n五\n六\n七", "line ends"),
    ("\ufeff見\u200bえ\u2060な\xadい\x00字\x1b\x7f\u200e", "見えない字", "what cannot be seen"),
    ("葛\U000e0100飾\ufe00", "葛飾", "selectors of a glyph's variant"),
    ("あ\u200d\ufe0fい\ufe0e", "あい", "joiners and selectors outside an emoji"),
    ("1\U000e0067", "1", "tags outside a flag"),
    ("行末 \t\u3000\n次の行\u3000", "行末\n次の行", "white space at line ends"),
    ("一\n\n\n\n\n二\n \n \n \n三", "一\n\n\n二\n\n\n三", "blank lines"),
    ("\n\n\u3000始まり\n\n", "\u3000始まり", "blank lines at both ends"),
    ("空\xa0白", "空 白", "no-break spaces"),
    ("壊\ud800れた", "壊\ufffdれた", "half characters"),
    ("\ufa19", "\u795e", "compatibility ideographs that NFC replaces"),
]

KEPT = [
    "「だ、よ。」！？～〜ー・（）：；［］｛｝＜＞＝＋－＊／＼＿｜％＆＃＠＄￥",
    "㎡①⑳℃㈱㍻㌧Ⅲ№℡ﬁ½²ｍ".replace("ｍ", "m"),
    "\u3000段落の始まりの全角空白は残る。\n    code = 1  # 字下げも  残る\n\tタブも",
    FAMILY,
    FLAG,
    "❤️☀️1️⃣👍🏽✌︎ℹ️㊗️👩\u200d❤️\u200d👨🏳️\u200d🌈",
    "一行目\n\n\n二行目",
    "𠮷野家の髙﨑さん、ゔ、か\u309aきくけこ",
    "",
]


@pytest.mark.parametrize(("text", "wanted"), [case[:2] for case in CHANGED], ids=[case[2] for case in CHANGED])
def test_variants_become_one(text: str, wanted: str) -> None:
    assert normalise(text) == wanted


@pytest.mark.parametrize("text", KEPT)
def test_normal_text_is_handed_back(text: str) -> None:
    assert normalise(text) is text


ODD = st.sampled_from(
    "aA1かはｶﾊﾞﾟ\u3099\u309aＡ１ー。、「（～ 　\t\n\r\x0b\x0c\x85\xa0\xad\x00\x1c\x7f\u200b\u200c\u200d\u200e\u2028\u2060"
    "\ufeff\ufe00\ufe0e\ufe0f\U000e0100\U000e0067\U0001f3f4☀❤👩👦🏽⃣#\ud800\udfff\ufffe\u0301\u0338↔〈\u2329Ω\u2126神\ufa19가\u1100\u1161"
)


@given(st.text() | st.lists(ODD, max_size=24).map("".join))
def test_twice_is_once(text: str) -> None:
    once = normalise(text)
    assert normalise(once) is once


@given(st.text() | st.lists(ODD, max_size=24).map("".join))
def test_normal_form_keeps_its_promises(text: str) -> None:
    normal = normalise(text)
    assert unicodedata.is_normalized("NFC", normal)
    assert not any(unicodedata.category(one) in ("Cc", "Cs") and one not in "\t\n" for one in normal)
    assert not any(
        "FULLWIDTH LATIN" in (name := unicodedata.name(one, "")) or "FULLWIDTH DIGIT" in name for one in normal
    )
    assert not any(unicodedata.name(one, "").startswith("HALFWIDTH KATAKANA") for one in normal)
    assert all(line == line.rstrip() for line in normal.split("\n")) and "\n\n\n\n" not in normal
    assert not set(normal) & set("\u200b\u2060\ufeff\xad")


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Cs", "Cn", "Mn", "Lm", "Zs", "Zl", "Zp"))))
def test_only_widths_and_nfc_change_visible_text(text: str) -> None:
    # Without marks, spaces and invisible characters, what is left of the rules is a table of single characters.
    widths = {code: code - 0xFEE0 for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}
    widths |= {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF61, 0xFF9E)}
    widths |= dict.fromkeys((0x115F, 0x1160, 0xFFFC))
    assert normalise(text) == unicodedata.normalize("NFC", text.translate(widths))


def test_half_width_katakana_agrees_with_the_standard() -> None:
    for code in range(0xFF61, 0xFF9E):
        for mark in ("", "\uff9e", "\uff9f"):
            text = chr(code) + mark
            if mark and code not in range(0xFF66, 0xFF9E):
                continue
            assert normalise(text) == unicodedata.normalize("NFKC", text)


def test_long_runs_take_linear_time() -> None:
    for unit in (" ", "\u3000", "\n", " \n", "ｶ", "\u200d", "👩\u200d", "\ufe0f", "か\u3099"):
        normal = normalise(unit * 100_000 + "字")
        assert normal.endswith("字")
