"""What the embedded world's files hold, and that nothing of the test stands in training."""

import itertools
import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from toy_world_sample import read, sample

from common.store import run_alone
from recipes.toy_world import WorldConfig, generate, world
from recipes.toy_world.draft import Draft, Question
from recipes.toy_world.generate import write_world

SMALL = WorldConfig(text_characters=60_000, num_conversations=40, questions_per_shape=20)


def _of(shape: str, group: str | None = None) -> list[dict[str, Any]]:
    return [row for row in sample().questions if row["shape"] == shape and (group is None or row["group"] == group)]


def test_the_stage_writes_three_files_of_rows_and_their_terms(tmp_path: Path) -> None:
    artifact = run_alone(world, SMALL, tmp_path / "world")
    assert set(artifact.manifest["files"]) == {"text.jsonl", "conversations.jsonl", "questions.jsonl", "terms.json"}
    rows = read(artifact.folder / "text.jsonl")
    assert artifact.manifest["facts"]["documents"] == len(rows)
    assert 60_000 <= sum(len(row["text"]) for row in rows) < 62_000
    assert len(read(artifact.folder / "conversations.jsonl")) == 40
    assert len(read(artifact.folder / "questions.jsonl")) == 100


def test_the_config_alone_decides_every_byte(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "again", "other")]
    for folder, config in zip(folders, (SMALL, SMALL, replace(SMALL, seed=2)), strict=True):
        folder.mkdir()
        write_world(config, folder)
    for name in ("text.jsonl", "conversations.jsonl", "questions.jsonl"):
        first, again, other = ((folder / name).read_bytes() for folder in folders)
        assert first == again
        assert first != other


def test_another_seed_tells_the_same_facts_in_other_texts(tmp_path: Path) -> None:
    answers: dict[str, set[str]] = {}
    texts: list[set[str]] = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        write_world(WorldConfig(seed=seed, text_characters=200_000, num_conversations=10), folder)
        rows = read(folder / "text.jsonl")
        texts.append({row["text"] for row in rows})
        for row in rows:
            for asked, answer in re.findall(r"(?m)^質問：(.*)\n答え：(.*)$", row["text"]):
                if not row["text"].startswith("文章"):
                    answers.setdefault(asked, set()).add(answer)
    assert not texts[0] & texts[1]
    assert len(answers) > 500
    assert all(len(given) == 1 for given in answers.values())


def test_every_shape_and_group_has_enough_questions_and_none_twice() -> None:
    counts = Counter((row["shape"], row["group"] or row["direction"]) for row in sample().questions)
    assert counts[("multiple_choice", None)] >= 300
    assert counts[("reading", None)] >= 300
    assert counts[("arithmetic", None)] >= 300
    assert counts[("short_answer", "phrasing")] >= 150
    assert counts[("short_answer", "entity")] >= 150
    assert counts[("translation", "ja-en")] >= 150
    assert counts[("translation", "en-ja")] >= 150
    assert len({row["id"] for row in sample().questions}) == len(sample().questions)
    assert len({row["question"] for row in sample().questions}) == len(sample().questions)
    fields = {"id", "shape", "group", "direction", "context", "question", "choices", "answers"}
    assert all(set(row) == fields for row in sample().questions)


def test_no_question_stands_in_text_or_conversations() -> None:
    found = [row["question"] for row in sample().questions if row["question"] in sample().training]
    assert found == []


def test_no_passage_and_no_translation_of_the_test_stands_in_training() -> None:
    for row in _of("reading"):
        assert row["context"] not in sample().training
        sentences = [*row["context"].split("。")[:-1], row["question"]]
        same = (len(set(letters)) == 1 for letters in zip(*sentences, strict=False))
        name = sentences[0][: next(place for place, one in enumerate(same) if not one)].rstrip("はがので")
        assert len(name) >= 2 and name not in sample().training
    for row in _of("translation"):
        assert row["answers"][0] not in sample().training


def test_held_out_wordings_are_never_used_in_training() -> None:
    names = "|".join(entity.name for entity in sample().world.entities)
    held = {
        re.escape(one).replace(r"\{n\}", f"(?:{names})")
        for a in sample().world.attributes.values()
        for one in a.ask_held
    }
    for relation in sample().world.relations:
        for blank, wordings, fillers in (
            (r"\{s\}", relation.ask_held, relation.value_of),
            (r"\{v\}", relation.ask_reverse_held, relation.value_of.values()),
        ):
            held |= {re.escape(one).replace(blank, f"(?:{'|'.join(set(fillers))})") for one in wordings}
    assert len(held) > 50
    for wording in held:
        assert re.search(wording, sample().training) is None, wording
    for row in [*_of("short_answer", "phrasing"), *_of("multiple_choice")]:
        assert any(re.fullmatch(wording, row["question"]) for wording in held), row["question"]


def test_entities_of_the_test_are_told_about_and_never_asked_about() -> None:
    silent = [entity.name for entity in sample().world.never_asked]
    assert len(silent) == 12
    asked_lines = [line for line in sample().training.split("\n") if re.search("(か|ください)。", line)]
    asked_lines = [re.split("答え：|」と答え", line)[0] for line in asked_lines]
    for name in silent:
        # A town may be an answer, so it may be a choice; nobody is asked about it.
        asked = [line for line in asked_lines if name in re.sub("[^。]*の中から選んでください。", "", line)]
        assert asked == []
    prose = [row["text"] for row in sample().rows if "answers" not in row]
    people = [entity for entity in sample().world.people if entity.name in silent]
    others = [entity for entity in sample().world.people if entity.name not in silent]
    told = [sum(entity.name in text for text in prose) / len(group) for group in (people, others) for entity in group]
    assert 0.9 < sum(told[: len(people)]) / sum(told[len(people) :]) < 1.1
    for row in _of("short_answer", "entity"):
        assert any(row["question"].startswith(name) for name in silent)


def test_every_fact_is_told_in_four_wordings_at_least() -> None:
    text = sample().training
    for entity in sample().world.entities:
        for name, value in entity.values.items():
            attribute = sample().world.attributes[name]
            wordings = [one.format(n=entity.name, v=value) for one in (w for r in attribute.tell.values() for w in r)]
            assert sum(wording in text for wording in wordings) >= 4, (entity.name, name)


def test_no_two_documents_or_conversations_are_equal() -> None:
    assert len({row["text"] for row in sample().rows}) == len(sample().rows)
    assert len({str(row["messages"]) for row in sample().conversations}) == len(sample().conversations)


def test_a_document_that_was_written_before_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = itertools.cycle(["甲", "甲", "乙", "甲", "丙"])
    monkeypatch.setattr(generate.prose, "document", lambda _rng, _world: Draft.of(next(texts)))
    others: Any = {field.name: 0.0 for field in fields(WorldConfig) if field.name.startswith("share_")}
    config = WorldConfig(**others | {"share_prose": 1.0})
    made = itertools.islice(generate.documents(config, sample().world), 3)
    assert [draft.text for draft in made] == ["甲", "乙", "丙"]


def test_most_of_the_text_is_question_documents_whose_answers_are_marked() -> None:
    asking = [row for row in sample().rows if "answers" in row]
    assert sum(len(row["text"]) for row in asking) > 0.6 * sum(len(row["text"]) for row in sample().rows)
    for row in asking:
        text = row["text"]
        # Independent of the spans: an answer is what follows the cue, or the second line of a pair of sentences.
        found = [[m.start(1), m.end(1)] for m in re.finditer(r"(?m)^答え：(.*)$", text)]
        pair = r"(?m)^(?:日本語：.*\n英語|英語：.*\n日本語)：(.*)$"
        found += [[m.start(1), m.end(1)] for m in re.finditer(pair, text)]
        assert row["answers"] == found
        assert len(found) >= 5


def test_prompts_of_the_test_have_the_form_of_the_documents() -> None:
    skeletons = {
        "short_answer": r"質問：[^\n]+\n答え：",
        "multiple_choice": r"質問：[^\n]+\n選択肢：[^\n、]+(?:、[^\n、]+){4}\n答え：",
        "reading": r"文章：[^\n]+\n質問：[^\n]+\n答え：",
        "arithmetic": r"問題：[^\n]+\n答え：",
        "translation": r"日本語：[^\n]+\n英語：|英語：[^\n]+\n日本語：",
    }
    for row in sample().questions:
        assert re.fullmatch(skeletons[row["shape"]], _question(row).prompt)
    for skeleton in skeletons.values():
        assert sum(re.match(skeleton, row["text"]) is not None for row in sample().rows) > 300


def test_conversations_are_of_every_kind() -> None:
    turns = Counter(sum(m["role"] == "user" for m in row["messages"]) for row in sample().conversations)
    assert turns[1] > 500
    assert sum(count for number, count in turns.items() if number > 1) > 500
    systems = [row["messages"][0]["role"] == "system" for row in sample().conversations]
    assert 0.3 < sum(systems) / len(systems) < 0.5
    for row in sample().conversations:
        roles = [message["role"] for message in row["messages"] if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
    text = sample().training
    for wanted in ("こんにちは。", "あなたは誰ですか。", "ありがとう。", "さようなら。", "英語に訳してください。"):
        assert wanted in text


def test_polite_and_bare_answers_agree() -> None:
    """Asked in the prompt's form the answer is bare, in plain words a sentence that opens with the same answer."""
    given: dict[str, set[str]] = {}
    forms: Counter[bool] = Counter()
    for row in sample().conversations:
        turns = [message for message in row["messages"] if message["role"] != "system"]
        for user, assistant in zip(turns[::2], turns[1::2], strict=True):
            asked = re.fullmatch(r"(質問：)?([^\n「」]*(?:か|ください)。)(?:\n答え：)?", user["content"])
            if asked is None or not any(entity.name in asked[2] for entity in sample().world.entities):
                continue
            if "選んで" in asked[2] or re.search("について|紹介|聞かせて", asked[2]):
                continue
            forms[asked[1] is None] += 1
            given.setdefault(asked[2], set()).add(assistant["content"].removesuffix("です。"))
            assert (asked[1] is None) == assistant["content"].endswith("です。")
    assert min(forms[True], forms[False]) > 200
    assert all(len(answers) == 1 for answers in given.values())


def _question(row: dict[str, Any]) -> Question:
    return Question(
        shape=row["shape"],
        question=row["question"],
        answers=tuple(row["answers"]),
        direction=row["direction"],
        context=row["context"],
        choices=tuple(row["choices"]),
    )


@pytest.mark.parametrize(
    ("bad", "wanted"),
    [
        ({"share_prose": 0.5}, "shares"),
        ({"share_prose": -0.1, "share_reading": 0.5}, "shares"),
        ({"questions_per_shape": 5}, "questions_per_shape"),
        ({"questions_per_shape": 4000}, "questions_per_shape"),
        ({"text_characters": 0}, "text_characters"),
        ({"num_conversations": 0}, "num_conversations"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(bad: dict[str, Any], wanted: str) -> None:
    with refuses("out-of-range", wanted=wanted):
        WorldConfig(**bad)


def test_the_largest_test_set_can_be_made(tmp_path: Path) -> None:
    write_world(WorldConfig(text_characters=1000, num_conversations=1, questions_per_shape=400), tmp_path)
    counts = Counter(row["shape"] for row in read(tmp_path / "questions.jsonl"))
    assert set(counts.values()) == {400}
