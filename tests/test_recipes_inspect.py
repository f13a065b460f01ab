"""`make inspect`: the printed text is the documents' own, and every weight is the one that was packed."""

import io
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from eval_tiny import write_tokenizer

from common.device import Machine
from common.packing import PackedRows, write_packed
from common.store import Artifact, Store, Workspace, stage
from common.tokenizer import Tokenizer
from recipes import inspect
from recipes.inspect import DataStore, shown_row, weighted_text

MACHINE = Machine(
    device="cpu", compute_dtype="float32", cpu="any", gpu=None, memory_bytes=1, os="any", threads=1
)  # fmt: skip
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


@stage(version=1)
def data(config: Tokenizer, workspace: Workspace, *inputs: Path) -> dict[str, Any]:
    write_packed(
        workspace.folder / "packed" / "train", documents(TOKENIZERS[0]), sequence_tokens=64, tokenizer=TOKENIZERS[0]
    )
    TOKENIZERS[0].save(workspace.folder / "tokenizer")
    return {}


@stage(version=1)
def model(config: int, workspace: Workspace, *inputs: Path) -> dict[str, Any]:
    raise AssertionError("inspecting the data builds no model")


TOKENIZERS: list[Tokenizer] = []


def build(recipe: int, store: Store, *, until: str | None = None) -> dict[str, Artifact]:
    done = {name: store.build(name, data, recipe) for name in ("world", "tokenizer", "corpus")}
    done["base"] = store.build("base", model, recipe, done["corpus"])
    done["conversations"] = store.build("conversations", data, recipe + 1, done["world"])
    assert until == "conversations"
    return done


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("terminal", "no_color", "coloured"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_builds_data_only_and_respects_no_color(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: Tokenizer,
    terminal: bool,
    no_color: str,
    coloured: bool,
) -> None:
    pipeline = ModuleType("recipes.recipe")
    pipeline.__dict__["build"] = build
    monkeypatch.setitem(sys.modules, "recipes.recipe", pipeline)
    monkeypatch.setattr("common.store.building.probe", lambda record: MACHINE)
    monkeypatch.setattr(inspect, "load", lambda name, say: 1)
    monkeypatch.setattr(sys.modules[__name__], "TOKENIZERS", [tokenizer])
    monkeypatch.setenv("NO_COLOR", no_color)
    stream = Terminal() if terminal else io.StringIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        inspect.main(["toy", "--build", str(tmp_path), "--rows", "5"])
    printed = stream.getvalue()
    assert ("\x1b[" in printed) == coloured
    assert "== corpus, row 0:" in printed and "== conversations, row 0:" in printed
    assert not list(tmp_path.glob("base-*"))


def test_the_data_store_makes_what_the_plain_store_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    monkeypatch.setattr("common.store.building.probe", lambda record: MACHINE)
    monkeypatch.setattr(sys.modules[__name__], "TOKENIZERS", [tokenizer])
    lines: list[str] = []
    first = DataStore(tmp_path, report=lines.append).build("corpus", data, 1)
    assert Store(tmp_path, report=lines.append).build("corpus", data, 1).key == first.key
    assert lines[1].endswith("done before")
