"""The commands of docs/publish.md, run in order on a release that is made here, and its example of a card."""

import sys
from pathlib import Path

import pytest
from release_tiny import OWN, release
from test_docs import ROOT, blocks, commands, run

from eval.report import Choice
from export.card import CardConfig, Sampling
from export.release import DistConfig

PAGE = ROOT / "docs" / "publish.md"


def test_the_commands_do_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    (tmp_path / "dist").mkdir()
    release(tmp_path / "made", OWN).rename(tmp_path / "dist" / "mini")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for kind, block in blocks(PAGE.read_text(encoding="utf-8")):
        if kind == "bash":
            for command in commands(block):
                run(command, tmp_path)
    told = capsys.readouterr().out
    assert "/me/TinySwallow-mini (public" in told and "nothing was sent" in told


def test_every_block_is_run_or_marked() -> None:
    kinds = [kind for kind, _ in blocks(PAGE.read_text(encoding="utf-8"))]
    assert sorted(kinds) == ["bash", "bash", "bash not run", "python"]


def test_the_example_of_a_card_is_one() -> None:
    (example,) = (block for kind, block in blocks(PAGE.read_text(encoding="utf-8")) if kind == "python")
    names = {"DistConfig": DistConfig, "CardConfig": CardConfig, "Sampling": Sampling, "Choice": Choice}
    made = eval(example, names)
    assert isinstance(made, DistConfig) and made.card is not None
    assert [choice.published for choice in made.card.choices] == [True, False, False]
    assert [choice.source is None for choice in made.card.choices] == [False, False, True]
