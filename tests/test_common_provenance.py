"""What model folders say of their data: as plain JSON, merged against a brute-force rule, and through training."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from hypothesis import given
from hypothesis import strategies as st
from training_tiny import run_folders

from common.provenance import DataSource, Terms, is_text, merged, propagate_sources, read_sources, write_sources
from common.store import run_alone
from common.store.artifacts import read_manifest
from distill.train import DistillConfig, distill
from instruct.train import InstructConfig, instruct

WIKI: dict[str, Any] = {
    "name": "wikimedia/wikipedia",
    "licence": "CC-BY-SA-3.0",
    "url": "https://huggingface.co/datasets/wikimedia/wikipedia",
    "attribution": "Wikipedia の執筆者",
    "obligations": ["Name Wikipedia.", "Share alike."],
    "revision": "b04c8d1c",
    "weight": 0.5,
    "rows_in": 12,
    "removed": {"empty text": 2},
    "rows_out": 10,
    "tokens_out": 4321,
}


def card(folder: Path, *sources: dict[str, Any], **fields: Any) -> Path:
    """A folder with a data card of these sources."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"rows_in": 1, "rows_out": 1, "removed": {}, "sources": list(sources), **fields}
    (folder / "data_card.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def named(folder: Path) -> list[tuple[str, str, int | None]]:
    """(stage, name, rows) of each source of a model folder, from the plain JSON."""
    content = json.loads((folder / "data_sources.json").read_text(encoding="utf-8"))
    return [(source["stage"], source["name"], source["rows_out"]) for source in content["sources"]]


def test_the_cards_terms_and_counts_arrive_whole(tmp_path: Path) -> None:
    propagate_sources(tmp_path, "corpus", card(tmp_path / "corpus", WIKI, {"name": "own.jsonl"}))
    content = json.loads((tmp_path / "data_sources.json").read_text(encoding="utf-8"))
    told = ("name", "licence", "url", "attribution", "obligations", "revision", "rows_out", "tokens_out")
    absent = dict.fromkeys(told) | {"obligations": [], "quotable": False}
    assert content == {
        "sources": [
            {"stage": "corpus", "quotable": False} | {field: WIKI[field] for field in told},
            {"stage": "corpus"} | absent | {"name": "own.jsonl"},
        ]
    }
    assert [source.obligations for source in read_sources(tmp_path)] == [("Name Wikipedia.", "Share alike."), ()]


def test_checkpoints_come_first_and_a_source_stands_once_a_stage(tmp_path: Path) -> None:
    student, teacher, out = (tmp_path / name for name in ("student", "teacher", "out"))
    for folder in (student, teacher, out):
        folder.mkdir()
    first = {"name": "first", "rows_out": 1}
    propagate_sources(student, "corpus", card(tmp_path / "old", WIKI, first))
    propagate_sources(
        teacher, "corpus", card(tmp_path / "large", WIKI | {"revision": "another"}, first | {"rows_out": 2})
    )
    newer = card(tmp_path / "new", WIKI | {"rows_out": 7})
    propagate_sources(out, "corpus", newer, student, None, teacher)
    assert named(out) == [
        ("corpus", WIKI["name"], 7),  # as the card says now, where the student named it
        ("corpus", "first", 2),
        ("corpus", WIKI["name"], 10),  # another revision is another source
    ]
    propagate_sources(out, "conversations", newer, out)
    assert named(out)[3:] == [("conversations", WIKI["name"], 7)]
    before = (out / "data_sources.json").read_bytes()
    propagate_sources(out, "conversations", newer, out)
    assert (out / "data_sources.json").read_bytes() == before


def test_a_card_that_names_its_own_stage_is_believed(tmp_path: Path) -> None:
    propagate_sources(tmp_path, "corpus", card(tmp_path / "talks", {"name": "talks"}, stage="conversations"))
    assert named(tmp_path) == [("conversations", "talks", None)]


def test_where_nothing_is_known_no_file_is_written(tmp_path: Path) -> None:
    old_card = tmp_path / "old"
    old_card.mkdir()
    (old_card / "data_card.json").write_text('{"rows_in": 3, "removed": {}, "rows_out": 3}')
    (tmp_path / "bare").mkdir()
    for data in (None, tmp_path / "bare", old_card):
        propagate_sources(tmp_path, "corpus", data, None, tmp_path / "bare")
    assert not (tmp_path / "data_sources.json").exists()
    assert read_sources(tmp_path) == []


@pytest.mark.parametrize(
    "damaged",
    [
        '{"sources": [{"name": "a"',
        '{"sources": [{"stage": "corpus"}]}',
        '{"sources": [{"name": "a"}]}',
        '{"sources": [{"name": "a", "stage": "corpus", "obligations": "Name it."}]}',
        '{"sources": [{"name": "a", "stage": "corpus", "licence": 4}]}',
        '{"sources": [{"name": "a", "stage": "corpus", "obligations": [4]}]}',
        '{"sources": [{"name": "a", "stage": "corpus", "rows_out": "many"}]}',
        '{"sources": [{"name": "a", "stage": "corpus", "rows_out": true}]}',
        '{"sources": [{"name": "a", "stage": "corpus", "quotable": "no"}]}',
        '{"sources": [{"name": "/home/someone/a", "stage": "corpus"}]}',
        '{"sources": 3}',
        "[]",
    ],
)
def test_a_damaged_list_is_one_clear_line(damaged: str, tmp_path: Path) -> None:
    (tmp_path / "data_sources.json").write_text(damaged)
    with refuses("damaged", wanted="data_sources.json"):
        read_sources(tmp_path)


def test_text_is_told_from_conversations(tmp_path: Path) -> None:
    assert is_text(card(tmp_path / "corpus", WIKI))
    assert not is_text(card(tmp_path / "conversations", WIKI, stage="conversations"))
    assert not is_text(tmp_path), "no card, nothing known"


@pytest.mark.parametrize("damaged", ["[]", '{"sources": ['])
def test_a_damaged_card_is_named_too(damaged: str, tmp_path: Path) -> None:
    (tmp_path / "data_card.json").write_text(damaged)
    with refuses("damaged", wanted="data_card.json"):
        is_text(tmp_path)
    with refuses("damaged", wanted="data_card.json"):
        propagate_sources(tmp_path, "corpus", card(tmp_path / "corpus", {"licence": "MIT"}))


@pytest.mark.parametrize("name", ["", "  ", "/data/texts.jsonl", "~/texts.jsonl"])
def test_a_source_is_called_by_a_name_and_not_by_a_path(name: str) -> None:
    with refuses("wrong-format", wanted="name", got=name):
        Terms(name=name)


SOURCES = st.builds(
    DataSource,
    name=st.sampled_from("ab"),
    stage=st.sampled_from(["corpus", "conversations"]),
    revision=st.sampled_from([None, "1"]),
    licence=st.sampled_from([None, "MIT"]),
    obligations=st.sampled_from([(), ("Do it.",)]),
    rows_out=st.integers(0, 99),
)


@given(st.lists(st.lists(SOURCES, max_size=5), max_size=4))
def test_merging_keeps_first_places_and_last_words(lists: list[list[DataSource]]) -> None:
    line = [source for sources in lists for source in sources]

    def same(one: DataSource, other: DataSource) -> bool:
        return (one.stage, one.name, one.revision) == (other.stage, other.name, other.revision)

    firsts = [source for place, source in enumerate(line) if not any(same(source, other) for other in line[:place])]
    expected = [[other for other in line if same(source, other)][-1] for source in firsts]
    assert merged(*lists) == expected


@given(sources=st.lists(SOURCES, min_size=1, max_size=5))
def test_what_is_written_is_read_back(sources: Sequence[DataSource], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("model")
    write_sources(folder, sources)
    assert read_sources(folder) == sources


def test_every_model_of_a_build_names_all_that_it_learnt_from(tmp_path: Path) -> None:
    folders = run_folders(tmp_path)
    card(folders["corpus"], {"name": "texts", "rows_out": 100})
    propagate_sources(folders["teacher"], "corpus", card(tmp_path / "web", {"name": "web", "rows_out": 10**9}))
    propagate_sources(folders["student"], "corpus", card(tmp_path / "books", {"name": "books", "rows_out": 5}))
    config = DistillConfig(method="forward_kl", steps=1, rows_per_step=2, micro_batch_rows=2)
    inputs = (folders["corpus"], folders["student"], folders["teacher"])
    base = run_alone(distill, config, tmp_path / "base", *inputs).folder
    assert named(base) == [("corpus", "books", 5), ("corpus", "web", 10**9), ("corpus", "texts", 100)]
    assert "data_sources.json" in read_manifest(base)["files"]

    talks = card(tmp_path / "talks", {"name": "talks", "rows_out": 3}, stage="conversations")
    (talks / "packed").symlink_to(folders["corpus"] / "packed")
    replay = card(tmp_path / "replay", {"name": "texts", "rows_out": 90}, {"name": "news", "rows_out": 8})
    (replay / "packed").symlink_to(folders["corpus"] / "packed")
    tuning = InstructConfig(steps=1, rows_per_step=2, micro_batch_rows=2, replay_rows_per_step=1)
    chat = run_alone(instruct, tuning, tmp_path / "chat", base, talks, replay).folder
    assert named(chat) == [
        *[("corpus", "books", 5), ("corpus", "web", 10**9), ("corpus", "texts", 90), ("corpus", "news", 8)],
        ("conversations", "talks", 3),
    ]
    assert "data_sources.json" in read_manifest(chat)["files"]


def test_a_source_that_was_private_once_stays_private() -> None:
    """Two files of one name, of which the terms of one allow quotes."""
    private = DataSource(name="notes", stage="corpus")
    for both in ([private, replace(private, quotable=True)], [replace(private, quotable=True), private]):
        assert [source.quotable for source in merged(both)] == [False]
    assert [source.quotable for source in merged([replace(private, quotable=True)] * 2)] == [True]
