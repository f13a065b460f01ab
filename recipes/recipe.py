"""The pipeline on one page: a recipe is a frozen bundle of stage configs, `build` runs them in order.

    world -> tokenizer -> corpus -> conversations -> teacher -> student_before -> base -> chat
          -> gguf, coreml -> evaluation -> report -> dist

A model may be a published checkpoint in the place of a training run; its tokenizer then is the build's. Conversations
of the hub come before the corpus. A rehearsal has random weights in the place of all models. What flows between stages
is a folder with a `manifest.json`; `common.store` decides what is done already. A recipe is Python: a function that
returns a `Recipe`. To vary one, `dataclasses.replace` it.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from common.errors import UserError
from common.sources import local_mirror
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
from recipes.hub_names import HubConversations, HubText, PublishedModel
from recipes.recipe_checks import check_data, check_models, check_sizes, contradiction
from recipes.resolving import Names, Resolved, Resolver
from recipes.stages.benchmark_files import FILES_FOLDER, BenchmarkFilesConfig, benchmark_files
from recipes.stages.benchmark_questions import BenchmarkQuestionsConfig, benchmark_questions
from recipes.stages.gpu_steps import GpuStepsConfig, gpu_steps, has_room
from recipes.stages.licence_texts import LicenceTextsConfig, licence_texts
from recipes.stages.published_model import published_model
from recipes.stages.random_model import RandomModelConfig, random_model
from recipes.stages.synthetic_tokenizer import SyntheticTokenizerConfig, synthetic_tokenizer
from recipes.stages.user_files import UserFilesConfig, user_files
from recipes.toy_world import WorldConfig, world

ARTIFACTS = (
    "benchmarks",
    "world",
    "tokenizer",
    "corpus",
    "conversations",
    "teacher",
    "student_before",
    "base",
    "chat",
    "gguf",
    "coreml",
    "gpu_steps",
    "evaluation",
    "report",
    "licences",
    "dist",
)
"""Names of all artifacts, what `--until` takes. A recipe has those that it needs, in the order that `order` tells:
`benchmarks` where it scores by them and SOURCES does not hold them, `licences` where anything was published elsewhere,
`gpu_steps` in a rehearsal where there is a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Which stages, with which numbers."""

    name: str
    """Name of the folder under dist/."""
    world: WorldConfig | UserFilesConfig | BenchmarkQuestionsConfig
    """Texts, conversations and questions: generated, or the user's own files; or published questions alone."""
    text: tuple[HubText, ...] = ()
    """Text on the hub, where the world has none."""
    instructions: tuple[HubConversations, ...] = ()
    """Conversations on the hub, where the world has none."""
    decontaminate: bool = False
    """Whether text and conversations are searched for items of the published benchmarks."""
    tokenizer: TokenizerConfig | SyntheticTokenizerConfig | None
    """To be trained, or made by rule; None takes the published student's."""
    corpus: CorpusConfig
    teacher: DistillConfig | PublishedModel | None
    """Pre-training of the teacher on all of train, or a model of the hub. None, as the next three, in a rehearsal."""
    student_before: DistillConfig | PublishedModel | None
    """Pre-training of the student by itself, or a model of the hub."""
    base: DistillConfig | None
    """Distillation of the teacher into the student."""
    conversations: ConversationsConfig | None
    chat: InstructConfig | RandomModelConfig
    """Tuning on conversations, or random weights."""
    gpu_steps: GpuStepsConfig | None = None
    """Steps of the distillation at true size, where there is a GPU that holds them."""
    gguf: GgufConfig
    coreml: CoremlConfig
    evaluation: EvaluationConfig
    report: ReportConfig
    dist: DistConfig

    def __post_init__(self) -> None:
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise contradiction("a recipe name of letters, digits, - and _", repr(self.name), "rename the recipe")
        if self.report.recipe not in (None, self.name):
            raise contradiction(
                f"a report of recipe {self.name}", f"report.recipe {self.report.recipe!r}", "give both one name"
            )
        check_models(self)
        check_data(self)
        check_sizes(self)

    @property
    def models(self) -> dict[str, PublishedModel]:
        """The published models by artifact; the student first, whose tokenizer the data need."""
        both = {"student_before": self.student_before, "teacher": self.teacher}
        return {name: model for name, model in both.items() if isinstance(model, PublishedModel)}


Step = Callable[..., Artifact]
"""`step(name, stage, config, *inputs)`."""


class _Until(Exception):
    """Raised to leave the pipeline after the artifact that was asked for."""


def order(recipe: Recipe) -> tuple[str, ...]:
    """The artifacts that a recipe has here, in the order in which it builds them: what may be refused comes first."""
    with_benchmarks = _wants_benchmarks(recipe) and local_mirror(None) is None
    before = (
        *(("benchmarks",) if with_benchmarks else ()),
        "world",
        "tokenizer" if recipe.tokenizer else "student_before",
    )
    # A set of the hub may be closed or encrypted; text never is, and takes hours.
    data = ("conversations", "corpus") if recipe.instructions else ("corpus", "conversations")
    exports: tuple[str, ...] = ("gguf", "coreml")
    if isinstance(recipe.chat, RandomModelConfig):
        models, data = ("chat",), ("corpus",)
        if recipe.gpu_steps is not None and has_room(recipe.gpu_steps, recipe.chat.init):
            exports = (*exports, "gpu_steps")
    else:
        models = ("teacher", *(() if "student_before" in before else ("student_before",)))
        models = (*models, *(("licences",) if _has_publishers(recipe) else ()), "base", "chat")
    return (*before, *data, *models, *exports, "evaluation", "report", "dist")


def reached(recipe: Recipe, until: str | None) -> tuple[str, ...]:
    """The artifacts of a build that ends with `until`, all where it is None.

    Raises:
        UserError: a name that is none of the recipe's.
    """
    known = order(recipe)
    if until is None:
        return known
    if until not in known:
        raise UserError(
            wanted=f"an artifact of the recipe {recipe.name}: {', '.join(known)}",
            got=until,
            next_step="name one of these",
        )
    return known[: known.index(until) + 1]


def names_of(recipe: Recipe, until: str | None) -> Names:
    """What must be resolved for a build that ends with the artifact `until`."""
    stages = reached(recipe, until)
    data = {"conversations", "corpus"} & set(stages)
    return Names(
        models={name: model for name, model in recipe.models.items() if name in stages},
        text=recipe.text if "corpus" in stages else (),
        conversations=recipe.instructions if "conversations" in stages else (),
        benchmarks=isinstance(recipe.world, BenchmarkQuestionsConfig) or bool(recipe.decontaminate and data),
        licences="licences" in stages,
    )


def build(recipe: Recipe, store: Store, *, until: str | None = None) -> dict[str, Artifact]:
    """Build the artifacts of a recipe, or find them built.

    Args:
        recipe: the numbers. Names of the hub are resolved once and kept in the store's `sources.lock.json`; where the
            environment sets SOURCES, that folder stands in for the hub.
        store: the build folder.
        until: name of the last artifact wanted, whose own sources alone are then looked for; None builds them all.

    Returns:
        The artifacts by name, in order.

    Raises:
        UserError: an unknown name in `until`, sources that are missing (all of them in one error), or whatever a stage
            refuses.
    """
    resolved = Resolver(store.root, sources=local_mirror(None)).resolve(names_of(recipe, until))
    done: dict[str, Artifact] = {}

    def step(name: str, function: StageFunction, config: object, *inputs: Artifact | None) -> Artifact:
        done[name] = store.build(name, function, config, *inputs)
        return done[name]

    walk(recipe, resolved, step, until=until)
    return done


def walk(recipe: Recipe, resolved: Resolved, step: Step, *, until: str | None) -> None:
    """The road up to the artifact `until`, or all of it; `step` builds an artifact or only tells its key."""

    def to_here(name: str, function: StageFunction, config: object, *inputs: Artifact | None) -> Artifact:
        made = step(name, function, config, *inputs)
        if name == until:
            raise _Until
        return made

    with suppress(_Until):
        _road(recipe, resolved, to_here)


def _road(recipe: Recipe, resolved: Resolved, step: Step) -> None:
    """The road itself, read top to bottom, in the order of `order`."""
    known = order(recipe)
    if "benchmarks" in known:
        fetched = step("benchmarks", benchmark_files, BenchmarkFilesConfig())
        resolved = replace(resolved, benchmarks=fetched.folder / FILES_FOLDER)
    texts = _world(recipe, resolved, step)
    own = [] if recipe.text else [texts]
    before = None if recipe.tokenizer else _published(step, "student_before", resolved)
    tokenizer = before or _tokenizer(recipe, step, texts)
    made = {
        name: _data(name, recipe, resolved, step, [*own, tokenizer])
        for name in known
        if name in ("corpus", "conversations")
    }
    packed, talks = made["corpus"], made.get("conversations")

    if isinstance(recipe.chat, RandomModelConfig):
        teacher = base = texts_of_licences = None
        chat = step("chat", random_model, recipe.chat, tokenizer)
    else:
        teacher = _model(recipe.teacher, "teacher", resolved, step, packed)
        before = before or _model(recipe.student_before, "student_before", resolved, step, packed)
        texts_of_licences = _licences(recipe, resolved, step, {"student_before": before, "teacher": teacher})
        base = step("base", distill, recipe.base, packed, before, teacher)
        chat = step("chat", instruct, recipe.chat, base, talks, packed if recipe.chat.replay_rows_per_step else None)

    ggufs = step("gguf", gguf, recipe.gguf, chat)
    package = step("coreml", coreml, recipe.coreml, chat)
    if "gpu_steps" in known:
        step("gpu_steps", gpu_steps, recipe.gpu_steps, chat)

    scores = step(
        "evaluation", evaluation, recipe.evaluation, texts, packed, teacher, before, base, chat, ggufs, package
    )
    page = step(
        "report", report, recipe.report, texts, packed, talks, teacher, before, base, chat, ggufs, package, scores
    )
    step("dist", dist, recipe.dist, ggufs, package, page, texts_of_licences)


def _wants_benchmarks(recipe: Recipe) -> bool:
    return recipe.decontaminate or isinstance(recipe.world, BenchmarkQuestionsConfig)


def _has_publishers(recipe: Recipe) -> bool:
    return bool(recipe.models or recipe.text or recipe.instructions)


def _world(recipe: Recipe, resolved: Resolved, step: Step) -> Artifact:
    match recipe.world:
        case BenchmarkQuestionsConfig():
            return step("world", benchmark_questions, replace(recipe.world, benchmarks=resolved.benchmarks))
        case UserFilesConfig():
            return step("world", user_files, recipe.world)
        case WorldConfig():
            return step("world", world, recipe.world)


def _tokenizer(recipe: Recipe, step: Step, texts: Artifact) -> Artifact:
    if isinstance(recipe.tokenizer, SyntheticTokenizerConfig):
        return step("tokenizer", synthetic_tokenizer, recipe.tokenizer)
    return step("tokenizer", train_tokenizer, recipe.tokenizer, texts)


def _model(model: Any, name: str, resolved: Resolved, step: Step, packed: Artifact) -> Artifact:
    """A published checkpoint, or one that is trained here."""
    if isinstance(model, PublishedModel):
        return _published(step, name, resolved)
    return step(name, distill, model, packed, None, None)


def _published(step: Step, name: str, resolved: Resolved) -> Artifact:
    return step(name, published_model, resolved.models[name])


def _data(name: str, recipe: Recipe, resolved: Resolved, step: Step, inputs: list[Artifact]) -> Artifact:
    """The corpus, or the conversations, with the sources and benchmark files that were found."""
    config, stage, sources = (recipe.corpus, corpus, resolved.text)
    if name == "conversations":
        assert recipe.conversations is not None
        config, stage, sources = (recipe.conversations, conversations, resolved.conversations)
    found: dict[str, Any] = {"sources": sources} if recipe.text else {}
    found |= {"benchmarks": resolved.benchmarks} if recipe.decontaminate else {}
    return step(name, stage, replace(config, **found), *inputs)


def _licences(recipe: Recipe, resolved: Resolved, step: Step, models: dict[str, Artifact | None]) -> Artifact | None:
    """The publishers' licence texts, where anything came from a publisher."""
    if not _has_publishers(recipe):
        return None
    names = {name: model.model.name for name, model in recipe.models.items()}
    config = LicenceTextsConfig(data_sets=resolved.licences, model_names=tuple(names.values()))
    return step("licences", licence_texts, config, *(models[name] for name in names))
