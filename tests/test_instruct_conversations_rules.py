"""What is left out, cut and thinned, against brute force; and the data card that tells it."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors_tiny import refuses
from hypothesis import assume, given
from hypothesis import strategies as st
from text_tiny import read_gzip, tiny_tokenizer, workspace, write_rows

from common.documents import SPLITS, Shares
from common.provenance import Terms, propagate_sources, read_sources
from common.tokenizer import Tokenizer
from instruct.conversations import ConversationsConfig, ConversationSource, FiltersConfig, conversations, fault_of
from instruct.conversations.rules import is_refusal, japanese_share, rule_against
from instruct.conversations.screening import longest_part, rows_of_each

CONFIG = ConversationsConfig(sequence_tokens=128, shares=Shares(calibration=0.1, validation=0.1, test=0.1))
LONG_ENGLISH = "This is a long answer that nobody asked for in this language. " * 4
LONG_JAPANESE = "春になると、町の川のそばで桜が咲きます。子どもたちは橋の上から花を見ます。" * 4
LONG_CHINESE = "春天来了，小河旁的樱花都开了，孩子们在桥上看花，老人们坐在树下喝茶聊天。" * 5


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer")


def said(*turns: str) -> list[dict[str, Any]]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]


def rows_of(name: str, count: int) -> list[dict[str, Any]]:
    return [{"id": f"{name}{number}", "messages": said(f"{name}{number}は？", "春です。")} for number in range(count)]


def kept_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for split in SPLITS for row in read_gzip(folder / "documents" / f"{split}-00000.jsonl.gz")]


# --- filters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "answer", "rule"),
    [
        ("春は？", LONG_JAPANESE, None),
        ("春について教えてください。", LONG_ENGLISH, "answered in another language"),
        ("春について教えてください。", LONG_CHINESE, "answered in another language"),
        ("What about spring?", LONG_ENGLISH, None),  # an English set stays
        ("春を英語で説明してください。", LONG_ENGLISH, None),
        ("次の文を翻訳してください：春は暖かい。", LONG_ENGLISH, None),
        ("好きな曲を教えてください。", "「Against All Odds」です。", None),  # names, and too short to tell
        ("並べかえを教えてください。", f"こうします。\n```\n{LONG_ENGLISH}\n```", None),
        ("並べかえを教えてください。", f"```python\n{LONG_ENGLISH}", None),  # a code block that nobody closed
    ],
)
def test_answers_in_another_language(question: str, answer: str, rule: str | None) -> None:
    assert rule_against(said(question, answer), FiltersConfig()) == rule
    assert rule_against(said(question, answer), FiltersConfig(min_japanese_share=None)) is None


def test_share_of_japanese_letters() -> None:
    assert japanese_share("123 ！？") is None
    assert japanese_share("ab春に") == 0.5
    assert japanese_share("```x = abc```春に") == 1.0
    assert japanese_share("東京都") == 1.0  # a word of kanji
    assert japanese_share(LONG_CHINESE) == 0.0  # a text of kanji


@pytest.mark.parametrize(
    "turn",
    [
        "申し訳ありませんが、その質問にはお答えできません。",
        "  **申し訳ございません**。ご要望には対応できません。",
        "「すみません、それは手伝えないので、お手伝いできません」",
        "お答えできません。",
        "ＡＩ言語モデルとして、お答えすることは控えます。",
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, but I cannot help.",
        "I cannot provide instructions for that.",
        "Sorry, but I'm unable to do so.",
    ],
)
def test_refusals(turn: str) -> None:
    assert is_refusal(turn)
    assert rule_against(said("a", "b", "c", turn), FiltersConfig(drop_refusals=True)) == "a refusal"
    assert rule_against(said("a", turn), FiltersConfig()) is None


@pytest.mark.parametrize(
    "turn",
    [
        "申し訳ありません、間違えました。正しくは東京です。",
        "ペンギンは空を飛ぶことができません。",
        "残念ながら、その年に日本は優勝していません。",
        "I'm sorry to hear that. Try to rest.",
        "Sorry seems to be the hardest word is a song by Elton John.",
        "I cannot stress this enough: rest.",
        "すみませんは、あやまるときの言葉です。",
        "私はサンタクロースを信じています。",
    ],
)
def test_what_is_no_refusal(turn: str) -> None:
    assert not is_refusal(turn)


def test_turn_lengths() -> None:
    config = FiltersConfig(min_turn_characters=2, max_turn_characters=5)
    assert rule_against(said("ab", "abcde"), config) is None
    assert rule_against(said("ab", "a  "), config) == "a turn too short"
    assert rule_against(said("abcdef", "ab"), config) == "a turn too long"
    system = [{"role": "system", "content": "a long system prompt"}, *said("ab", "cd")]
    assert rule_against(system, config) is None


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"min_turn_characters": 0}, "min_turn_characters of at least 1"),
        ({"min_turn_characters": 9, "max_turn_characters": 8}, "max_turn_characters of at least 9"),
        ({"min_japanese_share": 1.1}, "min_japanese_share from 0 to 1"),
        ({"judged_letters": 0}, "judged_letters of at least 1"),
    ],
)
def test_filters_that_make_no_sense(fields: dict[str, Any], wanted: str) -> None:
    with refuses("out-of-range", wanted=wanted):
        FiltersConfig(**fields)


def test_filters_count_and_are_no_bad_rows(tmp_path: Path, tokenizer_folder: Path) -> None:
    wrong = {"id": "w", "messages": said("春について教えてください。", LONG_ENGLISH)}
    file = write_rows(tmp_path / "mine.jsonl", [*rows_of("a", 5), wrong])
    facts = conversations(CONFIG, workspace(tmp_path / "out"), file, tokenizer_folder)
    assert facts["removed"]["answered in another language"] == 1 and facts["rows_out"] == 5
    (sample,) = facts["samples"]["answered in another language"]
    assert (sample["source"], sample["id"]) == ("mine.jsonl", "w") and len(sample["text"]) == 200
    on = {step["step"]: step["on"] for step in facts["steps"]}
    assert (on["language"], on["refusals"], on["turn lengths"]) == (True, False, False)


# --- long conversations -----------------------------------------------------------------------------------------------

TURNS = st.lists(st.sampled_from("あいう町山春abc"), min_size=1, max_size=9).map("".join)


@given(turns=st.lists(TURNS, min_size=1, max_size=6), limit=st.integers(1, 60))
def test_longest_part_is_what_brute_force_finds(turns: list[str], limit: int) -> None:
    messages = [one for place, turn in enumerate(turns) for one in said(f"q{place}", turn)]

    def size(part: Sequence[Any]) -> int:
        return sum(len(message["content"]) for message in part)

    assume(size(messages) > limit)
    fitting = [messages[:end] for end in range(2, len(messages), 2) if size(messages[:end]) <= limit]
    assert longest_part(messages, lambda part: size(part) <= limit) == (fitting[-1] if fitting else None)


def test_a_cut_keeps_calls_and_answers_whole() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    messages = [*said("a", "b"), *said("c"), call, {"role": "tool", "content": "t"}, {"role": "assistant"}]
    for count in range(1, 6):
        part = longest_part(messages, lambda part, count=count: len(part) <= count)
        assert part == (messages[: {2: 2, 3: 2, 4: 4, 5: 4}[count]] if count > 1 else None)
        assert part is None or fault_of(part) is None


def test_long_conversations_are_cut_between_turns(tmp_path: Path, tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    turns = [f"{number}たす1は？" if number % 2 == 0 else f"{number}です。" for number in range(40)]
    rows: list[dict[str, Any]] = [
        {"id": "long", "messages": said(*turns)},
        {"id": "short", "messages": said("春は？", "桜です。")},
        {"id": "first exchange", "messages": said("春" * 300, "秋", "夏は？", "暑い。")},
        {"id": "same beginning", "messages": said(*turns, "もっと？", "はい。")},
    ]
    file = write_rows(tmp_path / "mine.jsonl", rows)
    shares = Shares(calibration=0, validation=0, test=0)
    config = replace(CONFIG, overlong="cut", shares=shares)
    facts = conversations(config, workspace(tmp_path / "out"), file, tokenizer_folder)
    found = {row["id"]: row["messages"] for row in kept_rows(tmp_path / "out")}
    lengths = {end: len(tokenizer.render(rows[0]["messages"][:end])[0]) for end in range(2, 41, 2)}
    best = max(end for end, length in lengths.items() if length <= 128)
    assert 2 < best < 40
    assert found == {"long": rows[0]["messages"][:best], "short": rows[1]["messages"]}
    assert facts["removed"] == {"exact duplicate": 1, "longer than a row": 1}
    (source,) = facts["sources"]
    assert source["truncated"] == {"conversations cut between turns": 1}
    assert source["tokens_out"] == lengths[best] + len(tokenizer.render(rows[1]["messages"])[0]) == facts["tokens"]
    packed = tmp_path / "out" / "packed" / "train"
    arrays = [np.load(packed / f"{name}.npy") for name in ("tokens", "doc_ids", "weights")]
    supervised = [
        tokenizer.decode(tokens[(ids == one) & (weights > 0)].tolist(), skip_special=False)
        for tokens, ids, weights in zip(*arrays, strict=True)
        for one in range(1, ids.max() + 1)
    ]
    for messages in found.values():
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        assert "".join(f"{answer}<|im_end|>" for answer in answers) in supervised
    dropped = conversations(replace(config, overlong="drop"), workspace(tmp_path / "drop"), file, tokenizer_folder)
    assert dropped["removed"]["longer than a row"] == 3 and dropped["rows_out"] == 1


# --- mixing -----------------------------------------------------------------------------------------------------------


@given(
    available=st.lists(st.integers(1, 400), min_size=1, max_size=5),
    weights=st.lists(st.floats(0.01, 10), min_size=5, max_size=5),
)
def test_shares_hold_to_a_row(available: list[int], weights: list[float]) -> None:
    weights = weights[: len(available)]
    rows = rows_of_each(available, weights)
    total, whole = sum(rows), sum(map(Fraction, weights))
    assert all(count <= limit for count, limit in zip(rows, available, strict=True))
    for count, weight in zip(rows, weights, strict=True):
        assert abs(count - total * Fraction(weight) / whole) < 1
    # One row more, and some source would have to give more than it has.
    shares = [Fraction(weight) / whole for weight in weights]
    assert any((total + 1) * share > limit for share, limit in zip(shares, available, strict=True))


def weighted(tmp_path: Path, counts: Sequence[int], weights: Sequence[float]) -> tuple[ConversationSource, ...]:
    names = "abcde"[: len(counts)]
    return tuple(
        ConversationSource(
            name=name,
            files=(write_rows(tmp_path / f"{name}.jsonl", rows_of(name, count)),),
            weight=weight,
            terms=Terms(name=f"set-{name}", licence="MIT"),
        )
        for name, count, weight in zip(names, counts, weights, strict=True)
    )


def test_sources_are_thinned_to_their_weights(tmp_path: Path, tokenizer_folder: Path) -> None:
    sources = weighted(tmp_path, (300, 100, 50), (5, 3, 2))
    facts = conversations(replace(CONFIG, sources=sources), workspace(tmp_path / "out"), tokenizer_folder)
    assert [source["rows_out"] for source in facts["sources"]] == [125, 75, 50]
    assert [source["removed"].get("thinned to its weight", 0) for source in facts["sources"]] == [175, 25, 0]
    assert [source["weight"] for source in facts["sources"]] == [5, 3, 2]
    (step,) = [step for step in facts["steps"] if step["step"] == "mixing"]
    assert step["settings"] == {"set-a": 0.5, "set-b": 0.3, "set-c": 0.2} and step["on"]
    kept = [row["id"] for row in kept_rows(tmp_path / "out")]
    assert len(kept) == len(set(kept)) == 250  # none is repeated
    assert Counter(one[0] for one in kept) == {"a": 125, "b": 75, "c": 50}
    # No split is thinned more than another: what chooses is not what cuts.
    for split in SPLITS[1:]:
        of_split = read_gzip(tmp_path / "out" / "documents" / f"{split}-00000.jsonl.gz")
        assert 3 <= sum(row["id"][0] == "a" for row in of_split) <= 22  # a tenth of 125
    assert not (tmp_path / "out" / "scratch" / "mixing.jsonl").exists()


def test_the_choice_depends_on_the_rows_and_the_seed_only(tmp_path: Path, tokenizer_folder: Path) -> None:
    sources = weighted(tmp_path, (60, 20), (1, 1))
    chosen: dict[str, set[str]] = {}
    for name, seed in (("first", 0), ("again", 0), ("other seed", 1)):
        if name == "again":
            write_rows(tmp_path / "a.jsonl", reversed(rows_of("a", 60)))
        config = replace(CONFIG, sources=sources, seed=seed)
        conversations(config, workspace(tmp_path / name), tokenizer_folder)
        chosen[name] = {row["id"] for row in kept_rows(tmp_path / name)}
    assert chosen["first"] == chosen["again"] != chosen["other seed"]


def test_weights_for_all_or_for_none(tmp_path: Path, tokenizer_folder: Path) -> None:
    a, b = weighted(tmp_path, (9, 9), (1, 1))
    with refuses("contradiction", got="none for b"):
        ConversationsConfig(sources=(a, replace(b, weight=None)))
    with refuses("out-of-range", wanted="weight above 0", got="0", next_step="of a"):
        replace(a, weight=0)
    config = replace(CONFIG, sources=(a,))
    with refuses("contradiction", got="none for b.jsonl"):
        conversations(config, workspace(tmp_path / "out"), tmp_path / "b.jsonl", tokenizer_folder)
    same = write_rows(tmp_path / "same.jsonl", rows_of("a", 9))
    config = replace(CONFIG, sources=(a, replace(b, files=(same,))))
    with refuses("empty", wanted="set-b"):
        conversations(config, workspace(tmp_path / "none"), tokenizer_folder)


# --- sources together -------------------------------------------------------------------------------------------------


def test_duplicates_across_sources_belong_to_the_first(tmp_path: Path, tokenizer_folder: Path) -> None:
    first = write_rows(tmp_path / "first.jsonl", rows_of("a", 10))
    share_gpt = [
        {
            "conversations": [
                {"from": "human", "value": row["messages"][0]["content"]},
                {"from": "gpt", "value": "春です。"},
            ]
        }
        for row in rows_of("a", 14)
    ]
    second = write_rows(tmp_path / "second.jsonl", share_gpt)
    facts = conversations(CONFIG, workspace(tmp_path / "out"), first, second, tokenizer_folder)
    assert [source["rows_out"] for source in facts["sources"]] == [10, 4]
    assert [source["removed"]["exact duplicate"] for source in facts["sources"]] == [0, 10]
    assert [sample["source"] for sample in facts["samples"]["kept"]] == ["first.jsonl", "second.jsonl", "first.jsonl"]


def test_bad_rows_of_a_small_source_do_not_hide_in_a_large_one(tmp_path: Path, tokenizer_folder: Path) -> None:
    large = write_rows(tmp_path / "large.jsonl", rows_of("a", 300))
    small = write_rows(tmp_path / "small.jsonl", [*rows_of("b", 1), {"messages": said("a")}])
    with refuses("wrong-format", got="1 of 2 (small.jsonl:2: roles out of order)"):
        conversations(CONFIG, workspace(tmp_path / "out"), large, small, tokenizer_folder)


def test_benchmark_items_are_left_out(tmp_path: Path, tokenizer_folder: Path) -> None:
    question = "電子機器で使用される最も主要な電子回路基板の事をなんと言う？"
    item = {"q_id": 1, "question": question, "label": 1} | {f"choice{place}": f"基板{place}" for place in range(5)}
    write_rows(tmp_path / "benchmarks" / "jglue" / "jcommonsenseqa-v1.3_valid-v1.3.json", [item])
    given = {"id": "x", "messages": said("次に答えて。\n" + question, "マザーボード")}
    file = write_rows(tmp_path / "mine.jsonl", [*rows_of("a", 10), given])
    config = replace(CONFIG, benchmarks=tmp_path / "benchmarks")
    facts = conversations(config, workspace(tmp_path / "out"), file, tokenizer_folder)
    assert facts["removed"]["benchmark item"] == 1 == sum(facts["contamination"].values())
    assert "x" not in {row["id"] for row in kept_rows(tmp_path / "out")}
    (name,) = facts["contamination"]
    assert "jcommonsenseqa" in name.lower() and facts["benchmarks"] == {name: {"items": 1, "too_short": 0}}
    facts = conversations(CONFIG, workspace(tmp_path / "without"), file, tokenizer_folder)
    assert facts["rows_out"] == 11 and facts["contamination"] == facts["benchmarks"] == {}
    (step,) = [step for step in facts["steps"] if step["step"] == "decontamination"]
    assert (step["on"], step["reason"]) == (False, "no benchmark files were given")


def test_card_has_what_reports_and_licences_need(tmp_path: Path, tokenizer_folder: Path) -> None:
    terms = Terms(name="quiz", licence="CC-BY-SA-4.0", attribution="by them", obligations=("Pass it on likewise.",))
    quiz = write_rows(tmp_path / "quiz.jsonl", [*rows_of("a", 20), rows_of("a", 1)[0], {"messages": []}])
    same_name = write_rows(tmp_path / "other" / "quiz.jsonl", rows_of("b", 5))
    plain = [same_name, write_rows(tmp_path / "third" / "quiz.jsonl", rows_of("c", 5))]
    config = replace(CONFIG, terms=(terms,), max_bad_share=0.1)
    facts = conversations(config, workspace(tmp_path / "out"), quiz, *plain, tokenizer_folder)
    card = json.loads((tmp_path / "out" / "data_card.json").read_text(encoding="utf-8"))
    assert card.items() <= facts.items()
    first, second, third = card["sources"]
    assert (first["name"], second["name"], third["name"]) == ("quiz", "quiz.jsonl", "quiz.jsonl (2)")
    characters = sum(len(f"a{number}は？春です。") for number in range(20))
    assert first == {
        "name": "quiz",
        "licence": "CC-BY-SA-4.0",
        "url": None,
        "attribution": "by them",
        "obligations": ["Pass it on likewise."],
        "quotable": False,
        "revision": None,
        "weight": None,
        "rows_in": 22,
        "characters_in": characters + len("a0は？春です。"),
        "removed": {"empty messages": 1, "exact duplicate": 1, "longer than a row": 0},
        "rows_out": 20,
        "characters_out": characters,
        "tokens_out": first["tokens_out"],
        "tokens_in_estimate": first["tokens_in_estimate"],
        "truncated": {},
        "answers": 20,
    }
    tokenizer = Tokenizer.load(tokenizer_folder)
    assert first["tokens_out"] == sum(len(tokenizer.render(row["messages"])[0]) for row in rows_of("a", 20))
    assert first["tokens_in_estimate"] == round(first["characters_in"] * first["tokens_out"] / characters)
    assert card["tokens"] == sum(source["tokens_out"] for source in card["sources"])
    assert card["tokens"] == sum(meta["tokens"] for meta in card["splits"].values())
    assert card["rows_in"] == 32 == card["rows_out"] + sum(card["removed"].values())
    assert card["samples"]["empty messages"] == [{"source": "quiz", "id": "quiz.jsonl:22", "text": ""}]
    # What training carries on from it.
    (tmp_path / "model").mkdir()
    propagate_sources(tmp_path / "model", "conversations", tmp_path / "out")
    assert [source.name for source in read_sources(tmp_path / "model")] == ["quiz", "quiz.jsonl", "quiz.jsonl (2)"]


def test_too_many_terms_and_no_source(tmp_path: Path, tokenizer_folder: Path) -> None:
    file = write_rows(tmp_path / "mine.jsonl", rows_of("a", 3))
    with refuses("contradiction", wanted="1 inputs", got="2"):
        config = replace(CONFIG, terms=(Terms(name="a"), Terms(name="b")))
        conversations(config, workspace(tmp_path / "out"), file, tokenizer_folder)
    with refuses("empty", got="no source"):
        conversations(CONFIG, workspace(tmp_path / "none"), tokenizer_folder)
    with refuses("empty", wanted="files of a"):
        ConversationSource(name="a", files=())
    with refuses("unknown-name", wanted="drop, cut", got="'split'"):
        replace(CONFIG, overlong="split")  # pyright: ignore[reportArgumentType]


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["instruction_ja", "aio_quiz"])
def test_genuine_conversations_stay(shared_data: Path, name: str) -> None:
    strict = FiltersConfig(drop_refusals=True)
    lines = (shared_data / "sft_ja" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) > 600
    assert [row["id"] for row in rows if fault_of(row["messages"]) or rule_against(row["messages"], strict)] == []


@pytest.mark.shared_data
def test_genuine_dialogues_become_rows(tmp_path: Path, shared_data: Path) -> None:
    file = shared_data / "sft_ja" / "instruction_ja.jsonl"
    config = replace(CONFIG, sequence_tokens=512, terms=(Terms(name="instruction_ja", licence="MIT"),))
    facts = conversations(config, workspace(tmp_path / "out"), file, shared_data / "qwen2.5_tokenizer")
    (source,) = facts["sources"]
    assert (source["rows_in"], source["rows_out"]) == (669, 669)
    assert source["characters_in"] == source["characters_out"] > 100_000
    assert sorted(row["id"] for row in kept_rows(tmp_path / "out")) == sorted(
        json.loads(line)["id"] for line in file.read_text(encoding="utf-8").splitlines()
    )
