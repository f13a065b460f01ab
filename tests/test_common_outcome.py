"""A run that went wrong says so: in its output, its manifest and its report; a sound run has no warning."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
from report_tiny import INPUTS, write_build
from report_tiny import MACHINE as HERE
from training_tiny import corpus_folder, model_folder, run_folders, texts, tokenizer_folder

from common.documents import drop_warnings
from common.optim import OptimConfig
from common.outcome import teacher_warnings, training_outcome
from common.packing import PackedRows, write_packed
from common.store import Workspace, run_alone
from common.tokenizer import Tokenizer
from common.training import mean_loss, row_losses
from distill.taid import TaidConfig
from distill.train import DistillConfig, distill
from eval.report import ReportConfig, report
from instruct.train import InstructConfig, instruct

CONFIG = DistillConfig(
    optim=OptimConfig(learning_rate=1e-2),
    steps=24,
    rows_per_step=3,
    micro_batch_rows=3,
    validate_every=6,
    checkpoint_every=6,
)
DIVERGES = OptimConfig(learning_rate=1e3)
LOSSES = {"held_out_before": 6.0, "first_loss": 6.1, "last_loss": 1.9}
SOUND: dict[str, Any] = {
    "held_out_after": 2.0,
    "best_step": 300,
    "first_validation": 100,
    "steps": 300,
    "vocab_size": 500,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return run_folders(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({}, []),
        ({"best_step": 100, "steps": 100}, []),
        ({"held_out_before": 2.0}, ["did not fall: 2.000 nats before the first step, 2.000"]),
        ({"held_out_before": 1.5}, ["did not fall: 1.500"]),
        ({"held_out_after": 6.5, "held_out_before": 7.0}, [f"6.500 nats is no better than {log(500):.3f}"]),
        ({"held_out_after": 0.995 * log(500), "held_out_before": 7.0}, ["no better than"]),
        ({"held_out_after": 0.98 * log(500), "held_out_before": 7.0}, []),
        ({"held_out_after": 9e6}, ["did not fall", "no better than 6.215"]),
        ({"best_step": 100}, ["lowest at step 100, the first validation of 300"]),
    ],
)
def test_each_sign_of_a_broken_run_has_its_warning(changed: dict[str, Any], named: Sequence[str]) -> None:
    losses = {name: changed.get(name, loss) for name, loss in LOSSES.items()}
    facts = training_outcome(losses, **{name: changed.get(name, value) for name, value in SOUND.items()})
    assert len(facts["warnings"]) == len(named)
    assert all(part in warning for part, warning in zip(named, facts["warnings"], strict=True))
    after, best, steps = (({**SOUND, **changed})[name] for name in ("held_out_after", "best_step", "steps"))
    assert f"to {after:.3f} nats, best at step {best} of {steps}" in facts["summary"]


@pytest.mark.parametrize(
    ("teacher", "student", "teacher_loss", "named"),
    [
        (9, 3, 1.0, ()),
        (3, 3, 1.0, ()),
        (2, 3, 1.0, ("2 parameters and the student 3",)),
        (9, 3, 2.0, ("2.000 nats on held-out text",)),
        (2, 3, 2.5, ("2 parameters", "2.500 nats")),
    ],
)
def test_a_teacher_that_is_smaller_or_no_better_is_named(
    teacher: int, student: int, teacher_loss: float, named: Sequence[str]
) -> None:
    warnings = teacher_warnings(
        teacher_parameters=teacher, student_parameters=student, teacher_loss=teacher_loss, student_loss=2.0
    )
    assert len(warnings) == len(named)
    assert all(part in warning for part, warning in zip(named, warnings, strict=True))


def test_sound_runs_have_no_warning_and_say_what_they_gained(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher that has learnt the text, and its distillation into the smaller student."""
    run_alone(distill, CONFIG, tmp_path / "teacher", tiny["corpus"], tiny["teacher"], None)
    config = replace(CONFIG, method="taid", taid=TaidConfig(alpha=0.5))
    made = run_alone(distill, config, tmp_path / "base", tiny["corpus"], tiny["student"], tmp_path / "teacher")
    facts, said = made.manifest["facts"], capsys.readouterr().out
    assert facts["warnings"] == [] and "warning" not in said
    assert said.rstrip().endswith(facts["summary"])
    rows = PackedRows(tiny["corpus"] / "packed" / "validation")
    size = Tokenizer.load(tiny["tokenizer"]).size
    from common.checkpoint import load_model

    for folder, fact in ((tiny["student"], "validation_loss_before"), (tmp_path / "base", "validation_loss")):
        measured = mean_loss(row_losses(load_model(folder, HERE), rows, HERE, vocab_size=size))
        assert facts[fact] == pytest.approx(measured, rel=2e-2), "bfloat16 on some machines"
    first, *_ = (json.loads(line) for line in (tmp_path / "base" / "metrics.jsonl").read_text().splitlines())
    assert first == {"step": 0, "validation_loss": facts["validation_loss_before"]}
    assert f"{facts['validation_loss_before']:.3f} to {facts['validation_loss']:.3f} nats" in facts["summary"]


def test_a_diverged_run_says_so_again_when_it_is_found_done(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(CONFIG, optim=DIVERGES)
    for start in ("first", "second"):
        made = run_alone(distill, config, tmp_path / "out", tiny["corpus"], tiny["student"], None)
        warnings, said = made.manifest["facts"]["warnings"], capsys.readouterr().out
        assert any("did not fall" in each for each in warnings)
        assert all(f"warning: {each}\n" in said for each in warnings)
        assert ("done before" in said) == (start == "second")


def test_exchanged_models_are_said_before_the_first_step(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_alone(distill, CONFIG, tmp_path / "learnt", tiny["corpus"], tiny["teacher"], None)
    capsys.readouterr()
    config = replace(CONFIG, method="forward_kl", steps=6)
    made = run_alone(distill, config, tmp_path / "out", tiny["corpus"], tmp_path / "learnt", tiny["student"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warning: the teacher has ") and "parameters" in lines[0]
    assert "nothing to teach" in lines[1]
    assert all(line.removeprefix("warning: ") in made.manifest["facts"]["warnings"] for line in lines[:2])


def test_a_teacher_is_compared_on_rows_that_have_a_supervised_token(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rows of conversations can hold prompts alone."""
    corpus, tokenizer = Path(shutil.copytree(tiny["corpus"], tmp_path / "corpus")), Tokenizer.load(tiny["tokenizer"])
    ids = [tokenizer.encode(text)[:8] for text in texts(80)]
    documents = [(each, [100 * (place >= 77)] * 8) for place, each in enumerate(ids)]
    shutil.rmtree(corpus / "packed" / "validation")
    write_packed(corpus / "packed" / "validation", documents, sequence_tokens=8, tokenizer=tokenizer)
    rows = PackedRows(corpus / "packed" / "validation")
    supervised = [row for row in range(rows.num_rows) if rows.batch([row]).num_valid_tokens]
    assert len(supervised) == 3 and supervised[0] > 0
    compared: list[list[int]] = []

    def losses(*given: Any, indices: Sequence[int], **options: Any) -> list[tuple[float, float]]:
        compared.append(list(indices))
        return row_losses(*given, indices=indices, **options)

    monkeypatch.setattr("distill.train._COMPARED_ROWS", 2)
    monkeypatch.setattr("distill.train.row_losses", losses)
    config = replace(CONFIG, method="forward_kl", steps=2)
    run_alone(distill, config, tmp_path / "out", corpus, tiny["student"], tiny["teacher"])
    assert compared == [list(range(rows.num_rows)), supervised[:2]]


def test_tuning_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tokenizer_folder(tmp_path)
    base = model_folder(tmp_path / "base", tokenizer)
    rows = corpus_folder(tmp_path / "talks", tokenizer)  # without a data card it may be either kind
    config = InstructConfig(steps=8, rows_per_step=2, micro_batch_rows=2, validate_every=4, optim=CONFIG.optim)
    sound = run_alone(instruct, config, tmp_path / "sound", base, rows, None).manifest["facts"]
    assert sound["warnings"] == [] and "warning" not in capsys.readouterr().out
    broken = replace(config, optim=DIVERGES)
    facts = run_alone(instruct, broken, tmp_path / "broken", base, rows, None).manifest["facts"]
    assert facts["warnings"] and f"warning: {facts['warnings'][0]}" in capsys.readouterr().out


@pytest.mark.parametrize("removed", [{}, {"longer than a row": 20}, {"longer than a row": 21, "empty turn": 1}])
def test_data_that_mostly_falls_away_is_named_with_the_flag(removed: dict[str, int]) -> None:
    def advice(rule: str) -> str | None:
        return {"longer than a row": "raise --sequence-tokens", "thinned": None}.get(rule, "look")

    source = {"name": "talks", "rows_in": 100, "removed": removed | {"thinned": 70}}
    warnings = drop_warnings({"sources": [source, {"name": "other", "rows_in": 0, "removed": {}}]}, advice)
    lost = sum(removed.values())
    assert len(warnings) == (lost > 20)
    if warnings:
        assert f"{lost} of 100 rows of talks" in warnings[0] and "21 longer than a row (raise --sequence" in warnings[0]
        assert "thinned" not in warnings[0]


def test_the_report_shows_the_warnings_of_data_and_training_first(tmp_path: Path) -> None:
    build = write_build(tmp_path / "build")
    for name, file in (("base", "manifest.json"), ("corpus", "data_card.json")):
        content = json.loads((build[name] / file).read_text())
        (content["facts"] if name == "base" else content)["warnings"] = [f"{name} went wrong & <more>"]
        (build[name] / file).write_text(json.dumps(content))
    (tmp_path / "out").mkdir()
    report(ReportConfig(), Workspace(folder=tmp_path / "out", machine=HERE), *(build[name] for name in INPUTS))
    page, markdown = ((tmp_path / "out" / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    written = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert written["data"]["corpus"]["warnings"] == ["corpus went wrong & <more>"]
    for name in ("base", "corpus"):
        assert f"{name} went wrong &amp; &lt;more&gt;" in page and f"{name} went wrong" in markdown
    assert page.index("went wrong") < page.index('id="built"')
    assert markdown.index("went wrong") < markdown.index("What was built")
