"""`python -m export ...` as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from errors_tiny import refuses
from export_tiny import write_checkpoint

from common.errors import Code, UserError
from export.__main__ import main

ROOT = Path(__file__).parents[1]


def test_gguf_verb_writes_a_finished_artifact_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "Tiny-Chat")
    out = tmp_path / "files"
    arguments = ["gguf", str(checkpoint), "--out", str(out), "--encoding", "Q8_0"]
    main(arguments)
    assert "Tiny-Chat-Q8_0.gguf" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["Tiny-Chat-Q8_0.gguf", "manifest.json"]
    made = (out / "Tiny-Chat-Q8_0.gguf").stat()
    assert json.loads((out / "manifest.json").read_text())["facts"]["files"][0]["encoding"] == "Q8_0"
    main(arguments)
    assert (out / "Tiny-Chat-Q8_0.gguf").stat().st_mtime_ns == made.st_mtime_ns


def test_mistakes_are_told_before_anything_is_written(tmp_path: Path) -> None:
    checkpoint = str(write_checkpoint(tmp_path / "chat"))
    out = tmp_path / "out"
    mistakes: tuple[tuple[list[str], Code, str], ...] = (
        (["gguf", checkpoint, "--encoding", "Q3_K"], "unknown-name", "Q3_K"),
        (["gguf", str(tmp_path)], "not-found", "config.json"),
        (["coreml", checkpoint, "--context", "1024"], "out-of-range", "1024"),
        (["coreml", checkpoint, "--weights", "int4"], "unknown-name", "int4"),
    )
    for arguments, code, named in mistakes:
        with refuses(code, got=named):
            main([*arguments, "--out", str(out)])
        assert not out.exists()
    with pytest.raises(UserError, match="nowhere"):
        main(["gguf", str(tmp_path / "nowhere"), "--out", str(out)])
    assert not out.exists()


def test_options_of_later_issues_are_absent(tmp_path: Path) -> None:
    for extra in (["gguf", str(tmp_path), "--calibration", "text.jsonl"], ["release", str(tmp_path)]):
        with pytest.raises(SystemExit) as ended:
            main([*extra, "--out", str(tmp_path / "out")])
        assert ended.value.code == 2


def test_the_command_ends_with_one_line_and_exit_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export", "gguf", str(tmp_path), "--out", str(tmp_path / "out")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ended.stderr.startswith("error: wanted ")
