"""That the embedded world's text reads as Japanese, and that what it says is true."""

import operator
import re
from collections import Counter

import pytest
from toy_world_sample import sample

POLITE = re.compile(r"(?:(?:です|ます|ました|ません|でした|ましょう)ね?|ください|か|なるほど)$")
GREETINGS = r"(?:こんにちは|おはようございます|こんばんは|はじめまして|さようなら)$"
SET_PHRASES = r"(?:どういたしまして|お気をつけて|またどうぞ|ご質問をどうぞ)$"
BROKEN = (
    "。。",
    "、、",
    "はは",
    "をを",
    "がが",
    "のの",
    "にに",
    "でで",
    "とと",
    "、。",
    "はを",
    "がは",
    "をは",
    "にが",
    "{",
    "}",
)
COUNTERS = {
    "リンゴ": "個",
    "ミカン": "個",
    "卵": "個",
    "飴": "個",
    "パン": "個",
    "消しゴム": "個",
    "鉛筆": "本",
    "花": "本",
    "紙": "枚",
    "切手": "枚",
    "皿": "枚",
    "絵本": "冊",
    "辞書": "冊",
}
SIGNS = {"+": operator.add, "-": operator.sub, "×": operator.mul, "÷": operator.floordiv}


def _sentences(text: str) -> list[str]:
    """Sentences in either register; bare answers, worked sums and labels are none."""
    lines = [line for line in text.split("\n") if not re.match("答え：|選択肢：|英語：", line)]
    joined = "。".join(lines).replace("「", "").replace("」", "")
    return [part for part in joined.split("。") if re.search("[ぁ-ん]$", part) and "：" not in part[-8:]]


@pytest.mark.parametrize("prose", [True, False])
def test_every_text_keeps_one_register(prose: bool) -> None:
    registers: Counter[bool] = Counter()
    for row in sample().rows:
        if prose != ("answers" not in row):
            continue
        found = {POLITE.search(sentence) is not None for sentence in _sentences(row["text"])}
        assert len(found) <= 1, row["text"]
        registers.update(found)
    # Questions are polite; prose is written in both registers.
    assert registers[True] > 500
    assert (registers[False] > 500) == prose


def test_the_assistant_is_polite() -> None:
    sentences: set[str] = set()
    for row in sample().conversations:
        for message in row["messages"]:
            # A bare answer has no full stop.
            if message["role"] != "user" and "。" in message["content"]:
                sentences.update(_sentences(message["content"]))
    assert len(sentences) > 300
    phrases = f"{GREETINGS}|{SET_PHRASES}"
    assert [one for one in sentences if not POLITE.search(one) and not re.search(phrases, one)] == []


def test_no_broken_particles_and_no_open_blanks() -> None:
    for piece in BROKEN:
        place = sample().training.find(piece)
        assert place < 0, sample().training[place - 20 : place + 20]
    assert re.search(r"[^\S\n] |[ \n]$", sample().training) is None


def test_things_are_counted_with_their_own_counters() -> None:
    seen: set[str] = set()
    things = "|".join(sorted(COUNTERS, key=len, reverse=True))
    for thing, counter in re.findall(rf"(?<![一-龠])({things})[がを]?\d+(個|本|枚|冊|匹|羽|台)", sample().training):
        assert COUNTERS[thing] == counter
        seen.add(thing)
    for counter, thing in re.findall(rf"1(個|本|枚|冊)\d+円の({things})を", sample().training):
        assert COUNTERS[thing] == counter
        seen.add(thing)
    assert seen == set(COUNTERS)


def test_every_worked_sum_is_right() -> None:
    worked = re.findall(r"(?m)^問題：(.*)\n答え：(.*)。答えは(\d+)(\D)。$", sample().training)
    assert len(worked) > 3000
    for asked, steps, result, unit in worked:
        numbers = [int(number) for number in re.findall(r"\d+", asked)]
        for step in steps.split("、"):
            left, sign, right, value = re.fullmatch(r"(\d+)([-+×÷])(\d+)=(\d+)", step).groups()  # pyright: ignore[reportOptionalMemberAccess]
            assert SIGNS[sign](int(left), int(right)) == int(value) >= 1
            assert int(right) in numbers
            if sign == "÷":
                assert int(left) % int(right) == 0
        assert steps.endswith(f"={result}")
        assert f"何{unit}" in asked


def test_sums_of_prose_are_right() -> None:
    sums = [
        one
        for row in sample().rows
        if "answers" not in row
        for one in re.findall(r"(\d+)([-+×])(\d+)=(\d+)", row["text"])
    ]
    assert len(sums) > 300
    assert all(SIGNS[sign](int(left), int(right)) == int(value) for left, sign, right, value in sums)


def test_answers_of_a_passage_stand_in_it_once_beside_the_name() -> None:
    for row in sample().questions:
        if row["shape"] == "reading":
            (answer,) = row["answers"]
            assert row["context"].count(answer) == 1
            assert answer not in row["question"]


def test_exactly_one_choice_is_right() -> None:
    right: dict[str, set[str]] = {}
    for relation in sample().world.relations:
        for subject, value in relation.value_of.items():
            for wording in (*relation.ask, *relation.ask_held):
                right.setdefault(wording.format(s=subject), set()).add(value)
            for wording in (*relation.ask_reverse, *relation.ask_reverse_held):
                right.setdefault(wording.format(v=value), set()).add(subject)
    for entity in sample().world.entities:
        for name, value in entity.values.items():
            attribute = sample().world.attributes[name]
            for wording in (*attribute.ask, *attribute.ask_held):
                right.setdefault(wording.format(n=entity.name), set()).add(value)
    listed = re.findall(r"(?m)^質問：(.*)\n選択肢：(.*)\n答え：(.+)$", sample().training)
    listed += [
        (one["question"], "、".join(one["choices"]), one["answers"][0]) for one in sample().questions if one["choices"]
    ]
    assert len(listed) > 4000
    for asked, choices, answer in listed:
        assert len(set(choices.split("、"))) == 5
        assert set(choices.split("、")) & right[asked] == {answer}


def test_the_home_specialty_is_that_of_the_home() -> None:
    towns = {town.name: town for town in sample().world.towns}
    for person in sample().world.people:
        assert person.values["home_specialty"] == towns[person.values["home"]].values["specialty"]
        if "home_specialty" in person.askable:
            assert towns[person.values["home"]].askable


def test_no_value_is_a_good_guess() -> None:
    for name, attribute in sample().world.attributes.items():
        if name == "home_specialty":
            continue
        values = [entity.values[name] for entity in sample().world.entities if name in entity.values]
        assert set(values) <= set(attribute.values)
        assert max(Counter(values).values()) <= -(-len(values) // len(attribute.values))


def test_names_and_values_are_runs_of_one_script() -> None:
    """A tokenizer that cuts where the script changes keeps each of them apart from the particles around it."""
    for entity in sample().world.entities:
        for run in (entity.name, *entity.values.values()):
            assert re.fullmatch("[一-龠々]+|[ァ-ヴー]+", run), run
