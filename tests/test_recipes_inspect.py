"""`make inspect`: the printed text is the documents' own, and every weight is the one that was packed."""

import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import recipe_tiny
from eval_tiny import write_tokenizer

from common.packing import PackedRows, write_packed
from common.tokenizer import Tokenizer
from recipes import inspect
from recipes.inspect import shown_row, weighted_text
from recipes.rehearsal import rehearsal

TINY = Path(recipe_tiny.__file__)
COLOURS = {inspect.GREEN: 1.0, inspect.YELLOW: 0.5, inspect.GREY: 0.0}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.load(folder)


def documents(tokenizer: Tokenizer) -> list[tuple[list[int], list[int]]]:
    """A question whose answer counts fully, and a text with characters that no merge holds together."""
    question, answer, odd = (tokenizer.encode(text) for text in ("質問:川は?", "春の町", "鮭🐟を焼く"))
    end = [tokenizer.document_end_id]
    return [
        (question + answer + end, [50] * len(question) + [100] * (len(answer) + 1)),
        (odd + end, [100] * (len(odd) + 1)),
    ]


def characters(shown: str, marks: dict[str, float], pattern: str) -> list[tuple[str, float]]:
    """Each printed character with its weight: a second reading of the marks."""
    found: list[tuple[str, float]] = []
    weight = -1.0
    for part in re.split(f"({pattern})", shown):
        if re.fullmatch(pattern, part):
            weight = marks.get(part, -1.0)
        else:
            found += [(character, weight) for character in part]
    return found


@pytest.mark.parametrize("in_colour", [True, False])
def test_a_row_shows_its_documents_and_weights(tmp_path: Path, tokenizer: Tokenizer, in_colour: bool) -> None:
    write_packed(tmp_path, documents(tokenizer), sequence_tokens=64, tokenizer=tokenizer)
    lines = list(shown_row("corpus", PackedRows(tmp_path), 0, tokenizer, in_colour=in_colour))
    plain = [re.sub("\x1b.*?m", "", line) for line in lines]
    lengths = [len(ids) for ids, _ in documents(tokenizer)]
    assert plain[0] == f"== corpus, row 0: {sum(lengths)} tokens, {64 - sum(lengths)} of padding =="
    assert plain[1::2] == [
        f"-- document {number}: {length} tokens, {length - 1} supervised --" for number, length in enumerate(lengths, 1)
    ]
    marks = COLOURS | {inspect.PLAIN: -1.0} if in_colour else {"{1}": 1.0, "{0.5}": 0.5, "{0}": 0.0}
    pattern = r"\x1b\[\d+m" if in_colour else r"\{[\d.]+\}"
    first = characters(lines[2], marks, pattern)
    assert "".join(character for character, _ in first) == "質問:川は?春の町<|endoftext|>"
    # Nothing predicts the first token, so its weight is 0 whatever was packed.
    assert first[0][1] == 0.0
    assert {weight for character, weight in first if character in ":川は?"} == {0.5}
    assert {weight for character, weight in first if character in "春の町<|endoftext|>"} == {1.0}
    second = characters(lines[4], marks, pattern)
    assert "".join(character for character, _ in second) == "鮭🐟を焼く<|endoftext|>"


def test_ids_that_are_no_text_are_shown_all_the_same(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("鮭")[:1]
    assert weighted_text(tokenizer, half, [1.0], in_colour=False) == "{1}\ufffd"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def build_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("build")


@pytest.mark.parametrize(
    ("terminal", "no_color", "coloured"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_builds_data_only_and_respects_no_color(
    build_folder: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, no_color: str, coloured: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    stream = Terminal() if terminal else io.StringIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        inspect.main([str(TINY), "--build", str(build_folder), "--rows", "3"])
    printed = stream.getvalue()
    assert ("\x1b[" in printed) == coloured
    headings = re.findall(r"== (\w+), row (\d)", printed)
    assert headings == [(name, row) for name in ("corpus", "conversations") for row in "012"]
    built = {path.name.rsplit("-", 1)[0] for path in build_folder.iterdir() if path.is_dir() and "-" in path.name}
    assert built == {"world", "tokenizer", "corpus", "conversations"}


def test_a_rehearsal_has_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(rehearsal(), tokenizer=recipe_tiny.recipe().tokenizer, world=recipe_tiny.recipe().world)
    monkeypatch.setattr(inspect, "load", lambda name, **where: small)
    stream = io.StringIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        inspect.main(["rehearsal", "--build", str(tmp_path), "--rows", "1"])
    assert re.findall(r"== (\w+), row", stream.getvalue()) == ["corpus"]
