"""What each stage needs: disk, main memory, time, downloads, and the training run that it is. A table by config type.

`NEEDS[type(config)](stage, known)` returns the needs of one stage; `recipes.plan` folds it over the pipeline. Constants
that were measured, or await it, are at the top, each with its source; everything else follows from the shapes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
ON_2_CORES = "measured once at 1.5B on 2 cores, in proportion"
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
SAVED_BYTES, CHECKPOINTS = 12, 3
"""Bytes a parameter in a training checkpoint (float32 weight and the two moments of AdamW), and checkpoints on the disk
at once: the last two, and the one that is being written. As many copies of the best weights are there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageNeeds:
    """What one stage needs. Each basis says where a figure is from, where it is not computed from shapes."""

    stage: str
    kept: Mapping[str, int] = field(default_factory=dict[str, int])
    """Bytes that its folder holds in the end, by name; empty where that is a few megabytes."""
    scratch_bytes: int = 0
    """Further bytes on the disk while it runs."""
    disk_basis: str = ""
    ram_bytes: int | None = None
    """Peak main memory of its process; None where it is small or follows from the data."""
    ram_basis: str = ""
    seconds: float | None = None
    """Its time, where one was measured."""
    seconds_basis: str = ""
    run: Run | None = None
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
    """What the fold knows: the recipe, the folder in the place of the hub, and the shapes of the models so far."""

    recipe: Recipe
    sources: Path | None
    build_folder: Path | None
    shapes: dict[str, ModelShape] = field(default_factory=dict[str, ModelShape])
    """By artifact; each stage that makes a model adds its own."""

    @property
    def vocab_size(self) -> int:
        return QWEN_IDS if self.recipe.tokenizer is None else self.recipe.tokenizer.vocabulary


def _published(stage: Stage, known: Known) -> StageNeeds:
    name, model = stage.config.terms.name, HubModel(name=stage.config.terms.name)
    shape = known.shapes[stage.name] = shape_of(model, sources=known.sources, build_folder=known.build_folder)
    size = model_folder_bytes(shape, BFLOAT16)
    return StageNeeds(
        stage=stage.name,
        kept={} if _is_linked(name, known) else {f"{name} in bf16": size},
        reads=(Size(name=name, bytes=size, how="computed from its shapes, bf16", is_fetched=known.sources is None),),
        terms=(stage.config.terms,),
    )


def _is_linked(name: str, known: Known) -> bool:
    """Whether a model's files in SOURCES are on the disk of the build folder: only there a file has two names."""
    if known.sources is None:
        return False
    place = (known.build_folder or known.sources).absolute()
    while not place.is_dir():
        place = place.parent
    # In a cache of the hub they are symbolic links to another place, which stat follows.
    files = (known.sources / name).glob("*.safetensors")
    return all(path.is_file() and path.stat().st_dev == place.stat().st_dev for path in files)


def _benchmark_files(stage: Stage, known: Known) -> StageNeeds:
    files = Size(name="the benchmark files", bytes=None, how="archives of their repositories, each at one commit")
    return StageNeeds(stage=stage.name, reads=() if known.sources else (files,))


def _data(stage: Stage, known: Known) -> StageNeeds:
    """Corpus and conversations: all text of the files that are read is cleaned, kept and packed.

    Where no set is read, or the size of one is not known, at least the tokens that training reads.
    """
    config: CorpusConfig | ConversationsConfig = stage.config
    sources: Sequence[Any] = config.sources
    world, is_corpus = known.recipe.world, isinstance(config, CorpusConfig)
    files = (world.text if is_corpus else world.conversations) if isinstance(world, UserFilesConfig) else ()
    sets = tuple(size_of(one, mirror=known.sources) for one in (*sources, *files))
    originals = () if known.sources else tuple(size for _, size in originals_of(sources))
    needs = StageNeeds(
        stage=stage.name,
        reads=(*sets, *originals),
        gates=gates_of(sources, mirror=known.sources),
        terms=tuple(source.terms for source in sources if source.terms),
    )
    unknown = [one.name for one in sets if one.text_bytes is None]
    text = float(sum(one.text_bytes or 0 for one in sets))
    if unknown or not sets:
        text = max(text, TEXT_BYTES * _tokens_read(known.recipe, config))
    if not text:
        return needs
    zipped, packed = text * ZIPPED_TEXT_BYTES / TEXT_BYTES, text * PACKED_BYTES / TEXT_BYTES
    # Shards go when the documents are written, and only then rows are packed.
    cleaning = SHARD_BYTES * text + max([zipped, *(one.file_bytes for one in sets)])
    if unknown:
        basis = f"at least, without {', '.join(unknown)}"
    else:
        gigabytes = f"{text / 1e9:,.{0 if text >= 1e9 else 2}f} GB"
        basis = f"at most: all of {gigabytes} of text is cleaned and packed, a file fetched at a time"
    tokens = f"{text / TEXT_BYTES / 1e9:,.2f} billion tokens packed"
    return replace(
        needs,
        kept={tokens: round(packed), "their documents, zipped": round(zipped)},
        scratch_bytes=max(0, round(cleaning - zipped - packed)),
        disk_basis=basis if sets else "the tokens that training reads",
        seconds=text / CLEANED_BYTES_PER_S if is_corpus else None,
        seconds_basis="cleaning by one core, at the measured 6.5 MB of text a second",
    )


def _tokens_read(recipe: Recipe, data: CorpusConfig | ConversationsConfig) -> int:
    """The most tokens of the corpus or the conversations that one training run reads, later epochs apart."""
    readers = (recipe.teacher, recipe.student_before, recipe.base)
    tokens = 0
    for reader in readers if isinstance(data, CorpusConfig) else (recipe.chat,):
        if isinstance(reader, DistillConfig | InstructConfig):
            total = reader.steps * reader.rows_per_step * data.sequence_tokens
            limit = reader.corpus_tokens if isinstance(reader, DistillConfig) else None
            tokens = max(tokens, min(limit or total, total))
    return tokens


def _training(stage: Stage, known: Known) -> StageNeeds:
    """A training run: checkpoints to resume from and the best weights so far, then the finished folder."""
    config: DistillConfig | InstructConfig = stage.config
    rows_per_step = config.rows_per_step
    if isinstance(config, InstructConfig):
        data, start, frozen = known.recipe.conversations, stage.inputs[0], None
        rows_per_step += config.replay_rows_per_step
    else:
        data, (_, start, frozen) = known.recipe.corpus, stage.inputs
    assert data is not None, "a recipe refuses tuning without conversations"
    student = known.shapes[stage.name] = known.shapes[start] if start else _of_init(config)
    teacher = known.shapes[frozen] if frozen else None
    run = Run(
        stage=stage.name,
        student=student,
        teacher=teacher,
        vocab_size=min(known.vocab_size, *(one.padded_vocab_size for one in (student, teacher) if one)),
        steps=config.steps,
        rows_per_step=rows_per_step,
        sequence_tokens=data.sequence_tokens,
        micro_batch_rows=config.micro_batch_rows,
        chunk_tokens=config.chunk_tokens or GPU_CHUNK_TOKENS,
    )
    saved = BFLOAT16 if config.save_dtype == "bfloat16" else FLOAT32
    return StageNeeds(
        stage=stage.name,
        run=run,
        kept={"checkpoint": model_folder_bytes(student, saved)},
        # The finished folder is written while these are still there.
        scratch_bytes=CHECKPOINTS * (SAVED_BYTES + FLOAT32) * student.parameters(),
    )


def _random_model(stage: Stage, known: Known) -> StageNeeds:
    shape = known.shapes[stage.name] = _of_init(stage.config)
    return StageNeeds(stage=stage.name, kept={"random weights in bf16": model_folder_bytes(shape, BFLOAT16)})


def _gguf(stage: Stage, known: Known) -> StageNeeds:
    shape, encodings = known.shapes[str(stage.inputs[0])], stage.config.encodings
    vocabulary = QWEN_VOCABULARY_BYTES * min(known.vocab_size, shape.padded_vocab_size) // QWEN_IDS
    sizes = {encoding: computed_tensor_bytes(shape, encoding) + vocabulary for encoding in BASE_TYPES}
    f16 = sizes["F16"]
    return StageNeeds(
        stage=stage.name,
        kept={f"{name}.gguf{'' if name in sizes else ' (at most)'}": sizes.get(name, f16) for name in encodings},
        # F16 is made first, and the others of it; where it is wanted, it is moved and not deleted.
        scratch_bytes=0 if "F16" in encodings else f16,
        ram_bytes=PROCESS_BYTES + GGUF_BYTES_PER_WEIGHT * shape.padded_vocab_size * shape.hidden_size,
        ram_basis="estimate: the largest tensor in both formats",
        seconds=GGUF_SECONDS * len({"F16", *encodings}) / GGUF_FILES * shape.parameters() / MEASURED_WEIGHTS,
        seconds_basis=ON_2_CORES,
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
        seconds_basis=ON_2_CORES,
    )


def _evaluation(stage: Stage, known: Known) -> StageNeeds:
    ram_bytes = _in_proportion(EVALUATION_PEAK_BYTES, known.shapes["chat"].parameters())
    return StageNeeds(stage=stage.name, ram_bytes=ram_bytes, ram_basis=IN_PROPORTION)


def _in_proportion(measured_bytes: int, weights: int) -> int:
    return PROCESS_BYTES + round((measured_bytes - PROCESS_BYTES) * weights / MEASURED_WEIGHTS)


def model_folder_bytes(shape: ModelShape, weight_bytes: int) -> int:
    """A model folder: its safetensors and the tokenizer."""
    return weight_bytes * shape.parameters() + TOKENIZER_BYTES


def _of_init(config: Any) -> ModelShape:
    return ModelShape.of(config.init.fields())  # a recipe refuses an untrained model without init


NEEDS: dict[type, Callable[[Stage, Known], StageNeeds]] = {
    BenchmarkFilesConfig: _benchmark_files,
    PublishedModelConfig: _published,
    CorpusConfig: _data,
    ConversationsConfig: _data,
    DistillConfig: _training,
    InstructConfig: _training,
    RandomModelConfig: _random_model,
    GgufConfig: _gguf,
    CoremlConfig: _coreml,
    EvaluationConfig: _evaluation,
}
"""Config type to the function that returns the needs of its stage. A stage without a line needs a few megabytes."""


def needs_of_stage(stage: Stage, known: Known) -> StageNeeds:
    """The needs of one stage; those of earlier stages must be asked before, for the shapes of their models."""
    return NEEDS.get(type(stage.config), lambda stage, _: StageNeeds(stage=stage.name))(stage, known)
