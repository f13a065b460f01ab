"""Sources, shards and duplicates of a corpus: workers, kills, weights, the card, sets of the hub, a cluster."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from text_tiny import MACHINE, read_gzip, tiny_tokenizer, workspace, write_rows

import common.packing.writing
import common.rows
import distill.corpus.shards
import distill.corpus.stage
import distill.text.cleaning
from common.documents import SPLITS, Shares
from common.duplicates import NearDuplicatesConfig
from common.errors import InputError, UserError
from common.packing import PackedRows
from common.provenance import Terms, write_terms
from common.source_shares import drawn_shares, mix_warnings, sources_of
from common.store import Workspace, run_alone
from common.tokenizer import Tokenizer
from distill.__main__ import main
from distill.corpus import CorpusConfig, TextSource, corpus
from distill.text.cleaning import Cleaner, CleaningConfig

CONFIG = CorpusConfig(
    sequence_tokens=64,
    shares=Shares(calibration=0.1, validation=0.1, test=0.1),
    cleaning=CleaningConfig(quality=None),
    near_duplicates=None,
)
WORDS = ["春の町", "川の水", "山の木", "秋の祭り", "冬の雪", "夏の海", "古い家", "新しい本", "白い花", "青い空"]
VERBS = ["が見えます。", "を思い出します。", "は遠くにあります。", "と呼ばれています。", "から始まります。"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer")


def texts(count: int, seed: int, sentences: int = 8) -> list[str]:
    rng = random.Random(seed)
    return [
        "".join(rng.choice(WORDS) + str(rng.randrange(1000)) + rng.choice(VERBS) for _ in range(sentences))
        for _ in range(count)
    ]


def rows(count: int, seed: int, name: str = "d", sentences: int = 8) -> list[dict[str, Any]]:
    return [{"id": f"{name}{place}", "text": text} for place, text in enumerate(texts(count, seed, sentences))]


def kept(folder: Path, splits: Sequence[str] = SPLITS) -> list[dict[str, Any]]:
    return [row for split in splits for row in read_gzip(folder / "documents" / f"{split}-00000.jsonl.gz")]


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found if "scratch" not in path.parts}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill.corpus.shards, "SHARD_BYTES", 4000)
    monkeypatch.setattr(distill.corpus.shards, "_BATCH_BYTES", 1000)


# --- workers and kills ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_shards")
def test_the_number_of_workers_changes_no_byte(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill.corpus.shards, "_FEW_BYTES", 0)
    config = replace(CONFIG, near_duplicates=NearDuplicatesConfig(), max_bad_share=0.1)
    some = rows(60, 1)
    some[20:20] = [{"text": ""}, some[3], {"text": some[5]["text"] + "そして終わりました。"}]
    source = write_rows(tmp_path / "text.jsonl.gz", some)
    for name, workers in (("one", 1), ("two", 2)):
        made = workspace(tmp_path / name)
        corpus(config, Workspace(folder=made.folder, machine=replace(MACHINE, threads=workers)), source, tokenizer)
    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    assert one == two and len(one) > 15
    removed = json.loads(one["data_card.json"])["removed"]
    assert removed == {"empty text": 1, "exact duplicate": 1, "near duplicate": 1}


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("near", [None, NearDuplicatesConfig()])
def test_finished_shards_are_not_cleaned_again(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, near: NearDuplicatesConfig | None
) -> None:
    config = replace(CONFIG, near_duplicates=near)
    sources = [write_rows(tmp_path / f"{name}.jsonl", rows(40, seed, name)) for seed, name in enumerate("ab")]
    whole = corpus(config, workspace(tmp_path / "whole"), *sources, tokenizer)
    cleaned: list[list[int]] = []
    plain = Cleaner.__call__

    def counted(self: Cleaner, batch: Any) -> Any:
        if len(cleaned[-1]) == dies_after:
            raise KeyboardInterrupt
        cleaned[-1].append(len(batch.rows))
        return plain(self, batch)

    monkeypatch.setattr(distill.text.cleaning.Cleaner, "__call__", counted)
    for dies_after in (9, 5, 10**6):
        cleaned.append([])
        if dies_after < 10**6:
            with pytest.raises(KeyboardInterrupt):
                corpus(config, workspace(tmp_path / "killed"), *sources, tokenizer)
    again = corpus(config, workspace(tmp_path / "killed"), *sources, tokenizer)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert again["sources"] == whole["sources"] and again["rows_in"] == 80
    # Each start repeats at most what a shard holds.
    in_a_shard = 4000 // 1000 + 2
    assert sum(map(sum, cleaned)) < 80 + 2 * in_a_shard * max(map(max, cleaned))
    assert sum(cleaned[2]) < 80 - 8


# --- duplicates -------------------------------------------------------------------------------------------------------


def test_the_earliest_of_exact_and_near_duplicates_stays(tmp_path: Path, tokenizer: Path) -> None:
    some = rows(30, 2)
    near = [
        {"id": f"n{place}", "text": row["text"].replace("。", "。また、", 1)} for place, row in enumerate(some[:10])
    ]
    exact = [{"id": f"e{place}", "text": f" {row['text']}\r\n"} for place, row in enumerate(some[10:20])]
    source = write_rows(tmp_path / "text.jsonl", some + near + exact)
    facts = corpus(
        replace(CONFIG, near_duplicates=NearDuplicatesConfig()), workspace(tmp_path / "out"), source, tokenizer
    )
    assert facts["removed"] == {"exact duplicate": 10, "near duplicate": 10}
    assert {row["id"] for row in kept(tmp_path / "out")} == {row["id"] for row in some}
    assert {sample["id"][0] for sample in facts["samples"]["exact duplicate"]} == {"e"}
    assert {sample["id"][0] for sample in facts["samples"]["near duplicate"]} == {"n"}
    assert len(facts["samples"]["kept"]) == 3


# --- sources ----------------------------------------------------------------------------------------------------------


def source(path: Path, name: str, weight: float | None = None, **options: Any) -> TextSource:
    terms = Terms(name=name, licence="CC-BY-4.0", attribution=f"by {name}", obligations=("Name it.",))
    return TextSource(terms=terms, files=(path,), weight=weight, **options)


@pytest.mark.usefixtures("small_shards")
def test_weights_hold_in_every_beginning_of_train(tmp_path: Path, tokenizer: Path) -> None:
    sources = tuple(
        source(write_rows(tmp_path / f"{name}.jsonl", rows(count, seed, name, sentences)), name, weight)
        for seed, (name, count, sentences, weight) in enumerate((("a", 60, 4, 1.0), ("b", 90, 12, 3.0)))
    )
    config = replace(CONFIG, sources=sources, shares=Shares(calibration=0, validation=0, test=0))
    facts = corpus(config, workspace(tmp_path / "out"), tokenizer)
    order = kept(tmp_path / "out", ["train"])
    assert len(order) == 150 == facts["rows_out"]
    characters = {"a": 0, "b": 0}
    longest = max(len(row["text"]) for row in order)
    for row in order[:100]:
        characters[row["source"]] += len(row["text"])
        # Whoever is behind gives next: neither is ahead of the ratio by more than a document.
        assert abs(characters["b"] / 3 - characters["a"]) <= longest
    assert [row["id"] for row in order if row["source"] == "a"] == [f"a{place}" for place in range(60)]


@pytest.mark.parametrize("window_tokens", [3_000, 10**6])
def test_what_a_run_draws_has_the_shares_of_the_weights(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, window_tokens: int
) -> None:
    """As in the release: 0.8 to 0.2, of which the second is there in plenty; rows are shuffled inside a window."""
    monkeypatch.setattr(common.packing.writing, "WINDOW_TOKENS", window_tokens)
    sources = tuple(
        source(write_rows(tmp_path / f"{name}.jsonl", rows(count, seed, name, 4)), name, weight)
        for seed, (name, count, weight) in enumerate((("web", 500, 0.8), ("wiki", 500, 0.2)))
    )
    config = replace(CONFIG, sources=sources, shares=Shares(calibration=0, validation=0, test=0))
    facts = corpus(config, workspace(tmp_path / "out"), tokenizer)
    mixed = facts["mixed_documents"]
    assert 600 < mixed < 650, "all of the web, and a quarter of it"
    in_mix = kept(tmp_path / "out", ["train"])[:mixed]
    loaded = Tokenizer.load(tokenizer)
    mixed_tokens = sum(len(loaded.encode(row["text"])) + 1 for row in in_mix)
    limit = mixed_tokens if window_tokens > mixed_tokens else mixed_tokens // 2
    packed = PackedRows(tmp_path / "out" / "packed" / "train", limit_tokens=limit)
    steps = -(-packed.num_rows // 4)
    (tmp_path / "out" / "data_card.json").write_text(json.dumps(facts))
    drawn = drawn_shares(sources_of(tmp_path / "out"), packed.drawn_tokens(steps=steps, rows_per_step=4, seed=0))
    assert [one["weight"] for one in drawn] == [0.8, 0.2]
    assert [one["share"] for one in drawn] == pytest.approx([0.8, 0.2], abs=0.01)
    assert mix_warnings(drawn) == []
    whole = PackedRows(tmp_path / "out" / "packed" / "train")
    over = drawn_shares(sources_of(tmp_path / "out"), whole.drawn_tokens(steps=whole.num_rows, rows_per_step=1, seed=0))
    assert over[1]["share"] == pytest.approx(0.5, abs=0.02) and len(mix_warnings(over)) == 1


def test_the_card_tells_of_every_source(tmp_path: Path, tokenizer: Path) -> None:
    good, bad = rows(40, 3, "g"), [{"text": "ｶﾞｯｺｳ" + text} for text in texts(10, 4)]
    first = write_rows(tmp_path / "one.jsonl", [*good, {"text": ""}, good[0]])
    second = write_rows(tmp_path / "two.jsonl", [*bad, good[1]])
    config = replace(
        CONFIG, sources=(source(second, "two"),), terms=(Terms(name="first", licence="Apache-2.0"),), max_bad_share=0.1
    )
    facts = corpus(config, workspace(tmp_path / "out"), first, tokenizer)
    one, two = facts["sources"]
    assert (one["name"], one["licence"], two["name"], two["obligations"]) == (
        "first",
        "Apache-2.0",
        "two",
        ("Name it.",),
    ) or (two["obligations"] == ["Name it."])
    assert (one["rows_in"], one["removed"], one["rows_out"]) == (42, {"empty text": 1, "exact duplicate": 1}, 40)
    assert (two["rows_in"], two["removed"], two["rows_out"]) == (11, {"exact duplicate": 1}, 10)
    assert two["changed"] == {"normalised": 10}
    assert one["characters_in"] == sum(len(row["text"]) for row in [*good, good[0]])
    assert two["characters_out"] == sum(len(row["text"]) for row in kept(tmp_path / "out") if row["source"] == "two")
    assert (
        one["tokens_out"] + two["tokens_out"]
        == facts["tokens"]
        == sum(meta["tokens"] for meta in facts["splits"].values())
    )
    assert one["tokens_in_estimate"] == round(one["characters_in"] * one["tokens_out"] / one["characters_out"])
    off = {step["step"]: step["reason"] for step in facts["steps"] if not step["on"]}
    assert set(off) == {"quality rules", "replacement of personal data", "decontamination", "near duplicates"}
    assert set(off.values()) == {"not asked for"}
    assert json.loads((tmp_path / "out" / "data_card.json").read_text())["sources"][0]["first_bad_rows"] == [
        "one.jsonl:41: empty text"
    ]


def test_files_of_one_name_are_told_apart_and_sources_must_be(tmp_path: Path, tokenizer: Path) -> None:
    paths = [write_rows(tmp_path / folder / "text.jsonl", rows(9, seed)) for seed, folder in enumerate("ab")]
    facts = corpus(CONFIG, workspace(tmp_path / "out"), *paths, tokenizer)
    assert [one["name"] for one in facts["sources"]] == ["text", "text-2"]
    twice = replace(CONFIG, sources=tuple(source(path, "same") for path in paths))
    with refuses("contradiction", got="same, same"):
        corpus(twice, workspace(tmp_path / "other"), tokenizer)
    with refuses("contradiction", got="1 of 2"):
        replace(CONFIG, sources=(source(paths[0], "a", 1.0), source(paths[1], "b")))
    with refuses("out-of-range", wanted="weight above 0", got="0", next_step="of a"):
        source(paths[0], "a", 0.0)


def test_too_many_bad_rows_stop_a_long_run_early(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common.rows, "EARLY_ROWS", 50)
    monkeypatch.setattr(distill.corpus.shards, "_BATCH_BYTES", 1000)
    first = write_rows(tmp_path / "a.jsonl", [{"text": ""}] * 60 + rows(400, 5))
    with refuses("wrong-format", wanted="1.00%", got="(a.jsonl:1: empty text") as found:
        corpus(CONFIG, workspace(tmp_path / "out"), first, tmp_path / "never read.jsonl", tokenizer)
    assert isinstance(found[0], InputError)


def test_bad_rows_at_the_start_count_over_the_whole(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common.rows, "EARLY_ROWS", 50)
    monkeypatch.setattr(distill.corpus.shards, "_BATCH_BYTES", 1000)
    first = write_rows(tmp_path / "a.jsonl", [{"text": ""}] * 4 + rows(400, 5))
    facts = corpus(CONFIG, workspace(tmp_path / "out"), first, tokenizer)
    assert facts["removed"]["empty text"] == 4
    more = write_rows(tmp_path / "b.jsonl", [{"text": ""}] * 5 + rows(400, 5))
    with refuses("wrong-format", got="5 of 405"):
        corpus(CONFIG, workspace(tmp_path / "other"), more, tokenizer)


@pytest.mark.usefixtures("small_shards")
def test_a_refused_run_leaves_nothing_and_a_killed_one_its_shards(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.store.building.probe", lambda record: MACHINE)  # pyright: ignore
    text = write_rows(tmp_path / "in" / "a.jsonl", [*rows(100, 5), *[{"text": ""}] * 5])
    (tmp_path / "made").mkdir()
    seen: list[int] = []

    def counted(near: Any, *arguments: Any, **names: Any) -> Any:
        seen.append(len(near))
        raise KeyboardInterrupt

    with refuses("wrong-format", got="5 of 105") as found:
        run_alone(corpus, CONFIG, tmp_path / "made" / "out", text, tokenizer)
    assert isinstance(found[0], InputError)
    assert list((tmp_path / "made").iterdir()) == []
    monkeypatch.setattr(distill.corpus.stage, "find_duplicates", counted)
    with pytest.raises(KeyboardInterrupt):
        run_alone(corpus, replace(CONFIG, max_bad_share=0.1), tmp_path / "made" / "out", text, tokenizer)
    (partial,) = (tmp_path / "made").iterdir()
    assert partial.suffix == ".partial" and len(list(partial.rglob("*.characters.npy"))) == seen[0] > 1


def test_the_card_says_with_what_documents_were_compared(tmp_path: Path, tokenizer: Path) -> None:
    asked = ["電子機器で使用される最も主要な電子回路基板の事をなんと言う？", "海？"]
    items = [
        {"q_id": place, "question": question, "label": 1} | {f"choice{choice}": f"基板{choice}" for choice in range(5)}
        for place, question in enumerate(asked)
    ]
    write_rows(tmp_path / "benchmarks" / "jglue" / "jcommonsenseqa-v1.3_valid-v1.3.json", items)
    text = write_rows(tmp_path / "a.jsonl", [*rows(20, 5), {"text": f"次に答えて。{asked[0]}マザーボード。"}])
    config = replace(CONFIG, benchmarks=tmp_path / "benchmarks")
    facts = corpus(config, workspace(tmp_path / "out"), text, tokenizer)
    (name,) = facts["contamination"]
    assert facts["benchmarks"] == {name: {"items": 2, "too_short": 1}}
    assert json.loads((tmp_path / "out" / "data_card.json").read_text())["benchmarks"] == facts["benchmarks"]
    assert corpus(CONFIG, workspace(tmp_path / "without"), text, tokenizer)["benchmarks"] == {}


def test_a_set_of_the_hub_by_name(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    hub = tmp_path / "hub"
    part = hub / "wikimedia" / "wikipedia" / "20231101.ja"
    part.mkdir(parents=True)
    for number in range(2):
        table = pyarrow.Table.from_pylist(
            [
                {"id": row["id"], "url": "u", "title": "t", "text": row["text"]}
                for row in rows(20, number, f"w{number}-")
            ]
        )
        pyarrow.parquet.write_table(table, part / f"train-0000{number}-of-00002.parquet")
    own = write_rows(tmp_path / "own.jsonl", rows(20, 9, "o"))
    command = ["corpus", "wikimedia/wikipedia:20231101.ja", own, "--tokenizer", tokenizer, "--weights", 2, 1]
    command += ["--no-quality", "--no-near-duplicates", "--sequence-tokens", 64]
    monkeypatch.setenv("SOURCES", str(hub))
    main([str(argument) for argument in (*command, "--out", tmp_path / "out")])
    card = json.loads((tmp_path / "out" / "data_card.json").read_text())
    wiki, mine = card["sources"]
    assert (wiki["name"], wiki["licence"], wiki["rows_out"]) == ("wikimedia/wikipedia:20231101.ja", "CC-BY-SA-3.0", 40)
    assert (mine["name"], mine["licence"], mine["weight"]) == ("own", None, 1.0)
    with pytest.raises(UserError) as raised:
        main([str(argument) for argument in (*command[:-4], 3, "--out", tmp_path / "other")])
    assert "2 weights" in raised.value.wanted


# --- the cluster's way ------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet_datatrove(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from loguru import logger

    logger.remove()
    yield
    logger.remove()


@pytest.mark.usefixtures("small_shards", "quiet_datatrove")
@pytest.mark.parametrize("tasks", [1, 3])
def test_datatrove_keeps_the_same_documents(tmp_path: Path, tokenizer: Path, tasks: int) -> None:
    from distill.corpus.engine import pipelines

    config = replace(CONFIG, near_duplicates=NearDuplicatesConfig(), cleaning=CleaningConfig(), max_bad_share=0.1)
    everything = [*rows(50, 6), {"text": "x" * 90}, {"text": ""}, *rows(10, 6, "again")]
    changed = [{"text": row["text"].replace("。", "。また、", 1)} for row in everything[:9]]
    parts = [everything[:20], everything[20:], changed, rows(15, 7)]
    paths = tuple(write_rows(tmp_path / "web" / f"{n}.jsonl", part) for n, part in enumerate(parts))
    config = replace(config, sources=(TextSource(terms=Terms(name="web"), files=paths),))
    facts = corpus(config, workspace(tmp_path / "stage"), tokenizer)
    clean, find, write = pipelines(config, tmp_path / "cluster", tasks=tasks)
    for steps, world in ((clean, tasks), (find, 1), (write, tasks)):
        for rank in range(world):
            assert list(steps[0].run(None, rank=rank, world_size=world)) == []
    written = [row for path in sorted((tmp_path / "cluster" / "documents").iterdir()) for row in read_gzip(path)]
    assert sorted(written, key=str) == sorted(kept(tmp_path / "stage"), key=str)
    card = json.loads((tmp_path / "cluster" / "data_card.json").read_text())
    assert (card["removed"], card["samples"]) == (facts["removed"], facts["samples"])
    assert facts["removed"]["near duplicate"] == 9 and facts["removed"]["exact duplicate"] == 10
    again = replace(CONFIG, shares=config.shares)
    corpus(again, workspace(tmp_path / "packed"), *sorted((tmp_path / "cluster" / "documents").iterdir()), tokenizer)
    for split in SPLITS:
        ids = [[row["id"] for row in kept(tmp_path / name, [split])] for name in ("stage", "packed")]
        assert ids[0] == ids[1]


def test_what_the_cluster_refuses(tmp_path: Path) -> None:
    from distill.corpus.engine import pipelines

    weighted = source(write_rows(tmp_path / "a.jsonl", rows(3, 1)), "a", 1.0)
    for wrong in (CONFIG, replace(CONFIG, sources=(weighted,))):
        with refuses("contradiction", got=f"{len(wrong.sources)} sources"):
            pipelines(wrong, tmp_path, tasks=2)


@pytest.mark.usefixtures("small_shards", "quiet_datatrove")
def test_the_cluster_does_not_mix_two_runs(tmp_path: Path) -> None:
    from distill.corpus.engine import pipelines

    text = TextSource(terms=Terms(name="web"), files=(write_rows(tmp_path / "web.jsonl", rows(30, 8)),))
    config, folder = replace(CONFIG, sources=(text,)), tmp_path / "cluster"
    clean, find, write = pipelines(config, folder, tasks=2)
    list(clean[0].run(None, rank=0, world_size=2))
    with refuses("not-found", got="not finished"):
        list(find[0].run(None))
    list(clean[0].run(None, rank=1, world_size=2))
    with refuses("not-found", got="not finished"):
        list(write[0].run(None, rank=0, world_size=2))
    list(find[0].run(None))
    for other, tasks in ((config, 3), (replace(config, seed=1), 2)):
        changed = pipelines(other, folder, tasks=tasks)
        with refuses("mismatch", wanted=str(folder)):
            list(changed[0][0].run(None, rank=0, world_size=tasks))
        with refuses("mismatch", wanted=str(folder)):
            list(changed[1][0].run(None))
    (folder / "documents").mkdir()
    (folder / "documents" / "00002.jsonl.gz").write_bytes(b"")
    with refuses("exists", got="00002.jsonl.gz"):
        list(write[0].run(None, rank=0, world_size=2))


# --- what a review found ----------------------------------------------------------------------------------------------


def test_a_folders_own_terms_are_taken(tmp_path: Path, tokenizer: Path) -> None:
    folder = write_rows(tmp_path / "mine" / "text.jsonl", rows(9, 1)).parent
    write_terms(folder, Terms(name="my texts", licence="my own", obligations=("Ask me.",)))
    facts = corpus(CONFIG, workspace(tmp_path / "out"), folder, tokenizer)
    assert [(one["name"], one["licence"]) for one in facts["sources"]] == [("my texts", "my own")]
    (folder / "terms.json").write_text('{"nam": 1}')
    with pytest.raises(UserError) as raised:
        corpus(CONFIG, workspace(tmp_path / "other"), folder, tokenizer)
    assert str(folder / "terms.json") in raised.value.wanted


def test_what_would_be_ignored_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    plain = write_rows(tmp_path / "plain.jsonl", rows(9, 1))
    weighted = source(write_rows(tmp_path / "a.jsonl", rows(9, 2)), "a", 1.0)
    empty = source(write_rows(tmp_path / "b.jsonl", [{"body": "x"}]), "b", 1.0)
    with refuses("contradiction", got="1 inputs, 0 terms, weights for a"):
        corpus(replace(CONFIG, sources=(weighted,)), workspace(tmp_path / "one"), plain, tokenizer)
    with refuses("contradiction", got="1 inputs, 2 terms"):
        corpus(replace(CONFIG, terms=(Terms(name="x"),) * 2), workspace(tmp_path / "two"), plain, tokenizer)
    with refuses("empty", wanted="documents of b"):
        mixed = replace(CONFIG, sources=(weighted, empty), max_bad_share=0.5)
        corpus(mixed, workspace(tmp_path / "three"), tokenizer)
    with refuses("out-of-range", wanted="weight", got="inf", next_step="of a"):
        source(plain, "a", float("inf"))


def test_a_shard_and_a_batch_hold_a_number_of_documents(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill.corpus.shards, "_BATCH_ROWS", 4)
    monkeypatch.setattr(distill.corpus.shards, "_SHARD_DOCUMENTS", 8)
    found: list[int] = []
    write = distill.corpus.shards._write

    def counted(folder: Path, number: int, shard: Any) -> Any:
        found.append(sum(len(one.lines) for one in shard.cleaned))
        return write(folder, number, shard)

    monkeypatch.setattr(distill.corpus.shards, "_write", counted)
    corpus(CONFIG, workspace(tmp_path / "out"), write_rows(tmp_path / "a.jsonl", rows(30, 2)), tokenizer)
    assert found == [8, 8, 8, 6]


def test_a_file_name_that_is_no_text(tmp_path: Path, tokenizer: Path) -> None:
    import os

    path = tmp_path / os.fsdecode(b"\xff\xfe.jsonl")
    write_rows(tmp_path / "a.jsonl", [{"text": row["text"]} for row in rows(9, 3)]).rename(path)
    facts = corpus(CONFIG, workspace(tmp_path / "out"), path, tokenizer)
    assert facts["sources"][0]["name"] == "??" and kept(tmp_path / "out")[0]["id"].startswith("??-")


def test_answers_as_text_are_left_alone(tmp_path: Path, tokenizer: Path) -> None:
    some = [{"text": row["text"], "answers": ["京都"]} for row in rows(9, 4)]
    corpus(CONFIG, workspace(tmp_path / "out"), write_rows(tmp_path / "a.jsonl", some), tokenizer)
    assert len(kept(tmp_path / "out")) == 9 and all("answers" not in row for row in kept(tmp_path / "out"))
