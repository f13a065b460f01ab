"""A recipe's numbers: what is published and what is chosen, how a recipe revises another's, and what a build has."""

from typing import Any

import pytest
from errors_tiny import refuses

from eval.report.stage import Choice, differences, revised

STEPS = Choice(
    what="steps", value="8,000", reason="two days", fields=(("base.steps", 8000), ("base.optim.betas[1]", 0.95))
)
TEACHER = Choice(what="teacher", value="A", published=True, source="its card")


@pytest.mark.parametrize(
    ("fields", "wanted", "got"),
    [
        ({}, "reason why a number", "neither"),
        ({"source": "another model's script"}, "reason why a number", "a source alone"),
        ({"published": True, "reason": "it is"}, "source of a number", "none"),
    ],
)
def test_a_choice_has_a_reason_and_a_published_number_its_source(fields: dict[str, Any], wanted: str, got: str) -> None:
    with refuses("contradiction", wanted=wanted, got=got):
        Choice(what="a number", value="1", **fields)
    both = Choice(what="a number", value="1", source="another model's script", reason="it works there")
    assert not both.published


def test_a_recipe_revises_anothers_choices_by_name() -> None:
    other = Choice(what="teacher", value="B", reason="stronger")
    assert revised((TEACHER, STEPS), other) == (other, STEPS)
    assert revised((TEACHER, STEPS), without=("steps",)) == (TEACHER,)
    for arguments in ({"without": ("step",)}, {"without": ("learning rate",)}):
        with refuses("unknown-name", wanted="steps, teacher"):
            revised((TEACHER, STEPS), **arguments)
    with refuses("unknown-name", got="peak"):
        revised((TEACHER, STEPS), Choice(what="peak", value="1", reason="x"))


def test_what_a_build_has_otherwise_is_found_in_its_manifests() -> None:
    config: dict[str, Any] = {"class": "DistillConfig", "steps": 8000, "optim": {"betas": [0.9, 0.95]}}
    assert differences(STEPS, {"base": {"config": config}}) == []
    changed = {"base": {"config": config | {"steps": 2, "optim": {"betas": [0.9, 0.99]}}}}
    assert differences(STEPS, changed) == [
        {"field": "base.steps", "says": 8000, "built": 2},
        {"field": "base.optim.betas[1]", "says": 0.95, "built": 0.99},
    ]
    assert differences(STEPS, {}) == differences(STEPS, {"base": {"config": {"optim": {"betas": [1]}}}}) == []


def test_a_list_counts_by_its_length_and_a_path_is_no_number() -> None:
    files = Choice(what="files", value="3", reason="x", fields=(("corpus.sources[0].files", 3), ("corpus.path", "x")))
    sources = [{"files": [{"file": "a"}, {"file": "b"}]}]
    built = {"corpus": {"config": {"sources": sources, "path": {"file": "secret", "sha256": "0"}}}}
    assert differences(files, built) == [{"field": "corpus.sources[0].files", "says": 3, "built": 2}]
