"""The same cleaning past one machine: a datatrove pipeline over the functions of this package.

Three pipelines, each waiting for the one before: `CleanShards` reads and cleans, every task its share of the files;
`FindRepeats`, a single task, finds what is there twice among all of them; `WriteKept` writes what is left, every task
its own documents, to `documents/00000.jsonl.gz` and on. Run them with any executor of datatrove (local, Slurm, Ray):
docs/large-corpora.md. What they write holds the same documents, in the same order, as the stage `corpus` would keep;
`python -m distill corpus` on it, with the cleaning off, makes the cut and packs.

This module alone imports datatrove.
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
from common.errors import UserError
from common.provenance import CARD_FILE
from distill.corpus.config import CorpusConfig, TextSource
from distill.corpus.data_card import card_of_cleaning
from distill.corpus.dedup import find_repeats
from distill.corpus.shards import Shard, all_files, finished, write_shards
from distill.corpus.splitting import in_order
from distill.corpus.stage import cleaner_of, open_sources

_FATES_FILE = "fates.npy"
_STARTED_FILE, _COMPLETE_FILE, _FOUND_FILE = "started", "complete", "found"
Documents = Iterator[Document] | None


def pipelines(
    config: CorpusConfig, folder: Path, *, tasks: int
) -> tuple[list[PipelineStep], list[PipelineStep], list[PipelineStep]]:
    """The steps of the three pipelines: run the first and the last with `tasks` tasks, the second with one.

    Args:
        config: as for the stage `corpus`; text comes from its `sources`, whose files all tasks can read.
        folder: on a disk that all tasks see; what they write.
        tasks: tasks of the first and of the last pipeline.

    Raises:
        UserError: no sources, or sources with weights, which belong to the stage that packs.
    """
    if not config.sources or any(source.weight is not None for source in config.sources) or tasks < 1:
        raise UserError(
            wanted="a config with sources, without weights, and at least one task",
            got=f"{len(config.sources)} sources, weights {[source.weight for source in config.sources]}, {tasks} tasks",
            next_step="Name the sources in the config; give weights to `python -m distill corpus`, which packs.",
        )
    shared: dict[str, Any] = {"config": config, "folder": folder, "tasks": tasks}
    return [CleanShards(**shared)], [FindRepeats(**shared)], [WriteKept(**shared)]


class _Step(PipelineStep):
    """What the three have in common."""

    type = "corpus"

    def __init__(self, config: CorpusConfig, folder: Path, tasks: int) -> None:
        super().__init__()
        self._config, self._folder, self._tasks = config, folder, tasks

    def _sources(self) -> list[TextSource]:
        return open_sources(self._config, ())

    def _shard_folder(self, rank: int) -> Path:
        return self._folder / "shards" / f"{rank:05d}"

    def _identity(self) -> str:
        """What all tasks of one run have in common: another config, or another number of tasks, is another run."""
        # Files by name: what they hold would take every task longer to read than its own share takes to clean.
        return hashlib.sha256(f"{self._tasks} {self._config!r}".encode()).hexdigest()

    def _require(self, file: Path) -> None:
        """UserError unless `file` says that this very run wrote what lies beside it."""
        found = file.read_text(encoding="utf-8") if file.is_file() else None
        if found != self._identity():
            raise UserError(
                wanted=f"what {self._tasks} finished tasks of this run wrote in {self._folder}",
                got="a task that is not finished" if found is None else "another config or number of tasks",
                next_step="Run the pipeline before this one to its end, or start with another folder.",
            )

    def _all_shards(self) -> list[Shard]:
        """The shards of all tasks, in order."""
        for rank in range(self._tasks):
            self._require(self._shard_folder(rank) / _COMPLETE_FILE)
        return [shard for rank in range(self._tasks) for shard in finished(self._shard_folder(rank))]


class CleanShards(_Step):
    """Cleans every task's share of the files: a run of them, so that all tasks' shards are in the files' order."""

    name = "clean"

    def run(self, data: Documents = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Reads files, not `data`; yields nothing."""
        assert world_size == self._tasks, "run it with as many tasks as the pipelines were made for"
        sources, folder = self._sources(), self._shard_folder(rank)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / _STARTED_FILE).exists() or any(folder.iterdir()):
            self._require(folder / _STARTED_FILE)
        replace_text(folder / _STARTED_FILE, self._identity())
        files = all_files(sources)
        mine = files[rank * len(files) // world_size : (rank + 1) * len(files) // world_size]
        with self.track_time("task"):
            shards = write_shards(
                folder,
                sources,
                cleaner_of(self._config),
                workers=1,
                max_bad_share=self._config.max_bad_share,
                files=mine,
            )
        replace_text(folder / _COMPLETE_FILE, self._identity())
        self.stat_update("documents", value=sum(shard.documents for shard in shards))
        yield from ()


class FindRepeats(_Step):
    """Finds duplicates among the documents of all tasks; writes what becomes of each, and data_card.json."""

    name = "find repeats"

    def run(self, data: Documents = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """One task; reads what the first pipeline wrote."""
        assert world_size == 1, "run it with one task: it compares all documents"
        shards = self._all_shards()
        folders = [self._shard_folder(task) for task in range(self._tasks)]
        with self.track_time("task"):
            fates = find_repeats(shards, self._config.near_duplicates, folders=folders)
        benchmarks = cleaner_of(self._config).benchmarks
        card = card_of_cleaning(self._config, self._sources(), shards, fates, benchmarks)
        np.save(self._folder / _FATES_FILE, fates)
        replace_text(self._folder / _FOUND_FILE, self._identity())
        replace_text(self._folder / CARD_FILE, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
        yield from ()


class WriteKept(_Step):
    """Writes the documents of each task's shards that are kept."""

    name = "write kept"

    def run(self, data: Documents = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Reads what the other pipelines wrote; a task's file gets its name when it is complete."""
        self._require(self._folder / _FOUND_FILE)
        foreign = [
            path.name for path in (self._folder / "documents").glob("*.jsonl.gz") if int(path.name[:5]) >= self._tasks
        ]
        if foreign:
            raise UserError(
                wanted=f"the documents of {self._tasks} tasks in {self._folder}",
                got=f"{foreign[0]} of another run",
                next_step="Start with another folder.",
            )
        before = sum(shard.documents for task in range(rank) for shard in finished(self._shard_folder(task)))
        shards = finished(self._shard_folder(rank))
        fates = np.load(self._folder / _FATES_FILE)[before:]
        written = self._folder / "documents" / f"{rank:05d}.jsonl.gz"
        partial = written.with_name(written.name + ".partial")
        with self.track_time("task"), compressed(partial) as file:
            for _, line in in_order(self._sources(), shards, fates):
                file.write(line)
                self.stat_update("documents")
        partial.rename(written)
        yield from ()
