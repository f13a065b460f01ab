"""The pipeline on one page: a recipe is a frozen bundle of stage configs, `build` runs them in order.

    world -> tokenizer -> corpus -> teacher -> student_before -> base -> conversations -> chat
          -> gguf, coreml -> evaluation -> report -> dist

What flows between stages is a folder with a `manifest.json`; `common.store` decides what is done already. A recipe is
Python: a function that returns a `Recipe`. To vary one, `dataclasses.replace` it.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from common.store import Artifact, Store
from distill.corpus import CorpusConfig, corpus
from distill.methods import method
from distill.tokenizer import TokenizerConfig, train_tokenizer
from distill.train import DistillConfig, distill
from eval.evaluation import EvaluationConfig, evaluation
from eval.report import ReportConfig, report
from export.coreml import CoremlConfig, coreml
from export.gguf import GgufConfig, gguf
from export.release import DistConfig, dist
from instruct.conversations import ConversationsConfig, conversations
from instruct.train import InstructConfig, instruct
from recipes.own_files import OwnFilesConfig, own_files
from recipes.toy_world import WorldConfig, world

ARTIFACTS = (
    "world",
    "tokenizer",
    "corpus",
    "teacher",
    "student_before",
    "base",
    "conversations",
    "chat",
    "gguf",
    "coreml",
    "evaluation",
    "report",
    "dist",
)
"""Names of the artifacts in the order in which they are built; what `--until` takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Which stages, with which numbers."""

    name: str
    """Name of the folder under dist/."""
    world: WorldConfig | OwnFilesConfig
    """Texts, conversations and questions: generated, or the user's own files."""
    tokenizer: TokenizerConfig
    corpus: CorpusConfig
    teacher: DistillConfig
    """Pre-training of the teacher on all of train."""
    student_before: DistillConfig
    """Pre-training of the student by itself."""
    base: DistillConfig
    """Distillation of the teacher into the student."""
    conversations: ConversationsConfig
    chat: InstructConfig
    gguf: GgufConfig
    coreml: CoremlConfig
    evaluation: EvaluationConfig
    report: ReportConfig
    dist: DistConfig

    def __post_init__(self) -> None:
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise _contradiction("a recipe name of letters, digits, - and _", repr(self.name), "rename the recipe")
        if self.report.recipe not in (None, self.name):
            raise _contradiction(
                f"a report of recipe {self.name}", f"report.recipe {self.report.recipe!r}", "give both one name"
            )
        for name, stage, with_teacher in (
            ("teacher", self.teacher, False),
            ("student_before", self.student_before, False),
            ("base", self.base, True),
        ):
            if method(stage.method).needs_teacher != with_teacher:
                wanted = "a method with a teacher" if with_teacher else "a method without a teacher"
                raise _contradiction(f"{name} with {wanted}", stage.method, f"change {name}.method")
        if self.base.init is not None:
            raise _contradiction("base without init, since it starts from student_before", "one", "set it to None")
        sequence = max(self.corpus.sequence_tokens, self.conversations.sequence_tokens)
        for name, stage in (("teacher", self.teacher), ("student_before", self.student_before)):
            if stage.init is None:
                raise _contradiction(f"{name}.init, the geometry of the untrained model", "None", "set it")
            _require(name, stage.init.fields(), "max_position_embeddings", sequence, "the longest rows")
            _require(name, stage.init.fields(), "vocab_size", self.tokenizer.vocabulary, "the tokenizer's vocabulary")
        assert self.student_before.init is not None
        fields = self.student_before.init.fields()
        _require("student_before", fields, "max_position_embeddings", self.coreml.context_tokens, "the Core ML context")


def _contradiction(wanted: str, got: str, next_step: str) -> UserError:
    return UserError(wanted=wanted, got=got, next_step=next_step)


def _require(name: str, fields: dict[str, Any], key: str, least: int, why: str) -> None:
    """Refuse a model config whose field is missing or too small."""
    if not isinstance(fields.get(key), int) or fields[key] < least:
        raise _contradiction(f"{name} with {key} of at least {least}, {why}", str(fields.get(key)), f"raise {key}")


class _Until(Exception):
    """Raised to leave the pipeline after the artifact that was asked for."""


def build(recipe: Recipe, store: Store, *, until: str | None = None) -> dict[str, Artifact]:
    """Build the artifacts of a recipe, or find them built.

    Args:
        recipe: the numbers.
        store: the build folder.
        until: name of the last artifact wanted; None builds them all.

    Returns:
        The artifacts by name, in order.

    Raises:
        UserError: an unknown name in `until`, or whatever a stage refuses.
    """
    if until is not None and until not in ARTIFACTS:
        raise UserError(wanted=f"an artifact out of {', '.join(ARTIFACTS)}", got=until, next_step="name one of these")
    done: dict[str, Artifact] = {}

    def step(name: str, function: object, config: object, *inputs: Artifact | None) -> Artifact:
        done[name] = store.build(name, function, config, *inputs)  # pyright: ignore[reportArgumentType]
        if name == until:
            raise _Until
        return done[name]

    with suppress(_Until):
        _pipeline(recipe, step)
    return done


def _pipeline(recipe: Recipe, step: object) -> None:
    """The road itself, read top to bottom."""
    assert callable(step)
    source = own_files if isinstance(recipe.world, OwnFilesConfig) else world
    texts = step("world", source, recipe.world)
    tokenizer = step("tokenizer", train_tokenizer, recipe.tokenizer, texts)
    packed = step("corpus", corpus, recipe.corpus, texts, tokenizer)

    teacher = step("teacher", distill, recipe.teacher, packed, None, None)
    before = step("student_before", distill, recipe.student_before, packed, None, None)
    base = step("base", distill, recipe.base, packed, before, teacher)

    talks = step("conversations", conversations, recipe.conversations, texts, tokenizer)
    chat = step("chat", instruct, recipe.chat, base, talks, packed if recipe.chat.replay_rows_per_step else None)

    ggufs = step("gguf", gguf, recipe.gguf, chat)
    package = step("coreml", coreml, recipe.coreml, chat)

    scores = step(
        "evaluation", evaluation, recipe.evaluation, teacher, before, base, chat, ggufs, package, texts, packed
    )
    page = step("report", report, recipe.report, packed, teacher, before, base, talks, chat, ggufs, package, scores)
    step("dist", dist, recipe.dist, ggufs, package, page)
