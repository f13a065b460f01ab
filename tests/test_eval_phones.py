"""The memory prediction against the release's known buffers, and the table of phones."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import eval_tiny
import gguf
import numpy as np
import pytest
from errors_tiny import refuses

from common.errors import UserError
from eval import phones
from eval.__main__ import main
from eval.phone_lines import phone_lines
from eval.phones import APP_BYTES, MIB, PHONES, UBATCH_TOKENS, Footprint, footprint, phone_rows, unread_rows


def _file(path: Path, architecture: str, *, tokens: int = 2, **fields: Any) -> Path:
    """A GGUF file with these fields in its header, and no weights to speak of."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {"context_length": 4096, "embedding_length": 64, "block_count": 4, **fields}.items():
        if isinstance(value, list):
            writer.add_array(f"{architecture}.{name}", value)
        else:
            writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_token_list([str(i) for i in range(tokens)])
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with Qwen2.5-1.5B's header and vocabulary size, and no weights to speak of."""
    shape = {"context_length": 32768, "embedding_length": 1536, "block_count": 28}
    heads = {"attention.head_count": 12, "attention.head_count_kv": 2}
    path = tmp_path_factory.mktemp("release") / "release-Q4_K_M.gguf"
    return _file(path, "qwen2", tokens=151_665, **shape, **heads)


@pytest.fixture(scope="module")
def mark(release: Path) -> Footprint:
    """Read once: gguf-py takes its time over 151,665 tokens."""
    return footprint(release)


@pytest.fixture
def read_before(mark: Footprint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phones, "footprint", lambda path: mark if path.suffix == ".gguf" else footprint(path))


def package(folder: Path, *, context: int = 2048) -> Path:
    folder.mkdir(exist_ok=True)
    made = folder / f"tiny-float16-ctx{context}.mlpackage"
    (made / "Data").mkdir(parents=True)
    (made / "Data" / "weight.bin").write_bytes(b"\0" * 5000)
    (made / "Manifest.json").write_bytes(b"{}" * 5)
    (folder / "tokenizer").mkdir()
    config = {"num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 256}
    config |= {"vocab_size": 1000, "intermediate_size": 512, "model_type": "qwen2"}
    (folder / "tokenizer" / "config.json").write_text(json.dumps(config))
    return made


def test_the_releases_buffers_are_those_that_llama_cpp_reports(mark: Footprint) -> None:
    parts = mark.parts(4096)
    assert mark.kv_bytes_per_token == 28 * 1024  # 56.00 MiB at 2,048 tokens in llama.cpp's own log
    assert parts["kv_cache"] == 112 * MIB
    assert parts["compute"] / MIB == pytest.approx(299.75, rel=0.005)  # likewise, with n_ubatch 512
    assert parts["vocabulary"] == pytest.approx(67e6, rel=0.01)
    assert parts["weights"] == 0 and mark.weights == "mapped"


@pytest.mark.usefixtures("read_before")
def test_rows_judge_the_wanted_and_the_largest_context(release: Path, mark: Footprint) -> None:
    rows = phone_rows([release])
    phone_names = {row["phone"] for row in rows}
    assert len(phone_names) == 15 and len(rows) == 15 + 14  # the last phone's limit is not known
    known = [row for row in rows if row["limit_bytes"] is not None]
    for row in known:
        assert row["predicted_bytes"] == sum(row["parts"].values())
        assert row["fits"] == (row["predicted_bytes"] <= row["limit_bytes"])
        assert row["measured_bytes"] is None and row["measured_reason"]
        largest = row["largest_context_tokens"]
        assert sum(mark.parts(largest).values()) <= row["limit_bytes"]
        assert largest == 32768 or sum(mark.parts(largest + 1).values()) > row["limit_bytes"]
        assert set(row["sources"]) == {*row["parts"], "limits"}
    assert {row["context_tokens"] for row in known} == {4096} | {row["largest_context_tokens"] for row in known}
    (unknown,) = (row for row in rows if row["limit_bytes"] is None)
    assert unknown["phone"].startswith("iPhone 18 Pro") and unknown["fits"] is None
    assert unknown["limit_source"] == "no default limit has been reported"


@pytest.mark.usefixtures("read_before")
def test_what_cannot_be_read_has_the_same_fields_and_the_phones_limits(release: Path) -> None:
    known, unread = phone_rows([release]), unread_rows(release, "a broken header")
    assert {tuple(row) for row in unread} == {tuple(unread[0])} and set(unread[0]) == set(known[0])
    limits = {row["phone"]: (row["limit_bytes"], row["entitled_limit_bytes"]) for row in known}
    assert {row["phone"]: (row["limit_bytes"], row["entitled_limit_bytes"]) for row in unread} == limits
    assert {(row["fits"], row["measured_bytes"], row["measured_reason"]) for row in unread} == {
        (None, None, "a broken header")
    }


@pytest.mark.usefixtures("read_before")
def test_a_tight_limit_leaves_less_context_or_none(release: Path, mark: Footprint, tmp_path: Path) -> None:
    fixed = sum(mark.parts(0).values())
    table = tmp_path / "phones.toml"
    limits = [(fixed + 1000 * mark.kv_bytes_per_token) // MIB, fixed // MIB - 1]
    table.write_text(
        'date = "today"\n'
        + "".join(
            f'[[phone]]\nname = "{i}"\ndefault = {{ limit_mib = {limit}, measured = false, source = "made up" }}\n'
            for i, limit in enumerate(limits)
        )
    )
    rows = phone_rows([release], phones=table)
    small, again, none = rows
    assert not small["fits"] and 900 < small["largest_context_tokens"] <= 1000
    assert again["fits"] and again["context_tokens"] == small["largest_context_tokens"]
    assert not none["fits"] and none["largest_context_tokens"] == 0 and none["entitled_fits"] is None


def test_a_core_ml_package_is_charged_with_its_weights_and_its_one_context(tmp_path: Path) -> None:
    mark = footprint(package(tmp_path / "made"))
    assert mark == Footprint(
        artifact="tiny-float16-ctx2048.mlpackage",
        weights="charged",
        weight_bytes=5010,
        kv_bytes_per_token=2 * 3 * 2 * 32 * 2,
        vocab_size=1000,
        hidden_size=256,
        max_context_tokens=2048,
        ubatch_tokens=1,
    )
    assert mark.parts(2048)["weights"] == 5010
    whole = sum(mark.parts(2048).values())
    assert (mark.largest_context(whole), mark.largest_context(whole - 1)) == (2048, 0)
    (tmp_path / "made" / "tokenizer" / "config.json").unlink()
    with refuses("not-found", got="config.json"):
        footprint(tmp_path / "made" / mark.artifact)


def test_the_tiny_files_header_is_read(tmp_path: Path) -> None:
    checkpoint = eval_tiny.write_checkpoint(tmp_path / "checkpoint")
    path = eval_tiny.write_gguf(checkpoint, tmp_path / "tiny-F16.gguf")
    config = json.loads((checkpoint / "config.json").read_text())
    mark = footprint(path)
    head_size = config["hidden_size"] // config["num_attention_heads"]
    assert mark.kv_bytes_per_token == 2 * 2 * config["num_key_value_heads"] * head_size * 2
    assert mark.vocab_size == config["vocab_size"] - 13 and mark.max_context_tokens == 512
    assert mark.parts(512)["compute"] == UBATCH_TOKENS * (mark.vocab_size + 64) * 4
    path.write_bytes(path.read_bytes()[:200])
    with refuses("damaged", got="tiny-F16.gguf"):
        footprint(path)
    path.write_bytes(b"no such thing" * 30)
    with refuses("wrong-format", got="tiny-F16.gguf"):
        footprint(path)
    with refuses("unsupported", got="checkpoint"):
        footprint(checkpoint)


def test_the_table_of_phones_is_complete_and_plausible() -> None:
    table = tomllib.loads(PHONES.read_text(encoding="utf-8"))
    assert len(table["phone"]) == len({phone["name"] for phone in table["phone"]}) == 15
    for phone in table["phone"]:
        limits: list[dict[str, Any]] = [phone[kind] for kind in ("default", "entitled") if kind in phone]
        for limit in limits:
            assert set(limit) == {"limit_mib", "measured", "source"} and limit["source"]
            assert limit["measured"] or "class" in limit["source"]  # what is assumed says from what
            assert APP_BYTES / MIB < limit["limit_mib"] < phone["ram_gib"] * 1024
        if len(limits) == 2:
            assert limits[0]["limit_mib"] < limits[1]["limit_mib"]


@pytest.mark.usefixtures("read_before")
def test_the_command_writes_the_rows(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "phones.json"
    main(["phones", str(release), str(package(tmp_path / "p")), "--context", "1024", "--out", str(out)])
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert {row["artifact"] for row in rows} == {"release-Q4_K_M.gguf", "tiny-float16-ctx2048.mlpackage"}
    assert rows[0]["context_tokens"] == 1024
    said = capsys.readouterr().out
    assert re.search(
        r"^release-Q4_K_M.gguf: \d+ MB predicted at 1024 tokens; fits \d+ of \d+ phones", said, re.MULTILINE
    )
    assert "tiny-float16-ctx2048.mlpackage: " in said and "iPhone 11 " not in said.split("tightest", 1)[0]
    main(["phones", str(release), "--context", "99999", "--table", "--out", str(out)])
    said = capsys.readouterr().out
    assert "at 32768 tokens, the model's own instead of 99999" in said
    assert len(said.splitlines()) == 1 + len(tomllib.loads(PHONES.read_text(encoding="utf-8"))["phone"])
    with pytest.raises(UserError, match="--context"):
        main(["phones", str(release), "--context", "0", "--out", str(out)])


def test_a_phone_that_is_too_small_is_named_with_the_cause(mark: Footprint, tmp_path: Path) -> None:
    table = tmp_path / "phones.toml"
    limits = {"Small": sum(mark.parts(2000).values()) // MIB, "Tiny": 100, "Large": 9000}
    entries = [
        f'[[phone]]\nname = "{name}"\n[phone.default]\nlimit_mib = {limit}\nsource = "x"'
        for name, limit in limits.items()
    ]
    table.write_text("date = 2026-11-01\n" + "\n".join(entries))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(phones, "footprint", lambda path: mark)
        rows = phone_rows([Path("a.gguf")], context_tokens=4096, phones=table)
    summary, small, tiny = phone_lines(rows, asked=4096, table=False)
    assert "fits 1 of 3 phones whose limit is known; tightest Tiny, 105 MB" in summary
    assert re.search(r"Small +too large for \d+ MB: .*kv cache .*; fits at (19|20)\d\d tokens$", small)
    assert tiny.endswith("; fits at no context")


def test_a_folder_as_out_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IsADirectoryError):
        main(["phones", "absent.gguf", "--out", "."])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("architecture", "fields", "cache_bytes", "state_bytes", "note"),
    [
        ("llama", {"attention.head_count": 4, "attention.head_count_kv": 2}, 4 * 2 * 32 * 2, 0, ""),
        ("openelm", {"attention.head_count": [4] * 4, "attention.head_count_kv": [1, 1, 2, 4]}, 8 * 32 * 2, 0, ""),
        (
            "gemma3",
            {"attention.head_count": 4, "attention.sliding_window": 512},
            4 * 4 * 32 * 2,
            0,
            "at most 512 tokens",
        ),
        ("deepseek2", {"attention.head_count": 4, "attention.kv_lora_rank": 16}, 4 * 4 * 32 * 2, 0, "of rank 16"),
        # Two layers with attention; the other two keep (4 - 1) x (128 + 2 x 1 x 16) + 16 x 128 numbers of 4 bytes.
        (
            "falcon-h1",
            {
                "attention.head_count": 4,
                "attention.head_count_kv": [0, 2, 0, 2],
                "ssm.conv_kernel": 4,
                "ssm.inner_size": 128,
                "ssm.state_size": 16,
                "ssm.group_count": 1,
            },
            2 * 2 * 32 * 2,
            2 * (3 * 160 + 2048) * 4,
            "",
        ),
        ("mamba", {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16}, 0, 4 * (3 * 128 + 2048) * 4, ""),
    ],
)
def test_caches_of_every_kind_are_counted_or_called_an_upper_bound(
    tmp_path: Path, architecture: str, fields: dict[str, Any], cache_bytes: int, state_bytes: int, note: str
) -> None:
    path = _file(tmp_path / "a.gguf", architecture, **fields)
    mark = footprint(path)
    assert (mark.kv_bytes_per_token, mark.state_bytes) == (cache_bytes, state_bytes)
    row = phone_rows([path])[0]
    assert row["parts"].get("state", 0) == state_bytes and row["predicted_bytes"] == sum(row["parts"].values())
    assert note in row["sources"]["kv_cache"] and ("upper bound" in row["sources"]["kv_cache"]) == bool(note)
    assert row["largest_context_tokens"] == 4096


def test_a_file_with_no_cache_and_no_state_is_no_language_model(tmp_path: Path) -> None:
    with refuses("wrong-format", got="head_count"):
        footprint(_file(tmp_path / "a.gguf", "llama"))
