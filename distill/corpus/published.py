"""The sets of text that are known by name, and their publishers' terms as far as they were read. It reads no row."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from common.provenance import Terms

_REGISTRY_FILE = Path(__file__).with_name("published.toml")


def terms_of(name: str) -> Terms:
    """The terms of a set of the hub as far as they are known here; what is not known is not made up."""
    known = _registry().get(name, {})
    fields: dict[str, Any] = known | {"obligations": tuple(known.get("obligations", ()))}
    return Terms(name=name, url=f"https://huggingface.co/datasets/{name}", **fields)


@cache
def _registry() -> dict[str, dict[str, Any]]:
    return tomllib.loads(_REGISTRY_FILE.read_text(encoding="utf-8"))
