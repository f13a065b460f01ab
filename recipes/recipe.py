"""The pipeline on one page: a recipe is a frozen bundle of stage configs, `build` runs them in order.

    world -> tokenizer -> corpus -> teacher -> student_before -> base -> conversations -> chat
          -> gguf, coreml -> evaluation -> report -> dist

A model may be a published checkpoint in the place of a training run; its tokenizer then is the build's. A rehearsal has
random weights in the place of all models. What flows between stages is a folder with a `manifest.json`; `common.store`
decides what is done already. A recipe is Python: a function that returns a `Recipe`. To vary one, `dataclasses.replace`
it.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from common.errors import UserError
from common.sources import stand_in
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
from recipes.benchmark_files import FILES_FOLDER, BenchmarkFilesConfig, benchmark_files
from recipes.benchmark_questions import BenchmarkQuestionsConfig, benchmark_questions
from recipes.hub_names import HubConversations, HubText, PublishedModel
from recipes.licence_texts import LicenceTextsConfig, licence_texts
from recipes.own_files import OwnFilesConfig, own_files
from recipes.published_models import published_model
from recipes.rehearsal_gpu import GpuStepsConfig, gpu_steps, has_room
from recipes.rehearsal_model import RandomModelConfig, random_model
from recipes.resolving import Resolved, Resolver
from recipes.stand_in_tokenizer import StandInTokenizerConfig, stand_in_tokenizer
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
"""Names of the artifacts in the order in which they are built; what `--until` takes. A recipe has those that it needs:
`benchmarks` where it scores by them and SOURCES does not hold them, `licences` where anything was published elsewhere,
`gpu_steps` in a rehearsal where there is a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Which stages, with which numbers."""

    name: str
    """Name of the folder under dist/."""
    world: WorldConfig | OwnFilesConfig | BenchmarkQuestionsConfig
    """Texts, conversations and questions: generated, or the user's own files; or published questions alone."""
    text: tuple[HubText, ...] = ()
    """Text on the hub, where the world has none."""
    instructions: tuple[HubConversations, ...] = ()
    """Conversations on the hub, where the world has none."""
    decontaminate: bool = False
    """Whether text and conversations are searched for items of the published benchmarks."""
    tokenizer: TokenizerConfig | StandInTokenizerConfig | None
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
            raise _contradiction("a recipe name of letters, digits, - and _", repr(self.name), "rename the recipe")
        if self.report.recipe not in (None, self.name):
            raise _contradiction(
                f"a report of recipe {self.name}", f"report.recipe {self.report.recipe!r}", "give both one name"
            )
        _check_models(self)
        _check_data(self)
        _check_sizes(self)

    @property
    def models(self) -> dict[str, PublishedModel]:
        """The published models by artifact; the student first, whose tokenizer the data need."""
        both = {"student_before": self.student_before, "teacher": self.teacher}
        return {name: model for name, model in both.items() if isinstance(model, PublishedModel)}


def _contradiction(wanted: str, got: str, next_step: str) -> UserError:
    return UserError(wanted=wanted, got=got, next_step=next_step)


def _check_models(recipe: Recipe) -> None:
    parts = {name: getattr(recipe, name) for name in ("teacher", "student_before", "base", "conversations")}
    rehearsed = isinstance(recipe.chat, RandomModelConfig)
    wrong = [name for name, part in parts.items() if (part is None) != rehearsed]
    if wrong:
        raise _contradiction(
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
            raise _contradiction(f"{name} with {wanted}", stage.method, f"change {name}.method")
    if recipe.base is not None and recipe.base.init is not None:
        raise _contradiction("base without init, since it starts from student_before", "one", "set it to None")


def _check_data(recipe: Recipe) -> None:
    only_questions = isinstance(recipe.world, BenchmarkQuestionsConfig)
    if only_questions != bool(recipe.text) or only_questions != bool(recipe.instructions):
        raise _contradiction(
            "text and instructions from the hub where the world has questions alone, and else neither",
            f"{len(recipe.text)} sets of text, {len(recipe.instructions)} of conversations, world of "
            f"{type(recipe.world).__name__}",
            "change `world`, or `text` and `instructions`",
        )
    if (recipe.tokenizer is None) != isinstance(recipe.student_before, PublishedModel):
        raise _contradiction(
            "a tokenizer to train, or a published student that brings its own",
            "neither" if recipe.tokenizer is None else "both",
            "change `tokenizer` or `student_before`",
        )


def _check_sizes(recipe: Recipe) -> None:
    """Geometry of the models that are trained in place against rows and tokenizer; that of others is in their files."""
    sequence = max(part.sequence_tokens for part in (recipe.corpus, recipe.conversations) if part is not None)
    stages = {"teacher": recipe.teacher, "student_before": recipe.student_before, "chat": recipe.chat}
    for name, stage in stages.items():
        if not isinstance(stage, DistillConfig | RandomModelConfig):
            continue
        if stage.init is None:
            raise _contradiction(f"{name}.init, the geometry of the untrained model", "None", "set it")
        fields = stage.init.fields()
        _require(name, fields, "max_position_embeddings", sequence, "the longest rows")
        if recipe.tokenizer is not None:
            _require(name, fields, "vocab_size", recipe.tokenizer.vocabulary, "the tokenizer's vocabulary")
        if name != "teacher":
            _require(name, fields, "max_position_embeddings", recipe.coreml.context_tokens, "the Core ML context")


def _require(name: str, fields: dict[str, Any], key: str, least: int, why: str) -> None:
    """Refuse a model config whose field is missing or too small."""
    if not isinstance(fields.get(key), int) or fields[key] < least:
        raise _contradiction(f"{name} with {key} of at least {least}, {why}", str(fields.get(key)), f"raise {key}")


class _Until(Exception):
    """Raised to leave the pipeline after the artifact that was asked for."""


def build(recipe: Recipe, store: Store, *, until: str | None = None) -> dict[str, Artifact]:
    """Build the artifacts of a recipe, or find them built.

    Args:
        recipe: the numbers. Names of the hub are resolved once and kept in the store's `sources.lock.json`; where the
            environment sets SOURCES, that folder stands in for the hub.
        store: the build folder.
        until: name of the last artifact wanted; None builds them all.

    Returns:
        The artifacts by name, in order.

    Raises:
        UserError: an unknown name in `until`, sources that are missing (all of them in one error), or whatever a stage
            refuses.
    """
    if until is not None and until not in ARTIFACTS:
        raise UserError(wanted=f"an artifact out of {', '.join(ARTIFACTS)}", got=until, next_step="name one of these")
    wants_benchmarks = recipe.decontaminate or isinstance(recipe.world, BenchmarkQuestionsConfig)
    resolved = Resolver(store.root, sources=stand_in(None)).resolve(
        models=recipe.models,
        text=recipe.text,
        conversations=recipe.instructions,
        with_benchmarks=wants_benchmarks,
    )
    done: dict[str, Artifact] = {}

    def step(name: str, function: object, config: object, *inputs: Artifact | None) -> Artifact:
        done[name] = store.build(name, function, config, *inputs)  # pyright: ignore[reportArgumentType]
        if name == until:
            raise _Until
        return done[name]

    with suppress(_Until):
        if wants_benchmarks and resolved.benchmarks is None:
            fetched = step("benchmarks", benchmark_files, BenchmarkFilesConfig())
            resolved = replace(resolved, benchmarks=fetched.folder / FILES_FOLDER)
        _pipeline(recipe, resolved, step)
    return done


def _pipeline(recipe: Recipe, resolved: Resolved, step: Any) -> None:
    """The road itself, read top to bottom. What may be refused comes before what takes hours."""
    texts = _world(recipe, resolved, step)
    own = [] if recipe.text else [texts]
    before = None if recipe.tokenizer else _published(step, "student_before", resolved)
    tokenizer = before or _tokenizer(recipe, step, texts)
    packed = step("corpus", corpus, _corpus_config(recipe, resolved), *own, tokenizer)

    if isinstance(recipe.chat, RandomModelConfig):
        talks = teacher = base = None
        chat = step("chat", random_model, recipe.chat, tokenizer)
    else:
        talks = step("conversations", conversations, _conversations_config(recipe, resolved), *own, tokenizer)
        teacher = _model(recipe.teacher, "teacher", resolved, step, packed)
        before = before or _model(recipe.student_before, "student_before", resolved, step, packed)
        base = step("base", distill, recipe.base, packed, before, teacher)
        chat = step("chat", instruct, recipe.chat, base, talks, packed if recipe.chat.replay_rows_per_step else None)

    ggufs = step("gguf", gguf, recipe.gguf, chat)
    package = step("coreml", coreml, recipe.coreml, chat)
    if recipe.gpu_steps is not None and has_room(recipe.gpu_steps):
        step("gpu_steps", gpu_steps, recipe.gpu_steps, chat)

    scores = step(
        "evaluation", evaluation, recipe.evaluation, teacher, before, base, chat, ggufs, package, texts, packed
    )
    page = step("report", report, recipe.report, packed, teacher, before, base, talks, chat, ggufs, package, scores)
    texts_of_licences = _licences(recipe, resolved, step, {"student_before": before, "teacher": teacher})
    step("dist", dist, recipe.dist, ggufs, package, page, texts_of_licences)


def _world(recipe: Recipe, resolved: Resolved, step: Any) -> Artifact:
    match recipe.world:
        case BenchmarkQuestionsConfig():
            return step("world", benchmark_questions, replace(recipe.world, benchmarks=resolved.benchmarks))
        case OwnFilesConfig():
            return step("world", own_files, recipe.world)
        case WorldConfig():
            return step("world", world, recipe.world)


def _tokenizer(recipe: Recipe, step: Any, texts: Artifact) -> Artifact:
    if isinstance(recipe.tokenizer, StandInTokenizerConfig):
        return step("tokenizer", stand_in_tokenizer, recipe.tokenizer)
    return step("tokenizer", train_tokenizer, recipe.tokenizer, texts)


def _model(model: Any, name: str, resolved: Resolved, step: Any, packed: Artifact) -> Artifact:
    """A published checkpoint, or one that is trained here."""
    if isinstance(model, PublishedModel):
        return _published(step, name, resolved)
    return step(name, distill, model, packed, None, None)


def _published(step: Any, name: str, resolved: Resolved) -> Artifact:
    return step(name, published_model, resolved.models[name])


def _corpus_config(recipe: Recipe, resolved: Resolved) -> CorpusConfig:
    config = replace(recipe.corpus, sources=resolved.text) if recipe.text else recipe.corpus
    return replace(config, benchmarks=resolved.benchmarks) if recipe.decontaminate else config


def _conversations_config(recipe: Recipe, resolved: Resolved) -> ConversationsConfig:
    config = recipe.conversations
    assert config is not None
    if recipe.instructions:
        config = replace(config, sources=resolved.conversations)
    return replace(config, benchmarks=resolved.benchmarks) if recipe.decontaminate else config


def _licences(recipe: Recipe, resolved: Resolved, step: Any, models: dict[str, Artifact | None]) -> Artifact | None:
    """The publishers' licence texts, where anything came from a publisher."""
    if not (recipe.models or recipe.text or recipe.instructions):
        return None
    names = {name: model.model.name for name, model in recipe.models.items()}
    config = LicenceTextsConfig(data_sets=resolved.licences, model_names=tuple(names.values()))
    return step("licences", licence_texts, config, *(models[name] for name in names))
