"""Redaction: what is personal by its form goes, what only looks like it stays."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.text.personal import redact

EMAIL, PHONE, ADDRESS, CARD, INDIVIDUAL = (
    *("〔メールアドレス〕", "〔電話番号〕", "〔IPアドレス〕", "〔カード番号〕"),
    "〔個人番号〕",
)
PLACEHOLDERS = (EMAIL, PHONE, ADDRESS, CARD, INDIVIDUAL)

PERSONAL = [
    ("連絡は taro.yamada+news@mail.example.co.jp までお願いします。", f"連絡は {EMAIL} までお願いします。"),
    ("メールはtaro@example.jpへ。", f"メールは{EMAIL}へ。"),
    ("ユーザーtaro@example.comさん", f"ユーザー{EMAIL}さん"),
    ("ｔａｒｏ＠ｅｘａｍｐｌｅ．ｃｏ．ｊｐ宛て", f"{EMAIL}宛て"),
    ("<a_b-c@sub-domain.example.org>", f"<{EMAIL}>"),
    ("電話は03-1234-5678です。", f"電話は{PHONE}です。"),
    ("電話０３－１２３４－５６７８（代表）", f"電話{PHONE}（代表）"),
    ("電話０３ー１２３４ー５６７８番", f"電話{PHONE}番"),
    ("携帯 090−1234−5678 に", f"携帯 {PHONE} に"),
    ("045-123-4567、0773-68-0836、01234-5-6789", f"{PHONE}、{PHONE}、{PHONE}"),
    ("(03)1234-5678か03(1234)5678", f"{PHONE}か{PHONE}"),
    ("（０３）１２３４－５６７８まで", f"{PHONE}まで"),
    ("080 1234 5678", PHONE),
    ("私の番号は09012345678だ", f"私の番号は{PHONE}だ"),
    ("0120-123-456、0120-12-3456、0800-123-4567、0570-012-345", f"{PHONE}、{PHONE}、{PHONE}、{PHONE}"),
    ("050-1234-5678", PHONE),
    ("TEL:0312345678 FAX：03 1234 5678", f"TEL:{PHONE} FAX：{PHONE}"),
    ("国外からは+81-3-1234-5678、+81 90 1234 5678、+819012345678", f"国外からは{PHONE}、{PHONE}、{PHONE}"),
    ("接続元は101.102.103.104でした。", f"接続元は{ADDRESS}でした。"),
    ("8.8.4.254:8080 と １０１．１０２．１０３．１０４", f"{ADDRESS}:8080 と {ADDRESS}"),
    ("カードは4111 1111 1111 1111です", f"カードは{CARD}です"),
    ("4111-1111-1111-1111 5555555555554444", f"{CARD} {CARD}"),
    ("3782 822463 10005と３５３０１１１３３３３０００００", f"{CARD}と{CARD}"),
    ("30569309025904", CARD),
    ("マイナンバーは123456789018です", f"マイナンバーは{INDIVIDUAL}です"),
    ("1234 5678 9018、1234-5678-9018", f"{INDIVIDUAL}、{INDIVIDUAL}"),
]

HARMLESS = [
    "2024-01-02に始まり、2024/12/31に終わる。01-02-2024とも書く。",
    "昭和49年（1974年）4月10日 - 平成1年（1989年）1月7日",
    "午前10:15:30から2024-01-02T03:04:05+09:00まで。202401021215に記録。",
    "価格は1,234,567,890円、予算は120000000018円、$123456789018、123456789018バイト。",
    "ISBN 978-4-00-310101-8、ISBN 4-00-310101-2、ISBN 0-306-40615-2、ISBN9784003101018、ISSN 0387-1234",
    "Python 3.11.4、バージョン10.0.40.100、version 192.1.50.3、v1.50.60.70、Chrome 96.0.4664.110",
    "第1.2.3.4節を参照。1.2.3.4は目次の番号で、10.2.30.1も同じである。",
    "郵便番号は〒100-0001、番地は1-2-3、部屋は0123-45。",
    "127.0.0.1と0.0.0.0、10.1.2.200、172.16.99.1、192.168.1.100、255.255.255.0はどこにでもある。",
    "円周率は3.14159265358979323846、自然対数の底は2.718281828459045。",
    "@property と @app.route、git の @{upstream}、行列の積 A@B、user@localhost",
    "4111 1111 1111 1112は検査に通らず、9999 9999 9999 9995は発行者がない。4111111111111111円は大金だ。",
    "1234-5678-9012は検査数字が合わない。000000000000もちがう。",
    "UUIDは123e4567-e89b-12d3-a456-426614174000、ハッシュはa0312345678b。",
    "型番は0123-4567-8901、9-03-1234-5678、03-1234-5678-9、00-1234-5678、0312345678。",
    "スコアは3-2-1、座標は35.681-139.767、比は12:34:56。",
    "+81-123-456は短すぎ、+81-3-1234-5678-90は長すぎる。",
    "1.1.2024に2.2.2025を足す。300.400.500.600は番地ではない。",
]


@pytest.mark.parametrize(("text", "wanted"), PERSONAL)
def test_personal_data_goes(text: str, wanted: str) -> None:
    assert redact(text) == (wanted, sum(wanted.count(placeholder) for placeholder in PLACEHOLDERS))


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_it_stays(text: str) -> None:
    redacted, count = redact(text)
    assert redacted is text and count == 0


@given(st.text() | st.text("0123456789０９-－ー@.a() +円", max_size=60))
def test_the_count_is_that_of_the_placeholders(text: str) -> None:
    redacted, count = redact(text)
    assert sum(redacted.count(placeholder) - text.count(placeholder) for placeholder in PLACEHOLDERS) == count
    assert (count == 0) == (redacted == text)


@given(st.lists(st.sampled_from([*(text for text, _ in PERSONAL), *HARMLESS]), max_size=6))
def test_pieces_are_found_wherever_they_stand(lines: list[str]) -> None:
    alone = [redact(line) for line in lines]
    redacted, count = redact("\n".join(lines))
    assert redacted == "\n".join(line for line, _ in alone) and count == sum(number for _, number in alone)
    assert redact(redacted) == (redacted, 0)


@given(st.integers(0, 10**12 - 1))
def test_one_check_digit_of_ten_holds(number: int) -> None:
    # Issuer 4 and fifteen more digits: exactly one last digit passes Luhn. The same for eleven digits and the last one
    # of an individual number, which begins with 9 here, so that it is no time, and is not monotonous.
    cards = [f"4{number:014d}{last}" for last in range(10)]
    assert sum(redact(card)[0] == CARD for card in cards) == 1
    individuals = [f"9{number % 10**8:08d}01{last}" for last in range(10)]
    assert sum(redact(individual)[0] == INDIVIDUAL for individual in individuals) == 1


def test_all_area_codes_of_japan_are_told_by_their_shape() -> None:
    rng = random.Random(1)
    for code in ("03", "06", "011", "075", "0123", "0997", "01372", "04992"):
        exchange = "".join(rng.choices("0123456789", k=6 - len(code)))
        number = f"{code}-{exchange}-{rng.randrange(10_000):04d}"
        assert redact(f"窓口（{number}）")[0] == f"窓口（{PHONE}）", number
        assert redact(f"窓口（{number}0）")[1] == 0, "one digit more is no telephone number"


def test_long_runs_take_linear_time() -> None:
    for unit in ("0", "a@", "1.", "(0", "a.", "@", "0-", "0 "):
        text = unit * 200_000
        assert redact(text)[0].startswith(unit[0])
