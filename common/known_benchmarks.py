"""The registry of published benchmarks: their tasks, repositories, files and terms (`known_benchmarks.toml`).

Read by the stage that fetches their files and by the pages that state their terms. Independent of both.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REGISTRY_FILE = Path(__file__).with_name("known_benchmarks.toml")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A published benchmark as a page names it."""

    name: str
    publisher: str
    """Its repository on GitHub, `owner/name`."""
    licence: str
    note: str | None
    """Further terms of its publisher."""

    @property
    def url(self) -> str:
        """Where it is published."""
        return f"https://github.com/{self.publisher}"


def sources(registry: Path = REGISTRY_FILE) -> dict[str, dict[str, Any]]:
    """What is taken from each repository, by name: {repository, commit, licence, files}, `sha256` and `restriction`."""
    return {name: entry for name, entry in _read(registry).items() if name != "tasks"}


def _read(registry: Path) -> dict[str, Any]:
    return tomllib.loads(registry.read_text(encoding="utf-8"))


def _benchmarks() -> Iterator[tuple[str, Benchmark]]:
    entries = _read(REGISTRY_FILE)
    for task, named in entries["tasks"].items():
        source = entries[named["of"]]
        licence = re.sub("CC-(.+)-", r"CC \1 ", source["licence"])  # the identifier CC-BY-4.0 as its owner writes it
        yield task, Benchmark(named["name"], source["repository"], licence, source.get("restriction"))


BENCHMARKS = dict(_benchmarks())
"""By the names of the tasks that ask them."""


def asked_in(tasks: Iterable[Mapping[str, Any]]) -> list[Benchmark]:
    """The benchmarks among a report's rows of `tasks`, each once, in the order of `BENCHMARKS`."""
    asked = {row["task"].partition("/")[0] for row in tasks}
    return [benchmark for task, benchmark in BENCHMARKS.items() if task in asked]
