"""The data card of a corpus: per source what came in, what was removed by which rule, what is left, under which terms.

Reads what the passes left on disk and computes nothing that changes the corpus.
"""

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.store.keys import readable
from distill.corpus.config import CorpusConfig, TextSource
from distill.corpus.dedup import KEPT, RULES
from distill.corpus.shards import Shard
from distill.text.cleaning import SAMPLE_CHARACTERS, SAMPLES, Counts


def card_of_cleaning(
    config: CorpusConfig,
    sources: Sequence[TextSource],
    shards: Sequence[Shard],
    fates: NDArray[np.uint8],
    benchmarks: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """The card as far as it is known before anything is packed.

    Args:
        config: the stage's.
        sources: all sources.
        shards: their cleaned documents.
        fates: what became of each document.
        benchmarks: what the documents were compared with, as `Cleaner.benchmarks`.
    """
    by_source = [_source(number, source, shards, fates) for number, source in enumerate(sources)]
    totals = Counter[str]()
    contamination = Counter[str]()
    for one in by_source:
        totals.update(one["removed"])
    for shard in shards:
        contamination += shard.counts.contamination
    return {
        "rows_in": sum(one["rows_in"] for one in by_source),
        "removed": {rule: totals[rule] for rule in dict.fromkeys([*sorted(totals), *RULES.values()])},
        "rows_out": sum(one["rows_out"] for one in by_source),
        "sources": by_source,
        "steps": steps(config),
        "benchmarks": dict(benchmarks),
        "contamination": dict(sorted(contamination.items())),
        "samples": _samples(sources, shards, fates),
    }


def with_tokens(card: Mapping[str, Any], metas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The card with each source's tokens, from the packed splits' meta.json.

    Removed rows are never tokenised: their source's tokens before cleaning are estimated from its characters.
    """
    labels = Counter[str]()
    for meta in metas.values():
        labels.update(meta["labels"])
    sources: list[dict[str, Any]] = []
    for source in card["sources"]:
        tokens, kept = labels[source["name"]], source["characters_out"]
        estimate = round(source["characters_in"] * tokens / kept) if kept else None
        sources.append(source | {"tokens_out": tokens, "tokens_in_estimate": estimate})
    return {**card, "sources": sources, "splits": dict(metas), "tokens": sum(meta["tokens"] for meta in metas.values())}


def steps(config: CorpusConfig) -> list[dict[str, Any]]:
    """Every step, whether it is on, with what settings, and why it is off."""
    cleaning = config.cleaning
    asked: list[tuple[str, Any]] = [
        ("normalisation", cleaning.normalise),
        ("quality rules", cleaning.quality),
        ("replacement of personal data", cleaning.redact),
        ("decontamination", None if config.benchmarks is None else config.decontamination),
        ("exact duplicates", True),
        ("near duplicates", config.near_duplicates),
    ]
    return [
        {
            "step": name,
            "on": bool(setting),
            "reason": None if setting else config.reason_off,
            "settings": {} if isinstance(setting, bool) or setting is None else readable(setting),
        }
        for name, setting in asked
    ]


def _source(number: int, source: TextSource, shards: Sequence[Shard], fates: NDArray[np.uint8]) -> dict[str, Any]:
    counts = Counts()
    repeats = Counter[int]()
    characters_out = start = 0
    for shard in shards:
        end = start + shard.documents
        if shard.source == number:
            counts.merge(shard.counts)
            repeats.update(fates[start:end].tolist())
            characters_out += int(np.asarray(shard.array("characters"), np.int64)[fates[start:end] == KEPT].sum())
        start = end
    removed = dict(sorted(counts.rows.bad.items())) | dict(sorted(counts.removed.items()))
    removed |= {rule: repeats[fate] for fate, rule in RULES.items() if repeats[fate]}
    return {
        **asdict(source.terms),
        "revision": source.revision,
        "weight": source.weight,
        "rows_in": counts.rows.rows,
        "characters_in": counts.characters_in,
        "removed": removed,
        "changed": {step: count for step, count in sorted(counts.changed.items()) if count},
        "rows_out": repeats[KEPT],
        "characters_out": characters_out,
        "first_bad_rows": counts.rows.first_bad,
    }


def _samples(
    sources: Sequence[TextSource], shards: Sequence[Shard], fates: NDArray[np.uint8]
) -> dict[str, list[dict[str, str]]]:
    """A few documents kept and a few removed by each rule: those whose digests are lowest, so that any may be shown."""
    found: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for shard in shards:
        name = sources[shard.source].terms.name
        for rule, samples in shard.counts.samples.items():
            rows = [(rank, {"source": name, "id": row, "text": text}) for rank, row, text in samples]
            found[rule] = _lowest([*found.get(rule, []), *rows])
    for rule, rank, row in _of_the_repeats(shards, fates):
        shown = {"source": row["source"], "id": str(row["id"]), "text": row["text"][:SAMPLE_CHARACTERS]}
        found[rule] = _lowest([*found.get(rule, []), (rank, shown)])
    order = ["kept", *sorted(found.keys() - {"kept"})]
    return {rule: [sample for _, sample in found[rule]] for rule in order if rule in found}


def _of_the_repeats(shards: Sequence[Shard], fates: NDArray[np.uint8]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(rule or `kept`, digest, row) of the documents of each shard that have the lowest digests."""
    start = 0
    for shard in shards:
        mine = fates[start : start + shard.documents]
        start += shard.documents
        digests = np.asarray(shard.array("digests"))[:, 0]
        chosen: dict[int, tuple[str, int]] = {}
        for fate, rule in ((KEPT, "kept"), *RULES.items()):
            places = np.flatnonzero(mine == fate)
            for place in places[np.argsort(digests[places], kind="stable")[:SAMPLES]].tolist():
                chosen[place] = (rule, int(digests[place]))
        if chosen:
            for place, line in enumerate(islice(shard.lines(), max(chosen) + 1)):
                if place in chosen:
                    yield *chosen[place], json.loads(line)


def _lowest(samples: Sequence[tuple[int, dict[str, str]]]) -> list[tuple[int, dict[str, str]]]:
    return heapq.nsmallest(SAMPLES, samples, key=lambda sample: (sample[0], sample[1]["id"]))
