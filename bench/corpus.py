"""`python -m bench corpus`: the speed of cleaning text on one core, and its memory at two sizes of input.

The text of `--text` is cleaned with and without the search for near-duplicates, each in a process of its own, without
tokenising and packing. Then two inputs of different sizes are made of its sentences in random order, so that all
documents differ, and the peaks of memory are compared.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench.measure import resident_bytes, say
from common.cli import require_at_least_one
from common.duplicates import NearDuplicatesConfig
from common.errors import UserError
from common.metrics import peak_bytes, reset_peak
from common.rows import read_rows

_SENTENCE = re.compile(r"(?<=[。！？\n])")  # noqa: RUF001
_MEGABYTE = 10**6


def add_verb(verbs: Any) -> None:
    """Register `corpus`."""
    text = "cleaning: megabytes a second on one core, and memory"
    verb = verbs.add_parser("corpus", help=text, description=__doc__)
    verb.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE", help="text to clean")
    verb.add_argument("--small", type=int, default=10, metavar="MB", help="size of the smaller generated input")
    verb.add_argument("--large", type=int, default=100, metavar="MB", help="size of the larger generated input")
    verb.add_argument("--rounds", type=int, default=3, metavar="N", help="timed runs of each side")
    verb.set_defaults(function=measured)


def measured(parsed: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark; returns what is printed."""
    require_at_least_one(small=parsed.small, large=parsed.large, rounds=parsed.rounds)
    rates: dict[str, list[float]] = {"plain": [], "near": []}
    for number in range(parsed.rounds):
        for side, found in rates.items():
            result = in_own_process(parsed.text, near=side == "near")
            found.append(result["bytes"] / result["seconds"] / _MEGABYTE)
            say(f"round {number + 1} of {parsed.rounds}: {side} {found[-1]:.2f} MB/s")
    peaks: dict[str, dict[str, int]] = {"plain": {}, "near": {}}
    with tempfile.TemporaryDirectory() as folder:
        for size in (parsed.small, parsed.large):
            path = Path(folder) / f"{size}.jsonl"
            write_made(path, parsed.text, size * _MEGABYTE)
            for side, found in peaks.items():
                result = in_own_process([path], near=side == "near")
                found[f"{size} MB"] = result["extra_bytes"]
                rate = result["bytes"] / result["seconds"] / _MEGABYTE
                say(f"{size} MB: {side} {rate:.2f} MB/s, {result['extra_bytes'] / _MEGABYTE:.0f} MB of memory")
    return {
        "text_bytes": sum(path.stat().st_size for path in parsed.text),
        "megabytes_per_s": statistics.median(rates["plain"]),
        "megabytes_per_s_near": statistics.median(rates["near"]),
        "extra_bytes": peaks["plain"],
        "extra_bytes_near": peaks["near"],
    }


def in_own_process(files: list[Path], *, near: bool) -> dict[str, Any]:
    """Clean `files` in a new process: `bytes` of text, `seconds`, `extra_bytes` above its start."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_clean, files, near).result()


def _clean(files: list[Path], near: bool) -> dict[str, Any]:
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"
    from distill.corpus import CorpusConfig
    from distill.corpus.kept import find_duplicates
    from distill.corpus.shards import write_shards
    from distill.corpus.stage import cleaner_of, open_sources

    config = CorpusConfig(near_duplicates=NearDuplicatesConfig() if near else None)
    sources = open_sources(config, files)
    cleaner = cleaner_of(config)
    with tempfile.TemporaryDirectory() as folder:
        before = resident_bytes()
        reset_peak()
        start = time.perf_counter()
        shards = write_shards(Path(folder), sources, cleaner, workers=1, max_bad_share=0.01)
        find_duplicates(shards, config.near_duplicates, folders=[Path(folder)])
        seconds = time.perf_counter() - start
        extra_bytes = peak_bytes() - before
    size = sum(len(row["text"].encode()) for row in read_rows(files, fields={"text": str}))
    return {"bytes": size, "seconds": seconds, "extra_bytes": extra_bytes}


def write_made(path: Path, files: list[Path], size: int) -> None:
    """Write documents of the sentences of `files` (1,000 or more) in random order, `size` bytes of text in all."""
    rng = random.Random(0)
    sentences = [
        sentence
        for row in read_rows(files, fields={"text": str})
        for sentence in _SENTENCE.split(row["text"])
        if sentence.strip()
    ]
    if len(sentences) < 1000:
        wanted = "at least 1,000 sentences to make documents of"
        raise UserError("empty", wanted=wanted, got=f"{len(sentences)}", next_step="give more text")
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            text = "".join(rng.choices(sentences, k=rng.randint(5, 100)))
            written += len(text.encode())
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
