"""The commands of docs/large-corpora.md, run in order; the tokenizer that they name is made here."""

import json
import sys
from pathlib import Path

import pytest
from docs_tiny import ROOT, TEXTS, blocks, commands, rows_of, run
from text_tiny import read_gzip, tiny_tokenizer

from common.documents import SPLITS

PAGE = ROOT / "docs" / "large-corpora.md"


def test_the_cluster_run_in_small_and_the_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("common", "distill", "eval"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "web").mkdir(parents=True)
    tiny_tokenizer(tmp_path / "my" / "tokenizer")
    halves = [list(TEXTS[:12]), [*TEXTS[12:], TEXTS[0]]]
    for number, half in enumerate(halves):
        rows_of(tmp_path / "my" / "web" / f"{number}.jsonl", [{"text": text} for text in half])
    for fence, block in blocks(PAGE.read_text(encoding="utf-8")):
        if fence == "bash":
            for command in commands(block):
                run(command, tmp_path)
    card = json.loads((tmp_path / "my" / "cleaned" / "data_card.json").read_text())
    assert card["rows_in"] == 25 and card["removed"]["exact duplicate"] == 1
    packed = tmp_path / "my" / "packed"
    kept = {row["text"] for split in SPLITS for row in read_gzip(packed / "documents" / f"{split}-00000.jsonl.gz")}
    assert kept <= set(TEXTS) and len(kept) == card["rows_out"] >= 20
