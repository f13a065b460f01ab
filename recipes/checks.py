"""Checks that a recipe makes when it is created: its parts belong together, its stages form an order.

Independent of hardware and of files, except that user files must exist.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from common.errors import UserError, unknown_name
from common.source_shares import require_limit
from distill.corpus import CorpusConfig
from distill.methods import method
from distill.train import DistillConfig
from export.coreml import CoremlConfig
from instruct.conversations import ConversationsConfig
from recipes.stages.benchmarks import BenchmarkQuestionsConfig
from recipes.stages.published import PublishedModelConfig
from recipes.stages.random_model import RandomModelConfig
from recipes.stages.user_files import UserFilesConfig


class _Stage(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def config(self) -> Any: ...
    @property
    def inputs(self) -> tuple[str | None, ...]: ...
    @property
    def paths(self) -> Mapping[str, str]: ...


def require_order(stages: Sequence[_Stage], functions: Mapping[type, Callable[..., Any]]) -> None:
    """Refuse a list of stages that cannot be built from first to last.

    Raises:
        UserError: two stages of one name, an input that does not exist or comes later, a cycle, a config without a
            stage function. The error names the stages.
    """
    names = [stage.name for stage in stages]
    reads = {stage.name: list(_reads(stage)) for stage in stages}
    for place, stage in enumerate(stages):
        if stage.name in names[:place]:
            got = f"two named {stage.name}"
            raise UserError(
                "contradiction", wanted="stages of different names", got=got, next_step="rename one of them"
            )
        if stage.config is not None and type(stage.config) not in functions:
            wanted, got = f"a stage function for the config of {stage.name}", type(stage.config).__name__
            next_step = "add the config type to STAGES in recipes/recipe.py"
            raise UserError("unknown-name", wanted=wanted, got=got, next_step=next_step)
        for read in reads[stage.name]:
            if read not in names:
                raise unknown_name(f"an input of {stage.name}", read, names[:place] or ["no earlier stage"])
            if read not in names[:place]:
                circle = _path(reads, read, stage.name)
                raise UserError(
                    "contradiction",
                    wanted=f"inputs of {stage.name} that come before it",
                    got=f"a cycle: {' reads '.join([stage.name, *circle])}" if circle else f"{read}, which comes later",
                    next_step="remove one of these inputs" if circle else f"move {stage.name} behind {read}",
                )


def _reads(stage: _Stage) -> Iterator[str]:
    yield from (name for name in stage.inputs if name is not None)
    yield from (place.partition("/")[0] for place in stage.paths.values())


def _path(reads: Mapping[str, Sequence[str]], start: str, end: str) -> list[str]:
    """Stages from `start` to `end`, each of which reads the next; [] where there is no such path."""
    waiting, seen = [[start]], {start}
    while waiting:
        path = waiting.pop(0)
        if path[-1] == end:
            return path
        for name in reads.get(path[-1], ()):
            if name not in seen:
                seen.add(name)
                waiting.append([*path, name])
    return []


def check_models(models: Mapping[str, Any], conversations: ConversationsConfig | None) -> None:
    """Models (teacher, student_before, base, chat) are trained, published or all random weights; methods fit them."""
    parts = {name: models[name] for name in ("teacher", "student_before", "base")} | {"conversations": conversations}
    is_rehearsal = isinstance(models["chat"], RandomModelConfig)
    wrong = [name for name, part in parts.items() if (part is None) != is_rehearsal]
    if wrong:
        raise UserError(
            "contradiction",
            wanted=f"{', '.join(parts)} where the chat model is trained, and none of them where it has random weights",
            got=f"{', '.join(wrong)} {'set' if is_rehearsal else 'missing'}",
            next_step="change these or `chat`",
        )
    for name, needs_teacher in (("teacher", False), ("student_before", False), ("base", True)):
        config = models[name]
        if isinstance(config, DistillConfig) and method(config.method).needs_teacher != needs_teacher:
            wanted = f"{name} with a method {'with' if needs_teacher else 'without'} a teacher"
            raise UserError("contradiction", wanted=wanted, got=config.method, next_step=f"change {name}.method")
    if models["base"] is not None and models["base"].init is not None:
        wanted = "base without init, since it starts from student_before"
        raise UserError("contradiction", wanted=wanted, got="one", next_step="set it to None")


def check_data(
    world: Any,
    corpus: CorpusConfig,
    conversations: ConversationsConfig | None,
    tokenizer: Any,
    models: Mapping[str, Any],
    benchmarks: Any,
) -> None:
    """Text, conversations, questions and tokenizer come from one place."""
    only_questions = isinstance(world, BenchmarkQuestionsConfig)
    counts = [len(corpus.sources), len(conversations.sources) if conversations else 0]
    if any(only_questions != bool(count) for count in counts):
        raise UserError(
            "contradiction",
            wanted="sources of the corpus and of the conversations where the world has questions alone, else neither",
            got=f"{counts[0]} of text, {counts[1]} of conversations, world of {type(world).__name__}",
            next_step="change `world`, or the sources",
        )
    sources = [{"name": source.terms.name, "weight": source.weight} for source in corpus.sources]
    for name in ("teacher", "student_before", "base"):
        if isinstance(config := models[name], DistillConfig):
            run_tokens = config.steps * config.rows_per_step * corpus.sequence_tokens
            require_limit(sources, config.corpus_tokens, run_tokens=run_tokens)
    if only_questions and benchmarks is None and world.benchmarks is None:
        wanted = "benchmark files for a world of benchmark questions"
        raise UserError("contradiction", wanted=wanted, got="none", next_step="set `benchmarks`")
    if isinstance(world, UserFilesConfig) and not world.conversations and conversations is not None:
        wanted = "conversations in the world, which the chat stage learns from"
        raise UserError(
            "contradiction", wanted=wanted, got="none", next_step="name files in UserFilesConfig(conversations=..)"
        )
    if (tokenizer is None) != isinstance(models["student_before"], PublishedModelConfig):
        wanted = "a tokenizer to train, or a published student that brings its own"
        got = "neither" if tokenizer is None else "both"
        raise UserError("contradiction", wanted=wanted, got=got, next_step="change `tokenizer` or `student_before`")


def check_sizes(
    models: Mapping[str, Any],
    corpus: CorpusConfig,
    conversations: ConversationsConfig | None,
    tokenizer: Any,
    coreml: CoremlConfig,
) -> None:
    """Models that are trained from their first step fit the packed rows, the tokenizer and the Core ML context."""
    sequence = max(part.sequence_tokens for part in (corpus, conversations) if part is not None)
    for name in ("teacher", "student_before", "chat"):
        config = models[name]
        if not isinstance(config, DistillConfig | RandomModelConfig):
            continue
        if config.init is None:
            raise UserError(
                "contradiction", wanted=f"{name}.init, the shape of the untrained model", got="None", next_step="set it"
            )
        fields = config.init.fields()
        _require_field(name, fields, "max_position_embeddings", sequence, "the longest packed rows")
        if tokenizer is not None:
            _require_field(name, fields, "vocab_size", tokenizer.vocabulary, "the tokenizer's vocabulary")
        if name != "teacher":
            _require_field(name, fields, "max_position_embeddings", coreml.context_tokens, "the Core ML context")


def _require_field(name: str, fields: Mapping[str, Any], key: str, least: int, why: str) -> None:
    if not isinstance(fields.get(key), int) or fields[key] < least:
        wanted = f"{name} with {key} of at least {least}, {why}"
        raise UserError("out-of-range", wanted=wanted, got=str(fields.get(key)), next_step=f"raise {key}")
