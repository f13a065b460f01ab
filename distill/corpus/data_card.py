"""The data card of a corpus: rows in, removed by which rule, and out, by source, with the terms of the source.

Reads what the passes wrote and changes nothing in the corpus.
"""

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.corpus.kept import KEPT, RULES
from distill.corpus.shards import Shard, TextSource
from distill.text.cleaning import SAMPLE_CHARACTERS, SAMPLES, CleaningCounts


def card_of_cleaning(
    steps: Sequence[Mapping[str, Any]],
    sources: Sequence[TextSource],
    shards: Sequence[Shard],
    status: NDArray[np.uint8],
    benchmarks: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """The card without the tokens, which are known after packing.

    `steps` have `step`, `on`, `reason` and `settings`. `status` [documents] is from `find_duplicates`.
    """
    by_source = [_source(number, source, shards, status) for number, source in enumerate(sources)]
    totals, contamination = Counter[str](), Counter[str]()
    for one in by_source:
        totals.update(one["removed"])
    for shard in shards:
        contamination += shard.counts.contamination
    return {
        "rows_in": sum(one["rows_in"] for one in by_source),
        "removed": {rule: totals[rule] for rule in dict.fromkeys([*sorted(totals), *RULES.values()])},
        "rows_out": sum(one["rows_out"] for one in by_source),
        "sources": by_source,
        "steps": list(steps),
        "benchmarks": dict(benchmarks),
        "contamination": dict(sorted(contamination.items())),
        "samples": _samples(sources, shards, status),
    }


def with_tokens(card: Mapping[str, Any], metas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The card with the tokens of each source, from the meta.json of the packed splits.

    Removed rows are never tokenised: the tokens of a source before cleaning are estimated from its characters.
    """
    tokens = Counter[str]()
    for meta in metas.values():
        tokens.update(meta["labels"])
    sources: list[dict[str, Any]] = []
    for source in card["sources"]:
        tokens_out, kept = tokens[source["name"]], source["characters_out"]
        estimate = round(source["characters_in"] * tokens_out / kept) if kept else None
        sources.append(source | {"tokens_out": tokens_out, "tokens_in_estimate": estimate})
    return {**card, "sources": sources}


def _with_status(shards: Sequence[Shard], status: NDArray[np.uint8]) -> Iterator[tuple[Shard, NDArray[np.uint8]]]:
    """Each shard, and the status of its documents."""
    ends = list(accumulate(shard.documents for shard in shards))
    return zip(shards, np.split(status, ends), strict=False)  # what is after the last end is empty


def _source(number: int, source: TextSource, shards: Sequence[Shard], status: NDArray[np.uint8]) -> dict[str, Any]:
    counts = CleaningCounts()
    by_status = Counter[int]()
    characters_out = 0
    for shard, mine in _with_status(shards, status):
        if shard.source == number:
            counts.merge(shard.counts)
            by_status.update(mine.tolist())
            characters_out += int(np.asarray(shard.array("characters"), np.int64)[mine == KEPT].sum())
    removed = dict(sorted(counts.rows.bad.items())) | dict(sorted(counts.removed.items()))
    removed |= {rule: by_status[code] for code, rule in RULES.items() if by_status[code]}
    return {
        **asdict(source.terms),
        "revision": source.revision,
        "weight": source.weight,
        "rows_in": counts.rows.rows,
        "characters_in": counts.characters_in,
        "removed": removed,
        "changed": {step: count for step, count in sorted(counts.changed.items()) if count},
        "rows_out": by_status[KEPT],
        "characters_out": characters_out,
        "first_bad_rows": counts.rows.first_bad,
    }


def _samples(
    sources: Sequence[TextSource], shards: Sequence[Shard], status: NDArray[np.uint8]
) -> dict[str, list[dict[str, str]]]:
    """A few documents kept and a few removed by each rule: those with the lowest digests, which are a random choice."""
    found: dict[str, list[tuple[int, dict[str, str]]]] = {}

    def offer(rule: str, samples: Sequence[tuple[int, dict[str, str]]]) -> None:
        rows = [*found.get(rule, []), *samples]
        found[rule] = heapq.nsmallest(SAMPLES, rows, key=lambda sample: (sample[0], sample[1]["id"]))

    for shard in shards:
        name = sources[shard.source].terms.name
        for rule, samples in shard.counts.samples.items():
            offer(rule, [(rank, {"source": name, "id": row, "text": text}) for rank, row, text in samples])
    for rule, rank, row in _lowest_digests(shards, status):
        shown = {"source": row["source"], "id": str(row["id"]), "text": row["text"][:SAMPLE_CHARACTERS]}
        offer(rule, [(rank, shown)])
    order = sorted(found, key=lambda rule: (rule != "kept", rule))
    return {rule: [sample for _, sample in found[rule]] for rule in order}


def _lowest_digests(shards: Sequence[Shard], status: NDArray[np.uint8]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield (rule or `kept`, digest, row) of the documents of each shard and status that have the lowest digests."""
    for shard, mine in _with_status(shards, status):
        digests = np.asarray(shard.array("digests"))[:, 0]
        chosen: dict[int, tuple[str, int]] = {}
        for code, rule in ((KEPT, "kept"), *RULES.items()):
            places = np.flatnonzero(mine == code)
            for place in places[np.argsort(digests[places], kind="stable")[:SAMPLES]].tolist():
                chosen[place] = (rule, int(digests[place]))
        if chosen:
            for place, line in enumerate(islice(shard.lines(), max(chosen) + 1)):
                if place in chosen:
                    yield *chosen[place], json.loads(line)
