"""Keys: equal configs share one, any difference makes another, and a path counts by what it holds."""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from hypothesis import given
from hypothesis import strategies as st

from common.store.keys import artifact_key, canonical, content_hash, readable, reason_key


class Method(Enum):
    TAID = "taid"
    KL = "kl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    rate: float = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Twin:
    rate: float = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    steps: int = 3
    method: Method = Method.TAID
    inner: Inner | Twin = Inner()
    betas: tuple[float, ...] = (0.9, 0.95)
    note: str | None = None
    files: tuple[Path, ...] = ()


def key(config: Any, *inputs: str | None, name: str = "base", function: str = "m:f", version: int = 1) -> str:
    return artifact_key(name, function, version, config, inputs)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def typed(value: Any) -> Any:
    """`value` in a form whose equality is ours: 1, 1.0, True and -0.0 differ, a list and a tuple as well."""
    if isinstance(value, list | tuple):
        return type(value), [typed(item) for item in value]
    if isinstance(value, dict):
        return dict, {name: typed(item) for name, item in value.items()}
    return type(value), repr(value)


@given(values, values)
def test_canonical_json_is_equal_exactly_for_equal_values(left: Any, right: Any) -> None:
    as_json = [json.dumps(canonical(value)) for value in (left, right)]
    assert (as_json[0] == as_json[1]) == (typed(left) == typed(right))


@given(st.dictionaries(st.text(), scalars, min_size=2))
def test_order_of_a_dict_does_not_count(entries: dict[str, Any]) -> None:
    assert canonical(entries) == canonical(dict(reversed(entries.items())))


def test_order_of_a_set_does_not_count() -> None:
    assert canonical(frozenset(["a", "b", "c"])) == canonical(frozenset(["c", "a", "b"]))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_next_float_is_another_key(number: float) -> None:
    assert key(Inner(rate=number)) == key(Inner(rate=number))
    if math.isfinite(neighbour := math.nextafter(number, math.inf)):
        assert key(Inner(rate=number)) != key(Inner(rate=neighbour))


@pytest.mark.parametrize(
    "other",
    [
        key(replace(Config(), steps=4)),
        key(replace(Config(), method=Method.KL)),
        key(replace(Config(), inner=Inner(rate=2e-3))),
        key(replace(Config(), inner=Twin())),  # the same numbers under another class's name
        key(replace(Config(), betas=(0.95, 0.9))),
        key(replace(Config(), note="")),
        key(Config(), None),
        key(Config(), "aa"),
        key(Config(), name="chat"),
        key(Config(), function="m:g"),
        key(Config(), version=2),
    ],
)
def test_every_part_of_the_identity_counts(other: str) -> None:
    assert other != key(Config())


def test_order_of_inputs_and_a_missing_one_count() -> None:
    keys = [key(1, "aa", "bb"), key(1, "bb", "aa"), key(1, "aa", None), key(1, None, "aa"), key(1, "aa")]
    assert len(set(keys)) == len(keys)


def test_key_is_what_it_was() -> None:
    # After a change of this line every existing build folder is built again.
    plain = '[2,"base","m:f",1,["dataclass","Inner",["rate",["float","0.001"]]],["aa",null]]'
    assert key(Inner(), "aa", None) == hashlib.sha256(plain.encode()).hexdigest()
    assert reason_key("ab" * 32) == hashlib.sha256(b"ab" * 32 + b"not_here").hexdigest()


def test_a_path_counts_by_content_and_not_by_name(tmp_path: Path) -> None:
    first, second, third = tmp_path / "a.jsonl", tmp_path / "elsewhere" / "b.jsonl", tmp_path / "c.jsonl"
    second.parent.mkdir()
    for path, text in ((first, "same"), (second, "same"), (third, "other")):
        path.write_text(text)
    keys = [key(Config(files=(path,))) for path in (first, second, third)]
    assert keys[0] == keys[1] != keys[2]
    assert str(tmp_path) not in json.dumps(readable(Config(files=(first,))))
    first.write_text("other")
    assert key(Config(files=(first,))) == keys[2]


def test_a_folder_counts_by_the_files_in_it(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> Path:
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        return tmp_path / name

    same = [content_hash(folder("one", a="1", b="2")), content_hash(folder("two", b="2", a="1"))]
    assert same[0] == same[1]
    others = [folder("three", a="2", b="1"), folder("four", a="1"), folder("five", a="1", c="2")]
    others.append(folder("six", **{"a": "1", "deeper/b": "2"}))
    assert len({same[0], *map(content_hash, others)}) == 5


def test_a_path_that_is_not_there_names_its_field(tmp_path: Path) -> None:
    with refuses("not-found", wanted="config.files[1]", got=f"{tmp_path / 'absent.txt'}"):
        (tmp_path / "a").touch()
        key(Config(files=(tmp_path / "a", tmp_path / "absent.txt")))


def test_nan_names_its_field() -> None:
    with refuses("not-finite", wanted="config.inner.rate", got="nan"):
        key(Config(inner=Inner(rate=math.nan)))


def test_what_has_no_canonical_form_is_refused() -> None:
    with pytest.raises(TypeError, match=r"config\[0\].*function"):
        canonical([lambda: None])


def test_manifest_form_reads_like_the_config(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    shown = readable(Config(files=(tmp_path / "a.txt",)))
    assert shown == {
        "class": "Config",
        "steps": 3,
        "method": "TAID",
        "inner": {"class": "Inner", "rate": 1e-3},
        "betas": [0.9, 0.95],
        "note": None,
        "files": [{"file": "a.txt", "sha256": hashlib.sha256(b"x").hexdigest()}],
    }
