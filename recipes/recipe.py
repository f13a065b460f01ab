"""The pipeline on one page: a recipe is a frozen bundle of configs, `pipeline` lists its stages, `build` runs them.

A stage reads artifacts: folders with a `manifest.json`. `common.store` decides what is built already. A recipe is
Python: a function that returns a `Recipe`. To vary one, use `dataclasses.replace`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from common.errors import UserError
from common.store import Artifact, StageFunction, Store
from distill.corpus import CorpusConfig, corpus
from distill.train import DistillConfig, distill
from distill.train_tokenizer import TokenizerConfig, train_tokenizer
from eval.evaluation import EvaluationConfig, evaluation
from eval.report import ReportConfig, report
from export.coreml import CoremlConfig, coreml
from export.gguf import GgufConfig, gguf
from export.release import DistConfig, dist
from instruct.conversations import ConversationsConfig, conversations
from instruct.train import InstructConfig, instruct
from recipes.checks import check_data, check_models, check_sizes, require_order
from recipes.stages.benchmarks import (
    FILES_FOLDER,
    BenchmarkFilesConfig,
    BenchmarkQuestionsConfig,
    benchmark_files,
    benchmark_questions,
)
from recipes.stages.gpu_steps import GpuStepsConfig, gpu_steps
from recipes.stages.published import LicenceTextsConfig, PublishedModelConfig, licence_texts, published_model
from recipes.stages.random_model import RandomModelConfig, random_model
from recipes.stages.synthetic_tokenizer import SyntheticTokenizerConfig, synthetic_tokenizer
from recipes.stages.user_files import UserFilesConfig, user_files
from recipes.toy_world import WorldConfig, world

STAGES: dict[type, StageFunction] = {
    BenchmarkFilesConfig: benchmark_files,
    WorldConfig: world,
    UserFilesConfig: user_files,
    BenchmarkQuestionsConfig: benchmark_questions,
    TokenizerConfig: train_tokenizer,
    SyntheticTokenizerConfig: synthetic_tokenizer,
    ConversationsConfig: conversations,
    CorpusConfig: corpus,
    PublishedModelConfig: published_model,
    LicenceTextsConfig: licence_texts,
    RandomModelConfig: random_model,
    DistillConfig: distill,
    InstructConfig: instruct,
    GgufConfig: gguf,
    CoremlConfig: coreml,
    GpuStepsConfig: gpu_steps,
    EvaluationConfig: evaluation,
    ReportConfig: report,
    DistConfig: dist,
}
"""Config type to the function that runs the stage. A recipe with a stage of its own adds a line."""


@dataclass(frozen=True, init=False, slots=True)
class Stage:
    """One stage of a recipe: the artifact's name, its config, and the artifacts that it reads, by name."""

    name: str
    """Name of the artifact, what `--until` takes."""
    config: Any
    """None leaves the stage out; stages that read it get None."""
    inputs: tuple[str | None, ...]
    """Artifacts passed to the stage function, in order."""
    paths: Mapping[str, str]
    """Config field to "artifact/folder": the field is set to that folder before the stage runs."""

    def __init__(self, name: str, config: Any, *inputs: str | None, **paths: str) -> None:
        for key, value in (("name", name), ("config", config), ("inputs", inputs), ("paths", paths)):
            object.__setattr__(self, key, value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Which stages, with which numbers."""

    name: str
    """Name of the folder under dist/."""
    benchmarks: BenchmarkFilesConfig | None = None
    """Published benchmark files. Their items are removed from text and conversations. None uses none."""
    world: WorldConfig | UserFilesConfig | BenchmarkQuestionsConfig
    """Text, conversations and questions: generated, or the user's own files; or published questions alone, where the
    sources of `corpus` and `conversations` are data sets of the hub."""
    tokenizer: TokenizerConfig | SyntheticTokenizerConfig | None
    """A tokenizer to train or to make by rule; None uses that of the published student."""
    conversations: ConversationsConfig | None
    """None, as `teacher`, `student_before` and `base`, in a rehearsal with random weights."""
    corpus: CorpusConfig
    teacher: DistillConfig | PublishedModelConfig | None
    """Pre-training of the teacher on all of train, or a published model."""
    student_before: DistillConfig | PublishedModelConfig | None
    """Pre-training of the student by itself, or a published model."""
    licences: LicenceTextsConfig = field(default_factory=LicenceTextsConfig)
    """The publishers' licence texts; a stage only where something is published by others."""
    base: DistillConfig | None
    """Distillation of the teacher into the student."""
    chat: InstructConfig | RandomModelConfig
    """Tuning on conversations, or random weights."""
    gguf: GgufConfig
    coreml: CoremlConfig
    gpu_steps: GpuStepsConfig | None = None
    """Optimizer steps of the distillation at true size, on a GPU that holds them."""
    extra: tuple[Stage, ...] = ()
    """Stages of the recipe's own, built before the evaluation. Each config type needs a line in `STAGES`."""
    evaluation: EvaluationConfig
    report: ReportConfig
    dist: DistConfig

    def __post_init__(self) -> None:
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise UserError(
                "contradiction",
                wanted="a recipe name of letters, digits, - and _",
                got=repr(self.name),
                next_step="rename the recipe",
            )
        if self.report.recipe not in (None, self.name):
            raise UserError(
                "contradiction",
                wanted=f"a report of recipe {self.name}",
                got=f"report.recipe {self.report.recipe!r}",
                next_step="give both one name",
            )
        models = {name: getattr(self, name) for name in ("teacher", "student_before", "base", "chat")}
        check_models(models, self.conversations)
        check_data(self.world, self.corpus, self.conversations, self.tokenizer, models, self.benchmarks)
        check_sizes(models, self.corpus, self.conversations, self.tokenizer, self.coreml)
        pipeline(self)

    @property
    def published_models(self) -> dict[str, PublishedModelConfig]:
        """The published models by artifact, the student first."""
        both = {"student_before": self.student_before, "teacher": self.teacher}
        return {name: model for name, model in both.items() if isinstance(model, PublishedModelConfig)}


def pipeline(r: Recipe) -> list[Stage]:
    """The stages in the order of the build, each with the artifacts that it reads.

    This is the one place that knows the order. `build`, `--until`, the plan, the report and `make inspect` read this
    list. A stage whose config is None is absent, and stages that read it get None. What may be refused comes early: a
    set of conversations can be closed to the user, and text takes hours.

    Raises:
        UserError: the list is no order; see `recipes.checks.require_order`.
    """
    world = () if r.corpus.sources else ("world",)
    tokenizer = "tokenizer" if r.tokenizer else "student_before"
    student, publishers = _model("student_before", r.student_before), r.published_models or r.corpus.sources
    items = {"benchmarks": f"benchmarks/{FILES_FOLDER}"} if r.benchmarks else {}
    models = ("teacher", "student_before", "base", "chat", "gguf", "coreml")
    return _present(
        Stage("benchmarks", r.benchmarks),
        Stage("world", r.world, **items if isinstance(r.world, BenchmarkQuestionsConfig) else {}),
        Stage("tokenizer", r.tokenizer, *("world",) if isinstance(r.tokenizer, TokenizerConfig) else ()),
        *() if r.tokenizer else (student,),
        Stage("conversations", r.conversations, *world, tokenizer, **items),
        Stage("corpus", r.corpus, *world, tokenizer, **items),
        _model("teacher", r.teacher),
        *(student,) if r.tokenizer else (),
        Stage("licences", r.licences if publishers else None, *r.published_models),
        Stage("base", r.base, "corpus", "student_before", "teacher"),
        Stage("chat", r.chat, *("base", "conversations", _replay(r.chat)) if r.base else (tokenizer,)),
        Stage("gguf", r.gguf, "chat"),
        Stage("coreml", r.coreml, "chat"),
        Stage("gpu_steps", r.gpu_steps, "chat"),
        *r.extra,
        Stage("evaluation", r.evaluation, "world", "corpus", *models),
        Stage("report", r.report, "world", "conversations", "corpus", *models, *_names(r.extra), "evaluation"),
        Stage("dist", r.dist, "gguf", "coreml", "report", "licences"),
    )


def _model(name: str, config: DistillConfig | PublishedModelConfig | None) -> Stage:
    """A published checkpoint, or one that is pre-trained on the corpus without a teacher."""
    return Stage(name, config, *("corpus", None, None) if isinstance(config, DistillConfig) else ())


def _replay(chat: InstructConfig | RandomModelConfig) -> str | None:
    return "corpus" if isinstance(chat, InstructConfig) and chat.replay_rows_per_step else None


def _names(stages: Sequence[Stage]) -> list[str]:
    return [stage.name for stage in stages]


def _present(*stages: Stage) -> list[Stage]:
    """The stages that have a config; the absent ones among their inputs become None."""
    require_order(stages, STAGES)
    absent = {stage.name for stage in stages if stage.config is None}
    return [
        Stage(stage.name, stage.config, *(None if name in absent else name for name in stage.inputs), **stage.paths)
        for stage in stages
        if stage.config is not None
    ]


def stages_until(recipe: Recipe, until: str | None) -> list[Stage]:
    """The stages of a build that ends with the artifact `until`; all of them where it is None.

    Raises:
        UserError: the recipe has no such artifact.
    """
    stages = pipeline(recipe)
    known = _names(stages)
    if until is None:
        return stages
    if until not in known:
        raise UserError(
            "unknown-name",
            wanted=f"an artifact of the recipe {recipe.name}: {', '.join(known)}",
            got=until,
            next_step="name one of these",
        )
    return stages[: known.index(until) + 1]


def build(recipe: Recipe, store: Store, *, until: str | None = None) -> dict[str, Artifact]:
    """Build the artifacts of a recipe, or find them built.

    Args:
        recipe: the numbers, with its sources resolved (`recipes.resolve`).
        store: the build folder.
        until: name of the last artifact wanted; None builds them all.

    Returns:
        The artifacts by name, in the order of the build.

    Raises:
        UserError: an unknown name in `until`, or what a stage refuses.
    """
    made: dict[str, Artifact] = {}
    for stage in stages_until(recipe, until):
        config, inputs = prepared(stage, made)
        made[stage.name] = store.build(stage.name, STAGES[type(stage.config)], config, *inputs)
    return made


def prepared(stage: Stage, made: Mapping[str, Artifact]) -> tuple[Any, list[Artifact | None]]:
    """What a stage function is called with: its config with the folders of earlier artifacts set, and its inputs."""
    inputs = [None if name is None else made[name] for name in stage.inputs]
    paths: dict[str, Any] = {}
    for key, place in stage.paths.items():
        name, _, inside = place.partition("/")
        paths[key] = made[name].folder / inside
    return replace(stage.config, **paths) if paths else stage.config, inputs
