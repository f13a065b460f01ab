"""What each stage needs: disk, main memory, time, downloads, and the training run that it is. A table by config type.

`NEEDS[type(config)](stage, known)` returns the needs of one stage; `recipes.plan` folds it over the pipeline. Constants
that were measured, or await it, are at the top, each with its source; everything else follows from the shapes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.model_shape import ModelShape, shape_of
from common.provenance import Terms
from common.sources import HubModel
from distill.corpus import CorpusConfig
from distill.train import DistillConfig
from eval.evaluation import EvaluationConfig
from export.coreml import CoremlConfig
from export.gguf import GgufConfig
from instruct.conversations import ConversationsConfig
from instruct.train import InstructConfig
from recipes.plan.cost import BFLOAT16, FLOAT32, GPU_CHUNK_TOKENS, Run
from recipes.plan.gguf_bytes import BASE_TYPES, QWEN_VOCABULARY_BYTES, computed_tensor_bytes
from recipes.plan.sets import Gate, Size, gates_of, originals_of, size_of
from recipes.recipe import Recipe, Stage
from recipes.stages.benchmarks import BenchmarkFilesConfig
from recipes.stages.published import PublishedModelConfig
from recipes.stages.random_model import RandomModelConfig
from recipes.stages.user_files import UserFilesConfig

QWEN_IDS = 151_665
"""Ids of Qwen2.5's tokenizer; both models' heads are cropped to them. https://huggingface.co/Qwen/Qwen2.5-1.5B-Instruct,
vocab.json and tokenizer_config.json: 151,643 and 22. Qwen3's has four more, which no figure of a plan shows."""
PROCESS_BYTES = 600_000_000
"""Main memory of a process that has loaded torch and transformers and nothing else. An estimate."""
COREML_PEAK_BYTES, COREML_SECONDS, MEASURED_WEIGHTS = 16_900_000_000, 200, 1_543_714_304
"""The Core ML conversion of a Qwen2.5-1.5B with states: peak main memory and time, measured once with coremltools 9.0.
Both are taken to grow with the weights."""
GGUF_BYTES_PER_WEIGHT = 4
"""Main memory of the GGUF stage for a weight of the largest tensor: tensors pass one at a time, as mapped bf16 and as
float16; one in float32 takes 2 more. An estimate; llama.cpp's quantiser and its check run in child processes."""
GGUF_SECONDS, GGUF_FILES = 235, 4
"""Time of this number of GGUF files of MEASURED_WEIGHTS, F16 among them, each checked: measured once, on 2 cores."""
EVALUATION_PEAK_BYTES = 12_800_000_000
"""Main memory of the evaluation where a model of MEASURED_WEIGHTS is the largest that runs on the processor: measured
once, in float32. Taken to grow with the weights."""
IN_PROPORTION = "measured once at 1.5B, in proportion"
PACKED_BYTES = 9
"""Bytes a token in packed rows: an id and a document number of 4 each, a weight of 1 (`common.packing`)."""
TEXT_BYTES, ZIPPED_TEXT_BYTES = 4.2, 1.4
"""Bytes a token of Japanese text in UTF-8, and as gzip leaves it: measured with Qwen2.5's tokenizer on Japanese
Wikipedia, Aozora Bunko and manuals (3.5 to 4.5, and 0.9 to 1.4)."""
SHARD_BYTES = 1.3
"""Bytes on the disk for a byte of text while a corpus is cleaned: the text as JSON, not compressed, and what finds
near-duplicates. Measured on Japanese Wikipedia (1.27, documents of 4 kB) and Aozora Bunko (1.03, of 36 kB)."""
CLEANED_BYTES_PER_S = 6.5e6
"""Bytes of text that one core cleans in a second, near-duplicates with it. Measured on real Japanese, one core."""
TOKENIZER_BYTES = 11_500_000
"""A Qwen2.5 tokenizer.json and the small files next to it; one is in each model folder."""
SAVED_BYTES, CHECKPOINTS = 12, 2
"""Bytes a parameter in a training checkpoint (float32 weight and the two moments of AdamW), and checkpoints on the disk
at once: the last one, and the one that is being written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageNeeds:
    """What one stage needs."""

    stage: str
    kept: Mapping[str, int] = field(default_factory=dict[str, int])
    """Bytes that its folder holds in the end, by name; empty where that is a few megabytes."""
    scratch_bytes: int = 0
    """Further bytes on the disk while it runs."""
    disk_basis: str = ""
    """Where the figures for the disk are from, where not from shapes."""
    ram_bytes: int | None = None
    """Peak main memory of its process; None where it is small or follows from the data."""
    ram_basis: str = ""
    seconds: float | None = None
    """Its time, where one was measured."""
    seconds_basis: str = ""
    run: Run | None = None
    """The training run that it is."""
    reads: tuple[Size, ...] = ()
    """The data sets, models or user's files that it reads."""
    gates: tuple[Gate, ...] = ()
    terms: tuple[Terms, ...] = ()

    @property
    def kept_bytes(self) -> int:
        return sum(self.kept.values())

    @property
    def downloads(self) -> tuple[Size, ...]:
        return tuple(one for one in self.reads if one.is_fetched)


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What the fold knows: the recipe, where its sources are, and the shapes of the models so far."""

    recipe: Recipe
    sources: Path | None
    """The folder in the place of the hub, or None."""
    build_folder: Path | None
    shapes: dict[str, ModelShape] = field(default_factory=dict[str, ModelShape])
    """Model shape by artifact; each stage that makes a model adds its own."""

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer."""
        return QWEN_IDS if self.recipe.tokenizer is None else self.recipe.tokenizer.vocabulary


def _published(stage: Stage, known: Known) -> StageNeeds:
    config: PublishedModelConfig = stage.config
    name = config.terms.name
    shape = known.shapes[stage.name] = shape_of(
        HubModel(name=name), sources=known.sources, build_folder=known.build_folder
    )
    size = model_folder_bytes(shape, BFLOAT16)
    return StageNeeds(
        stage=stage.name,
        kept={} if _is_linked(name, known) else {f"{name} in bf16": size},
        reads=(Size(name=name, bytes=size, how="computed from its shapes, bf16", is_fetched=known.sources is None),),
        terms=(config.terms,),
    )


def _is_linked(name: str, known: Known) -> bool:
    """Whether a model's files in SOURCES are on the disk of the build folder: only there a file has two names."""
    if known.sources is None:
        return False
    place = (known.build_folder or known.sources).absolute()
    while not place.is_dir():
        place = place.parent
    # The files of a model hub's cache are symbolic links to wherever the cache is.
    files = [path.resolve() for path in (known.sources / name).glob("*.safetensors")]
    return all(path.is_file() and path.stat().st_dev == place.stat().st_dev for path in files)


def _benchmark_files(stage: Stage, known: Known) -> StageNeeds:
    how = "archives of their repositories, each at one commit"
    files = Size(name="the benchmark files", bytes=None, how=how)
    return StageNeeds(stage=stage.name, reads=() if known.sources else (files,))


def _corpus(stage: Stage, known: Known) -> StageNeeds:
    recipe, sources = known.recipe, stage.config.sources
    tokens = 0
    for config in (recipe.teacher, recipe.student_before, recipe.base):
        if isinstance(config, DistillConfig):
            total = config.steps * config.rows_per_step * recipe.corpus.sequence_tokens
            tokens = max(tokens, min(config.corpus_tokens or total, total))  # a later epoch reads the same again
    files = recipe.world.text if isinstance(recipe.world, UserFilesConfig) else ()
    return _data(stage, known, tokens, sources, files)


def _conversations(stage: Stage, known: Known) -> StageNeeds:
    recipe, sources = known.recipe, stage.config.sources
    chat = recipe.chat
    tokens = chat.steps * chat.rows_per_step * stage.config.sequence_tokens if isinstance(chat, InstructConfig) else 0
    files = recipe.world.conversations if isinstance(recipe.world, UserFilesConfig) else ()
    return _data(stage, known, tokens, sources, files)


def _data(stage: Stage, known: Known, tokens: int, sources: Sequence[Any], files: Sequence[Path]) -> StageNeeds:
    """Corpus and conversations: all text of the files that are read is cleaned, kept and packed.

    Where no set is read, or the size of one is not known, at least the tokens that training reads.
    """
    sets = tuple(size_of(one, mirror=known.sources) for one in (*sources, *files))
    originals = () if known.sources else tuple(size for _, size in originals_of(sources))
    common: dict[str, Any] = {
        "stage": stage.name,
        "reads": (*sets, *originals),
        "gates": gates_of(sources, mirror=known.sources),
        "terms": tuple(source.terms for source in sources if source.terms),
    }
    unknown = [one.name for one in sets if one.text_bytes is None]
    text = float(sum(one.text_bytes or 0 for one in sets))
    if unknown or not sets:
        text = max(text, TEXT_BYTES * tokens)
    if not text:
        return StageNeeds(**common)
    zipped, packed = text * ZIPPED_TEXT_BYTES / TEXT_BYTES, text * PACKED_BYTES / TEXT_BYTES
    # Shards go when the documents are written, and only then rows are packed.
    cleaning = SHARD_BYTES * text + max([zipped, *(one.file_bytes for one in sets)])
    gigabytes = f"{text / 1e9:,.{0 if text >= 1e9 else 2}f} GB"
    basis = f"at most: all of {gigabytes} of text is cleaned and packed, a file fetched at a time"
    if not sets:
        basis = "the tokens that training reads"
    elif unknown:
        basis = f"at least, without {', '.join(unknown)}"
    return StageNeeds(
        **common,
        kept={
            f"{text / TEXT_BYTES / 1e9:,.2f} billion tokens packed": round(packed),
            "their documents, zipped": round(zipped),
        },
        scratch_bytes=max(0, round(cleaning - zipped - packed)),
        disk_basis=basis,
        seconds=text / CLEANED_BYTES_PER_S if isinstance(stage.config, CorpusConfig) else None,
        seconds_basis="cleaning by one core, at the measured 6.5 MB of text a second",
    )


def _distill(stage: Stage, known: Known) -> StageNeeds:
    config: DistillConfig = stage.config
    _, start, teacher = stage.inputs
    student = known.shapes[start] if start else _of_init(config)
    return _training(stage, known, student, known.shapes[teacher] if teacher else None, known.recipe.corpus, 0)


def _instruct(stage: Stage, known: Known) -> StageNeeds:
    conversations, base = known.recipe.conversations, stage.inputs[0]
    assert conversations is not None and base is not None, "a recipe refuses tuning without these"
    return _training(stage, known, known.shapes[base], None, conversations, stage.config.replay_rows_per_step)


def _training(
    stage: Stage,
    known: Known,
    student: ModelShape,
    teacher: ModelShape | None,
    data: CorpusConfig | ConversationsConfig,
    replay_rows: int,
) -> StageNeeds:
    """A training run: checkpoints to resume from and the best weights so far, then the finished folder."""
    config: DistillConfig | InstructConfig = stage.config
    known.shapes[stage.name] = student
    saved = BFLOAT16 if config.save_dtype == "bfloat16" else FLOAT32
    run = Run(
        stage=stage.name,
        student=student,
        teacher=teacher,
        vocab_size=min(known.vocab_size, *(one.padded_vocab_size for one in (student, teacher) if one)),
        steps=config.steps,
        rows_per_step=config.rows_per_step + replay_rows,
        sequence_tokens=data.sequence_tokens,
        micro_batch_rows=config.micro_batch_rows,
        chunk_tokens=config.chunk_tokens or GPU_CHUNK_TOKENS,
        saved_dtype_bytes=saved,
    )
    return StageNeeds(
        stage=stage.name,
        run=run,
        kept={"checkpoint": model_folder_bytes(student, saved)},
        # The finished folder is written while these are still there.
        scratch_bytes=(CHECKPOINTS * SAVED_BYTES + FLOAT32) * student.parameters(),
    )


def _random_model(stage: Stage, known: Known) -> StageNeeds:
    shape = known.shapes[stage.name] = _of_init(stage.config)
    return StageNeeds(stage=stage.name, kept={"random weights in bf16": model_folder_bytes(shape, BFLOAT16)})


def _gguf(stage: Stage, known: Known) -> StageNeeds:
    shape, encodings = known.shapes[str(stage.inputs[0])], stage.config.encodings
    vocabulary = QWEN_VOCABULARY_BYTES * min(known.vocab_size, shape.padded_vocab_size) // QWEN_IDS
    f16 = computed_tensor_bytes(shape, "F16") + vocabulary
    files = {
        f"{encoding}.gguf" if encoding in BASE_TYPES else f"{encoding}.gguf (at most)": (
            computed_tensor_bytes(shape, encoding) + vocabulary if encoding in BASE_TYPES else f16
        )
        for encoding in encodings
    }
    return StageNeeds(
        stage=stage.name,
        kept=files,
        # F16 is made first, and the others of it; where it is wanted, it is moved and not deleted.
        scratch_bytes=0 if "F16" in encodings else f16,
        ram_bytes=PROCESS_BYTES + GGUF_BYTES_PER_WEIGHT * shape.padded_vocab_size * shape.hidden_size,
        ram_basis="estimate: the largest tensor in both formats",
        seconds=GGUF_SECONDS * len({"F16", *encodings}) / GGUF_FILES * shape.parameters() / MEASURED_WEIGHTS,
        seconds_basis="measured once at 1.5B on 2 cores, in proportion",
    )


def _coreml(stage: Stage, known: Known) -> StageNeeds:
    weights = known.shapes[str(stage.inputs[0])].parameters()
    package = BFLOAT16 * weights
    return StageNeeds(
        stage=stage.name,
        kept={"float16 .mlpackage and tokenizer": package + TOKENIZER_BYTES},
        # coremltools writes the package in the system's folder for temporary files, and copies it.
        scratch_bytes=package,
        ram_bytes=_in_proportion(COREML_PEAK_BYTES, weights),
        ram_basis=IN_PROPORTION,
        seconds=COREML_SECONDS * weights / MEASURED_WEIGHTS,
        seconds_basis="measured once at 1.5B on 2 cores, in proportion",
    )


def _evaluation(stage: Stage, known: Known) -> StageNeeds:
    ram_bytes = _in_proportion(EVALUATION_PEAK_BYTES, known.shapes["chat"].parameters())
    return StageNeeds(stage=stage.name, ram_bytes=ram_bytes, ram_basis=IN_PROPORTION)


def _in_proportion(measured_bytes: int, weights: int) -> int:
    return PROCESS_BYTES + round((measured_bytes - PROCESS_BYTES) * weights / MEASURED_WEIGHTS)


def model_folder_bytes(shape: ModelShape, weight_bytes: int) -> int:
    """A model folder: its safetensors and the tokenizer."""
    return weight_bytes * shape.parameters() + TOKENIZER_BYTES


def _of_init(config: DistillConfig | RandomModelConfig) -> ModelShape:
    assert config.init is not None, "a recipe refuses an untrained model without a shape"
    return ModelShape.of(config.init.fields())


NEEDS: dict[type, Callable[[Stage, Known], StageNeeds]] = {
    BenchmarkFilesConfig: _benchmark_files,
    PublishedModelConfig: _published,
    CorpusConfig: _corpus,
    ConversationsConfig: _conversations,
    DistillConfig: _distill,
    InstructConfig: _instruct,
    RandomModelConfig: _random_model,
    GgufConfig: _gguf,
    CoremlConfig: _coreml,
    EvaluationConfig: _evaluation,
}
"""Config type to the function that tells its stage's needs. A stage without a line needs a few megabytes."""


def needs_of_stage(stage: Stage, known: Known) -> StageNeeds:
    """The needs of one stage; those of earlier stages must be asked before, for the shapes of their models."""
    return NEEDS.get(type(stage.config), lambda stage, _: StageNeeds(stage=stage.name))(stage, known)
