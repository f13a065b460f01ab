"""What a plan must know of a recipe: models, training runs and exports as plain numbers.

`RECIPE=auto` decides before torch loads, and a recipe cannot be had without it: `release_work` gives the release's
numbers without its recipe, and a test holds the two together. It reads config.json files and nothing else.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from common.model_shape import ModelShape, geometry_of
from common.sources import HubDataset, HubModel
from recipes.hub_names import PublishedModel
from recipes.plan_sets import SetSize, TakenSet, size_of, size_of_file

if TYPE_CHECKING:
    from distill.train import DistillConfig
    from instruct.train import InstructConfig
    from recipes.recipe import Recipe

_RELEASE_SETS = (
    TakenSet(dataset=HubDataset(name="HuggingFaceFW/fineweb-2", config="jpn_Jpan"), max_files=1),
    TakenSet(dataset=HubDataset(name="wikimedia/wikipedia", config="20231101.ja")),
    TakenSet(dataset=HubDataset(name="tokyotech-llm/lmsys-chat-1m-synth"), is_text=False),
    TakenSet(dataset=HubDataset(name="tokyotech-llm/swallow-magpie-ultra-v0.1", config="ja"), is_text=False),
    TakenSet(dataset=HubDataset(name="tokyotech-llm/swallow-gemma-magpie-v0.1"), is_text=False),
)
QWEN_IDS = 151_665
"""Ids of Qwen2.5's tokenizer; both models' heads are cropped to them. https://huggingface.co/Qwen/Qwen2.5-1.5B-Instruct,
vocab.json and tokenizer_config.json: 151,643 and 22. Qwen3's has four more, which no figure of a plan shows."""
_CHUNK_TOKENS = 512
"""What the loss takes on a GPU and in float32 (`common.fused_linear_loss`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One training run."""

    stage: str
    """The artifact that it makes."""
    student: ModelShape
    """What learns."""
    teacher: ModelShape | None
    """What is only run forward, beside it."""
    ids: int
    """Rows of both heads that are multiplied."""
    steps: int
    """Optimizer steps."""
    rows_per_step: int
    """Packed rows of one step."""
    sequence_tokens: int
    """Tokens of a row."""
    micro_batch_rows: int
    """Rows that go through the models at one time."""
    chunk_tokens: int
    """Tokens whose logits exist at one time."""
    save_bytes: int
    """Bytes a weight in the finished checkpoint."""

    @property
    def tokens(self) -> int:
        """Tokens of the whole run, full rows: packing leaves a few per cent free."""
        return self.steps * self.rows_per_step * self.sequence_tokens

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens that go through the models at one time, at most."""
        return min(self.micro_batch_rows, self.rows_per_step) * self.sequence_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A recipe in numbers."""

    recipe: str
    published: tuple[tuple[str, str, ModelShape], ...]
    """Artifact, name and geometry of each model that is taken from the hub or from SOURCES."""
    linked: frozenset[str] = frozenset()
    """Those of the artifacts that are second names of files of SOURCES, on the same disk, and no further bytes."""
    is_random: bool = False
    """Whether the exported model has random weights, as in a rehearsal, and nothing is trained."""
    runs: tuple[Run, ...]
    """In the order in which they happen."""
    exported: ModelShape
    """The model that becomes files for phones."""
    ids: int
    """Of the tokenizer."""
    encodings: tuple[str, ...]
    """GGUF files."""
    text: tuple[SetSize, ...] = ()
    """The sets of text that are cleaned and packed, all of each; () where the recipe makes its own."""
    talks: tuple[SetSize, ...] = ()
    """Likewise of conversations."""
    corpus_tokens: int
    """Tokens of the corpus that training reads, each once."""
    conversation_tokens: int
    """Likewise of the conversations."""

    def gpu_runs(self, stages: Collection[str] | None) -> tuple[Run, ...]:
        """The runs whose models must find room on the GPUs while these artifacts are made, None for all artifacts.

        All of them as long as one is left, or the evaluation, which opens teacher and student again.
        """
        users = ("evaluation", *(run.stage for run in self.runs))
        return self.runs if stages is None or any(user in stages for user in users) else ()

    def of_stages(self, stages: Collection[str]) -> "Work":
        """What these artifacts alone take: their models, their sets, their training."""
        return replace(
            self,
            published=tuple(one for one in self.published if one[0] in stages),
            runs=tuple(run for run in self.runs if run.stage in stages),
            text=self.text if "corpus" in stages else (),
            talks=self.talks if "conversations" in stages else (),
        )


def work_of(recipe: "Recipe", *, sources: Path | None, build_folder: Path | None = None) -> Work:
    """A recipe's numbers.

    Args:
        recipe: any.
        sources: the folder that stands in for the hub, or None.
        build_folder: where an earlier build may have left what it asked the hub for.

    Raises:
        UserError: a published model whose geometry is not to be had.
    """
    # A recipe checks itself that the four come together, or not at all in a rehearsal.
    base, talks, chat = recipe.base, recipe.conversations, recipe.chat
    if base is None or talks is None or not hasattr(chat, "steps"):
        return _rehearsal_work(recipe)
    tuning = cast("InstructConfig", chat)
    shapes = {
        name: geometry_of(model.model, sources=sources, build_folder=build_folder)
        for name, model in recipe.models.items()
    }
    own = {"teacher": recipe.teacher, "student_before": recipe.student_before}
    trained = {name: stage for name, stage in own.items() if stage and not isinstance(stage, PublishedModel)}
    shapes |= {name: _of_init(stage) for name, stage in trained.items()}
    teacher, student = shapes["teacher"], shapes["student_before"]
    ids = min(_vocabulary(recipe), student.padded_vocab_size, teacher.padded_vocab_size)
    text = recipe.corpus.sequence_tokens
    runs = [_run(name, stage, shapes[name], None, ids, text) for name, stage in trained.items()]
    runs.append(_run("base", base, student, teacher, ids, text))
    chat_rows = tuning.rows_per_step + tuning.replay_rows_per_step
    runs.append(_run("chat", tuning, student, None, ids, talks.sequence_tokens, rows_per_step=chat_rows))
    read = zip([*trained.values(), base], runs[:-1], strict=True)
    published = tuple((name, model.model.name, shapes[name]) for name, model in recipe.models.items())
    sets = [TakenSet(dataset=source.dataset, max_files=source.max_files) for source in recipe.text]
    sets += [TakenSet(dataset=source.dataset, is_text=False) for source in recipe.instructions]
    return Work(
        recipe=recipe.name,
        published=published,
        linked=_linked(published, sources, build_folder),
        **(_sizes(sets, sources, build_folder) if sets else _own_sizes(recipe)),
        runs=tuple(runs),
        exported=student,
        ids=ids,
        encodings=recipe.gguf.encodings,
        # What a run reads again in a later epoch counts once.
        corpus_tokens=max(min(stage.corpus_tokens or run.tokens, run.tokens) for stage, run in read),
        conversation_tokens=tuning.steps * tuning.rows_per_step * talks.sequence_tokens,
    )


def release_work(*, sources: Path | None, build_folder: Path | None = None) -> Work:
    """The numbers of `recipes.tinyswallow`, without loading it; the arguments are `work_of`'s.

    Raises:
        UserError: a config.json in SOURCES that does not read.
    """
    teacher_name, student_name = "Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"
    teacher, student = (geometry_of(HubModel(name=name), sources=sources) for name in (teacher_name, student_name))
    ids = min(QWEN_IDS, student.padded_vocab_size, teacher.padded_vocab_size)
    base = Run(
        stage="base",
        student=student,
        teacher=teacher,
        ids=ids,
        steps=8000,
        rows_per_step=64,
        sequence_tokens=2048,
        micro_batch_rows=4,
        chunk_tokens=_CHUNK_TOKENS,
        save_bytes=2,
    )
    chat = replace(base, stage="chat", teacher=None, steps=1400, rows_per_step=128)
    published = (("student_before", student_name, student), ("teacher", teacher_name, teacher))
    return Work(
        recipe="tinyswallow",
        published=published,
        linked=_linked(published, sources, build_folder),
        **_sizes(_RELEASE_SETS, sources, build_folder),
        runs=(base, chat),
        exported=student,
        ids=ids,
        encodings=("Q5_K_M", "Q8_0", "Q4_K_M"),
        corpus_tokens=base.tokens,
        conversation_tokens=chat.tokens,
    )


def _rehearsal_work(recipe: "Recipe") -> Work:
    """Exports alone, of a model of random weights."""
    shape = _of_init(recipe.chat)
    return Work(
        recipe=recipe.name,
        published=(),
        is_random=True,
        runs=(),
        exported=shape,
        ids=min(_vocabulary(recipe), shape.padded_vocab_size),
        encodings=recipe.gguf.encodings,
        corpus_tokens=0,
        conversation_tokens=0,
    )


def _sizes(sets: Sequence[TakenSet], sources: Path | None, build_folder: Path | None) -> dict[str, Any]:
    """The fields `text` and `talks`."""
    sizes = [(taken.is_text, size_of(taken, build_folder=build_folder, sources=sources)) for taken in sets]
    return {
        "text": tuple(size for is_text, size in sizes if is_text),
        "talks": tuple(size for is_text, size in sizes if not is_text),
    }


def _own_sizes(recipe: "Recipe") -> dict[str, Any]:
    """The same of the user's own files; a generated world is small and has none."""
    from recipes.stages.user_files import UserFilesConfig

    if not isinstance(recipe.world, UserFilesConfig):
        return {}
    kinds = {"text": recipe.world.text, "talks": recipe.world.conversations}
    return {kind: tuple(size_of_file(path) for path in paths) for kind, paths in kinds.items()}


def _linked(
    published: Sequence[tuple[str, str, ModelShape]], sources: Path | None, build_folder: Path | None
) -> frozenset[str]:
    """The artifacts whose files in SOURCES lie on the disk of the build folder: only there one file has two names."""
    if sources is None:
        return frozenset()
    place = (build_folder or sources).absolute()
    while not place.is_dir():
        place = place.parent
    here, linked = place.stat().st_dev, set[str]()
    for artifact, name, _ in published:
        # The files of a model hub's cache are symbolic links to wherever the cache is.
        files = [path.resolve() for path in (sources / name).glob("*.safetensors")]
        if all(path.is_file() and path.stat().st_dev == here for path in files):
            linked.add(artifact)
    return frozenset(linked)


def _of_init(stage: Any) -> ModelShape:
    """The shape of a model that is made here, trained or random: both configs have an `init`."""
    assert stage.init is not None, "a recipe refuses a model of its own without a geometry"
    return ModelShape.of(stage.init.fields())


def _vocabulary(recipe: "Recipe") -> int:
    return QWEN_IDS if recipe.tokenizer is None else recipe.tokenizer.vocabulary


def _run(
    name: str,
    stage: "DistillConfig | InstructConfig",
    student: ModelShape,
    teacher: ModelShape | None,
    ids: int,
    sequence_tokens: int,
    *,
    rows_per_step: int | None = None,
) -> Run:
    return Run(
        stage=name,
        student=student,
        teacher=teacher,
        ids=ids,
        steps=stage.steps,
        rows_per_step=rows_per_step or stage.rows_per_step,
        sequence_tokens=sequence_tokens,
        micro_batch_rows=stage.micro_batch_rows,
        chunk_tokens=stage.chunk_tokens or _CHUNK_TOKENS,
        save_bytes=2 if stage.save_dtype == "bfloat16" else 4,
    )
