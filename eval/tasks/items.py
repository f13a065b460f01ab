"""Reads published benchmark files into one shape: question, passage, choices and answers.

Used to find benchmark items in training text, so every item is read: test items, few-shot examples, and items that
scoring leaves out. The files are in a folder, named as their publishers name them, in any version.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

from common.errors import UserError, not_found
from common.rows import Row, parse

T = TypeVar("T")
Reader = Callable[[Path], Iterator["Item"]]

TURN_BREAK = "\n\u2029"
"""Between the turns of one question; the second character, a paragraph separator, occurs in no file."""
_LAYOUT = (
    "jglue/jcommonsenseqa*.json, jglue/jsquad*.json, jmmlu/*.csv, jemhopqa/*train*.json and *dev*.json, niilc/*.xml, "
    "mgsm/mgsm_ja.tsv, mgsm_en.tsv and exemplars_ja.json, jhumaneval/jhuman-eval*.jsonl, "
    "jmtbench*/question.jsonl with reference_answer*.jsonl, or questions.jsonl"
)
_CHOICES = 5
_LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a benchmark."""

    id: str
    """`<file>:<the item's own id, or its number>`; the file shows the split and the version."""
    question: str
    """What is asked; `TURN_BREAK` separates turns."""
    context: str | None
    """The passage that the question is about."""
    choices: tuple[str, ...]
    """The choices as text."""
    answers: tuple[str, ...]
    """Right answers as text; the first is the publisher's own."""


class _Damage(Exception):
    """Something in a file that is not as published; the message says where and what."""


def read_benchmarks(folder: Path) -> dict[str, list[Item]]:
    """The items of every known file in the folder and the folders below it, by benchmark, train and test.

    The folder holds each benchmark in a folder of its name, or is one of these. Raises UserError without a known file,
    or for a damaged one.
    """
    found: dict[str, list[Item]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        # From the folder's own name on: it may be the folder of one benchmark.
        relative = f"/{folder.resolve().name}/{path.relative_to(folder).as_posix()}".lower().removesuffix(".gz")
        kind = next((kind for kind in _KINDS if fnmatchcase(relative, kind[0])), None)
        if kind is not None:
            prefix = path.relative_to(folder).as_posix().removesuffix(".gz").rpartition(".")[0]
            items = (replace(item, id=f"{prefix}:{item.id}") for item in _read(path, kind[2]))
            found.setdefault(kind[1], []).extend(items)
    if not found:
        got = "none of these" if folder.is_dir() else "no such folder"
        next_step = "name the folder that holds the benchmarks' folders, with the files as published"
        raise not_found(f"benchmark files in {folder}: any of {_LAYOUT}", got, next_step=next_step)
    return {name: found[name] for name in dict.fromkeys(name for _, name, _ in _KINDS) if name in found}


def _read(path: Path, reader: Reader) -> list[Item]:
    try:
        items = list(reader(path))
        if not items:
            raise _Damage("no item")
    except (_Damage, EOFError, gzip.BadGzipFile, zlib.error) as error:
        wanted, next_step = f"the benchmark file {path} as published", "copy or download the file again, or remove it"
        raise UserError("damaged", wanted=wanted, got=str(error), next_step=next_step) from error
    return items


def _bytes(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _Damage(f"invalid UTF-8 in line {line}") from error


def _lines(path: Path, fields: dict[str, type]) -> Iterator[tuple[int, Row]]:
    """Number and object of each line that is not blank, with every field present and of its type."""
    for number, line in enumerate(_bytes(path).splitlines(keepends=True), start=1):
        if line.isspace():
            continue
        try:
            row = parse(line, path.name, number, fields)
        except UserError as error:
            raise _Damage(f"line {number}: {error.got}") from error
        if isinstance(row, str):
            raise _Damage(f"line {number}: {row}")
        yield number, row


def _document(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise _Damage(f"line {error.lineno}: invalid JSON ({error.msg})") from error
    except RecursionError as error:
        raise _Damage("JSON that is nested too deeply") from error


def _field(row: Any, name: str, kind: type[T], place: str) -> T:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, kind):
        raise _Damage(f"{place}: no {name}, or one that is not {'text' if kind is str else f'a {kind.__name__}'}")
    return value


def _texts(values: Any, name: str, place: str) -> tuple[str, ...]:
    """A list of texts, which may be absent."""
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise _Damage(f"{place}: {name} is not a list of texts")
    return tuple(values)


def _jcommonsenseqa(path: Path) -> Iterator[Item]:
    names = [f"choice{number}" for number in range(_CHOICES)]
    for number, row in _lines(path, {"question": str, "label": int} | dict.fromkeys(names, str)):
        choices = tuple(row[name] for name in names)
        if not 0 <= row["label"] < _CHOICES:
            raise _Damage(f"line {number}: label {row['label']} of {_CHOICES} choices")
        yield Item(str(row.get("q_id", number)), row["question"], None, choices, (choices[row["label"]],))


def _jsquad(path: Path) -> Iterator[Item]:
    """The context without its article's title, which precedes it, separated by [SEP]."""
    for article in _field(_document(path), "data", list, "the file"):
        place = f"article {article.get('title')}" if isinstance(article, dict) else "an article"
        for paragraph in _field(article, "paragraphs", list, place):
            context = _field(paragraph, "context", str, place).split("[SEP]")[-1].strip()
            for asked in _field(paragraph, "qas", list, place):
                own = _field(asked, "id", str, place)
                answers = [_field(answer, "text", str, own) for answer in _field(asked, "answers", list, own)]
                yield Item(own, _field(asked, "question", str, own), context, (), tuple(answers))


def _jmmlu(path: Path) -> Iterator[Item]:
    rows = csv.reader(io.StringIO(_text(path), newline=""))
    try:
        for number, row in enumerate(rows, start=1):
            if not row:
                continue
            letter = row[-1].strip()
            if len(row) != 2 + len(_LETTERS) or letter not in _LETTERS:
                raise _Damage(f"line {rows.line_num}: not a question, {len(_LETTERS)} choices and a letter of them")
            yield Item(str(number), row[0], None, tuple(row[1:-1]), (row[1 + _LETTERS.index(letter)],))
    except csv.Error as error:
        raise _Damage(f"line {rows.line_num}: {error}") from error


def _jemhopqa(path: Path) -> Iterator[Item]:
    rows = _document(path)
    if not isinstance(rows, list):
        raise _Damage("not a list of questions")
    for number, row in enumerate(rows, start=1):
        place = f"question {number}"
        answer = _field(row, "answer", str, place)
        yield Item(_field(row, "qid", str, place), _field(row, "question", str, place), None, (), (answer,))


def _niilc(path: Path) -> Iterator[Item]:
    try:
        root = ElementTree.fromstring(_bytes(path))
    except ElementTree.ParseError as error:
        raise _Damage(f"line {error.position[0]}: invalid XML ({error})") from error
    for number, asked in enumerate(root.iter("question"), start=1):
        own = asked.get("id", str(number))
        question = asked.findtext("text")
        if not question:
            raise _Damage(f"question {own}: no text")
        yield Item(own, question, None, (), tuple(answer.text for answer in asked.iter("answer") if answer.text))


def _mgsm(path: Path) -> Iterator[Item]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        columns = line.rstrip("\r").split("\t")
        if len(columns) != 2 or not all(columns):
            raise _Damage(f"line {number}: not a problem, a tab and a number")
        yield Item(str(number), columns[0], None, (), (columns[1],))


def _mgsm_exemplars(path: Path) -> Iterator[Item]:
    """Worked examples; question and answer without the cue that opens each."""
    rows = _document(path)
    if not isinstance(rows, dict):
        raise _Damage("not an object of exemplars")
    for own, row in rows.items():
        cued = [_field(row, name, str, f"exemplar {own}") for name in ("q", "a")]
        # The Japanese file cues with a full-width colon, the English one with a plain colon.
        question, answer = (text.partition("：" if "：" in text else ":")[2].strip() or text for text in cued)  # noqa: RUF001
        yield Item(str(own), question, None, (), (answer,))


def _jhumaneval(path: Path) -> Iterator[Item]:
    for _, row in _lines(path, dict.fromkeys(("task_id", "prompt", "canonical_solution"), str)):
        yield Item(row["task_id"], row["prompt"], None, (), (row["canonical_solution"],))


def _jmtbench(path: Path) -> Iterator[Item]:
    """Questions of two turns; reference answers are in the same folder or one below it, and may be absent."""
    references: dict[int, list[str]] = {}
    for found in sorted(path.parent.glob("reference_answer*")):
        for file in [found] if found.is_file() else sorted(found.glob("*.jsonl*")):
            try:
                for number, row in _lines(file, {"question_id": int, "choices": list}):
                    turns = _field(row["choices"][0], "turns", list, f"line {number}")
                    references.setdefault(row["question_id"], []).append(TURN_BREAK.join(map(str, turns)))
            except _Damage as error:
                raise _Damage(f"{file.name}, {error}") from error
    for number, row in _lines(path, {"question_id": int, "turns": list}):
        turns = _texts(row["turns"], "turns", f"line {number}")
        answers = tuple(references.get(row["question_id"], ()))
        yield Item(str(row["question_id"]), TURN_BREAK.join(turns), None, (), answers)


def _questions(path: Path) -> Iterator[Item]:
    """Our own questions."""
    for number, row in _lines(path, {"question": str}):
        place = f"line {number}"
        context = row.get("context")
        if context is not None and not isinstance(context, str):
            raise _Damage(f"{place}: context is not text")
        choices, answers = (_texts(row.get(name), name, place) for name in ("choices", "answers"))
        yield Item(str(row["id"]), row["question"], context, choices, answers)


# Pattern of a lower-case path, benchmark, reader; the first match counts. A star spans folders.
_KINDS: tuple[tuple[str, str, Reader], ...] = (
    ("*/jcommonsenseqa*.json", "jcommonsenseqa", _jcommonsenseqa),
    ("*/jsquad*.json", "jsquad", _jsquad),
    ("*/jmmlu*/*.csv", "jmmlu", _jmmlu),
    ("*/jemhopqa*/*train*.json", "jemhopqa", _jemhopqa),
    ("*/jemhopqa*/*dev*.json", "jemhopqa", _jemhopqa),
    ("*/niilc*.xml", "niilc", _niilc),
    ("*/mgsm_ja.tsv", "mgsm_ja", _mgsm),
    ("*/exemplars_ja.json", "mgsm_ja", _mgsm_exemplars),
    ("*/mgsm_en.tsv", "mgsm_en", _mgsm),
    ("*/exemplars_en.json", "mgsm_en", _mgsm_exemplars),
    ("*/jhuman*eval*.jsonl", "jhumaneval", _jhumaneval),
    ("*mt*bench*/question*.jsonl", "jmtbench", _jmtbench),
    ("*/questions.jsonl", "questions", _questions),
)
