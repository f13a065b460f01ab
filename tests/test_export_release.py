"""The deliverable folder: everything in it, checked by sha256sum's own rules."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from errors_tiny import refuses
from export_tiny import SOURCES, workspace

from common.provenance import DataSource, write_sources
from export.release import DistConfig, dist

BARE = DistConfig(card=None)
"""Without a model card: the parts here are text. tests/test_export_release_card.py has it."""


def make(folder: Path, **contents: str) -> Path:
    """A folder of small files; `__` in a name stands for a slash and `_` for a dot."""
    for name, text in contents.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path, Path]:
    return (
        make(tmp_path / "gguf-1", T_gguf="weights", manifest_json="{}"),
        make(tmp_path / "coreml-1", T_mlpackage__Data__w_bin="w", tokenizer__config_json="c", manifest_json="{}"),
        make(tmp_path / "report-1", report_json="{}", report_html="<p>", report_md="#", notes_txt="-"),
    )


def test_all_deliverables_lie_in_one_folder_with_their_sums(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    space = workspace(tmp_path / "dist")
    facts = dist(BARE, space, *parts)
    found = {path.relative_to(space.folder).as_posix() for path in space.folder.rglob("*") if path.is_file()}
    names = {"T.gguf", "T.mlpackage/Data/w.bin", "tokenizer/config.json", "report.json", "report.html", "report.md"}
    assert found == names | {"SHA256SUMS"}
    lines = (space.folder / "SHA256SUMS").read_text().splitlines()
    sums = {line[66:]: line[:64] for line in lines}
    assert all(line[64:66] == "  " for line in lines)
    assert sums == {name: hashlib.sha256((space.folder / name).read_bytes()).hexdigest() for name in names}
    assert list(sums) == sorted(names)
    assert facts == {"files": 6, "bytes": sum((space.folder / name).stat().st_size for name in names)}


def test_data_card_and_licences_stand_there_once(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    write_sources(parts[0], SOURCES)
    write_sources(parts[1], SOURCES)
    out = workspace(tmp_path / "dist").folder
    facts = dist(BARE, workspace(tmp_path / "dist"), *parts)
    listed = [line[66:] for line in (out / "SHA256SUMS").read_text().splitlines()]
    assert facts["files"] == len(listed) == 9 and {"DATA.md", "LICENSES.md", "data_sources.json"} <= set(listed)
    assert json.loads((out / "data_sources.json").read_text()) == json.loads(
        (parts[0] / "data_sources.json").read_text()
    )
    card = (out / "DATA.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    assert {len(row) for row in rows} == {7}
    assert [(row[1], row[2], row[4], row[5], row[6]) for row in rows[2:]] == [
        ("wikimedia/wikipedia", "CC-BY-SA-3.0", "1,234", "9,000", "90.0"),
        ("own.jsonl", "–", "10", "1,000", "10.0"),
        ("wikimedia/wikipedia", "CC-BY-SA-3.0", "5", "–", "–"),
        (r"some/talks\_ja", r"Own terms \| v2", "77", "–", "–"),
    ]
    assert "このモデルは" in card and "This model learnt from" in card
    assert "ライセンスが記録されていません" in card and "report.html" in card
    licences = (out / "LICENSES.md").read_text(encoding="utf-8")
    assert re.findall("^## (.*)$", licences, re.MULTILINE) == ["wikimedia/wikipedia", "own.jsonl", r"some/talks\_ja"]
    asked = [SOURCES[0].attribution or "", *SOURCES[0].obligations, "https://spdx.org/licenses/CC-BY-SA-3.0.html"]
    assert all(licences.count(line) == 1 for line in asked)
    assert "not stated" in licences


def test_models_are_no_data(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model = DataSource(name="Qwen/Qwen2.5-1.5B-Instruct", licence="Apache-2.0", stage="model")
    write_sources(parts[0], [model, *SOURCES[:2]])
    dist(BARE, workspace(tmp_path / "dist"), parts[0], None, None)
    card = (tmp_path / "dist" / "DATA.md").read_text(encoding="utf-8")
    assert "the 2 sources of data in the table below, 10,000 tokens in all" in card and "10,000 トークン" in card
    assert "Qwen" not in card and "those models themselves are in `LICENSES.md`" in card
    assert "## Qwen/Qwen2.5-1.5B-Instruct" in (tmp_path / "dist" / "LICENSES.md").read_text(encoding="utf-8")
    write_sources(parts[0], [model])
    dist(BARE, workspace(tmp_path / "models"), parts[0], None, None)
    card = (tmp_path / "models" / "DATA.md").read_text(encoding="utf-8")
    assert "There is no record of the data" in card and "|" not in card


def test_no_part_of_a_hostile_source_becomes_markup(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    hostile = "<b onclick='x'>](javascript:x) | `a`\n# big"
    source = DataSource(
        name=hostile, licence=hostile, url=hostile, attribution=hostile, obligations=(hostile,), stage="corpus"
    )
    write_sources(parts[0], [source])
    dist(BARE, workspace(tmp_path / "dist"), parts[0], None, None)
    for name in ("DATA.md", "LICENSES.md"):
        text = (tmp_path / "dist" / name).read_text(encoding="utf-8")
        assert "<b" not in text and "\n# big" not in text and "](" not in text.replace(r"\](", "")
        assert "report.html" not in text


def test_started_again_it_gives_the_same(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    space = workspace(tmp_path / "dist")
    first = dist(BARE, space, *parts)
    assert dist(BARE, space, *parts) == first


def test_large_files_are_not_copied(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    space = workspace(tmp_path / "dist")
    dist(BARE, space, *parts)
    assert (space.folder / "T.gguf").samefile(parts[0] / "T.gguf")


def test_without_hard_links_it_copies(
    parts: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("export.release.os.link", refuse)
    space = workspace(tmp_path / "dist")
    dist(BARE, space, *parts)
    assert (space.folder / "T.gguf").read_text() == "weights"
    assert not (space.folder / "T.gguf").samefile(parts[0] / "T.gguf")


def test_parts_may_be_left_out(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    space = workspace(tmp_path / "dist")
    assert dist(BARE, space, parts[0], None, None)["files"] == 1


def test_missing_report_and_equal_names_are_refused(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with refuses("exists", got="T.gguf"):
        dist(BARE, workspace(tmp_path / "a"), parts[0], parts[0], None)
    (parts[2] / "report.md").unlink()
    with refuses("not-found", wanted="report.md"):
        dist(BARE, workspace(tmp_path / "b"), *parts)


def test_licence_texts_are_taken_along_and_summed(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    make(texts / "Qwen--Qwen2", LICENSE="Apache")
    write_sources(parts[0], SOURCES)
    space, without = workspace(tmp_path / "dist"), workspace(tmp_path / "without")
    dist(BARE, space, *parts, texts)
    dist(BARE, without, *parts)
    for folder, are_there in ((space.folder, True), (without.folder, False)):
        assert ("`licences/`" in (folder / "LICENSES.md").read_text(encoding="utf-8")) == are_there
    assert (space.folder / "licences" / "Qwen--Qwen2" / "LICENSE").read_text() == "Apache"
    assert "  licences/Qwen--Qwen2/LICENSE\n" in (space.folder / "SHA256SUMS").read_text()
    make(texts, LICENSE="whose?")
    with refuses("wrong-format", wanted="<org>--<name>", got="LICENSE in"):
        dist(BARE, workspace(tmp_path / "again"), *parts, texts)
