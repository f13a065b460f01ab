"""Keys: the identity of a stage's result, computed from the content of everything that went into it.

The key of an artifact is the sha256 of (FORMAT, name, function, version, whole config, input keys). A path in a config
counts by its content, so a build folder or a user's text may move. Every field counts: no list of fields is kept by
hand, so no field can be forgotten.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, cast

from common.disk import files_under, sha256_of
from common.errors import UserError, not_found

FORMAT = 2
"""Layout of artifacts and manifests, part of every key. A new number makes the artifacts of older versions unreachable:
a build finds none of them and makes all again."""


def artifact_key(name: str, function: str, version: int, config: Any, inputs: Sequence[str | None]) -> str:
    """The identity of a stage's result, 64 hex digits.

    Args:
        name: the artifact's name.
        function: the stage as "module:function".
        version: the stage's own version.
        config: a frozen dataclass (or any value that `canonical` takes).
        inputs: keys of the artifacts that the stage reads, in order; None for an omitted input.
    """
    identity = [FORMAT, name, function, version, canonical(config), list(inputs)]
    return hashlib.sha256(json.dumps(identity, separators=(",", ":")).encode()).hexdigest()


def reason_key(key: str) -> str:
    """The key that readers use for the artifact `key` while it holds a reason (`not_here`) and not a result."""
    return hashlib.sha256(f"{key}not_here".encode()).hexdigest()


def canonical(value: Any, *, where: str = "config") -> Any:
    """`value` as JSON in one spelling only: equal values give equal JSON, and different values different JSON.

    Takes None, bool, int, str, finite floats, enums, paths, dataclasses, and lists, tuples, sets and dicts of these.

    Raises:
        UserError: a float that is not finite, or a path that does not exist; `where` names the field.
        TypeError: a kind of value that has no canonical form (a function, a tensor).
    """
    match value:
        case Enum():
            return ["enum", type(value).__qualname__, value.name]
        case None | bool() | int() | str():
            return value
        case float():
            if not math.isfinite(value):
                wanted = f"a finite number for {where}"
                raise UserError("not-finite", wanted=wanted, got=repr(value), next_step="correct the recipe")
            return ["float", repr(value)]
        case Path():
            return ["path", content_hash(value, where=where)]
        case list() | tuple():
            items = cast(Sequence[Any], value)
            kind = "list" if isinstance(value, list) else "tuple"
            return [kind, *(canonical(item, where=f"{where}[{index}]") for index, item in enumerate(items))]
        case set() | frozenset():
            members = [canonical(item, where=where) for item in cast(set[Any], value)]
            return ["set", *sorted(members, key=json.dumps)]
        case dict():
            pairs = cast(dict[Any, Any], value).items()
            entries = [[canonical(key, where=where), canonical(item, where=f"{where}[{key!r}]")] for key, item in pairs]
            return ["dict", *sorted(entries, key=json.dumps)]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = sorted(field.name for field in dataclasses.fields(value))
            entries = [[name, canonical(getattr(value, name), where=f"{where}.{name}")] for name in fields]
            return ["dataclass", type(value).__qualname__, *entries]
        case _:
            raise TypeError(f"{where}: {type(value).__qualname__} has no canonical form, so it cannot be in a config")


def readable(value: Any) -> Any:
    """`value` as the manifest shows it: dataclasses as objects with their `class`, paths as name and sha256."""
    match value:
        case Enum():
            return value.name
        case Path():
            return {"file": value.name, "sha256": content_hash(value)}
        case list() | tuple() | set() | frozenset():
            return [readable(item) for item in cast(Sequence[Any], value)]
        case dict():
            return {str(key): readable(item) for key, item in cast(dict[Any, Any], value).items()}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: readable(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return {"class": type(value).__qualname__} | fields
        case _:
            return value


def content_hash(path: Path, *, where: str = "path") -> str:
    """Hex sha256 of a file's bytes, or of a folder's sorted list of (relative path, file hash), without its own name.

    UserError ("not-found") with `where`, the field that holds `path`, if nothing is there.
    """
    if path.is_file():
        return sha256_of(path)
    if not path.is_dir():
        raise not_found(f"a file or folder for {where}", f"nothing at {path}")
    listing = [[file.relative_to(path).as_posix(), sha256_of(file)] for file in files_under(path)]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
