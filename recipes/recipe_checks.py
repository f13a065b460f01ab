"""What a recipe must agree with itself about, checked when it is made: parts that belong together, sizes that fit."""

from typing import TYPE_CHECKING, Any

from common.errors import UserError
from distill.methods import method
from distill.train import DistillConfig
from recipes.hub_names import PublishedModel
from recipes.stages.benchmark_questions import BenchmarkQuestionsConfig
from recipes.stages.random_model import RandomModelConfig
from recipes.stages.user_files import UserFilesConfig

if TYPE_CHECKING:
    from recipes.recipe import Recipe


def contradiction(wanted: str, got: str, next_step: str) -> UserError:
    """What a recipe that contradicts itself is told."""
    return UserError(wanted=wanted, got=got, next_step=next_step)


def check_models(recipe: "Recipe") -> None:
    """Models that are trained, published or random, but not some of each; methods that fit them."""
    parts = {name: getattr(recipe, name) for name in ("teacher", "student_before", "base", "conversations")}
    rehearsed = isinstance(recipe.chat, RandomModelConfig)
    wrong = [name for name, part in parts.items() if (part is None) != rehearsed]
    if wrong:
        raise contradiction(
            f"{', '.join(parts)} where the chat model is trained, and none of them where it has random weights",
            f"{', '.join(wrong)} {'set' if rehearsed else 'missing'}",
            "change these or `chat`",
        )
    for name, stage, with_teacher in (
        ("teacher", recipe.teacher, False),
        ("student_before", recipe.student_before, False),
        ("base", recipe.base, True),
    ):
        if isinstance(stage, DistillConfig) and method(stage.method).needs_teacher != with_teacher:
            wanted = "a method with a teacher" if with_teacher else "a method without a teacher"
            raise contradiction(f"{name} with {wanted}", stage.method, f"change {name}.method")
    if recipe.base is not None and recipe.base.init is not None:
        raise contradiction("base without init, since it starts from student_before", "one", "set it to None")


def check_data(recipe: "Recipe") -> None:
    """Text, conversations and tokenizer from one place."""
    only_questions = isinstance(recipe.world, BenchmarkQuestionsConfig)
    if only_questions != bool(recipe.text) or only_questions != bool(recipe.instructions):
        raise contradiction(
            "text and instructions from the hub where the world has questions alone, and else neither",
            f"{len(recipe.text)} sets of text, {len(recipe.instructions)} of conversations, world of "
            f"{type(recipe.world).__name__}",
            "change `world`, or `text` and `instructions`",
        )
    if (
        isinstance(recipe.world, UserFilesConfig)
        and not recipe.world.conversations
        and recipe.conversations is not None
    ):
        raise contradiction(
            "conversations in the world, which the chat stage learns from",
            "none",
            "name files in UserFilesConfig(conversations=..)",
        )
    if (recipe.tokenizer is None) != isinstance(recipe.student_before, PublishedModel):
        raise contradiction(
            "a tokenizer to train, or a published student that brings its own",
            "neither" if recipe.tokenizer is None else "both",
            "change `tokenizer` or `student_before`",
        )


def check_sizes(recipe: "Recipe") -> None:
    """Shapes of the models that are trained in place against rows and tokenizer; that of others is in their files."""
    sequence = max(part.sequence_tokens for part in (recipe.corpus, recipe.conversations) if part is not None)
    stages = {"teacher": recipe.teacher, "student_before": recipe.student_before, "chat": recipe.chat}
    for name, stage in stages.items():
        if not isinstance(stage, DistillConfig | RandomModelConfig):
            continue
        if stage.init is None:
            raise contradiction(f"{name}.init, the geometry of the untrained model", "None", "set it")
        fields = stage.init.fields()
        _require(name, fields, "max_position_embeddings", sequence, "the longest rows")
        if recipe.tokenizer is not None:
            _require(name, fields, "vocab_size", recipe.tokenizer.vocabulary, "the tokenizer's vocabulary")
        if name != "teacher":
            _require(name, fields, "max_position_embeddings", recipe.coreml.context_tokens, "the Core ML context")


def _require(name: str, fields: dict[str, Any], key: str, least: int, why: str) -> None:
    """Refuse a model config whose field is missing or too small."""
    if not isinstance(fields.get(key), int) or fields[key] < least:
        raise contradiction(f"{name} with {key} of at least {least}, {why}", str(fields.get(key)), f"raise {key}")
