"""The mix of sources that a run reads: weights hold for the beginning of train, so a run that mixes reads only that.

Reads the data card of a corpus and the counts of its packed rows. Independent of training.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.provenance import CARD_FILE, is_text

_TOLERANCE = 0.01
"""Difference between the share that was drawn and the weight's, of all characters, that needs no warning."""


def sources_of(corpus: Path) -> list[dict[str, Any]]:
    """The sources in the data card of a corpus of text; none without a card, and for conversations."""
    if not is_text(corpus):
        return []
    return json.loads((corpus / CARD_FILE).read_text(encoding="utf-8")).get("sources", [])


def require_limit(
    sources: Sequence[Mapping[str, Any]],
    limit_tokens: int | None,
    *,
    run_tokens: int,
    name: str = "corpus_tokens",
) -> None:
    """UserError ("contradiction") for sources with weights of which a run would draw from all of train.

    `run_tokens` is what the run reads in all its steps, `name` that of the setting `limit_tokens`.
    """
    named = [str(source["name"]) for source in sources if source.get("weight") is not None]
    if named and limit_tokens is None:
        wanted = f"{name} where sources have weights, which hold for the beginning of train"
        got = f"none, with weights of {', '.join(named)}"
        flag = f"--{name.replace('_', '-')}"
        next_step = f"set {name} ({flag}), for these steps {run_tokens}, or leave the weights out"
        raise UserError("contradiction", wanted=wanted, got=got, next_step=next_step)


def drawn_shares(sources: Sequence[Mapping[str, Any]], tokens: Mapping[str, int]) -> list[dict[str, Any]]:
    """What a run drew of each source: {source, tokens, share, weight}; none where tokens are not known by source.

    `share` and `weight` are parts of all characters, as weights are; `weight` is None where the sources have none.
    Characters are the tokens times the characters that a token of this source has.
    """
    characters = {
        str(source["name"]): tokens[source["name"]] * source["characters_out"] / source["tokens_out"]
        for source in sources
        if tokens.get(source["name"]) and source["tokens_out"]
    }
    total, weights = sum(characters.values()), [source.get("weight") or 0.0 for source in sources]
    return [
        {
            "source": source["name"],
            "tokens": tokens.get(source["name"], 0),
            "share": round(characters.get(source["name"], 0.0) / total, 6),
            "weight": round(weight / sum(weights), 6) if any(weights) else None,
        }
        for source, weight in zip(sources, weights, strict=True)
        if total
    ]


def mix_warnings(drawn: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning where a source ended before the part of train that was read, so that others fill its share."""
    off = [one for one in drawn if one["weight"] is not None and abs(one["share"] - one["weight"]) > _TOLERANCE]
    if not off:
        return []
    shares = ", ".join(f"{one['share']:.1%} of {one['source']} for {one['weight']:.1%}" for one in off)
    return [f"the text that was read is not mixed by the weights: {shares}; lower corpus_tokens, or give more text"]
