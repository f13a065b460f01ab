"""The corpus stage on small files: what is kept, counted, cut and weighted, and what a restart and bad input do."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors_tiny import refuses
from hypothesis import given
from hypothesis import strategies as st
from text_tiny import TEXTS, read_gzip, tiny_tokenizer, workspace, write_rows

import common.documents
import distill.corpus.kept
from common.documents import SPLITS, Shares
from common.errors import Code
from common.packing import PackedRows
from common.tokenizer import Tokenizer
from distill.__main__ import main
from distill.corpus import CorpusConfig, corpus
from distill.corpus.stage import answer_weights
from distill.text.cleaning import CleaningConfig

ROOT = Path(__file__).parents[1]
# The texts of most tests are few, short and much alike: what removes such texts has tests of its own.
CONFIG = CorpusConfig(
    sequence_tokens=32,
    shares=Shares(calibration=0.1, validation=0.1, test=0.1),
    cleaning=CleaningConfig(quality=None),
    near_duplicates=None,
)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


def documents(count: int) -> list[dict[str, Any]]:
    return [{"id": f"d{number}", "text": f"{number}. {TEXTS[number % len(TEXTS)]}"} for number in range(count)]


def packed_documents(folder: Path, split: str) -> list[tuple[list[int], list[int]]]:
    """Ids and weights of every piece in the packed rows, rejoined where a document was cut."""
    tokens, doc_ids, weights = (
        np.load(folder / "packed" / split / f"{n}.npy") for n in ("tokens", "doc_ids", "weights")
    )
    return [
        (tokens[row][doc_ids[row] == number].tolist(), weights[row][doc_ids[row] == number].tolist())
        for row in range(len(tokens))
        for number in range(1, doc_ids[row].max() + 1)
    ]


def file_hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "scratch" not in path.relative_to(folder).parts
    }


def test_every_document_lands_in_one_split_as_text_and_as_tokens(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: Tokenizer
) -> None:
    rows = documents(60)
    source = write_rows(tmp_path / "world" / "text.jsonl", rows).parent
    config = replace(CONFIG, sequence_tokens=512)
    facts = corpus(config, workspace(tmp_path / "out"), source, tokenizer_folder)

    kept = {split: read_gzip(tmp_path / "out" / "documents" / f"{split}-00000.jsonl.gz") for split in SPLITS}
    written = sorted((row for split in SPLITS for row in kept[split]), key=lambda row: int(row["id"][1:]))
    assert written == [{"id": row["id"], "text": row["text"].rstrip(), "source": "text"} for row in rows]
    assert all(kept[split] for split in SPLITS) and len(kept["train"]) > 30
    for split in SPLITS:
        expected = [[*tokenizer.encode(row["text"]), tokenizer.document_end_id] for row in kept[split]]
        found = packed_documents(tmp_path / "out", split)
        assert sorted(ids for ids, _ in found) == sorted(expected)
        assert {weight for _, weights in found for weight in weights} == {100}
        assert facts["splits"][split]["tokens"] == sum(map(len, expected))
        assert PackedRows(tmp_path / "out" / "packed" / split).meta == facts["splits"][split]
    assert facts["tokens"] == sum(facts["splits"][split]["tokens"] for split in SPLITS)
    card = json.loads((tmp_path / "out" / "data_card.json").read_text())
    assert (card["rows_in"], card["rows_out"], card["removed"]) == (60, 60, {"exact duplicate": 0, "near duplicate": 0})
    assert Tokenizer.load(tmp_path / "out" / "tokenizer").sha256 == tokenizer.sha256


def test_long_documents_are_cut_into_pieces(tmp_path: Path, tokenizer_folder: Path, tokenizer: Tokenizer) -> None:
    text = "".join(TEXTS)
    source = write_rows(tmp_path / "text.jsonl", [{"text": text}])
    corpus(CONFIG, workspace(tmp_path / "out"), source, tokenizer_folder)
    ids = [*tokenizer.encode(text), tokenizer.document_end_id]
    assert len(ids) > 64
    found = [piece for piece, _ in packed_documents(tmp_path / "out", "train")]
    assert sorted(found) == sorted(ids[start : start + 32] for start in range(0, len(ids), 32))


def test_card_counts_what_was_removed_and_why(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = documents(120)
    extra = [rows[3], {"text": rows[4]["text"] + "\n"}, {"text": " "}, {"id": "x"}]
    write_rows(tmp_path / "b.jsonl.gz", extra)
    facts = corpus(
        replace(CONFIG, max_bad_share=0.1),
        workspace(tmp_path / "out"),
        write_rows(tmp_path / "a.jsonl", rows),
        tmp_path / "b.jsonl.gz",
        tokenizer_folder,
    )
    assert facts["rows_in"] == 124 and facts["rows_out"] == 120
    assert facts["removed"] == {"empty text": 1, "no field text": 1, "exact duplicate": 2, "near duplicate": 0}
    assert facts["rows_in"] - sum(facts["removed"].values()) == facts["rows_out"]
    assert sum(meta["documents"] for meta in facts["splits"].values()) == 120


# --- weights ----------------------------------------------------------------------------------------------------------


def naive_weights(offsets: Sequence[tuple[int, int]], answers: list[list[int]], prompt_weight: int) -> list[int]:
    weights: list[int] = []
    before = False
    for start, end in offsets:
        inside = any(set(range(start, end)) & set(range(*answer)) for answer in answers)
        weights.append(100 if inside or before else prompt_weight)
        before = inside
    return weights


@st.composite
def tokens_and_answers(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Tokens of 1 to 3 characters, some sharing one character, and answers that do not touch one another."""
    offsets: list[tuple[int, int]] = []
    place = 0
    for length, copies in draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2)), max_size=20)):
        offsets += [(place, place + length)] * copies
        place += length
    edges = sorted(draw(st.sets(st.integers(0, max(place, 1)), max_size=6)))
    return offsets, [list(span) for span in zip(edges[::2], edges[1::2], strict=False) if span[1] <= place]


@given(case=tokens_and_answers())
def test_answer_weights_against_a_naive_loop(case: tuple[list[tuple[int, int]], list[list[int]]]) -> None:
    offsets, answers = case
    assert answer_weights(offsets, answers, prompt_weight=10) == naive_weights(offsets, answers, 10)


def test_answers_count_fully_in_train_and_everything_in_the_other_splits(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: Tokenizer
) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(40):
        text = f"質問{number}：川はどこにありますか。\n答え：町の東\n質問：春\n答え：秋です"
        rows.append(
            {"text": text, "answers": [[text.index("町"), text.index("東") + 1], [text.index("秋"), len(text)]]}
        )
    source = write_rows(tmp_path / "text.jsonl", [*rows, {"text": "山の村の人は米を作り、", "answers": []}])
    config = replace(
        CONFIG, sequence_tokens=512, prompt_weight=7, shares=Shares(calibration=0.2, validation=0.2, test=0.2)
    )
    corpus(config, workspace(tmp_path / "out"), source, tokenizer_folder)
    for ids, weights in packed_documents(tmp_path / "out", "train"):
        counted = [token for token, weight in zip(ids, weights, strict=True) if weight == 100]
        full = tokenizer.decode(counted, skip_special=False)
        if "山" in full:
            assert set(weights) == {100}
        else:
            assert set(weights) == {7, 100}
            # Each answer, the line break that closes the first, and the end of the document.
            assert full == "町の東\n秋です<|endoftext|>"
    for split in SPLITS[1:]:
        assert all(set(weights) == {100} for _, weights in packed_documents(tmp_path / "out", split))


@pytest.mark.parametrize("answers", [[[0, 99]], [[2, 2]], [[-1, 2]], [["0", 1]], [[0]], {"a": 1}, [0, 1]])
def test_answers_that_are_no_spans_are_bad_rows(tmp_path: Path, tokenizer_folder: Path, answers: Any) -> None:
    source = write_rows(tmp_path / "text.jsonl", [{"text": "春夏秋冬"}, {"text": "山川", "answers": answers}])
    config = replace(CONFIG, max_bad_share=0.5)
    facts = corpus(config, workspace(tmp_path / "out"), source, tokenizer_folder)
    assert facts["removed"]["answers are no spans of the text"] == 1


# --- the same again ---------------------------------------------------------------------------------------------------


def test_same_input_same_bytes_and_another_seed_another_cut(tmp_path: Path, tokenizer_folder: Path) -> None:
    source = write_rows(tmp_path / "text.jsonl", documents(60))
    for name in ("one", "two"):
        corpus(CONFIG, workspace(tmp_path / name), source, tokenizer_folder)
    assert file_hashes(tmp_path / "one") == file_hashes(tmp_path / "two")
    # No time stamp in the compressed files: a later run is the same, too.
    assert (tmp_path / "one" / "documents" / "train-00000.jsonl.gz").read_bytes()[4:8] == bytes(4)
    corpus(replace(CONFIG, seed=1), workspace(tmp_path / "three"), source, tokenizer_folder)
    test_file = "documents/test-00000.jsonl.gz"
    assert file_hashes(tmp_path / "one")[test_file] != file_hashes(tmp_path / "three")[test_file]


@pytest.mark.parametrize("stop_at", ["cutting", *SPLITS])
def test_a_restart_ends_with_the_same_bytes(
    tmp_path: Path, tokenizer_folder: Path, stop_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rows(tmp_path / "text.jsonl", documents(60))
    whole = corpus(CONFIG, workspace(tmp_path / "whole"), source, tokenizer_folder)
    write_packed = common.documents.write_packed

    def killed(folder: Path, packed: Any, **options: Any) -> Any:
        if folder.name == stop_at:
            (folder).mkdir(parents=True)
            (folder / "tokens.npy").write_bytes(b"half")
            raise KeyboardInterrupt
        return write_packed(folder, packed, **options)

    def killed_cut(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(common.documents, "write_packed", killed)
        if stop_at == "cutting":
            patch.setattr(distill.corpus.kept, "assign_by_number", killed_cut)
        with pytest.raises(KeyboardInterrupt):
            corpus(CONFIG, workspace(tmp_path / "killed"), source, tokenizer_folder)
    if stop_at != "cutting":  # the first pass is not repeated: its source may even be gone
        patched = tmp_path / "unread.jsonl"
        resumed = corpus(CONFIG, workspace(tmp_path / "killed"), patched, tokenizer_folder)
    else:
        resumed = corpus(CONFIG, workspace(tmp_path / "killed"), source, tokenizer_folder)
    assert file_hashes(tmp_path / "killed") == file_hashes(tmp_path / "whole")
    speedless = [{name: value for name, value in facts.items() if name != "tokens_per_s"} for facts in (whole, resumed)]
    assert speedless[0] == speedless[1]


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "code", "got"),
    [
        (b"", "empty", "none in text"),
        (b"\n\n", "empty", "none in text"),
        (b'{"text": ""}\n{"text": "a"}\n', "wrong-format", "1 of 2 (text.jsonl:1: empty text)"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "wrong-format", "1 of 2 (text.jsonl:2: invalid UTF-8)"),
        (b'{"text": "a"}\n{"text": "b', "damaged", ""),
    ],
)
def test_unusable_files(tmp_path: Path, tokenizer_folder: Path, content: bytes, code: Code, got: str) -> None:
    (tmp_path / "text.jsonl").write_bytes(content)
    with refuses(code, got=got):
        corpus(CONFIG, workspace(tmp_path / "out"), tmp_path, tokenizer_folder)


def test_contradicting_configs() -> None:
    for name, value in (("sequence_tokens", 1), ("prompt_weight", 101), ("prompt_weight", -1), ("seed", -1)):
        with refuses("out-of-range", wanted=name, got=str(value)):
            replace(CONFIG, **{name: value})


def test_commands(tmp_path: Path) -> None:
    """`tokenizer`, then `corpus` on two files."""
    one = write_rows(tmp_path / "one.jsonl", documents(40))
    two = write_rows(tmp_path / "two.jsonl.gz", [{"text": "山の村で秋に祭りを開く。"}])
    trained = ["tokenizer", one, two, "--vocabulary", 400, "--out", tmp_path / "tokenizer"]
    main([str(argument) for argument in trained])
    assert Tokenizer.load(tmp_path / "tokenizer").size == 400
    packed = ["corpus", one, two, "--tokenizer", tmp_path / "tokenizer", "--out", tmp_path / "corpus"]
    packed += ["--no-near-duplicates", "--no-quality"]
    main([str(argument) for argument in (*packed, "--sequence-tokens", 64, "--test-share", 0.2)])
    card = json.loads((tmp_path / "corpus" / "data_card.json").read_text())
    assert card["rows_out"] == 41 and card["splits"]["test"]["documents"] > 2
    assert PackedRows(tmp_path / "corpus" / "packed" / "train").sequence_tokens == 64


def test_command_ends_with_one_line_on_bad_input(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "text.jsonl").write_bytes(b'{"text": "\xff"}\n')
    arguments = ["corpus", tmp_path / "text.jsonl", "--tokenizer", tokenizer_folder, "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "distill", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: wanted ")
    assert "text.jsonl:1: invalid UTF-8" in done.stderr and "; next: " in done.stderr
