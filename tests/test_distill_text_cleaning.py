"""One document at a time: what each step does, what it counts, and that batches add up to the whole."""

import json
from typing import Any

import numpy as np
from errors_tiny import refuses
from hypothesis import given
from hypothesis import strategies as st
from text_tiny import TEXTS

from common.duplicates import NearDuplicatesConfig, digest
from distill.text.cleaning import BENCHMARK_RULE, Cleaner, CleaningConfig, CleaningCounts, TextBatch
from eval.decontamination import DecontaminationConfig, Decontaminator
from eval.tasks.items import Item

PLAIN = CleaningConfig(quality=None)
QUESTION = "江戸時代に川越の町で喜多院の再建を指図した僧の名前を次の中から選んでください。"


def batch(rows: list[Any], **options: Any) -> TextBatch:
    raw = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
    return TextBatch(source="s", file="f.jsonl", rows=list(enumerate(raw, start=1)), **options)


def cleaned(
    rows: list[Any], config: CleaningConfig = PLAIN, **options: Any
) -> tuple[list[dict[str, Any]], CleaningCounts]:
    result = Cleaner(config, **options)(batch(rows))
    return [json.loads(line) for line in result.lines], result.counts


def test_a_document_goes_through_all_steps() -> None:
    documents, counts = cleaned(
        [{"text": "ｶﾞｯｺｳで  \r\n連絡先は taro@example.co.jp です。\u200b", "id": "x", "title": "left out"}],
        CleaningConfig(quality=None, redact=True),
    )
    assert [document.keys() for document in documents] == [{"id", "text", "source"}]
    text = documents[0]["text"]
    assert text.startswith("ガッコウで\n連絡先は") and "taro" not in text and "\u200b" not in text
    assert counts.changed == {"normalised": 1, "personal data replaced": 1} and not counts.removed
    assert counts.characters_in == len("ｶﾞｯｺｳで  \r\n連絡先は taro@example.co.jp です。\u200b")


def test_every_row_is_kept_or_counted_once() -> None:
    rows: list[Any] = [
        {"text": TEXTS[0]},
        b"\xff\n",
        {"text": "\u200b \ufeff"},
        {"text": "長" * 200},
        {"text": TEXTS[1], "answers": [[0, 999]]},
        {"text": "Only English here, and nothing else at all, sentence after sentence. It goes on like this. " * 5},
        {"other": 1},
    ]
    documents, counts = cleaned(rows, CleaningConfig(max_characters=150))
    assert [document["text"] for document in documents] == [TEXTS[0]]
    assert counts.rows.bad == {
        "invalid UTF-8": 1,
        "more than 150 characters": 2,
        "answers are no spans of the text": 1,
        "no field text": 1,
    }
    assert counts.rows.first_bad[0] == "f.jsonl:2: invalid UTF-8"
    assert counts.removed == {"empty after cleaning": 1}
    documents, counts = cleaned(rows[5:6], CleaningConfig())
    assert documents == [] and sum(counts.removed.values()) == 1
    (rule,) = counts.removed
    assert [text for _, _, text in counts.samples[rule]] == [rows[5]["text"][:200]]


def test_the_rules_for_japanese_are_for_japanese_sources() -> None:
    english = {"text": "The river runs through the town, and the train stops there every morning at seven. " * 4}
    cleaner = Cleaner(CleaningConfig())
    assert len(cleaner(batch([english], japanese=False)).lines) == 1
    assert len(cleaner(batch([english], japanese=True)).lines) == 0


def test_another_field_may_hold_the_text() -> None:
    result = Cleaner(PLAIN)(batch([{"body": "春が来た。", "text": "not this"}], text_field="body"))
    assert json.loads(result.lines[0])["text"] == "春が来た。"


def test_benchmark_items_are_removed_and_counted_by_benchmark() -> None:
    item = Item(id="1", question=QUESTION, context=None, choices=(), answers=("天海",))
    decontaminator = Decontaminator({"quiz": [item]}, DecontaminationConfig())
    rows = [{"text": TEXTS[0] + QUESTION + TEXTS[1]}, {"text": TEXTS[2]}]
    documents, counts = cleaned(rows, decontaminator=decontaminator)
    assert [document["text"] for document in documents] == [TEXTS[2]]
    assert counts.removed == {BENCHMARK_RULE: 1} and counts.contamination == {"quiz": 1}


PIECES = st.lists(st.sampled_from(["春", "ｶﾞ", "か\u3099", "Ａ１", " ", "\n", "。", "\u200b", "a@b.co.jp"]), max_size=12)


@given(pieces=PIECES, picks=st.lists(st.tuples(st.integers(0, 11), st.integers(1, 4)), max_size=3))
def test_answers_still_span_the_same_text(pieces: list[str], picks: list[tuple[int, int]]) -> None:
    text = "".join(pieces)
    edges = [len("".join(pieces[:place])) for place in range(len(pieces) + 1)]
    picks = [(a, min(a + n, len(pieces))) for a, n in picks if a < len(pieces)]
    answers = [[edges[a], edges[b]] for a, b in picks if edges[a] < edges[b]]
    whole, _ = cleaned([{"text": text}]) if text.strip() else ([], None)
    documents, counts = cleaned([{"text": text, "answers": answers}]) if text.strip() else ([], CleaningCounts())
    if not documents:
        return
    found = documents[0]
    if counts.changed["normalised"]:
        assert found["text"] == whole[0]["text"]
    else:
        assert found["text"] == text
    for (start, end), (before, after) in zip(found["answers"], answers, strict=True):
        left, _ = cleaned([{"text": "。" + text[before:after] + "。"}])
        assert found["text"][start:end] in (text[before:after], left[0]["text"][1:-1])


def test_batches_add_up_to_the_whole() -> None:
    rows: list[Any] = [{"text": f"{number}. {text}"} for number, text in enumerate(TEXTS * 6)]
    rows[7], rows[21] = {"text": " "}, {"text": "ｱ" * 3}
    near = NearDuplicatesConfig()
    cleaner = Cleaner(CleaningConfig(), near_duplicates=near)
    whole = cleaner(batch(rows))
    raw = batch(rows).rows
    parts = [
        cleaner(TextBatch(source="s", file="f.jsonl", rows=raw[start : start + 5])) for start in range(0, len(raw), 5)
    ]
    assert [line for part in parts for line in part.lines] == whole.lines
    for name in ("digests", "characters", "band_keys", "checks"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    counts = CleaningCounts()
    for part in parts:
        counts.merge(CleaningCounts.from_json(json.loads(json.dumps(part.counts.to_json()))))
    counts.rows.place = whole.counts.rows.place
    assert counts == whole.counts


def test_digests_are_those_of_the_cleaned_text() -> None:
    result = Cleaner(PLAIN)(batch([{"text": "ｶﾞ\r\n"}, {"text": "ガ"}]))
    assert (result.digests[0] == result.digests[1]).all()
    assert result.digests.astype(">u8")[0].tobytes() == digest("ガ")
    assert result.band_keys is None and result.checks is None


def test_a_contradicting_config() -> None:
    with refuses("out-of-range", wanted="max_characters", got="0"):
        CleaningConfig(max_characters=0)
