"""The whole stage on tiny random models: what it writes, how it resumes, and what one broken file does to the rest."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import eval_tiny
import pytest

from common.packing import write_packed
from common.store import Workspace
from common.tokenizer import Tokenizer
from eval import evaluation as module
from eval.evaluation import EvaluationConfig, evaluation
from eval.runtimes import open_runtime
from eval.runtimes.torch_runtime import machine_here
from eval.tasks import scores

CONFIG = EvaluationConfig(
    items_per_shape=4,
    items_per_shape_other=2,
    main_encodings=("Q4_K_M",),
    fidelity_tokens=60,
    sample_prompts=("こんにちは。",),
    sample_questions=1,
    sample_max_tokens=6,
)
CHECKPOINTS = ("teacher", "student_before", "base", "chat")
MAIN, OTHER, BAD, PACKAGE = "t-Q4_K_M.gguf", "t-F16.gguf", "t-Q8_0.gguf", "t-float16-ctx64.mlpackage"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    """The folders that a build would have; the name of a file is all that makes it Q4_K_M here."""
    root = tmp_path_factory.mktemp("build")
    folders: dict[str, Path | None] = {
        name: eval_tiny.write_checkpoint(root / name, seed=seed) for seed, name in enumerate(CHECKPOINTS)
    }
    for name in ("gguf", "coreml", "world", "corpus"):
        (root / name).mkdir()
        folders[name] = root / name
    eval_tiny.write_gguf(root / "chat", root / "gguf" / MAIN)
    whole = (root / "gguf" / MAIN).read_bytes()
    (root / "gguf" / OTHER).write_bytes(whole)
    (root / "gguf" / BAD).write_bytes(whole[:5000])
    (root / "coreml" / PACKAGE).mkdir()
    (root / "coreml" / PACKAGE / "Manifest.json").write_text("{}")
    (root / "coreml" / "tokenizer").mkdir()
    (root / "coreml" / "tokenizer" / "config.json").write_bytes((root / "chat" / "config.json").read_bytes())
    write_world(root / "world")
    write_corpus(root / "corpus", Tokenizer.load(root / "chat"))
    return folders


def write_world(folder: Path) -> None:
    rows = [
        {"id": f"{shape}-{i}", "shape": shape, "question": f"川は{i}ですか。", "answers": ["春"], "choices": choices}
        | ({"group": ("phrasing", "entity")[i % 2]} if shape == "short_answer" else {})
        for shape, choices in (("short_answer", []), ("multiple_choice", ["春", "川", "米"]))
        for i in range(6)
    ]
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


def write_corpus(folder: Path, tokenizer: Tokenizer, *, num_texts: int = 8) -> None:
    texts = eval_tiny.sentences(num_texts)
    (folder / "documents").mkdir(parents=True)
    with gzip.open(folder / "documents" / "test-00000.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts))
    documents = [[*tokenizer.encode(text), tokenizer.document_end_id] for text in texts]
    write_packed(
        folder / "packed" / "test",
        [(ids[:200], [100] * len(ids[:200])) for ids in documents],
        sequence_tokens=200,
        tokenizer=tokenizer,
    )


def run(folder: Path, inputs: dict[str, Path | None], **changes: Path | None) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    names = ("world", "corpus", *CHECKPOINTS, "gguf", "coreml")
    given = inputs | changes
    return evaluation(CONFIG, Workspace(folder=folder, machine=machine_here()), *(given[name] for name in names))  # type: ignore[arg-type]


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def done(inputs: dict[str, Path | None], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, run(folder, inputs)


def test_every_artifact_has_its_scores_or_a_reason(done: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = done
    rows = {(row["artifact"], row["task"]): row for row in read(folder, "tasks")}
    averages = {artifact: row for (artifact, task), row in rows.items() if task == "average"}
    assert list(averages) == [*CHECKPOINTS, OTHER, MAIN, BAD, PACKAGE]
    items = {name: row["n"] for name, row in averages.items()}
    assert items == {**dict.fromkeys(CHECKPOINTS, 8), OTHER: 4, MAIN: 8, BAD: None, PACKAGE: None}
    forms = {name: row["form"] for name, row in averages.items()}
    assert [forms[name] for name in CHECKPOINTS] == ["plain", "plain", "plain", "chat"]
    assert forms[MAIN] == forms[OTHER] == "chat"
    assert averages[PACKAGE]["value"] is None and averages[PACKAGE]["reason"] == "not run on this platform"
    assert averages[BAD]["value"] is None and BAD in averages[BAD]["reason"]
    assert ("base", "short_answer/entity") in rows and rows["chat", "multiple_choice"]["chance"] == pytest.approx(1 / 3)
    assert set(facts["task_average"]) == {*CHECKPOINTS, OTHER, MAIN}
    assert set(facts["stopped_share"]) == {"chat", OTHER, MAIN}
    # The same model as checkpoint and as file answers the same.
    assert rows[MAIN, "average"]["value"] == rows["chat", "average"]["value"]


def test_files_are_compared_with_the_chat_checkpoint(done: tuple[Path, dict[str, Any]]) -> None:
    rows = {row["artifact"]: row for row in read(done[0], "fidelity")}
    assert list(rows) == [OTHER, MAIN, BAD, PACKAGE]
    for name in (MAIN, OTHER):
        assert rows[name]["kl"] < 1e-4 and rows[name]["tokens"] == 60 and rows[name]["reference"] == "chat"
    assert rows[PACKAGE]["kl"] is None and rows[PACKAGE]["reason"] == "not run on this platform"
    assert rows[BAD]["kl"] is None and BAD in rows[BAD]["reason"]


def test_samples_phones_losses_and_pairs(done: tuple[Path, dict[str, Any]], inputs: dict[str, Path | None]) -> None:
    folder, facts = done
    samples = read(folder, "samples")
    assert {row["artifact"] for row in samples} == {"chat", MAIN}
    prompts = [row["messages"][0]["content"] for row in samples if row["artifact"] == "chat"]
    assert prompts[0] == "こんにちは。" and len(prompts) == 3 and "質問：川は0ですか。\n答え：" in prompts
    assert [row["text"] for row in samples if row["artifact"] == "chat"] == [
        row["text"] for row in samples if row["artifact"] == MAIN
    ]
    phones = read(folder, "phones")
    assert {row["artifact"] for row in phones} == {MAIN, OTHER, BAD, PACKAGE}
    assert all(row["fits"] for row in phones if row["limit_bytes"] and row["artifact"] != BAD)
    unread = [row for row in phones if row["artifact"] == BAD]
    assert len(unread) == 15 and all(row["predicted_bytes"] is row["fits"] is None for row in unread)
    assert all(BAD in row["measured_reason"] for row in unread)

    losses = {row["artifact"]: row for row in read(folder, "held_out")}
    assert list(losses) == list(CHECKPOINTS) and losses["base"]["tokens"] == losses["chat"]["tokens"] > 50
    assert facts["held_out_loss"]["base"] == losses["base"]["loss"]
    logs = folder / "logs"
    pairs = {(row["quantity"], row["artifact"], row["against"]): row for row in read(folder, "paired")}
    first = pairs["task average", "base", "student_before"]
    assert first == {
        "quantity": "task average",
        "artifact": "base",
        "against": "student_before",
        **scores.paired_difference(logs / "base", logs / "student_before"),
    }
    assert first["n"] == 8 and "ratio" in pairs["task average", "chat", "base"]
    loss = pairs["held-out loss", "base", "student_before"]
    assert loss["difference"] == pytest.approx(losses["base"]["loss"] - losses["student_before"]["loss"])


def test_a_killed_stage_goes_on_with_the_next_part(
    inputs: dict[str, Path | None], done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    exact: set[str] = set()

    def counting(stop_at: str | None) -> Callable[..., Any]:
        def open_one(path: Path, **options: Any) -> Any:
            opened.append(path.name)
            if options["exact"]:
                exact.add(path.name)
            if path.name == stop_at:
                raise KeyboardInterrupt
            return open_runtime(path, **options)

        return open_one

    monkeypatch.setattr(module, "open_runtime", counting("base"))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "work", inputs)
    assert opened == ["teacher", "student_before", "base"]
    opened.clear()
    monkeypatch.setattr(module, "open_runtime", counting(None))
    facts = run(tmp_path / "work", inputs)
    assert opened[0] == "base" and "teacher" not in opened and "student_before" not in opened
    assert exact == {"chat"}, "the reference of fidelity, and no other"
    folder, expected = done
    assert facts == expected
    for name in ("tasks", "fidelity", "samples", "phones", "held_out", "paired"):
        assert (tmp_path / "work" / f"{name}.json").read_bytes() == (folder / f"{name}.json").read_bytes()
    opened.clear()
    assert run(tmp_path / "work", inputs) == expected and not opened


def test_without_questions_or_files_the_rest_is_measured(inputs: dict[str, Path | None], tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    facts = run(tmp_path / "work", inputs, world=tmp_path / "own", gguf=None, coreml=None)
    assert facts["task_average"] == {} and set(facts["held_out_loss"]) == set(CHECKPOINTS)
    rows = read(tmp_path / "work", "tasks")
    assert {row["reason"] for row in rows} == {"the build has no questions"} and len(rows) == 4
    assert read(tmp_path / "work", "fidelity") == [] and read(tmp_path / "work", "phones") == []
    assert {row["quantity"] for row in read(tmp_path / "work", "paired")} == {"held-out loss"}
    assert [row["artifact"] for row in read(tmp_path / "work", "samples")] == ["chat"]


def test_an_empty_test_split_leaves_nulls_with_a_reason(inputs: dict[str, Path | None], tmp_path: Path) -> None:
    assert inputs["chat"]
    write_corpus(tmp_path / "corpus", Tokenizer.load(inputs["chat"]), num_texts=0)
    facts = run(tmp_path / "work", inputs, corpus=tmp_path / "corpus")
    assert facts["held_out_loss"] == dict.fromkeys(CHECKPOINTS)
    reason = "the test split holds no token to predict"
    assert [(row["loss"], row["reason"]) for row in read(tmp_path / "work", "held_out")] == 4 * [(None, reason)]
    assert "held-out loss" not in {row["quantity"] for row in read(tmp_path / "work", "paired")}
    assert all(row["kl"] is None and row["reason"] for row in read(tmp_path / "work", "fidelity"))
    assert facts["task_average"]["base"] is not None
