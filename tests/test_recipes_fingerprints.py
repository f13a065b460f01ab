"""Fingerprints: the recorded ones are those of the code, and any change that could matter changes them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from errors_tiny import refuses

from recipes import fingerprints
from recipes.fingerprints import current, files_of, fingerprint, recorded, rewrite


def test_recorded_fingerprints_are_those_of_the_code() -> None:
    now, known = current(), recorded()
    changed = sorted(stage for stage in now.keys() | known.keys() if now.get(stage) != known.get(stage))
    assert not changed, (
        f"changed since tests/fingerprints.json was written: {', '.join(changed)}. Raise the version of each whose "
        "output changes, then `python -m recipes --fingerprints STAGE...`; for the rest, --same-output --reason TEXT"
    )


def test_every_stage_of_the_code_is_found() -> None:
    """Against a plain search for the decorator."""
    count = 0
    for package in fingerprints.PACKAGES:
        for path in (fingerprints.ROOT / package).rglob("*.py"):
            count += len(re.findall(r"^@stage\(", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(current()) == count > 0


def test_files_are_those_that_python_loads() -> None:
    """Against a real import: what `common.packing` loads is in its list; the list may hold more (late imports)."""
    code = "import sys, common.packing; print(*(getattr(m, '__file__', '') for m in list(sys.modules.values())))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=fingerprints.ROOT, capture_output=True, text=True, check=True
    )
    loaded = {Path(name) for name in done.stdout.split()}
    ours = {path for path in loaded if path.parent.is_relative_to(fingerprints.ROOT / "common")}
    assert ours and ours <= set(files_of("common.packing"))


STAGE_TEXT = '''
"""A docstring that speaks of import distill.unrelated."""
import json
from common.store import (
    Workspace,  # what a stage gets
    stage,
)

@stage(version=3)
def base(config, workspace):
    from distill import late
    words = read("words.txt")
    child = ["-m", "export.child"]
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = {
        "distill/__init__.py": "",
        "distill/train.py": STAGE_TEXT,
        "distill/late.py": "import common.deep.leaf as leaf",
        "distill/unrelated.py": "",
        "distill/words.txt": "one",
        "distill/other.txt": "two",
        "export/__init__.py": "",
        "export/child.py": "",
        "common/__init__.py": "",
        "common/store/__init__.py": "from common.store.keys import key",
        "common/store/keys.py": "import os, common.errors",
        "common/errors.py": "",
        "common/deep/__init__.py": "",
        "common/deep/leaf.py": "# a cycle is no problem\nimport distill.train",
        "tests/nothing.txt": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


USED = [
    "distill/__init__.py",
    "distill/train.py",
    "distill/late.py",
    "distill/words.txt",
    "export/__init__.py",
    "export/child.py",
    "common/__init__.py",
    "common/store/__init__.py",
    "common/store/keys.py",
    "common/errors.py",
    "common/deep/__init__.py",
    "common/deep/leaf.py",
]


def test_every_file_that_a_stage_stands_on_is_in_its_list_and_no_other(tree: Path) -> None:
    names = [path.relative_to(tree).as_posix() for path in files_of("distill.train", tree)]
    assert names == sorted(USED)


@pytest.mark.parametrize("name", USED)
def test_a_changed_byte_in_any_of_them_is_another_fingerprint(tree: Path, name: str) -> None:
    before = fingerprint("distill.train", tree)
    with (tree / name).open("a") as file:
        file.write("#")
    assert fingerprint("distill.train", tree) != before


@pytest.mark.parametrize("name", ["distill/unrelated.py", "distill/other.txt"])
def test_a_file_that_it_does_not_use_does_not_count(tree: Path, name: str) -> None:
    before = fingerprint("distill.train", tree)
    (tree / name).write_text("changed")
    assert fingerprint("distill.train", tree) == before


def test_rewriting_needs_a_new_version_or_a_word(tree: Path) -> None:
    assert [(line.stage, line.version, line.why) for line in rewrite(["all"], same_output=False, root=tree)] == [
        ("distill.train:base", 3, "new")
    ]
    assert recorded(tree) == current(tree)
    assert rewrite(["all"], same_output=False, root=tree) == []
    (tree / "common" / "errors.py").write_text("changed")
    with refuses("contradiction", wanted="distill.train:base, or --same-output", got="version 3"):
        rewrite(["base"], same_output=False, root=tree)
    assert recorded(tree) != current(tree)
    assert [line.why for line in rewrite(["base"], same_output=True, root=tree)] == ["same output"]
    assert recorded(tree) == current(tree)
    (tree / "distill" / "train.py").write_text(STAGE_TEXT.replace("version=3", "version=4"))
    assert [line.why for line in rewrite(["distill.train:base"], same_output=False, root=tree)] == ["version 3 to 4"]
    assert recorded(tree) == current(tree)


def test_a_stage_that_is_gone_leaves_the_file(tree: Path) -> None:
    rewrite(["all"], same_output=False, root=tree)
    (tree / "distill" / "train.py").unlink()
    rewrite(["all"], same_output=False, root=tree)
    assert recorded(tree) == {}


def test_an_unknown_stage_names_the_known_ones(tree: Path) -> None:
    with refuses("unknown-name", wanted="distill.train:base, all", got="'bas'"):
        rewrite(["bas"], same_output=False, root=tree)
