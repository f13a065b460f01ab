"""Data sets by name: the choice of files against the library `datasets`, and downloads from a local server."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from errors_tiny import refuses
from hub_stand_in import COMMIT, SECRET, Hub, Repo
from huggingface_hub import constants, get_token

from common.errors import Code, UserError
from common.sources import HubDataset, HubFiles, download, fetched, parse_name, resolve, select


def card(configs: Any) -> bytes:
    return f"---\n{yaml.safe_dump({'license': 'odc-by', 'configs': configs})}---\n# A data set\n".encode()


def local_copy(root: Path, name: str, files: dict[str, bytes]) -> Path:
    for path, body in files.items():
        (root / name / path).parent.mkdir(parents=True, exist_ok=True)
        (root / name / path).write_bytes(body)
    return root


def chosen(dataset: HubDataset, hub: Hub, tmp_path: Path) -> tuple[str, ...]:
    """The files of a data set on the local server; a local copy must give the same."""
    files = resolve(dataset, sources=None)
    assert isinstance(files, HubFiles)
    sources = local_copy(tmp_path / "sources", dataset.name, hub.repos[dataset.name].files)
    local = resolve(dataset, sources=sources)
    assert local == tuple(sources / dataset.name / path for path in files.files)
    assert files.bytes == sum(len(hub.repos[dataset.name].files[path]) for path in files.files)
    assert (files.revision, files.name, files.config) == (COMMIT, dataset.name, dataset.config)
    return files.files


def refusal(code: Code, dataset: HubDataset, sources: Path | None = None) -> UserError:
    with refuses(code) as caught:
        resolve(dataset, sources=sources)
    return caught[0]


# What a data set is called


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", ("org/name", None, None)),
        ("HuggingFaceFW/fineweb-2:jpn_Jpan", ("HuggingFaceFW/fineweb-2", "jpn_Jpan", None)),
        ("wikimedia/wikipedia:20231101.ja@main", ("wikimedia/wikipedia", "20231101.ja", "main")),
        ("org/name@refs/convert/parquet", ("org/name", None, "refs/convert/parquet")),
    ],
)
def test_names_on_a_command_line(text: str, parts: tuple[str, str | None, str | None]) -> None:
    dataset = parse_name(text)
    assert dataset is not None
    assert (dataset.name, dataset.config, dataset.revision) == parts


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "name",
            "a/b/c",
            "./texts",
            "../texts",
            "/texts/a",
            "texts/",
            "日本/語",
            "a b/c",
            "a/b:",
            "a/b@",
            "a/b:c:d",
        ),
        *("texts/ja.jsonl", "texts/ja.jsonl.gz", "texts/x.parquet"),
    ],
)
def test_what_is_no_name(text: str) -> None:
    assert parse_name(text) is None


def test_a_path_that_exists_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_name("texts/ja") == HubDataset(name="texts/ja")
    (tmp_path / "texts" / "ja").mkdir(parents=True)
    assert parse_name("texts/ja") is None
    assert parse_name("texts/jaa") is None, "mistyped: its folder is there"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": "no-org"}, "no-org"),
        ({"name": "../etc"}, "../etc"),
        ({"name": "a/b", "config": ""}, "config"),
        ({"name": "a/b", "split": "a "}, "split"),
        ({"name": "a/b", "files": ("../x.jsonl",)}, "../x.jsonl"),
        ({"name": "a/b", "files": ("/x.jsonl",)}, "/x.jsonl"),
    ],
)
def test_a_mistyped_data_set_is_refused(fields: dict[str, Any], named: str) -> None:
    with refuses("wrong-format") as caught:
        HubDataset(**fields)
    assert named in str(caught[0])


# Which files


OTHER = {"config_name": "y", "data_files": "data/en/*"}
BY_SPLIT = [{"split": "train", "path": "data/ja/train-*"}, {"split": "test", "path": ["data/ja/test-*"]}]
CARDS: dict[str, tuple[list[dict[str, Any]], str | None]] = {
    "a string": ([{"config_name": "default", "data_files": "data/ja/train-0.jsonl"}], None),
    "a list": ([{"config_name": "x", "data_files": ["data/ja/train-*", "data/en/*.jsonl"]}], "x"),
    "split and path": (
        [{"config_name": "ja", "data_files": BY_SPLIT}, OTHER],
        "ja",
    ),
    "several paths": (
        [{"config_name": "x", "data_files": [{"split": "train", "path": ["data/ja/t*", "*/en/*"]}]}],
        "x",
    ),
    "across folders": ([{"config_name": "x", "data_files": "data/**/train-?.jsonl"}], "x"),
    "a folder": ([OTHER, {"config_name": "x", "data_dir": "data/ja", "data_files": "train-*"}], "x"),
    "only a folder": ([OTHER, {"config_name": "x", "data_dir": "data/ja"}], "x"),
    "the only one": ([{"config_name": "anything", "data_files": BY_SPLIT}], None),
    "the default": (
        [OTHER, {"config_name": "default", "data_files": BY_SPLIT}],
        None,
    ),
    "a marked one": (
        [
            OTHER,
            {"config_name": "ja", "default": True, "data_files": BY_SPLIT},
        ],
        None,
    ),
}
LISTED = ("data/ja/train-0.jsonl", "data/ja/train-1.jsonl", "data/ja/test-0.jsonl", "data/en/train-0.jsonl")


@pytest.mark.parametrize("shape", CARDS)
def test_a_card_is_read_as_the_library_datasets_reads_it(shape: str, hub: Hub, tmp_path: Path) -> None:
    configs, config = CARDS[shape]
    row = b'{"text": "a"}\n'
    hub.repos["org/name"] = Repo(files={"README.md": card(configs), **dict.fromkeys(LISTED, row)})
    found = chosen(HubDataset(name="org/name", config=config), hub, tmp_path)

    from datasets import load_dataset_builder

    folder = tmp_path / "sources" / "org" / "name"
    builder = load_dataset_builder(str(folder), config, cache_dir=str(tmp_path / "cache"))
    theirs = [Path(path).relative_to(folder).as_posix() for path in (builder.config.data_files or {})["train"]]
    assert found == tuple(sorted(theirs))
    assert found


def test_a_card_may_map_splits_to_patterns(hub: Hub, tmp_path: Path) -> None:
    configs = [{"config_name": "x", "data_files": {"train": "data/ja/train-*", "test": ["data/ja/test-*"]}}]
    hub.repos["org/name"] = Repo(files={"README.md": card(configs), **dict.fromkeys(LISTED, b"1")})
    assert chosen(HubDataset(name="org/name"), hub, tmp_path) == LISTED[:2]
    assert chosen(HubDataset(name="org/name", split="test"), hub, tmp_path) == LISTED[2:3]


FINEWEB = [
    "data/jpn_Jpan/train/001.parquet",
    "data/jpn_Jpan/train/000.parquet",
    "data/jpn_Jpan/test/000.parquet",
    "data/jpn_Jpan_removed/train/000.parquet",
    "data/kor_Hang/train/000.parquet",
]
WIKIPEDIA = [
    "20231101.ja/train-00000-of-00002.parquet",
    "20231101.ja/train-00001-of-00002.parquet",
    "20231101.jam/train-00000-of-00001.parquet",
    "LICENSE.txt",
]
PLAIN = ["train_ja.jsonl", "train_en.jsonl", "NOTICE.txt", ".cache/huggingface/train_ja.jsonl"]


@pytest.mark.parametrize(
    ("paths", "config", "split", "wanted"),
    [
        (FINEWEB, "jpn_Jpan", "train", ("data/jpn_Jpan/train/000.parquet", "data/jpn_Jpan/train/001.parquet")),
        (FINEWEB, "jpn_Jpan", "test", ("data/jpn_Jpan/test/000.parquet",)),
        (WIKIPEDIA, "20231101.ja", "train", tuple(WIKIPEDIA[:2])),
        (PLAIN, None, "train", ("train_en.jsonl", "train_ja.jsonl")),
        (PLAIN, "ja", "train", ("train_ja.jsonl",)),
        (["talks.jsonl.gz", "README.md"], None, "train", ("talks.jsonl.gz",)),
        (["a.jsonl", "test.jsonl", "b-test-0.jsonl", "latest.jsonl"], None, "train", ("a.jsonl", "latest.jsonl")),
        (["train/a.jsonl", "train/LICENSE.txt"], None, "train", ("train/a.jsonl",)),
        (["train_set/a.jsonl", "dev_set/a.jsonl"], None, "train", ("train_set/a.jsonl",)),
        (["ja/a.txt", "ja/b.txt"], "ja", "train", ("ja/a.txt", "ja/b.txt")),
    ],
)
def test_without_a_card_the_paths_decide(
    paths: list[str], config: str | None, split: str, wanted: tuple[str, ...], hub: Hub, tmp_path: Path
) -> None:
    hub.repos["org/name"] = Repo(files=dict.fromkeys(paths, b"1234"))
    assert chosen(HubDataset(name="org/name", config=config, split=split), hub, tmp_path) == wanted


def test_a_card_without_files_leaves_the_paths_to_decide(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/name"] = Repo(files={"README.md": b"---\nlicense: mit\n---\nnothing", "train.jsonl": b"1"})
    assert chosen(HubDataset(name="org/name"), hub, tmp_path) == ("train.jsonl",)
    hub.repos["org/ja"] = Repo(
        files={
            "README.md": card([{"config_name": "ja"}, {"config_name": "en"}]),
            "ja/train.jsonl": b"1",
            "en/train.jsonl": b"1",
        }
    )
    assert chosen(HubDataset(name="org/ja", config="ja"), hub, tmp_path) == ("ja/train.jsonl",)


def test_patterns_of_the_recipe_come_before_the_card(hub: Hub, tmp_path: Path) -> None:
    files = {"README.md": card(CARDS["a string"][0]), **dict.fromkeys(LISTED, b"1"), "x/ja.jsonl.gz.gpg": b"1"}
    hub.repos["org/name"] = Repo(files=files)
    dataset = HubDataset(name="org/name", files=("data/*/test-*.jsonl", "data/en/*"))
    assert chosen(dataset, hub, tmp_path) == ("data/en/train-0.jsonl", "data/ja/test-0.jsonl")
    hub.repos["org/name"].files[".cache/x.jsonl.gz.gpg"] = b"1"
    encrypted = HubDataset(name="org/name", files=("**/*.gpg",))
    assert chosen(encrypted, hub, tmp_path) == ("x/ja.jsonl.gz.gpg",)


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("a/b.jsonl", "*", False),
        ("a/b.jsonl", "**", True),
        ("b.jsonl", "**/*.jsonl", True),
        ("a/c/b.jsonl", "a/*.jsonl", False),
        ("a+b.jsonl", "a+b.jsonl", True),
        ("aab.jsonl", "a+b.jsonl", False),
        ("t-2.jsonl", "t-[0-3].jsonl", True),
        ("t-2.jsonl.old", "t-2.jsonl", False),
    ],
)
def test_patterns(name: str, pattern: str, fits: bool) -> None:
    assert select.matches(name, pattern) is fits


def test_only_the_folder_that_can_match_is_listed(hub: Hub) -> None:
    hub.repos["org/name"] = Repo(files=dict.fromkeys([*LISTED, *FINEWEB], b"1"))
    files = resolve(HubDataset(name="org/name", files=("data/ja/train-0.*", "data/ja/t*-1.*")), sources=None)
    assert isinstance(files, HubFiles) and len(files.files) == 2
    trees = [path for _, path, _ in hub.asked if "/tree/" in path]
    assert set(trees) == {f"/api/datasets/org/name/tree/{COMMIT}/data/ja"}


@pytest.mark.parametrize(
    ("repo", "fields", "code", "named"),
    [
        ({"a.csv": b"1"}, {}, "not-found", "none"),
        ({"train.jsonl": b"1"}, {"split": "test"}, "not-found", "split test"),
        ({"ja/train.jsonl": b"1"}, {"config": "en"}, "not-found", "ja/train.jsonl"),
        ({"train.jsonl": b"1", "train.parquet": b"1"}, {}, "contradiction", "train.jsonl, train.parquet"),
        ({"train.jsonl": b"1"}, {"files": ("*.parquet",)}, "not-found", "files *.parquet"),
        ({"train.jsonl": b"1"}, {"files": ("no/*.jsonl",)}, "not-found", "files no/*.jsonl"),
        ({"train.csv": b"1"}, {"files": ("train.*",)}, "wrong-format", "train.csv"),
        ({"train.jsonl": b"1"}, {"files": ("t**.jsonl",)}, "wrong-format", "t**.jsonl"),
        ({"README.md": b"---\nconfigs: [a\n---\n"}, {}, "wrong-format", "YAML"),
        ({"README.md": b"---\nconfigs: [{a: 1}]\n---\n"}, {}, "wrong-format", "config_name"),
        ({"README.md": card([{"config_name": "x", "data_files": 3}])}, {}, "wrong-format", "data_files"),
        (
            {"README.md": card([{"config_name": "x", "data_files": [{"split": "train"}]}])},
            *({}, "wrong-format", "data_files"),
        ),
        (
            {"README.md": card([{"config_name": "x", "data_files": "https://h/a.jsonl"}])},
            *({}, "wrong-format", "data_files"),
        ),
        (
            {"README.md": card([{"config_name": "x", "data_files": "gone/*"}]), "train.jsonl": b"1"},
            *({}, "not-found", "configs x"),
        ),
        ({"README.md": card([{"config_name": "x"}, {"config_name": "y"}])}, {}, "unknown-name", "x, y"),
    ],
)
def test_no_clear_choice_lists_what_there_is(
    repo: dict[str, bytes], fields: dict[str, Any], code: Code, named: str, hub: Hub, tmp_path: Path
) -> None:
    hub.repos["org/name"] = Repo(files=repo)
    dataset = HubDataset(name="org/name", **fields)
    sources = local_copy(tmp_path, "org/name", repo)
    for where in (None, sources):
        error = refusal(code, dataset, where)
        assert named in f"{error.wanted} {error.got}"


def test_of_many_configs_the_nearest_ten_are_named(hub: Hub) -> None:
    names = [f"aa{code}_Latn" for code in "abcdefghijklm"] + ["jpn_Jpan"]
    configs = [{"config_name": name, "data_files": f"data/{name}/*"} for name in names]
    hub.repos["org/name"] = Repo(files={"README.md": card(configs), "data/jpn_Jpan/0.parquet": b"1"})
    got = refusal("unknown-name", HubDataset(name="org/name", config="jpn")).got
    named = [name for name in names if name in got]
    assert len(named) == 10 and min(named, key=got.index) == "jpn_Jpan" and "4 more" in got


def test_a_missing_folder_of_sources_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'org' / 'name'}" in refusal("not-found", HubDataset(name="org/name"), tmp_path).got


# What the hub refuses


def test_unknown_names_and_revisions(hub: Hub) -> None:
    hub.repos["org/name"] = Repo(files={"train.jsonl": b"1"})
    missing = refusal("not-found", HubDataset(name="org/other"))
    assert "org/other" in missing.wanted and "no HF_TOKEN" in missing.got
    assert "v2" in refusal("not-found", HubDataset(name="org/name", revision="v2")).wanted
    named = resolve(HubDataset(name="org/name", revision="v1"), sources=None)
    assert isinstance(named, HubFiles) and named.revision == COMMIT


@pytest.mark.parametrize("hides_gate", [False, True])
def test_a_gated_data_set_says_what_to_accept(hides_gate: bool, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/gated"] = Repo(files={"train.jsonl": b"1"}, gated=True, hides_gate=hides_gate)
    dataset = HubDataset(name="org/gated", files=("*.jsonl",))
    error = refusal("no-access", dataset)
    assert f"{os.environ['HF_ENDPOINT']}/datasets/org/gated" in error.next_step
    assert "HF_TOKEN" in error.next_step and "no HF_TOKEN" in error.got
    monkeypatch.setenv("HF_TOKEN", "hf_ofSomeoneElse")
    assert "an HF_TOKEN" in refusal("no-access", dataset).got
    monkeypatch.setenv("HF_TOKEN", SECRET + "\n")  # as `export HF_TOKEN=$(cat file)` in some shells
    assert isinstance(resolve(dataset, sources=None), HubFiles)


def test_errors_never_show_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/gated"] = Repo(files={}, gated=True)
    errors: list[UserError] = []
    for token in (SECRET + " x", SECRET + "ア", SECRET + "-private-token"):
        monkeypatch.setenv("HF_TOKEN", token)
        errors.append(refusal("no-access", HubDataset(name="org/gated")))
    assert ["in the environment variable HF_TOKEN" in error.wanted for error in errors] == [True, True, False]
    assert "401" in errors[2].got
    monkeypatch.setenv("HF_ENDPOINT", f"http://me:{SECRET}@127.0.0.1:{hub.server_port}")
    errors.append(refusal("not-found", HubDataset(name="org/other")))
    monkeypatch.setenv("HF_ENDPOINT", f"http://me:{SECRET}@127.0.0.1:1")
    errors.append(refusal("no-network", HubDataset(name="org/other")))
    assert "127.0.0.1:1 " in errors[-1].got
    assert [error for error in errors if "neverToBeSeen" in str(error)] == []


def test_a_token_of_the_hub_s_own_login_is_not_sent(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(SECRET, encoding="ascii")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert get_token() == SECRET
    hub.repos["org/name"] = Repo(files={"train.jsonl": b"1"})
    bring(HubDataset(name="org/name"), tmp_path)
    assert [headers for _, _, headers in hub.asked if "Authorization" in headers] == []


def test_no_network_is_an_error_with_two_ways_on(hub: Hub) -> None:
    hub.server_close()
    hub.shutdown()
    error = refusal("no-network", HubDataset(name="org/name"))
    assert f"127.0.0.1:{hub.server_port}" in error.got and "SOURCES=DIR" in error.next_step


def test_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = refusal("no-network", HubDataset(name="org/name"))
    assert "HF_HUB_OFFLINE" in error.got and "SOURCES=DIR" in error.next_step


def test_an_answer_of_something_else_is_recognised(hub: Hub) -> None:
    hub.page_of_a_proxy = True
    assert "proxy" in refusal("no-network", HubDataset(name="org/name")).next_step


# One file at a time


BODY = hashlib.shake_256(b"a file").digest(300_000)


def bring(dataset: HubDataset, scratch: Path) -> bytes:
    """The bytes of a data set's only file."""
    files = resolve(dataset, sources=None)
    assert isinstance(files, HubFiles)
    (file,) = files.files
    with fetched(files, file, scratch) as path:
        assert path.name == file.rsplit("/", maxsplit=1)[-1]
        return path.read_bytes()


def refused(code: Code, dataset: HubDataset, scratch: Path) -> UserError:
    with refuses(code) as caught:
        bring(dataset, scratch)
    return caught[0]


LARGE = HubDataset(name="org/large", files=("data/*",))


@pytest.fixture
def large(hub: Hub) -> Repo:
    hub.repos["org/large"] = Repo(files={"data/a b.parquet": BODY})
    return hub.repos["org/large"]


def test_a_file_is_there_while_it_is_used(
    large: Repo, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    scratch = tmp_path / "scratch"
    files = resolve(LARGE, sources=None)
    assert isinstance(files, HubFiles)
    with pytest.raises(RuntimeError, match="while it is read"), fetched(files, "data/a b.parquet", scratch) as path:
        assert path.read_bytes() == BODY and scratch in path.parents
        raise RuntimeError("while it is read")
    assert list(scratch.rglob("*")) == []
    assert not (tmp_path / "cache").exists(), "the hub's cache would fill up"
    (headers,) = hub.contents()
    assert "Authorization" not in headers, "the token stays with the hub"
    assert headers["Accept-Encoding"] == "identity", "a compressed answer could not be resumed"
    assert [sent["Authorization"] for _, path, sent in hub.asked if "/resolve/" in path] == [f"Bearer {SECRET}"] * 2
    with pytest.raises(ValueError, match="none of the files"), fetched(files, "other", scratch):
        pass


def test_a_small_file_comes_from_the_hub_itself(large: Repo, hub: Hub, tmp_path: Path) -> None:
    large.small = True
    assert bring(LARGE, tmp_path) == BODY
    assert hub.contents() == []


@pytest.mark.parametrize("ignores_range", [False, True])
def test_a_broken_connection_is_taken_up_again(
    ignores_range: bool, large: Repo, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large.cuts, large.ignores_range = {"data/a b.parquet": [100_000, 0]}, ignores_range
    assert bring(LARGE, tmp_path) == BODY
    ranges = [headers.get("Range") for headers in hub.contents()]
    assert ranges == [None, "bytes=100000-", "bytes=100000-" if not ignores_range else None]
    assert "trying again" in capsys.readouterr().err


def test_a_connection_may_break_often_as_long_as_it_brings_something(large: Repo, hub: Hub, tmp_path: Path) -> None:
    large.cuts = {"data/a b.parquet": [20_000] * 10}
    assert bring(LARGE, tmp_path) == BODY
    assert len(hub.contents()) == 11


def test_a_killed_download_goes_on_where_it_stopped(large: Repo, hub: Hub, tmp_path: Path) -> None:
    large.cuts = {"data/a b.parquet": [100_000, 0, 0, 0]}
    error = refused("no-network", LARGE, tmp_path)
    assert "100,000 bytes" in error.got and "3 times" in error.got and "data/a b.parquet" in error.wanted
    hub.asked.clear()
    large.cuts.clear()
    assert bring(LARGE, tmp_path) == BODY
    assert [headers.get("Range") for headers in hub.contents()] == ["bytes=100000-"]


def test_a_run_killed_while_it_reads_finds_its_file(large: Repo, hub: Hub, tmp_path: Path) -> None:
    files = resolve(LARGE, sources=None)
    assert isinstance(files, HubFiles)
    with fetched(files, "data/a b.parquet", tmp_path) as path:
        hub.asked.clear()
        with fetched(files, "data/a b.parquet", tmp_path) as again:  # as a new process would after a kill
            assert again == path and again.read_bytes() == BODY
        assert hub.contents() == []
        path.parent.mkdir()


@pytest.mark.parametrize("status", [429, 503])
def test_a_status_that_may_pass_is_waited_for(status: int, large: Repo, tmp_path: Path) -> None:
    large.statuses = [status, status]
    assert bring(LARGE, tmp_path) == BODY
    large.statuses = [status] * 3
    assert f"status {status}" in refused("no-network", LARGE, tmp_path).got
    large.statuses = [418]
    assert "418" in refused("no-network", LARGE, tmp_path).got
    assert large.statuses == [], "what will not pass is asked once"


def test_other_bytes_than_listed_are_refused(large: Repo, hub: Hub, tmp_path: Path) -> None:
    large.listed_sha256 = {"data/a b.parquet": "0" * 64}
    assert "sha256" in refused("damaged", LARGE, tmp_path).got
    assert len(hub.contents()) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    large.listed_sha256.clear()
    large.listed_bytes = {"data/a b.parquet": len(BODY) - 1}
    assert f"{len(BODY):,} bytes, not {len(BODY) - 1:,}" in refused("damaged", LARGE, tmp_path).got
    large.listed_bytes.clear()
    assert bring(LARGE, tmp_path) == BODY


def test_a_damaged_part_of_an_earlier_run_is_no_obstacle(large: Repo, hub: Hub, tmp_path: Path) -> None:
    large.cuts = {"data/a b.parquet": [100_000, 0, 0, 0]}
    refused("no-network", LARGE, tmp_path)
    (part,) = (path for path in tmp_path.rglob("*") if path.is_file())
    part.write_bytes(bytes(100_000))
    large.cuts.clear()
    hub.asked.clear()
    assert bring(LARGE, tmp_path) == BODY
    assert [headers.get("Range") for headers in hub.contents()] == ["bytes=100000-", None]


def test_a_disk_that_is_too_small_is_named_before_the_download(
    large: Repo, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "free_bytes", lambda _: len(BODY) - 1)
    error = refused("no-space", LARGE, tmp_path)
    assert f"{len(BODY):,} bytes" in error.wanted and f"{len(BODY) - 1:,} bytes free" in error.got
    assert hub.contents() == []
    monkeypatch.setattr(download, "free_bytes", lambda _: len(BODY))
    assert bring(LARGE, tmp_path) == BODY


def test_access_lost_after_resolving_is_named(large: Repo, tmp_path: Path) -> None:
    files = resolve(LARGE, sources=None)
    assert isinstance(files, HubFiles)
    large.gated = True
    with refuses("no-access", next_step="org/large"), fetched(files, files.files[0], tmp_path):
        pass
    large.gated = False
    large.files.clear()
    with refuses("not-found", wanted="org/large"), fetched(files, files.files[0], tmp_path):
        pass
