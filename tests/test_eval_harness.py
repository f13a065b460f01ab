"""The lm-eval adapter with a runtime whose answers are known beforehand, and the statistics of scores."""

import json
import math
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import eval_tiny
import huggingface_hub.constants
import numpy as np
import pytest
from errors_tiny import refuses
from eval_tiny import END, KnowItAll
from scipy.stats import binomtest

from common.errors import UserError
from eval.__main__ import main
from eval.runtimes.protocol import Pair
from eval.tasks import scores
from eval.tasks.harness import Harness, HarnessModel


def question(number: int, shape: str, **fields: Any) -> dict[str, Any]:
    return {"id": f"{shape}-{number}", "shape": shape, "question": f"問{number}", "answers": [f"答{number}"]} | fields


def world() -> list[dict[str, Any]]:
    """Eight questions of each shape, groups and directions one after the other as the generator writes them."""
    rows = [question(n, "short_answer", group="phrasing" if n < 4 else "entity") for n in range(8)]
    rows += [question(n, "multiple_choice", choices=[f"答{i}" for i in (n, 50, 51, 52, 53)]) for n in range(8)]
    rows += [question(n, "reading", context="甲は赤です。乙は青です。丙は白です。丁は黒です。") for n in range(8)]
    rows += [question(n, "arithmetic", answers=["7" if n < 3 else str(10 + n)]) for n in range(8)]
    rows += [question(n, "translation", direction="ja-en" if n < 4 else "en-ja") for n in range(8)]
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder, world())
    return folder


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "questions.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def harness(data: Path) -> Iterator[Harness]:
    asked: list[Any] = []

    def refuse(*address: Any, **_: Any) -> None:
        asked.append(address)
        raise OSError("no network")

    with pytest.MonkeyPatch.context() as patch:
        # As without the setting that keeps the libraries offline; they swallow the errors of a refusal.
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(socket.socket, "connect", refuse)
        with Harness(data) as harness:
            yield harness
        assert not asked
        assert datasets.config.HF_HUB_OFFLINE is False


def number_in(prompt: str) -> int:
    return int(prompt.split("問")[-1].split("\n")[0])


def by_task(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["task"]: row for row in rows}


def answer_some(prompt: str) -> str | None:
    """Right on phrasings, wrong on entities, half of the choices, all passages, a third of the sums, one direction."""
    n = number_in(prompt)
    if "選択肢" in prompt:
        return f"答{n}" if n % 2 else "答50"
    if "文章" in prompt:
        return f" 答{n}です。\n無関係な次の行"
    if "問題" in prompt:
        return ["3+4=7。答えは7個。", "わかりません。", ""][n % 3]
    if prompt.endswith("日本語："):
        return None
    return f"答{n}" if n < 4 else "答"


def test_scores_groups_chance_and_failures(harness: Harness) -> None:
    rows = by_task(harness.run(KnowItAll(answer_some), artifact="some.gguf", form="plain"))
    values = {task: row["value"] for task, row in rows.items()}
    assert values == {
        "short_answer": 0.5,
        "short_answer/phrasing": 1.0,
        "short_answer/entity": 0.0,
        "multiple_choice": 0.5,
        "reading": 1.0,
        "arithmetic": 1 / 8,
        "translation": 0.5,
        "translation/ja-en": 1.0,
        "translation/en-ja": 0.0,
        "average": pytest.approx((0.5 + 0.5 + 1 + 1 / 8 + 0.5) / 5),
    }
    chance = {task: row["chance"] for task, row in rows.items()}
    assert (chance["multiple_choice"], chance["reading"], chance["arithmetic"]) == (1 / 5, 1 / 4, 3 / 8)
    assert chance["short_answer"] is None and chance["translation"] is None and chance["average"] is None
    failures = {task: row["extraction_failures"] for task, row in rows.items()}
    assert (failures["arithmetic"], failures["translation/en-ja"], failures["reading"]) == (5, 4, 0)
    assert rows["average"]["extraction_failures"] == 9 and rows["average"]["n"] == 40
    assert {row["form"] for row in rows.values()} == {"plain"}
    assert {row["artifact"] for row in rows.values()} == {"some.gguf"}
    for row in rows.values():
        assert row["interval"][0] <= row["value"] <= row["interval"][1]
        assert row["interval"][1] - row["interval"][0] > 0.1  # also where all or none are right
    assert {row["stopped_share"] for row in rows.values()} == {None}


def test_the_plain_form_sends_the_tasks_text_and_stops_at_a_line(harness: Harness) -> None:
    runtime = KnowItAll(answer_some)
    harness.run(runtime, artifact="a", form="plain")
    assert ("質問：問2\n答え：", "\n") in runtime.seen
    assert ("質問：問3\n選択肢：答3、答50、答51、答52、答53\n答え：", "答51") in runtime.seen


def test_the_chat_form_renders_the_text_as_the_users_message(harness: Harness, tmp_path: Path) -> None:
    runtime = KnowItAll(lambda prompt: answer_some(prompt.removesuffix("[assistant]")))
    rows = by_task(harness.run(runtime, artifact="a", form="chat", log=tmp_path))
    assert ("[user]質問：問2\n答え：[assistant]", "") in runtime.seen
    assert rows["reading"]["value"] == 1.0  # decoded to its end, then cut at the first line
    assert rows["multiple_choice"]["value"] == 0.5
    # 4 of 8 translations never stop; of the others all do.
    assert rows["translation"]["stopped_share"] == 0.5 and rows["reading"]["stopped_share"] == 1.0
    assert rows["multiple_choice"]["stopped_share"] is None
    logged = [json.loads(line) for line in (tmp_path / "reading.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(logged) == 8
    assert logged[2]["id"] == "reading-2" and logged[2]["score"] == 1.0 and logged[2]["stopped"] is True
    assert logged[2]["prompt"].startswith("[user]文章：") and logged[2]["output"].startswith(" 答2です。")
    choices = scores.read_log(tmp_path)["multiple_choice"]
    assert choices[3]["output"] == "答3" and choices[2]["output"] == "答50"


def test_a_limit_takes_groups_and_directions_in_turn(harness: Harness, tmp_path: Path) -> None:
    for attempt in ("first", "again"):
        rows = by_task(harness.run(KnowItAll(answer_some), artifact="a", form="plain", limit=3, log=tmp_path / attempt))
    ids = {task: [item["id"] for item in items] for task, items in scores.read_log(tmp_path / "first").items()}
    assert ids["short_answer"] == ["short_answer-0", "short_answer-1", "short_answer-4"]
    assert ids["translation"] == ["translation-0", "translation-1", "translation-4"]
    assert ids["reading"] == ["reading-0", "reading-1", "reading-2"]
    assert scores.read_log(tmp_path / "first") == scores.read_log(tmp_path / "again")
    assert rows["short_answer"]["value"] == 0.5  # 2 right of 2 phrasings, 0 of 1 entity: groups first, not items
    assert rows["short_answer"]["n"] == 3 and rows["average"]["n"] == 15


def test_only_the_tasks_asked_for_and_only_those_with_questions(data: Path, tmp_path: Path) -> None:
    with Harness(data, tasks=["reading"]) as harness:
        assert set(by_task(harness.run(KnowItAll(answer_some), artifact="a", form="plain"))) == {"reading", "average"}
    with refuses("unknown-name", wanted="arithmetic, jcommonsenseqa", got="sudoku"):
        Harness(data, tasks=["sudoku"])
    with refuses("empty", wanted="jcommonsenseqa", got="arithmetic, "):
        Harness(data, tasks=["jcommonsenseqa"])
    write(tmp_path, world()[:8])
    with Harness(tmp_path) as harness:  # rows without context, choices and direction
        rows = by_task(harness.run(KnowItAll(answer_some), artifact="a", form="plain"))
    assert list(rows) == ["short_answer", "short_answer/phrasing", "short_answer/entity", "average"]
    with refuses("empty", wanted="reading", got="short_answer"):
        Harness(tmp_path, tasks=["reading"])
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError) as caught:
        Harness(tmp_path / "none")
    assert "questions" in caught.value.wanted


def test_prompts_for_samples_and_nothing_left_behind(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Harness(data, tasks=["short_answer", "arithmetic"]) as harness:
        assert list(tmp_path.iterdir())
        assert harness.prompts(2) == [
            "問題：問0\n答え：",
            "問題：問1\n答え：",
            "質問：問0\n答え：",
            "質問：問4\n答え：",
        ]
    assert not list(tmp_path.iterdir())


def test_tokens_that_merge_across_the_boundary_are_scored_with_every_choice() -> None:
    class Merging(KnowItAll):
        def encode(self, text: str) -> list[int]:
            ids: list[int] = []
            while text:
                size = 2 if text.startswith("：東") else 1
                ids.append(1000 + ord(text[1]) if size == 2 else ord(text[0]))
                text = text[size:]
            return ids

    model = HarnessModel(Merging(answer_some), chat=False)
    pairs = model._pairs([("答：", "東京"), ("答：", "大阪"), ("町：", "大阪"), ("", "大")])
    colon, merged = ord("："), 1000 + ord("東")
    assert pairs[0] == ([ord("答")], [merged, ord("京")])
    assert pairs[1] == ([ord("答")], [colon, ord("大"), ord("阪")])  # the same characters as the other choice
    assert pairs[2] == ([ord("町"), colon], [ord("大"), ord("阪")])
    assert pairs[3] == ([END], [ord("大")])


def test_rolling_likelihood_counts_every_token_once() -> None:
    class Counting(KnowItAll):
        context_tokens = 6

        def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
            assert all(len(context) + len(text) <= self.context_tokens for context, text in pairs)
            self.scored = [token for _, text in pairs for token in text]
            return [(-float(len(text)), False) for _, text in pairs]

    class Request:
        args = ("abcdefghijkl",)

    runtime = Counting(answer_some)
    assert HarnessModel(runtime, chat=False).loglikelihood_rolling([Request()]) == [-12.0]  # type: ignore[list-item]
    assert bytes(runtime.scored) == b"abcdefghijkl"


def test_the_command_scores_a_file_in_chat_form_and_a_folder_in_plain_form(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = eval_tiny.write_checkpoint(tmp_path / "checkpoint")
    file = eval_tiny.write_gguf(checkpoint, tmp_path / "tiny-F16.gguf")
    out, log = tmp_path / "tasks.json", tmp_path / "log"
    choice = ["--data", str(data), "--tasks", "multiple_choice,short_answer", "--limit", "4", "--out", str(out)]
    main(["tasks", str(file), *choice, "--log", str(log)])
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert [row["task"] for row in rows] == [
        *("multiple_choice", "short_answer", "short_answer/phrasing", "short_answer/entity", "average")
    ]
    assert {(row["artifact"], row["form"]) for row in rows} == {("tiny-F16.gguf", "chat")}
    assert scores.read_log(log)["short_answer"][0]["prompt"].startswith("<|im_start|>user\n質問：問0")
    assert "chance 0.200" in capsys.readouterr().out
    main(["tasks", str(checkpoint), *choice])
    assert {row["form"] for row in json.loads(out.read_text(encoding="utf-8"))} == {"plain"}
    in_plain_form = json.loads(out.read_text(encoding="utf-8"))
    main(["tasks", str(file), *choice, "--form", "plain"])
    in_file = json.loads(out.read_text(encoding="utf-8"))
    assert [row["value"] for row in in_file] == [row["value"] for row in in_plain_form]
    with refuses("out-of-range", wanted="--limit", got="0"):
        main(["tasks", str(file), *choice, "--limit", "0"])


@pytest.mark.parametrize(("right", "n"), [(0, 30), (1, 30), (17, 30), (300, 300), (250, 300)])
def test_wilson_is_scipys(right: int, n: int) -> None:
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert scores.wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_one_cell_has_wilsons_interval_and_several_are_covered_as_often_as_promised() -> None:
    mean, interval = scores.mean_with_interval({("reading", None): [1.0] * 20 + [0.0] * 10})
    assert mean == pytest.approx(2 / 3) and interval == pytest.approx(scores.wilson(20, 30))

    # Two equal cells: their mean is known better by the square root of two, on both sides.
    mean, interval = scores.mean_with_interval(
        {("a", None): [1.0] * 20 + [0.0] * 10, ("b", None): [1.0] * 20 + [0.0] * 10}
    )
    low, high = scores.wilson(20, 30)
    assert interval == pytest.approx((mean - (2 / 3 - low) / math.sqrt(2), mean + (high - 2 / 3) / math.sqrt(2)))

    generator = np.random.default_rng(0)
    truth: dict[scores.Cell, float] = {("a", "x"): 0.97, ("a", "y"): 0.6, ("b", None): 0.3}
    expected = ((0.97 + 0.6) / 2 + 0.3) / 2
    covered = 0
    for _ in range(1000):
        drawn = {cell: (generator.random(60) < p).astype(float).tolist() for cell, p in truth.items()}
        low, high = scores.mean_with_interval(drawn)[1]
        covered += low <= expected <= high
    assert 0.93 <= covered / 1000 <= 0.98


def write_log(folder: Path, cells: dict[tuple[str, str | None], list[float]]) -> Path:
    folder.mkdir()
    for shape in {shape for shape, _ in cells}:
        items = [
            {"id": f"{shape}-{group}-{i}", "group": group, "score": score}
            for (of, group), values in cells.items()
            if of == shape
            for i, score in enumerate(values)
        ]
        lines = "".join(json.dumps(item) + "\n" for item in items)
        (folder / f"{shape}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_the_paired_difference_weighs_shapes_equally_and_its_interval_is_the_normal_one(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    sizes: dict[scores.Cell, int] = {("a", "x"): 200, ("a", "y"): 50, ("b", None): 300}
    low: dict[scores.Cell, list[float]] = {
        cell: (generator.random(n) < 0.3).astype(float).tolist() for cell, n in sizes.items()
    }
    high: dict[scores.Cell, list[float]] = {
        cell: [max(s, float(generator.random() < 0.4)) for s in values] for cell, values in low.items()
    }
    a, b = write_log(tmp_path / "a", high), write_log(tmp_path / "b", low)
    # Items that only one of them answered do not count.
    with (a / "b.jsonl").open("a") as file:
        file.write(json.dumps({"id": "only here", "group": None, "score": 1.0}) + "\n")

    result = scores.paired_difference(a, b)
    weights: dict[scores.Cell, float] = {("a", "x"): 0.25, ("a", "y"): 0.25, ("b", None): 0.5}
    differences = {cell: np.subtract(high[cell], low[cell]) for cell in sizes}
    expected = sum(weights[cell] * d.mean() for cell, d in differences.items())
    error = math.sqrt(sum(weights[cell] ** 2 * d.var(ddof=1) / len(d) for cell, d in differences.items()))
    assert result["difference"] == pytest.approx(expected) and result["n"] == 550
    assert result["interval"] == pytest.approx(
        [expected - 1.96 * error, expected + 1.96 * error], abs=0.1 * error + 0.002
    )
    assert scores.paired_difference(a, b) == result  # seeded

    swapped = scores.paired_difference(b, a)
    assert swapped["difference"] == pytest.approx(-expected)
    ratio = scores.paired_difference(a, b, with_ratio=True)
    assert ratio["ratio"] == pytest.approx(1 + expected / sum(w * np.mean(low[c]) for c, w in weights.items()))
    assert ratio["ratio_interval"][0] < ratio["ratio"] < ratio["ratio_interval"][1]
    assert {name: ratio[name] for name in result} == result
    nothing = write_log(tmp_path / "c", {cell: [0.0] * n for cell, n in sizes.items()})
    without = scores.paired_difference(a, nothing, with_ratio=True)
    assert without["ratio"] is None and without["ratio_interval"] is None


def test_the_loss_interval_covers_a_mean_over_tokens_not_rows() -> None:
    rows_a = [(2.0, 2.0), (30.0, 10.0), (0.0, 0.0)]
    rows_b = [(1.0, 2.0), (20.0, 10.0), (0.0, 0.0)]
    loss = scores.mean_loss(rows_a)
    assert loss["loss"] == pytest.approx(32 / 12) and loss["tokens"] == 12 and loss["rows"] == 3
    assert loss["interval"] == pytest.approx([1.0, 3.0])  # both draws are the same row: its own mean
    difference = scores.loss_difference(rows_a, rows_b)
    assert difference["difference"] == pytest.approx(11 / 12) and difference["interval"] == pytest.approx([0.5, 1.0])
