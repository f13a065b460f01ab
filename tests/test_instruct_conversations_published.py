"""The sets that are known by name: their files as published, their terms as stated, and the command that names them."""

import contextlib
import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from text_tiny import read_gzip, tiny_tokenizer, workspace, write_rows

from common.documents import SPLITS
from common.errors import UserError
from common.sources import HubDataset, HubFiles
from instruct.__main__ import main
from instruct.conversations import ConversationsConfig, ConversationSource, conversations, layouts, published
from instruct.conversations.published import published_source, set_names

MAGPIE_ULTRA = "tokyotech-llm/swallow-magpie-ultra-v0.1"
GEMMA_MAGPIE = "tokyotech-llm/swallow-gemma-magpie-v0.1"
LLM_JP = "llm-jp/magpie-sft-v1.0"
LMSYS = "tokyotech-llm/lmsys-chat-1m-synth"


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A SOURCES folder with the magpie sets, in the layouts in which their publishers are known to write."""
    root = tmp_path / "hub"
    for part in ("ja", "en"):
        rows = [{"conversation": turns(f"{part}{number}")} for number in range(12)]
        write_rows(root / MAGPIE_ULTRA / f"train_{part}.jsonl", rows)
    (root / MAGPIE_ULTRA / "README.md").write_text("---\nlicense: llama3.1\n---\n")
    pairs = [{"instruction": f"問い{number}", "response": f"答え{number}"} for number in range(8)]
    write_rows(root / GEMMA_MAGPIE / "train.jsonl.gz", pairs)
    talks = [{"id": f"m{number}", "conversations": turns(f"m{number}")} for number in range(6)]
    write_rows(root / LLM_JP / "data" / "train.jsonl", talks)
    return root


def turns(name: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{name}は？"}, {"role": "assistant", "content": f"{name}です。"}]


def run(out: Path, tokenizer: Path, *arguments: Any) -> dict[str, Any]:
    main([str(argument) for argument in ("conversations", *arguments, "--tokenizer", tokenizer, "--out", out)])
    return json.loads((out / "data_card.json").read_text(encoding="utf-8"))


def asked(folder: Path) -> set[str]:
    rows = [row for split in SPLITS for row in read_gzip(folder / "documents" / f"{split}-00000.jsonl.gz")]
    return {row["messages"][0]["content"] for row in rows}


def test_sets_by_name_from_a_folder(
    tmp_path: Path, hub: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = write_rows(tmp_path / "mine.jsonl", [{"messages": turns("own")}])
    names = (MAGPIE_ULTRA, GEMMA_MAGPIE, own, LLM_JP + "@v1")
    card = run(tmp_path / "out", tokenizer_folder, *names, "--sources", hub)
    rows = {source["name"]: source["rows_out"] for source in card["sources"]}
    assert rows == {f"{MAGPIE_ULTRA}:ja": 12, GEMMA_MAGPIE: 8, "mine.jsonl": 1, LLM_JP: 6}
    expected = {f"{name}は？" for name in [*(f"ja{n}" for n in range(12)), *(f"m{n}" for n in range(6)), "own"]}
    assert asked(tmp_path / "out") == expected | {f"問い{number}" for number in range(8)}
    assert f"  {GEMMA_MAGPIE}: kept 8 of 8 rows; removed: none" in capsys.readouterr().out
    llama = card["sources"][0]
    assert llama["licence"] == "Llama 3.1 Community License and Gemma Terms of Use"
    assert any("Built with Llama" in obligation for obligation in llama["obligations"])


def test_the_environment_names_the_folder_and_parts_are_chosen(
    tmp_path: Path, hub: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCES", str(hub))
    card = run(tmp_path / "out", tokenizer_folder, f"{MAGPIE_ULTRA}:en")
    assert [source["name"] for source in card["sources"]] == [f"{MAGPIE_ULTRA}:en"]
    assert asked(tmp_path / "out") == {f"en{number}は？" for number in range(12)}


def test_weights_on_the_command_line(tmp_path: Path, hub: Path, tokenizer_folder: Path) -> None:
    own = write_rows(tmp_path / "mine.jsonl", [{"messages": turns(f"own{number}")} for number in range(9)])
    card = run(tmp_path / "out", tokenizer_folder, own, LLM_JP, "--sources", hub, "--weights", 1, 2)
    assert [source["rows_out"] for source in card["sources"]] == [3, 6]
    with pytest.raises(UserError, match="2 weights, one for each FILE_OR_SET; got 1"):
        run(tmp_path / "few", tokenizer_folder, own, LLM_JP, "--sources", hub, "--weights", 1)


def test_options_reach_the_config(tmp_path: Path, hub: Path, tokenizer_folder: Path) -> None:
    options = [
        *("--overlong", "cut", "--min-turn-characters", 2, "--max-turn-characters", 900, "--min-japanese-share", 0),
        *("--drop-refusals", "--keep-personal-data", "--keep-templates", "--max-bad-share", 0.5, "--seed", 3),
        *("--sequence-tokens", 64, "--test-share", 0.1),
    ]
    run(tmp_path / "out", tokenizer_folder, LLM_JP, "--sources", hub, *options)
    config = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["config"]
    filters = {name: value for name, value in config["filters"].items() if name not in ("class", "judged_letters")}
    assert filters == {
        "min_turn_characters": 2,
        "max_turn_characters": 900,
        "min_japanese_share": None,
        "drop_refusals": True,
    }
    assert config["lmsys"] == {"class": "LmsysConfig", "exclude_personal_data": False, "exclude_templates": False}
    assert (config["overlong"], config["seed"], config["max_bad_share"]) == ("cut", 3, 0.5)
    assert (config["sequence_tokens"], config["shares"]["test"], config["shares"]["validation"]) == (64, 0.1, 0.01)


def test_help_names_the_sets_and_every_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["conversations", "--help"])
    shown = re.sub(r"\s+", "", capsys.readouterr().out)
    assert all(name in shown for name in set_names()) and "LMSYS_SYNTH_PASSPHRASE" in shown


def test_unknown_names(tmp_path: Path, hub: Path, tokenizer_folder: Path) -> None:
    for name in ("someone/else", "wikimedia/wikipedia", "lmsys/lmsys-chat-1m"):
        with refuses("unknown-name", wanted=f"{MAGPIE_ULTRA}:ja", got=name):
            run(tmp_path / "out", tokenizer_folder, name, "--sources", hub)
    with refuses("unknown-name", wanted="ja, en", got="fr"):
        run(tmp_path / "out", tokenizer_folder, f"{MAGPIE_ULTRA}:fr", "--sources", hub)
    with pytest.raises(UserError, match="no folder"):
        run(tmp_path / "out", tokenizer_folder, MAGPIE_ULTRA, "--sources", tmp_path / "empty")
    with pytest.raises(UserError, match=r"nothing at mistyped/file\.jsonl"):
        run(tmp_path / "out", tokenizer_folder, "mistyped/file.jsonl", "--sources", hub)


def test_columns_that_nobody_knows_are_shown(tmp_path: Path, tokenizer_folder: Path) -> None:
    write_rows(tmp_path / "hub" / GEMMA_MAGPIE / "train.jsonl", [{"topic": "a", "qa": "b"}])
    with refuses("wrong-format", wanted="in train.jsonl", got="topic, qa"):
        run(tmp_path / "out", tokenizer_folder, GEMMA_MAGPIE, "--sources", tmp_path / "hub")


def test_from_the_hub_the_commit_and_all_needed_files_are_in_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[HubDataset] = []

    def resolve(dataset: HubDataset, *, sources: Path | None) -> HubFiles:
        assert sources is None
        wanted.append(dataset)
        files = tuple(sorted(pattern.replace("**/", "data/").replace("*", "x") for pattern in dataset.files))
        return HubFiles(name=dataset.name, config=dataset.config, revision="0" * 40, files=files, bytes=1)

    monkeypatch.setattr(published, "resolve", resolve)
    source = published_source(HubDataset(name=LMSYS, revision="v1"), sources=None, weight=2.0)
    assert [dataset.name for dataset in wanted] == [LMSYS, "lmsys/lmsys-chat-1m"]
    assert (wanted[0].revision, wanted[1].revision) == ("v1", None)
    assert isinstance(source.files, HubFiles) and isinstance(source.original, HubFiles)
    assert source.files.files == (
        "data/gemma2-lmsys-chat-1m-synth-ja+en.jsonl.gz",
        "data/lmsys-chat-1m-first-turn-user-instructions-ja.jsonl.gz.gpg",
    )
    assert (source.kind, source.weight) == ("lmsys", 2.0)
    assert source.terms is not None and not source.terms.quotable
    source = published_source(HubDataset(name=MAGPIE_ULTRA), sources=None)
    assert (wanted[-1].config, wanted[-1].files, source.kind) == ("ja", ("train_ja.jsonl*",), "auto")
    assert isinstance(source.files, HubFiles) and source.files.revision == "0" * 40
    own = HubDataset(name=LLM_JP, files=("mine.jsonl",))
    published_source(own, sources=None)
    assert wanted[-1] == own


def test_a_set_of_the_hub_is_fetched_file_by_file(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: list[Path] = []

    @contextlib.contextmanager
    def fetched(files: HubFiles, file: str, scratch: Path) -> Generator[Path, None, None]:
        assert here == [] and scratch == tmp_path / "out" / "scratch"
        path = write_rows(scratch / file, [{"conversation": turns(file)}])
        here.append(path)
        yield path
        path.unlink()
        here.clear()

    monkeypatch.setattr(layouts, "fetched", fetched)
    files = HubFiles(name=MAGPIE_ULTRA, config="ja", revision="a" * 40, files=("a.jsonl", "b.jsonl"), bytes=1)
    config = ConversationsConfig(sources=(ConversationSource(name="magpie", files=files),))
    facts = conversations(config, workspace(tmp_path / "out"), tokenizer_folder)
    assert asked(tmp_path / "out") == {"a.jsonlは？", "b.jsonlは？"} and here == []
    assert facts["sources"][0]["revision"] == "a" * 40
