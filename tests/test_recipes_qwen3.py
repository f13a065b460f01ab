"""What the release's recipes say of their numbers: published or chosen, in step with the recipe, under one name."""

from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from common.store.keys import readable
from eval.report.stage import differences
from export.card import CardConfig
from recipes.japanese_teacher import japanese_teacher
from recipes.qwen3 import CHAT_STEPS, qwen3
from recipes.recipe import Recipe
from recipes.rehearsal import rehearsal
from recipes.resizing import resized
from recipes.stages.published import published
from recipes.tinyswallow import CHOICES, TEACHER, tinyswallow

RECIPES = (tinyswallow, qwen3, japanese_teacher)


def card_of(recipe: Recipe) -> CardConfig:
    assert recipe.dist.card is not None
    return recipe.dist.card


def manifests(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What the manifests of a build of it would hold of its configs; its sources are found later."""
    configs = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return {name: {"config": readable(config)} for name, config in configs.items() if is_dataclass(config)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_choice_says_what_the_recipe_has(recipe: Any) -> None:
    made = recipe()
    assert card_of(made).choices == made.report.choices
    for choice in made.report.choices:
        assert differences(choice, manifests(made)) == [], choice.what
    known = {f"{artifact}." for artifact in manifests(made)}
    assert all(name.startswith(tuple(known)) for choice in made.report.choices for name, _ in choice.fields)


def test_a_resized_recipes_choices_are_found_to_differ() -> None:
    sizes = {"base.steps": 4, "chat.rows_per_step": 2, "corpus.shares.test": 0.1}
    small = resized(tinyswallow(), sizes)
    found = {each["field"] for choice in small.report.choices for each in differences(choice, manifests(small))}
    assert found == set(sizes)


def test_only_what_the_publishers_say_of_tinyswallow_is_called_published() -> None:
    names = {choice.what for choice in CHOICES if choice.published}
    assert names == {"teacher", "student", "method", "instruction sets", "quantised files", "sampling"}
    for choice in CHOICES:
        source = choice.source or ""
        assert not choice.published or "SakanaAI/TinySwallow" in source
        assert choice.published or "SakanaAI/TAID" not in source or "article" in (choice.reason or "")
    assert "8 on each of 8 GPUs" not in str([choice.source for choice in CHOICES])


def test_qwen3_revises_all_of_the_releases_numbers_and_publishes_none_of_them() -> None:
    choices = {choice.what: choice for choice in qwen3().report.choices}
    assert choices.keys() == {choice.what for choice in CHOICES} - {"system prompt"}
    assert not any(choice.published for choice in choices.values())
    assert "peak learning rate of the distillation" in choices and "llm-jp" in choices["instruction sets"].value
    release = choices["sampling"].value
    assert "top_p" in release


def test_qwen3_tunes_for_about_one_epoch_of_its_set() -> None:
    chat: Any = qwen3().chat
    tokens = chat.steps * chat.rows_per_step * 2048
    assert chat.steps == CHAT_STEPS and tokens == pytest.approx(284e6 / 4.2, rel=0.05)
    assert chat.steps % chat.validate_every == 0, "the last step is validated"


@pytest.mark.parametrize("recipe", RECIPES)
def test_reports_that_are_passed_on_quote_no_benchmark(recipe: Any) -> None:
    assert recipe().evaluation.sample_questions == 0


def test_every_recipe_has_a_licence_and_names_of_its_own() -> None:
    stated = {recipe: card_of(recipe()).licence for recipe in RECIPES}
    assert stated[qwen3] == "Apache-2.0"
    for recipe in (tinyswallow, japanese_teacher):
        assert "Gemma" in str(stated[recipe]) and "Llama" in str(stated[recipe])
    for recipe in RECIPES:
        made = recipe()
        card = card_of(made)
        (name,) = [choice.value for choice in card.choices if choice.what == "name"]
        assert name == card.title == made.gguf.stem == made.coreml.stem
        assert made.gguf.licence == made.coreml.licence == card.licence
    assert len({card_of(recipe()).title for recipe in RECIPES}) == 3


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_card_passes_for_its_publishers_own(recipe: Any) -> None:
    card = card_of(recipe())
    assert "によるものではありません" in str(card.description_ja) and "It was not made by" in str(
        card.description_en
    ).replace("it was", "It was")


def test_the_rehearsals_card_says_that_nothing_was_trained() -> None:
    card = card_of(rehearsal())
    assert "Nothing was trained" in str(card.description_en) and "学習は一切しておらず" in str(card.description_ja)
    assert "rehearsal" in str(card.title)


def test_a_published_models_duties_travel_with_it() -> None:
    duty = 'Qwen: show "Built with Qwen".'
    model = published(TEACHER, licence="Qwen", attribution="Alibaba Cloud", obligations=(duty,))
    assert model.terms.obligations == (duty,) and model.terms.url == f"https://huggingface.co/{TEACHER}"
