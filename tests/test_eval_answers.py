"""Answers out of outputs: any width, quotation mark, polite ending, thoughts; an item that is too long costs itself."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from eval_tiny import KnowItAll
from hypothesis import given
from hypothesis import strategies as st

from eval.runtimes.protocol import Generation
from eval.tasks import question_rows
from eval.tasks.harness import Harness

_PATH = Path(question_rows.__file__).with_name("questions") / "utils.py"
_SPEC = importlib.util.spec_from_file_location("task_utils", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
utils: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(utils)


def score(task: str, output: str, *answers: str) -> float:
    function = {"number": utils.last_number, "short": utils.short, "line": utils.line}[task]
    return utils.exact({"answers": list(answers)}, function([[output]], None))["exact_match"]


@pytest.mark.parametrize(
    ("output", "answer", "right"),
    [
        ("3+4=7。答えは7個。", "7", True),
        ("答えは４２です。", "42", True),
        ("合計は１，０５０円", "1050", True),
        ("1,050.00", "1050", True),
        ("42.0", "42", True),
        ("42.50", "42.5", True),
        ("\u22123度", "-3", True),
        ("－３", "-3", True),
        ("答えは 18 です", "１８", True),
        ("-0", "0", True),
        ("7と8", "7", False),
        ("42.5", "42", False),
        ("わかりません。", "7", False),
        ("", "7", False),
    ],
)
def test_the_last_number_in_any_spelling(output: str, answer: str, right: bool) -> None:
    assert score("number", output, answer) == right


@given(number=st.integers(-(10**12), 10**12), text=st.sampled_from(["答えは{}です。", "1 + 1 = 2、\n{}", "{}個"]))
def test_a_number_is_itself_in_every_spelling(number: int, text: str) -> None:
    wide = str(number).translate(str.maketrans("-0123456789", "\u2212０１２３４５６７８９"))
    for spelt in (str(number), f"{number:,}", f"{number}.0", wide):
        assert score("number", text.format(spelt), str(number)) == 1.0
        assert score("number", text.format(spelt), str(number + 1)) == 0.0


@pytest.mark.parametrize(
    ("output", "right"),
    [
        ("富士山", True),
        ("富士山です。", True),
        ("富士山だ。", True),
        ("富士山である。", True),
        ("「富士山」です。", True),
        ("『富士山』", True),
        ("『富士山』です", True),
        ("\n\n 富士山。\n次の行", True),
        ("富士山と浅間山", False),
        ("「富士山」と「浅間山」", False),
        ("", False),
        ("です。", False),
    ],
)
def test_a_short_answer_in_any_dress(output: str, right: bool) -> None:
    assert score("short", output, "富士山", "不二の山") == right


def test_letters_and_digits_of_either_width() -> None:
    assert score("short", "ＮＨＫです。", "NHK") == score("short", "NHK", "ＮＨＫ") == 1.0
    assert score("short", "１９６４年", "1964年") == 1.0
    assert score("short", "ひだ", "ひだ") == 1.0, "no copula without a full stop"
    assert score("line", "\nI have a pen.\nmore", "I have a pen.") == 1.0


def _questions(folder: Path, *contexts: str) -> Path:
    rows = [
        {"id": str(n), "shape": "reading", "question": f"問{n}", "context": context, "answers": [f"答{n}"]}
        for n, context in enumerate(contexts)
    ]
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return folder


@pytest.mark.parametrize(
    ("said", "value", "failed"),
    [
        ("<think>\n考える。\n</think>\n\n答0です。", 1.0, 0),
        ("\n\n答0", 1.0, 0),
        ("考える。</think>答0", 1.0, 0),
        ("<think>\n考える。答0", 0.0, 1),
    ],
)
def test_thoughts_and_empty_lines_are_no_answer(tmp_path: Path, said: str, value: float, failed: int) -> None:
    with Harness(_questions(tmp_path, "甲は赤です。")) as harness:
        (row, _) = harness.run(KnowItAll(lambda prompt: said), artifact="a", form="chat")
    assert (row["value"], row["extraction_failures"]) == (value, failed)


def test_an_item_that_is_too_long_costs_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Short(KnowItAll):
        context_tokens = 200

        def generate(self, prompts: Any, *, max_tokens: int, stop: Any) -> list[Generation]:
            assert all(len(prompt) + max_tokens <= self.context_tokens for prompt in prompts)
            return super().generate(prompts, max_tokens=max_tokens, stop=stop)

    with Harness(_questions(tmp_path, "甲は赤です。", "乙は青です。" * 300)) as harness:
        (row, _) = harness.run(Short(lambda prompt: "答0"), artifact="a", form="chat")
    assert (row["value"], row["n"], row["extraction_failures"]) == (0.5, 2, 1)
    assert "1 of 2 items of reading do not fit 200 tokens" in capsys.readouterr().out
