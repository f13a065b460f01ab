"""What a run draws of each source: weights need a limit, and a source that ends early is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses

from common.source_shares import drawn_shares, mix_warnings, require_limit, sources_of


def source(name: str, weight: float | None, *, tokens: int = 100, characters: int = 200) -> dict[str, Any]:
    return {"name": name, "weight": weight, "tokens_out": tokens, "characters_out": characters}


def test_weights_without_a_limit_are_refused_with_the_number_of_this_run() -> None:
    mixed = [source("a", 0.8), source("b", 0.2)]
    with refuses("contradiction", wanted="corpus_tokens", got="a, b", next_step="for these steps 640"):
        require_limit(mixed, None, run_tokens=640)
    with refuses("contradiction", wanted="replay_tokens", next_step="--replay-tokens"):
        require_limit(mixed, None, run_tokens=640, name="replay_tokens")
    require_limit(mixed, 640, run_tokens=640)
    require_limit([source("a", None), source("b", None)], None, run_tokens=640)


def test_shares_are_of_characters_as_weights_are() -> None:
    """A token of b holds four characters, one of a two."""
    sources = [source("a", 3.0), source("b", 1.0, characters=400)]
    drawn = drawn_shares(sources, {"a": 60, "b": 10})
    assert [(one["source"], one["tokens"], one["share"], one["weight"]) for one in drawn] == [
        ("a", 60, 0.75, 0.75),
        ("b", 10, 0.25, 0.25),
    ]
    assert mix_warnings(drawn) == []
    assert drawn_shares(sources, {}) == [], "rows of an earlier corpus have no labels"


@pytest.mark.parametrize(("tokens_of_b", "is_named"), [(100, False), (102, False), (110, True)])
def test_a_source_that_ended_early_is_named(tokens_of_b: int, is_named: bool) -> None:
    warnings = mix_warnings(drawn_shares([source("a", 0.5), source("b", 0.5)], {"a": 100, "b": tokens_of_b}))
    assert len(warnings) == is_named and all("b for 50.0%" in each and "corpus_tokens" in each for each in warnings)
    assert mix_warnings(drawn_shares([source("a", None), source("b", None)], {"a": 1, "b": 9})) == []


def test_sources_are_those_of_a_card_of_text(tmp_path: Path) -> None:
    assert sources_of(tmp_path) == []
    (tmp_path / "data_card.json").write_text(json.dumps({"sources": [source("a", 1.0)]}))
    assert sources_of(tmp_path) == [source("a", 1.0)]
    (tmp_path / "data_card.json").write_text(json.dumps({"stage": "conversations", "sources": [source("a", 1.0)]}))
    assert sources_of(tmp_path) == []
