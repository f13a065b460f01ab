"""The commands of docs/instruction-sets.md, run in order; the models that they name are made here."""

import json
import sys
from pathlib import Path

import pytest
from docs_tiny import ROOT, TALKS, blocks, commands, rows_of, run
from text_tiny import VOCABULARY, tiny_tokenizer
from training_tiny import model_folder

from common.provenance import read_sources

PAGE = ROOT / "docs" / "instruction-sets.md"


def test_own_files_and_distilling_on_conversations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    monkeypatch.chdir(tmp_path)
    my = tmp_path / "my"
    tiny_tokenizer(my / "tokenizer")
    rows: list[dict[str, object]] = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for asked, answer in TALKS
    ]
    rows_of(my / "talks.jsonl", rows)
    for name, hidden, seed in (("student-untrained", 32, 0), ("teacher", 48, 1)):
        model_folder(my / name, my / "tokenizer", hidden=hidden, seed=seed, rows=VOCABULARY + 16)
    for fence, block in blocks(PAGE.read_text(encoding="utf-8")):
        if fence == "bash":
            for command in commands(block):
                run(command, tmp_path)
    card = json.loads((my / "conversations" / "data_card.json").read_text())
    assert card["rows_out"] == len(TALKS) and card["stage"] == "conversations"
    assert [one.stage for one in read_sources(my / "taught")] == ["conversations"]
