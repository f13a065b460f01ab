"""Gemma-2-LMSYS-Chat-1M-Synth as published: the join of its files, each way in which it can fail, and the secret."""

import contextlib
import gzip
import json
import os
import shutil
import sqlite3
import stat
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from lmsys_tiny import (
    ANSWERS,
    INSTRUCTIONS,
    ORIGINAL,
    SECRET,
    SET,
    VARIABLE,
    answer_row,
    encrypted,
    needs_gpg,
    turn,
)
from text_tiny import read_gzip, tiny_tokenizer, workspace, write_rows

from common.documents import SPLITS, Shares
from common.errors import Code, InputError, UserError
from common.known_sets import terms_of
from common.provenance import Terms
from instruct.__main__ import main
from instruct.conversations import ConversationsConfig, ConversationSource, LmsysConfig, conversations, gpg
from instruct.conversations.layouts import best_response, joined_row

CONFIG = ConversationsConfig(sequence_tokens=256, shares=Shares(calibration=0.1, validation=0.1, test=0.1))


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer")


ROWS = [answer_row(number) for number in range(20)]
ROWS[1] |= {"empty_user_instruction_ja": True, "synthesized_assistant_responses": []}
ROWS[2] |= {"duplicate_user_instruction_ja": f"{0:032x}", "synthesized_assistant_responses": []}
ROWS[3] |= {"is_template_instruction": "chemistry"}
ROWS[4] |= {
    "synthesized_multiturn_conversation": [
        *(turn("user", None), turn("assistant", "一番目")),
        *(turn("user", "もっと"), turn("assistant", "二番目")),
    ]
}
ROWS[5] |= {"synthesized_multiturn_conversation": [turn("assistant", "ひとつだけ")]}
ROWS[6] |= {"synthesized_assistant_responses": None}
REDACTED = 7
ORIGINALS = [
    {
        "conversation_id": f"{number:032x}",
        "model": "m",
        "conversation": [turn("user", f"question {number}"), turn("assistant", "original answer")],
        "turn": 1,
        "language": "English",
        "redacted": number == REDACTED,
    }
    for number in range(30)
]
TRANSLATED = [
    {"conversation_id": f"{number:032x}", "translated_conversation": [turn("user", f"質問{number}は？")]}
    for number in range(20)
]
UNLOCKED = gzip.compress("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in TRANSLATED).encode(), mtime=0)
EXPECTED = {
    f"{number:032x}": [turn("user", f"質問{number}は？"), turn("assistant", f"答え{number}-2")]
    for number in range(20)
    if number not in (1, 2, 3, 6, REDACTED)
}
EXPECTED[f"{4:032x}"] = [
    *(turn("user", "質問4は？"), turn("assistant", "一番目"), turn("user", "もっと"), turn("assistant", "二番目"))
]
EXPECTED[f"{5:032x}"] = [turn("user", "質問5は？"), turn("assistant", "ひとつだけ")]


def publish(root: Path, *, locked: bool = True, original: str = "parquet") -> Path:
    """A SOURCES folder with both sets, as they lie on the hub or as the scripts leave them."""
    dataset = root / SET / "dataset"
    write_rows(dataset / ANSWERS, ROWS)
    plain = write_rows(dataset / INSTRUCTIONS, TRANSLATED)
    if locked:
        plain.with_name(plain.name + ".gpg").write_bytes(encrypted(UNLOCKED))
        plain.unlink()
    if original == "parquet":
        import pyarrow
        from pyarrow.parquet import write_table

        (root / ORIGINAL / "data").mkdir(parents=True)
        for place in range(2):
            part = pyarrow.Table.from_pylist(ORIGINALS[place::2])
            write_table(part, root / ORIGINAL / "data" / f"train-0000{place}-of-00002.parquet")
    elif original == "export":
        write_rows(root / ORIGINAL / "lmsys-chat-1m-ja+en.jsonl.gz", ORIGINALS)
    return root


def source(root: Path, **fields: Any) -> ConversationSource:
    files = tuple(sorted(path for path in (root / SET).rglob("*") if path.is_file()))
    original = tuple(sorted(path for path in (root / ORIGINAL).rglob("*") if path.is_file()))
    terms = Terms(name=SET)
    return ConversationSource(name=SET, kind="lmsys", files=files, original=original, terms=terms, **fields)


def kept(folder: Path) -> dict[str, Any]:
    rows = [row for split in SPLITS for row in read_gzip(folder / "documents" / f"{split}-00000.jsonl.gz")]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row["messages"] for row in rows}


def everything(folder: Path) -> bytes:
    """Names and contents of all files under a folder, gzip files unpacked too."""
    found: list[bytes] = []
    for path in sorted(folder.rglob("*")):
        found.append(path.as_posix().encode())
        if path.is_file():
            found.append(path.read_bytes())
            if path.suffix == ".gz":
                found.append(gzip.decompress(path.read_bytes()))
    return b"\n".join(found)


@needs_gpg
@pytest.mark.parametrize("original", ["parquet", "export"])
def test_the_three_files_become_conversations(
    tmp_path: Path, tokenizer_folder: Path, original: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, SECRET + "\n")
    root = publish(tmp_path / "hub", original=original)
    config = replace(CONFIG, sources=(source(root),))
    facts = conversations(config, workspace(tmp_path / "out"), tokenizer_folder)
    assert kept(tmp_path / "out") == EXPECTED
    assert facts["removed"] == {
        "duplicate instruction": 1,
        "empty instruction": 1,
        "exact duplicate": 0,
        "longer than a row": 0,
        "no answer": 1,
        "personal data": 1,
        "template instruction": 1,
    }
    assert (facts["rows_in"], facts["rows_out"]) == (20, 15)
    steps = {step["step"]: step for step in facts["steps"]}
    assert steps["join"]["settings"] == {"source": SET, "instructions": 20, "originals": 30, "answers": 16}
    assert steps["best answer by score"]["on"] is True
    assert steps["best answer by score"]["settings"] == {"source": SET, "quality_scores": 13}
    assert [path.name for path in (tmp_path / "out" / "scratch").iterdir()] == ["split.json"]


@needs_gpg
def test_marks_can_be_ignored(tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)
    lmsys = LmsysConfig(exclude_personal_data=False, exclude_templates=False)
    config = replace(CONFIG, sources=(source(publish(tmp_path / "hub")),), lmsys=lmsys)
    conversations(config, workspace(tmp_path / "out"), tokenizer_folder)
    assert kept(tmp_path / "out").keys() - EXPECTED.keys() == {f"{3:032x}", f"{REDACTED:032x}"}


def test_a_file_decrypted_before_needs_no_key(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    config = replace(CONFIG, sources=(source(publish(tmp_path / "hub", locked=False)),))
    left_over = tmp_path / "out" / "scratch" / "lmsys"  # by a start that was killed
    left_over.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(left_over / "join.sqlite")) as database:
        database.execute("CREATE TABLE originals (id TEXT)")
    conversations(config, workspace(tmp_path / "out"), tokenizer_folder)
    assert kept(tmp_path / "out") == EXPECTED and not left_over.exists()


@needs_gpg
def test_the_passphrase_is_in_no_output(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)
    seen: list[tuple[Any, dict[str, str], int]] = []
    run = subprocess.run

    def spy(command: list[Any], **options: Any) -> Any:
        home = options["env"]["GNUPGHOME"]
        seen.append((command, options["env"], stat.S_IMODE(os.stat(home).st_mode)))
        return run(command, **options)

    root = publish(tmp_path / "hub")
    monkeypatch.setattr(gpg.subprocess, "run", spy)
    options = ["--tokenizer", tokenizer_folder, "--sources", root, "--out", tmp_path / "made"]
    main([str(argument) for argument in ("conversations", SET, *options)])
    assert kept(tmp_path / "made") == EXPECTED
    written, printed = everything(tmp_path / "made"), capfd.readouterr()
    assert SECRET.encode() not in written and SECRET not in printed.out + printed.err
    assert "質問0は？".encode() in written  # the search finds what is there
    assert VARIABLE not in os.listdir(tmp_path) and len(seen) == 2
    for command, environment, mode in seen:
        assert SECRET not in " ".join(map(str, command)) and SECRET not in "".join(environment.values())
        assert mode == 0o700 and not os.path.exists(environment["GNUPGHOME"])
        assert environment["GNUPGHOME"] != os.environ.get("GNUPGHOME")


@needs_gpg
def test_what_is_missing_is_said_before_other_sources_are_read(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "broken.jsonl").write_text("{")
    config = replace(CONFIG, sources=(source(publish(tmp_path / "hub")),))
    with refuses("no-access", wanted=VARIABLE):
        conversations(config, workspace(tmp_path / "out"), tmp_path / "broken.jsonl", tokenizer_folder)


@needs_gpg
@pytest.mark.parametrize("passphrase", ["wrong", "", None, "two\nlines"])
def test_a_wrong_passphrase_names_the_script(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, passphrase: str | None
) -> None:
    if passphrase is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, passphrase)
    config = replace(CONFIG, sources=(source(publish(tmp_path / "hub")),))
    script = "scripts/compute_decryption_key_from_lmsys-chat-1m.sh"
    with refuses("no-access", next_step=script) as found:
        conversations(config, workspace(tmp_path / "out"), tokenizer_folder)
    error = found[0]
    assert VARIABLE in error.wanted and INSTRUCTIONS + ".gpg" in error.wanted
    expected = {"wrong": "a wrong passphrase", "two\nlines": "several lines"}.get(passphrase or "", "none")
    assert error.got.startswith(expected) and "wrong" not in str(error).replace("a wrong passphrase", "")
    assert list((tmp_path / "out").rglob("*")) == [tmp_path / "out" / "scratch"]


@needs_gpg
def test_the_command_leaves_nothing_behind_a_wrong_passphrase(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "wrong")
    root = publish(tmp_path / "hub")
    chat = write_rows(tmp_path / "mine.jsonl", [{"messages": [turn("user", "春"), turn("assistant", "夏")]}] * 3)
    options = ["--weights", 1, 1, "--tokenizer", tokenizer_folder, "--sources", root]
    (tmp_path / "made").mkdir()
    with refuses("no-access", wanted=VARIABLE):
        main([str(argument) for argument in ("conversations", chat, SET, *options, "--out", tmp_path / "made" / "out")])
    assert list((tmp_path / "made").iterdir()) == []


@needs_gpg
@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda data: data[:-40], "damaged"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "wrong-format"),
    ],
)
def test_a_damaged_encrypted_file(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, code: Code
) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)
    root = publish(tmp_path / "hub")
    locked = root / SET / "dataset" / (INSTRUCTIONS + ".gpg")
    locked.write_bytes(damage(locked.read_bytes()))
    with refuses(code, wanted=INSTRUCTIONS):
        conversations(replace(CONFIG, sources=(source(root),)), workspace(tmp_path / "out"), tokenizer_folder)
    assert not list((tmp_path / "out").rglob(INSTRUCTIONS))


def test_gpg_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        refuses("not-installed", wanted="gpg", got="PATH", next_step="GnuPG") as found,
        gpg.decrypted(tmp_path / "a.gpg", tmp_path, variable=VARIABLE, key_hint=""),
    ):
        raise AssertionError("there is no gpg")
    assert SECRET not in str(found[0])


def test_the_set_not_accepted(tmp_path: Path, tokenizer_folder: Path) -> None:
    root = publish(tmp_path / "hub", locked=False, original="none")
    with refuses("no-access", wanted=ORIGINAL, next_step=ORIGINAL):
        conversations(replace(CONFIG, sources=(source(root),)), workspace(tmp_path / "out"), tokenizer_folder)
    options = ["--tokenizer", tokenizer_folder, "--sources", root, "--out", tmp_path / "made"]
    with pytest.raises(UserError) as raised:
        main([str(argument) for argument in ("conversations", SET, *options)])
    assert ORIGINAL in raised.value.wanted and ORIGINAL in raised.value.next_step


@pytest.mark.parametrize(
    ("missing", "got"),
    [(ANSWERS, f"only {INSTRUCTIONS}"), (INSTRUCTIONS, "answers")],
)
def test_a_file_of_the_set_missing(tmp_path: Path, tokenizer_folder: Path, missing: str, got: str) -> None:
    root = publish(tmp_path / "hub", locked=False)
    (root / SET / "dataset" / missing).unlink()
    with refuses("not-found", wanted=ANSWERS, got=got):
        conversations(replace(CONFIG, sources=(source(root),)), workspace(tmp_path / "out"), tokenizer_folder)


def test_counts_that_do_not_match(tmp_path: Path, tokenizer_folder: Path) -> None:
    root = publish(tmp_path / "hub", locked=False)
    write_rows(root / SET / "dataset" / INSTRUCTIONS, TRANSLATED[:-2])
    config = replace(CONFIG, sources=(source(root),))
    got = "16 answers, 2 of them without instruction and 0 without original (there are 18 instructions and 30"
    with refuses("mismatch", got=got):
        conversations(config, workspace(tmp_path / "out"), tokenizer_folder)
    loose = replace(config, max_bad_share=0.2)
    facts = conversations(loose, workspace(tmp_path / "loose"), tokenizer_folder)
    assert facts["removed"]["no instruction with its id"] == 2 and facts["rows_out"] == 13
    shutil.rmtree(root / ORIGINAL)
    write_rows(root / ORIGINAL / "lmsys.jsonl", ORIGINALS[:15])
    with refuses("mismatch", got="16 answers, 2 of them without instruction and 5 without original"):
        config = replace(CONFIG, sources=(source(root),))
        conversations(config, workspace(tmp_path / "short"), tokenizer_folder)


@pytest.mark.parametrize("name", [INSTRUCTIONS, "lmsys.jsonl"])
def test_bad_rows_of_what_is_joined_count_against_the_config(tmp_path: Path, tokenizer_folder: Path, name: str) -> None:
    root = publish(tmp_path / "hub", locked=False, original="none")
    bad = {"conversation_id": None, "redacted": False}
    write_rows(root / ORIGINAL / "lmsys.jsonl", [*ORIGINALS, *([bad] if name == "lmsys.jsonl" else [])])
    write_rows(root / SET / "dataset" / INSTRUCTIONS, [*TRANSLATED, *([bad] if name == INSTRUCTIONS else [])])
    config = replace(CONFIG, sources=(source(root),))
    with refuses("wrong-format", wanted="1.00%", got=f"({name}:") as found:
        conversations(config, workspace(tmp_path / "out"), tokenizer_folder)
    assert isinstance(found[0], InputError) and found[0].got.startswith("1 of ") and "no field" in found[0].got
    loose = replace(config, max_bad_share=0.1)
    assert conversations(loose, workspace(tmp_path / "loose"), tokenizer_folder)["rows_out"] == len(EXPECTED)
    strict = replace(config, max_bad_share=0.0)
    with refuses("wrong-format", wanted="0.00%"):
        conversations(strict, workspace(tmp_path / "strict"), tokenizer_folder)


def test_answers_without_a_match_count_over_the_whole(tmp_path: Path, tokenizer_folder: Path) -> None:
    root = publish(tmp_path / "hub", locked=False, original="none")
    # Of the first thousand and a few more, more than 1 % are without.
    numbers = [*range(10_000, 10_990), *range(20_000, 20_020), *range(10_990, 12_000)]
    write_rows(root / SET / "dataset" / ANSWERS, [answer_row(number) for number in numbers])
    known = [{"conversation_id": f"{number:032x}"} for number in numbers if number < 20_000]
    write_rows(root / ORIGINAL / "lmsys.jsonl", [row | {"redacted": False} for row in known])
    told = [{"translated_conversation": [turn("user", f"質問{row['conversation_id']}は？")]} | row for row in known]
    write_rows(root / SET / "dataset" / INSTRUCTIONS, told)
    facts = conversations(replace(CONFIG, sources=(source(root),)), workspace(tmp_path / "out"), tokenizer_folder)
    assert facts["removed"]["no instruction with its id"] == 20 and facts["rows_out"] == 2000


def test_files_of_two_versions_are_refused_at_the_start(tmp_path: Path, tokenizer_folder: Path) -> None:
    root = publish(tmp_path / "hub", locked=False)
    many = [answer_row(10_000 + number) for number in range(3000)]
    write_rows(root / SET / "dataset" / ANSWERS, many)
    with refuses("mismatch", got="1,000 answers, 1,000 of them without instruction and 1,000 without original"):
        conversations(replace(CONFIG, sources=(source(root),)), workspace(tmp_path / "out"), tokenizer_folder)


@pytest.mark.parametrize(
    ("file", "column", "wanted"),
    [
        (ANSWERS, "reply", ANSWERS),
        (INSTRUCTIONS, "words", INSTRUCTIONS),
        ("lmsys.parquet", "model", "redacted of lmsys-chat-1m in lmsys.jsonl.gz"),
    ],
)
def test_columns_of_another_version_are_shown(
    tmp_path: Path, tokenizer_folder: Path, file: str, column: str, wanted: str
) -> None:
    rows = [{"conversation_id": "a", column: "b"}]
    root = publish(tmp_path / "hub", locked=False, original="export")
    if file == "lmsys.parquet":
        shutil.rmtree(root / ORIGINAL)
        write_rows(root / ORIGINAL / "lmsys.jsonl.gz", rows)
    else:
        write_rows(root / SET / "dataset" / file, rows)
    with refuses("wrong-format", wanted=wanted, got=f"conversation_id, {column}"):
        conversations(replace(CONFIG, sources=(source(root),)), workspace(tmp_path / "out"), tokenizer_folder)


def merged() -> list[dict[str, Any]]:
    """What the publisher's merge script writes: the original row, the instruction and the answers in one."""
    translated = {row["conversation_id"]: row for row in TRANSLATED}
    originals = {row["conversation_id"]: row for row in ORIGINALS}
    return [originals[row["conversation_id"]] | row | translated[row["conversation_id"]] for row in ROWS]


def test_the_merged_file_gives_the_same(tmp_path: Path, tokenizer_folder: Path) -> None:
    file = write_rows(tmp_path / "gemma2-lmsys-chat-1m-synth.jsonl.gz", merged())
    facts = conversations(CONFIG, workspace(tmp_path / "out"), file, tokenizer_folder)
    assert {messages[0]["content"]: messages for messages in kept(tmp_path / "out").values()} == {
        messages[0]["content"]: messages for messages in EXPECTED.values()
    }
    assert facts["removed"]["personal data"] == facts["removed"]["template instruction"] == 1


def test_the_sft_file_needs_nothing_else(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [{"conversation_id": key, "conversation": messages} for key, messages in EXPECTED.items()]
    root = tmp_path / "hub"
    write_rows(root / SET / "lmsys-chat-1m-synth-sft.jsonl.gz", rows)
    options = ["--tokenizer", tokenizer_folder, "--sources", root, "--out", tmp_path / "made"]
    main([str(argument) for argument in ("conversations", SET, *options)])
    assert sorted(map(str, kept(tmp_path / "made").values())) == sorted(map(str, EXPECTED.values()))


def test_the_card_quotes_nothing_that_may_not_be_passed_on(tmp_path: Path, tokenizer_folder: Path) -> None:
    root = publish(tmp_path / "hub", locked=False)
    options = ["--tokenizer", tokenizer_folder, "--sources", root, "--out", tmp_path / "made"]
    main([str(argument) for argument in ("conversations", SET, *options)])
    card = (tmp_path / "made" / "data_card.json").read_text(encoding="utf-8")
    manifest = (tmp_path / "made" / "manifest.json").read_text(encoding="utf-8")
    assert "質問" not in card + manifest and "答え" not in card + manifest
    samples = json.loads(card)["samples"]
    assert len(samples["kept"]) == 3 and samples["personal data"][0]["id"] == f"{REDACTED:032x}"


def test_a_closed_set_that_is_given_twice_is_quoted_neither_time(tmp_path: Path, tokenizer_folder: Path) -> None:
    files = []
    for name in ("a", "b"):
        files.append(tmp_path / f"{name}.jsonl")
        messages = [{"role": "user", "content": f"質問{name}"}, {"role": "assistant", "content": "答え"}]
        files[-1].write_text(json.dumps({"messages": messages}) + "\n")
    sources = tuple(ConversationSource(name=SET, files=(file,), terms=terms_of(SET)) for file in files)
    config = ConversationsConfig(sources=sources)
    conversations(config, workspace(tmp_path / "out"), tokenizer_folder)
    card = json.loads((tmp_path / "out" / "data_card.json").read_text(encoding="utf-8"))
    assert [source["name"] for source in card["sources"]] == [SET, f"{SET} (2)"]
    assert {sample["text"][:11] for sample in card["samples"]["kept"]} == {"(not shown:"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (0, None)),
        ({"scores": [1, 3, 2]}, (1, "scores")),
        ({"preference_score_gemma": [1.5, 2, 2]}, (1, "preference_score_gemma")),
        ({"scores": [1, 2]}, (0, None)),
        ({"scores": [True, False, True]}, (0, None)),
        ({"scores": [None, None, 0]}, (2, "scores")),
        ({"scores": [float("nan"), -1, -2]}, (1, "scores")),
        ({"b_score": [1, 2, 3], "a_score": [3, 2, 1]}, (0, "a_score")),
        ({"score": 5, "ratings": [1, 2, 3]}, (0, None)),
    ],
)
def test_best_response_by_whatever_scores_there_are(fields: dict[str, Any], expected: tuple[int, str | None]) -> None:
    assert best_response(fields, ["a", "b", "c"]) == expected


def test_scores_inside_the_responses() -> None:
    responses = [turn("assistant", "a") | {"score": 1}, turn("assistant", "b") | {"score": 4}]
    assert best_response({}, responses) == (1, "synthesized_assistant_responses.score")
    row = {"conversation_id": "x", "synthesized_assistant_responses": responses}
    chosen = Counter[str]()
    made = joined_row(row, "q", chosen)
    assert made == {"id": "x", "messages": [turn("user", "q"), turn("assistant", "b")]}
    assert chosen == {"synthesized_assistant_responses.score": 1}
