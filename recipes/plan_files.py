"""What a recipe's stages leave on the disk, what they need beside it while they run, and main memory beside training.

The constants that were measured, or await it, stand together at the top, each with its source; everything else follows
from the shapes. It looks at no disk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.model_shape import ModelShape
from recipes.plan_sets import SetSize
from recipes.plan_training import BFLOAT16, FLOAT32, Part
from recipes.plan_work import QWEN_IDS, Run, Work
from recipes.sizes import BASE_TYPES, QWEN_VOCABULARY_BYTES, computed_tensor_bytes

PROCESS_BYTES = 600_000_000
"""Main memory of a process that has loaded torch and transformers and nothing else. An estimate."""
COREML_PEAK_BYTES, COREML_SECONDS, COREML_WEIGHTS = 16_900_000_000, 200, 1_543_714_304
"""The Core ML conversion of a Qwen2.5-1.5B with states: peak main memory and time, measured once with coremltools 9.0.
Both are taken to grow with the weights."""
COREML_BASIS = "measured once at 1.5B, in proportion"
GGUF_BYTES_PER_WEIGHT = 4
"""Main memory of the GGUF stage for a weight of the largest tensor: tensors pass one at a time, as mapped bf16 and as
float16; one in float32 takes 2 more. An estimate; llama.cpp's quantiser and its check run in child processes."""
GGUF_BASIS = "estimate: the largest tensor in both formats"
GGUF_SECONDS, GGUF_FILES = 235, 4
"""Time of so many GGUF files of COREML_WEIGHTS, F16 among them, each checked: measured once, on 2 cores."""
EVALUATION_PEAK_BYTES = 12_800_000_000
"""Main memory of the evaluation where a model of COREML_WEIGHTS is the largest that is asked on the processor: measured
once, in float32. Taken to grow with the weights."""
EVALUATION_BASIS = "measured once at 1.5B, in proportion"
PACKED_BYTES = 9
"""Bytes a token in packed rows: an id and a document number of 4 each, a weight of 1 (`common.packing.layout`)."""
TEXT_BYTES, ZIPPED_TEXT_BYTES = 4.2, 1.4
"""Bytes a token of Japanese text in UTF-8, and as gzip leaves it: measured with Qwen2.5's tokenizer on Japanese
Wikipedia, Aozora Bunko and manuals (3.5 to 4.5, and 0.9 to 1.4)."""
SHARD_BYTES = 1.3
"""Bytes on the disk for a byte of text while a corpus is cleaned: the text as JSON, not compressed, and what finds
near-duplicates. Measured on Japanese Wikipedia (1.27, documents of 4 kB) and Aozora Bunko (1.03, of 36 kB)."""
CLEANED_BYTES_PER_S = 6.5e6
"""Bytes of text that one core cleans in a second, near-duplicates with it. Measured on real Japanese, one core."""
TOKENIZER_BYTES = 11_500_000
"""A Qwen2.5 tokenizer.json and the small files beside it; one lies in each model folder."""
SAVED_BYTES = 12
"""Bytes a parameter in a training checkpoint: float32 weight and the two moments of AdamW."""
CHECKPOINTS = 2
"""Training checkpoints on the disk at once: the last one, and the one that is being written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRoom:
    """What one stage needs of disk and main memory."""

    stage: str
    kept: tuple[Part, ...]
    """What its folder holds in the end."""
    scratch_bytes: int
    """On the disk beside that, while it runs."""
    ram_bytes: int | None = None
    """Peak main memory of its process; None where it is small or follows from the data."""
    basis: str = ""
    """Where the figure for main memory is from."""
    seconds: float | None = None
    """Its time, where one was measured."""
    seconds_basis: str = ""
    """What was measured, and on what."""
    disk_basis: str = ""
    """Where the figures for the disk are from, where not from shapes."""

    @property
    def kept_bytes(self) -> int:
        return sum(part.bytes for part in self.kept)


def stage_rooms(work: Work) -> tuple[StageRoom, ...]:
    """The stages of a recipe in the order in which they run; those that leave a few megabytes are left out."""
    downloads = {
        name: StageRoom(stage=name, kept=_copy(work, name, model, shape), scratch_bytes=0)
        for name, model, shape in work.published
    }
    student = [downloads.pop("student_before")] if "student_before" in downloads else []
    made = [training_room(run) for run in work.runs]
    if work.is_random:
        weights = Part(what="random weights in bf16", bytes=model_folder_bytes(work.exported, BFLOAT16))
        made.append(StageRoom(stage="chat", kept=(weights,), scratch_bytes=0))
    exports = export_rooms(work.exported, encodings=work.encodings, ids=work.ids)
    return (*student, *data_rooms(work), *downloads.values(), *made, *exports, evaluation_room(work))


def _copy(work: Work, name: str, model: str, shape: ModelShape) -> tuple[Part, ...]:
    """A published model's own bytes in the build folder; none where its files are only second names."""
    if name in work.linked:
        return ()
    return (Part(what=f"{model} in bf16", bytes=model_folder_bytes(shape, BFLOAT16)),)


def peak_disk_bytes(rooms: Sequence[StageRoom]) -> int:
    """The most that lies on the disk at one time, when stages run one after the other and all that they keep stays.

    dist/ is hard links to what is large there, and adds little.
    """
    before, peak = 0, 0
    for room in rooms:
        before += room.kept_bytes
        peak = max(peak, before + room.scratch_bytes)
    return peak


def data_rooms(work: Work) -> tuple[StageRoom, ...]:
    """Corpus and conversations: all text of the files that are read is cleaned, kept and packed.

    Where no set is read, or the size of one is not known, at least the tokens that training reads.
    """
    corpus = _data_room("corpus", work.text, work.corpus_tokens)
    talks = _data_room("conversations", work.talks, work.conversation_tokens)
    return tuple(room for room in (talks, corpus) if room is not None)


def _data_room(stage: str, sets: Sequence[SetSize], tokens: int) -> StageRoom | None:
    unknown = [one.name for one in sets if one.text_bytes is None]
    known = sum(one.text_bytes or 0 for one in sets)
    is_least = bool(unknown) or not sets
    text = max(known, TEXT_BYTES * tokens) if is_least else known
    if not text:
        return None
    zipped, packed = text * ZIPPED_TEXT_BYTES / TEXT_BYTES, text * PACKED_BYTES / TEXT_BYTES
    # Shards go when the documents are written, and only then rows are packed.
    cleaning = SHARD_BYTES * text + max([zipped, *(one.file_bytes for one in sets)])
    if not sets:
        basis = "the tokens that training reads"
    elif unknown:
        basis = f"at least, without {', '.join(unknown)}"
    else:
        gigabytes = f"{text / 1e9:,.{0 if text >= 1e9 else 2}f} GB"
        basis = f"at most: all of {gigabytes} of text is cleaned and packed, a file fetched at a time"
    return StageRoom(
        stage=stage,
        kept=(
            Part(what=f"{text / TEXT_BYTES / 1e9:,.2f} billion tokens packed", bytes=round(packed)),
            Part(what="their documents, zipped", bytes=round(zipped)),
        ),
        scratch_bytes=max(0, round(cleaning - zipped - packed)),
        disk_basis=basis,
        seconds=text / CLEANED_BYTES_PER_S if stage == "corpus" else None,
        seconds_basis="cleaning by one core, at the measured 6.5 MB of text a second",
    )


def evaluation_room(work: Work) -> StageRoom:
    """The stage `evaluation`: it leaves a few megabytes, and takes the memory of what it asks."""
    return StageRoom(
        stage="evaluation",
        kept=(),
        scratch_bytes=0,
        ram_bytes=PROCESS_BYTES
        + round((EVALUATION_PEAK_BYTES - PROCESS_BYTES) * work.exported.parameters() / COREML_WEIGHTS),
        basis=EVALUATION_BASIS,
    )


def model_folder_bytes(geometry: ModelShape, weight_bytes: int) -> int:
    """A model folder: its safetensors and the tokenizer."""
    return weight_bytes * geometry.parameters() + TOKENIZER_BYTES


def training_room(run: Run) -> StageRoom:
    """A training run: checkpoints to resume from and the best weights so far, then the finished folder."""
    weights = run.student.parameters()
    return StageRoom(
        stage=run.stage,
        kept=(Part(what="checkpoint", bytes=model_folder_bytes(run.student, run.save_bytes)),),
        # The finished folder is written while these are still there.
        scratch_bytes=(CHECKPOINTS * SAVED_BYTES + FLOAT32) * weights,
    )


def export_rooms(geometry: ModelShape, *, encodings: Sequence[str], ids: int) -> tuple[StageRoom, ...]:
    """The stages `gguf` and `coreml` on a model of this geometry.

    Args:
        geometry: the model.
        encodings: GGUF files.
        ids: of its tokenizer.
    """
    vocabulary = QWEN_VOCABULARY_BYTES * ids // QWEN_IDS
    f16 = computed_tensor_bytes(geometry, "F16") + vocabulary
    files = tuple(
        Part(what=f"{encoding}.gguf", bytes=computed_tensor_bytes(geometry, encoding) + vocabulary)
        if encoding in BASE_TYPES
        else Part(what=f"{encoding}.gguf (at most)", bytes=f16)
        for encoding in encodings
    )
    weights, size = geometry.parameters(), COREML_PEAK_BYTES - PROCESS_BYTES
    package = BFLOAT16 * weights
    return (
        StageRoom(
            stage="gguf",
            kept=files,
            # F16 is made first, and the others of it; asked for, it moves instead of going.
            scratch_bytes=0 if "F16" in encodings else f16,
            ram_bytes=PROCESS_BYTES + GGUF_BYTES_PER_WEIGHT * geometry.padded_vocab_size * geometry.hidden_size,
            basis=GGUF_BASIS,
            seconds=GGUF_SECONDS * len({"F16", *encodings}) / GGUF_FILES * weights / COREML_WEIGHTS,
            seconds_basis="measured once at 1.5B on 2 cores, in proportion",
        ),
        StageRoom(
            stage="coreml",
            kept=(Part(what="float16 .mlpackage and tokenizer", bytes=package + TOKENIZER_BYTES),),
            # coremltools writes the package in the system's folder for temporary files, and copies it.
            scratch_bytes=package,
            ram_bytes=PROCESS_BYTES + round(size * weights / COREML_WEIGHTS),
            basis=COREML_BASIS,
            seconds=COREML_SECONDS * weights / COREML_WEIGHTS,
            seconds_basis="measured once at 1.5B on 2 cores, in proportion",
        ),
    )
