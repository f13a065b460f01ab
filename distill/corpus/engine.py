"""The passes of the stage `corpus` on a cluster: three datatrove pipelines, each after the one before.

`CleanShards` cleans the files, every task a part of them; `FindDuplicates`, one task, compares all documents;
`WriteKept` writes the kept ones, every task its own, to `documents/00000.jsonl.gz`, `documents/00001.jsonl.gz` etc. Run
them with any executor of datatrove (local, Slurm, Ray): docs/large-corpora.md. They keep the documents of the stage
`corpus`, in the same order; `python -m distill corpus` without cleaning then splits and packs them.

Only this module imports datatrove.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from common.disk import replace_text
from common.documents import compressed
from common.errors import UserError, not_found, require_at_least
from common.provenance import CARD_FILE
from distill.corpus.data_card import card_of_cleaning
from distill.corpus.kept import find_duplicates, in_order
from distill.corpus.shards import Shard, all_files, finished_shards, write_shards
from distill.corpus.stage import CorpusConfig, cleaner_of, open_sources, steps_of

_STATUS_FILE = "status.npy"
_STARTED_FILE, _COMPLETE_FILE, _FOUND_FILE = "started", "complete", "found"
Documents = Iterator[Document] | None


def pipelines(
    config: CorpusConfig, folder: Path, *, tasks: int
) -> tuple[list[PipelineStep], list[PipelineStep], list[PipelineStep]]:
    """The steps of the three pipelines: run the first and the last with `tasks` tasks, the second with one.

    The config is that of the stage `corpus`; all tasks can read the files of its `sources`, and share the disk of the
    output folder.

    Raises:
        UserError: no sources, or sources with weights, which only the stage that packs can apply.
    """
    require_at_least(1, tasks=tasks)
    weights = [source.weight for source in config.sources]
    if not weights or any(weights):
        wanted, got = "a config with sources, without weights", f"{len(weights)} sources, weights {weights}"
        next_step = "name the sources in the config; give weights to `python -m distill corpus`, which packs"
        raise UserError("contradiction", wanted=wanted, got=got, next_step=next_step)
    shared: dict[str, Any] = {"config": config, "folder": folder, "tasks": tasks}
    return [CleanShards(**shared)], [FindDuplicates(**shared)], [WriteKept(**shared)]


class _Step(PipelineStep):
    """The common part of the three steps: the shared folder, and which run and task wrote a file in it."""

    type = "corpus"

    def __init__(self, config: CorpusConfig, folder: Path, tasks: int) -> None:
        super().__init__()
        self._config, self._folder, self._tasks = config, folder, tasks
        self._sources = open_sources(config, ())

    def _shard_folder(self, rank: int) -> Path:
        return self._folder / "shards" / f"{rank:05d}"

    def _identity(self) -> str:
        """Equal for all tasks of one run: another config or number of tasks is another run."""
        # Files by name: a hash of their content would take every task longer than cleaning its part.
        return hashlib.sha256(f"{self._tasks} {self._config!r}".encode()).hexdigest()

    def _require(self, file: Path) -> None:
        """Raise UserError unless `file` says that this run wrote its folder."""
        found = file.read_text(encoding="utf-8") if file.is_file() else None
        if found != self._identity():
            wanted = f"the output of {self._tasks} finished tasks of this run in {self._folder}"
            next_step = "run the pipeline before this one to its end, or start with another folder"
            if found is None:
                raise not_found(wanted, "a task that is not finished", next_step=next_step)
            got = "another config or number of tasks"
            raise UserError("mismatch", wanted=wanted, got=got, next_step=next_step)

    def _all_shards(self) -> list[Shard]:
        """The shards of all tasks, in order."""
        for rank in range(self._tasks):
            self._require(self._shard_folder(rank) / _COMPLETE_FILE)
        return [shard for rank in range(self._tasks) for shard in finished_shards(self._shard_folder(rank))]


class CleanShards(_Step):
    """Cleans consecutive files in every task, so that the shards of all tasks are in the order of the files."""

    name = "clean"

    def run(self, data: Documents = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Read files, not `data`; yield nothing."""
        assert world_size == self._tasks, "run it with as many tasks as the pipelines were made for"
        sources, folder = self._sources, self._shard_folder(rank)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / _STARTED_FILE).exists() or any(folder.iterdir()):
            self._require(folder / _STARTED_FILE)
        replace_text(folder / _STARTED_FILE, self._identity())
        files = all_files(sources)
        mine = files[rank * len(files) // world_size : (rank + 1) * len(files) // world_size]
        cleaner, max_bad_share = cleaner_of(self._config), self._config.max_bad_share
        with self.track_time("task"):
            shards = write_shards(folder, sources, cleaner, workers=1, max_bad_share=max_bad_share, files=mine)
        replace_text(folder / _COMPLETE_FILE, self._identity())
        self.stat_update("documents", value=sum(shard.documents for shard in shards))
        yield from ()


class FindDuplicates(_Step):
    """Finds duplicates among the documents of all tasks; writes the status of each document, and data_card.json."""

    name = "find duplicates"

    def run(self, data: Documents = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Read the output of the first pipeline, in one task; yield nothing."""
        assert world_size == 1, "run it with one task: it compares all documents"
        shards = self._all_shards()
        folders = [self._shard_folder(task) for task in range(self._tasks)]
        with self.track_time("task"):
            status = find_duplicates(shards, self._config.near_duplicates, folders=folders)
        benchmarks = cleaner_of(self._config).benchmarks
        card = card_of_cleaning(steps_of(self._config), self._sources, shards, status, benchmarks)
        np.save(self._folder / _STATUS_FILE, status)
        replace_text(self._folder / _FOUND_FILE, self._identity())
        replace_text(self._folder / CARD_FILE, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
        yield from ()


class WriteKept(_Step):
    """Writes the kept documents of the shards of each task."""

    name = "write kept"

    def run(self, data: Documents = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Read the output of the other pipelines; the file of a task gets its name when it is complete."""
        self._require(self._folder / _FOUND_FILE)
        names = sorted(path.name for path in (self._folder / "documents").glob("*.jsonl.gz"))
        foreign = [name for name in names if int(name[:5]) >= self._tasks]
        if foreign:
            wanted, got = f"the documents of {self._tasks} tasks in {self._folder}", f"{foreign[0]} of another run"
            raise UserError("exists", wanted=wanted, got=got, next_step="start with another folder")
        before = sum(shard.documents for task in range(rank) for shard in finished_shards(self._shard_folder(task)))
        shards = finished_shards(self._shard_folder(rank))
        status = np.load(self._folder / _STATUS_FILE)[before:]
        written = self._folder / "documents" / f"{rank:05d}.jsonl.gz"
        partial = written.with_name(written.name + ".partial")
        with self.track_time("task"), compressed(partial) as file:
            for _, line, _ in in_order(self._sources, shards, status):
                file.write(line)
                self.stat_update("documents")
        partial.rename(written)
        yield from ()
