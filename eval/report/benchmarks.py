"""The published benchmarks that a report may ask: who made them, and under which terms their items stand.

As their repositories state it (as of 2026-11-24; `recipes/stages/benchmark_files.toml` has the commits). A report
names those that were asked, since their licences ask to be attributed. It knows no item and no score.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """One published benchmark."""

    name: str
    publisher: str
    """Its repository on GitHub, `owner/name`."""
    licence: str
    note: str | None = None
    """What its publisher says besides."""

    @property
    def url(self) -> str:
        """Where it is published."""
        return f"https://github.com/{self.publisher}"


BENCHMARKS = {
    "jcommonsenseqa": Benchmark(name="JCommonsenseQA", publisher="yahoojapan/JGLUE", licence="CC BY-SA 4.0"),
    "jmmlu": Benchmark(
        name="JMMLU",
        publisher="nlp-waseda/JMMLU",
        licence="CC BY-SA 4.0",
        note="Of japanese_history and world_history (STEP Corp.) commercial use is allowed only for research on and "
        "evaluation of language models.",
    ),
    "jsquad": Benchmark(name="JSQuAD", publisher="yahoojapan/JGLUE", licence="CC BY-SA 4.0"),
    "jemhopqa": Benchmark(name="JEMHopQA", publisher="aiishii/JEMHopQA", licence="CC BY-SA 4.0"),
    "niilc": Benchmark(name="NIILC", publisher="mynlp/niilc-qa", licence="CC BY-SA 4.0"),
    "mgsm_ja": Benchmark(name="MGSM, Japanese", publisher="google-research/url-nlp", licence="CC BY 4.0"),
}
"""By the names of their tasks."""


def asked_in(tasks: Iterable[Mapping[str, Any]]) -> list[Benchmark]:
    """The benchmarks among a report's rows of `tasks`, each once, in the order of `BENCHMARKS`."""
    asked = {row["task"].partition("/")[0] for row in tasks}
    return [benchmark for task, benchmark in BENCHMARKS.items() if task in asked]
