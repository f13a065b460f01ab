"""Finding benchmark items in text, against sets of strings and against the library's normalisation."""

import gzip
import json
import pickle
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from errors_tiny import refuses
from hypothesis import assume, example, given
from hypothesis import strategies as st

from eval.decontamination import DecontaminationConfig, Decontaminator, normal_form
from eval.decontamination.normal_form import _table, document_of, is_marked
from eval.decontamination.search import LongTexts, is_long
from eval.tasks.items import TURN_BREAK, Item, read_benchmarks

CONFIG = DecontaminationConfig()
GENUINE = (
    "鴨川の東に古い橋があり、春には花見の客でにぎわう。橋のたもとの茶店は江戸時代から続くといわれ、名物の団子は今も炭火で"
    "焼かれている。川沿いの道を北へ行くと小さな社があって、秋の祭りの夜には灯りが水に映る。"
)


def item(question: str, *answers: str, choices: Sequence[str] = (), context: str | None = None) -> Item:
    return Item(question, question, context, tuple(choices), answers)


def finder(**benchmarks: Sequence[Item]) -> Decontaminator:
    return Decontaminator(benchmarks, CONFIG)


def letters_and_digits(text: str) -> str:
    return "".join(one for one in unicodedata.normalize("NFKC", text).casefold() if one.isalnum())


# Characters that join, grow, fold or vanish, among plain ones.
TRICKY = st.text(
    st.one_of(
        st.sampled_from(
            "ｶﾞﾊﾟか\u3099は\u309aÅ\u030a각가ᄀ\u1161\u11a8ﾡￂ㎡㈱ﬁßİſΣς①½℃？?⁇﹖！ＡａＺ１〜…\u2028\n\u3000\0𠮷𝔸👍\ud800"
        ),
        st.characters(),
    )
)


@given(text=TRICKY)
@example("か\u3099ﾞ")
@example("ᄀ\u1161\u11a8")
@example("か\u0323\u3099")
def test_the_normal_form_is_the_librarys(text: str) -> None:
    document = document_of(text)
    assert document.slice(0, document.codes.size) == letters_and_digits(text) == normal_form(text)
    folded = unicodedata.normalize("NFKC", text).casefold()
    marks = {len(letters_and_digits(folded[:place])) for place, one in enumerate(folded) if one == "?"}
    assert set(document.mark_ends.tolist()) == marks
    assert is_marked(text) == (len(normal_form(text)) in marks)


def test_every_character_folds_as_the_library_folds_it() -> None:
    easy = "\n".join(chr(code) for code, entry in enumerate(_table().tolist()) if entry < 2**31)
    assert len(easy) > 2 * 1_100_000
    document = document_of(easy)
    assert document.slice(0, document.codes.size) == letters_and_digits(easy)


def test_ends_are_where_anything_is_left_out() -> None:
    document = document_of("春、夏 秋？\n冬")
    assert set(document.ends.tolist()) == {1, 2, 3, 4} and set(document.mark_ends.tolist()) == {3}
    assert document_of("").ends.tolist() == [0]


SMALL = st.text("ab", min_size=1, max_size=30)


@given(
    texts=st.lists(SMALL, min_size=1, max_size=5, unique=True),
    document=st.text("abc", max_size=200),
    planted=st.integers(0, 4),
    size=st.integers(1, 4),
    tenths=st.integers(1, 10),
)
def test_ngrams_against_sets_of_strings(texts: list[str], document: str, planted: int, size: int, tenths: int) -> None:
    texts = [text for text in texts if len(text) >= size]
    assume(texts)
    document += texts[planted % len(texts)] * (planted % 2)

    def ngrams(text: str, start: int, end: int) -> set[str]:
        return {text[place : place + size] for place in range(max(start, 0), min(end, len(text) - size + 1))}

    shares: dict[int, int] = {}
    for number, text in enumerate(texts):
        own = ngrams(text, 0, len(text))
        stretches = range(-len(text), len(document), len(text))
        most = max(len(own & ngrams(document, start, start + 2 * len(text))) for start in stretches)
        if 10 * most >= tenths * len(own):
            shares[number] = most
    numbered = {text: number for number, text in enumerate(texts)}
    search = LongTexts(numbered, ngram_characters=size, min_overlap=tenths / 10)
    found = search.find(document_of(document).codes)
    assert (found is None) == (not shares)
    assert found is None or shares[found] == max(shares.values())


def test_what_only_looks_like_an_ngram_counts_for_nothing() -> None:
    # The table of truth values is as full as it gets, and lets some strangers through; one would be enough.
    draw = random.Random(0)
    known, stranger = "".join(draw.choices("春夏秋冬朝昼", k=136)), "".join(draw.choices("東西南北上下", k=20_000))
    find = LongTexts({known: 0}, ngram_characters=10, min_overlap=0.001).find
    assert find(document_of(stranger).codes) is None and find(document_of(stranger + known[:10]).codes) == 0


def test_a_share_is_not_rounded_up() -> None:
    letters = "abcdefghijklmnopqrstuvwxy"
    find = LongTexts({letters: 0}, ngram_characters=1, min_overlap=0.56).find
    assert [find(document_of(letters[:length]).codes) for length in (14, 13)] == [0, None]


def test_long_is_having_many_ngrams() -> None:
    texts = {"abcdef": True, "abcde": False, "aaaaaa": False, "ababab": True, "abcabcabc": False, "": False}
    assert {text: is_long(text, ngram_characters=3, min_characters=6) for text in texts} == texts


LETTERS = st.characters(categories=("Lo", "Lu", "Nd"))
LONG = st.lists(
    st.tuples(LETTERS, st.sampled_from(["", "", "、", "\n", "\u3000", "？"])), min_size=12, max_size=20
).map(lambda pairs: "".join(map("".join, pairs)))


@given(question=LONG, other=LONG, before=TRICKY, behind=TRICKY, as_context=st.booleans())
def test_any_planted_item_is_found(question: str, other: str, before: str, behind: str, as_context: bool) -> None:
    planted = item("", context=question) if as_context else item(question)
    assume(is_long(normal_form(question), ngram_characters=10, min_characters=10))
    assume(normal_form(other) not in normal_form(before + question + behind))
    # A line end on both sides, since a mark at the edge would join the item.
    assert finder(right=[planted], wrong=[item(other)]).find(f"{before}\n{question}\n{behind}") == "right"


@given(
    length=st.integers(5, 9),
    before=st.text("あいうえお、。 ?", max_size=20),
    behind=st.text("あいうえお、。 ?", max_size=20),
)
def test_short_questions_are_found_where_they_are_closed(length: int, before: str, behind: str) -> None:
    words = "かきくけこさしすせ"[:length]
    marked, unmarked = finder(quiz=[item(words + "？")]).find, finder(quiz=[item(words)]).find
    assert marked(f"{before}{words}\n?{behind}") == unmarked(f"{before}{words}？{behind}") == "quiz"
    assert unmarked(f"{before}{words}。{behind}") == "quiz"
    assert marked(f"{before}{words}。あ{behind}") is None
    assert marked(f"{before}{words}は{behind}") is unmarked(f"{before}{words}は{behind}") is None


TERSE = item("青い道とは？", "赤道", choices=("地平線", "赤道", "中華街"))
VERY_SHORT = item("色は？", "水色", choices=("水色", "紺色", "茶色"))


@pytest.mark.parametrize(
    ("known", "text", "found"),
    [
        (TERSE, f"{GENUINE}青い道とは？{GENUINE}", True),
        (TERSE, "青い　道とは\n?", True),
        (TERSE, f"{GENUINE}青い道とは、赤道までつづく。{GENUINE}", False),
        (VERY_SHORT, "色は？", True),
        (VERY_SHORT, f"{GENUINE}\n色は？\n{GENUINE}", False),
        (VERY_SHORT, f"{GENUINE}\n色は？\n答え：水 色\n{GENUINE}", True),
        (VERY_SHORT, f"{GENUINE}\n水色\n色は？\n{GENUINE}", True),
        (VERY_SHORT, f"{GENUINE}\n色は？\n紺色、茶色\n{GENUINE}", True),
        (VERY_SHORT, f"{GENUINE}\n色は？\n紺色\n{GENUINE}", False),
        (VERY_SHORT, f"色は？{GENUINE * 2}水色", False),
        (VERY_SHORT, f"色は茶色と紺色{GENUINE}", False),
        (item("なぜ？", GENUINE * 2), f"なぜ？\n{GENUINE * 2}", True),
        (item("？", "水"), "？水", False),
        (VERY_SHORT, "は？水色", False),
        (item("何？", "水"), f"{GENUINE}何何？水", False),
        (item("あ" * 40), "あ" * 50, False),
    ],
)
def test_short_questions(known: Item, text: str, found: bool) -> None:
    assert finder(quiz=[known]).find(text) == ("quiz" if found else None)


def test_of_two_short_questions_the_longer_names_the_benchmark() -> None:
    benchmarks = {
        "a": [item("湖の名前は？")],
        "b": [item("五湖の名前は？")],
        "c": [item("国の湖の名前は？")],
        "d": [VERY_SHORT],
    }
    find = finder(**benchmarks).find
    texts = ("湖の名前は？", "富士五湖の名前は？", "この国の湖の名前は？", f"色は？{GENUINE}")
    assert [find(text) for text in texts] == ["a", "b", "c", None]


QUESTION = "江戸城の天守が1657年の大火で焼けたあと、再建を見送るよう説いたのはだれですか？"
CONTEXT = (
    "明暦の大火で天守を失った江戸城では、土台の石垣だけが前田家によって築き直された。将軍を補佐する保科正之は、"
    "天守は遠くを見るだけの飾りであり、町の復興を先にすべきだと説いたため、天守は建てられないままになった。"
)


@pytest.mark.parametrize(
    "planted",
    [
        QUESTION,
        QUESTION.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)}),
        "\n".join(QUESTION),
        "\u3000".join(QUESTION).replace("？", "?").replace("、", ","),
        f"問題：{QUESTION}\n1. 保科正之\n2. 前田綱紀",
        f"{QUESTION}答え：保科正之",
        CONTEXT,
        CONTEXT[4:],
        CONTEXT.replace("飾り", "櫓"),
        f"{QUESTION[:-5]}か。",
    ],
)
def test_long_questions_and_passages_in_other_dress(planted: str) -> None:
    find = finder(
        other=[item("鎌倉の大仏は何でできていますか？")], quiz=[item(QUESTION, "保科正之", context=CONTEXT)]
    ).find
    for text in (planted, f"{GENUINE}{planted}{GENUINE}", f"{GENUINE * 50}\n\n{planted}\n\n{GENUINE * 50}"):
        assert find(text) == "quiz"
    assert find(GENUINE) is None and find("") is None


def test_phrases_strewn_over_a_document_are_no_item() -> None:
    phrases = [CONTEXT[start : start + 30] for start in range(0, len(CONTEXT), 20)]
    find = finder(quiz=[item("", context=CONTEXT)]).find
    assert find("。".join(phrases)) == "quiz"
    assert find(GENUINE.join(phrases)) is None


def test_the_first_turn_counts_and_the_second_does_not() -> None:
    first, second = "京都を旅する二日間の計画を立ててください。", "それを三つの文にまとめ直してください。"
    find = finder(chat=[item(f"{first}{TURN_BREAK}{second}")]).find
    assert find(f"{first}{second}") == "chat"
    assert find(f"{first}\n{GENUINE}\n{second}") == "chat"
    assert find(f"{GENUINE}\n{second}") is None


def test_the_longest_match_names_the_benchmark() -> None:
    find = finder(short=[item(QUESTION)], long=[item("", context=CONTEXT)]).find
    assert find(QUESTION + CONTEXT) == "long" and find(QUESTION) == "short"


def test_items_are_counted() -> None:
    known = finder(
        a=[TERSE, VERY_SHORT, item("？"), item("あ" * 40), item(QUESTION)],
        b=[item("誰？", "春子", context=CONTEXT)],
        c=[],
    )
    assert known.num_items == {"a": 5, "b": 1, "c": 0}
    assert known.too_short == {"a": 3, "b": 0, "c": 0}
    assert known.card() == {
        "a": {"items": 5, "too_short": 3},
        "b": {"items": 1, "too_short": 0},
        "c": {"items": 0, "too_short": 0},
    }


def test_nothing_to_look_for_and_nothing_to_look_in() -> None:
    assert finder().find(GENUINE) is None
    find = finder(quiz=[TERSE, item("青い道とは")]).find
    assert [find(text) for text in ("", "？", "は", "、は", "？は？", "青い道とは")] == [None] * 5 + ["quiz"]


def test_it_survives_the_way_to_another_process() -> None:
    known = pickle.loads(pickle.dumps(finder(quiz=[TERSE, VERY_SHORT, item(QUESTION)])))
    assert [known.find(text) for text in (QUESTION, "青い道とは？", "色は？水色", GENUINE)] == ["quiz"] * 3 + [None]


def test_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": QUESTION}), encoding="utf-8")
    assert Decontaminator.from_folder(tmp_path, CONFIG).find(QUESTION) == "questions"
    with refuses("not-found", got="no such folder"):
        Decontaminator.from_folder(tmp_path / "absent", CONFIG)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ngram_characters": 0},
        {"ngram_characters": 11},
        {"min_overlap": 0.0},
        {"min_overlap": 1.1},
        {"min_overlap": float("nan")},
        {"min_alone_characters": 1},
        {"min_alone_characters": 11},
        {"near_characters": 0},
    ],
)
def test_impossible_settings(wrong: dict[str, float]) -> None:
    ((name, value),) = wrong.items()
    with refuses("out-of-range", wanted=name, got=f"{value:g}"):
        DecontaminationConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.shared_data
def test_real_items_in_real_documents(shared_data: Path) -> None:
    known = read_benchmarks(shared_data)
    found = Decontaminator(known, CONFIG)
    assert sum(found.too_short.values()) < 0.02 * sum(found.num_items.values())
    with gzip.open(shared_data / "text_ja" / "wiki_kyoto.jsonl.gz", "rt", encoding="utf-8") as file:
        documents = [json.loads(line)["text"] for _, line in zip(range(150), file, strict=False)]
    assert [text[:40] for text in documents if found.find(text)] == []
    asked_by: dict[str, set[str]] = {}
    for name, items in known.items():
        for one in items:
            asked_by.setdefault(letters_and_digits(one.question), set()).add(name)
    planted = [(name, one) for name, items in known.items() for one in items[::67]]
    for number, (name, one) in enumerate(planted):
        text = documents[number % len(documents)][:2_000]
        begin, end = text[: len(text) // 2], text[len(text) // 2 :]
        pieces = [f"{one.question}\n{one.answers[0]}", "\n".join([one.question, *one.choices, *one.answers[:1]])]
        if len(letters_and_digits(one.question)) >= CONFIG.min_alone_characters:
            pieces.append(one.question)
        if one.context is not None:
            pieces.append(one.context)
        for piece in pieces:
            hit = found.find(f"{begin}\n{piece}\n{end}")
            assert hit == name or hit in asked_by[letters_and_digits(one.question)], one.id
