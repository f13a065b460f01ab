"""What a recipe's stages leave on the disk, what they need beside it while they run, and the exports' main memory.

The constants that were measured, or await it, stand together at the top, each with its source; everything else follows
from the shapes. It looks at no disk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.geometry import Geometry
from recipes.plan_training import BFLOAT16, FLOAT32, Part
from recipes.plan_work import QWEN_IDS, Run, Work
from recipes.sizes import BASE_TYPES, QWEN_VOCABULARY_BYTES, computed_tensor_bytes

PROCESS_BYTES = 600_000_000
"""Main memory of a process that has loaded torch and transformers and nothing else. An estimate."""
COREML_PEAK_BYTES, COREML_SECONDS, COREML_WEIGHTS = 16_900_000_000, 200, 1_543_714_304
"""The Core ML conversion of a Qwen2.5-1.5B with states: peak main memory and time, measured once with coremltools 9.0.
Both are taken to grow with the weights."""
COREML_BASIS = "measured once at 1.5B, in proportion"
GGUF_BYTES_PER_WEIGHT = 8
"""Main memory of the GGUF stage for a weight of the largest tensor: tensors pass one at a time, as mapped bf16, float16
and a float32 between. An estimate; llama.cpp's quantiser and its check run in child processes."""
GGUF_BASIS = "estimate: the largest tensor in three formats"
PACKED_BYTES = 9
"""Bytes a token in packed rows: an id and a document number of 4 each, a weight of 1 (`common.packing.layout`)."""
TEXT_BYTES, ZIPPED_TEXT_BYTES = 4.2, 1.4
"""Bytes a token of Japanese text in UTF-8, and as gzip leaves it: measured with Qwen2.5's tokenizer on Japanese
Wikipedia, Aozora Bunko and manuals (3.5 to 4.5, and 0.9 to 1.4)."""
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

    @property
    def kept_bytes(self) -> int:
        return sum(part.bytes for part in self.kept)


def stage_rooms(work: Work) -> tuple[StageRoom, ...]:
    """The stages of a recipe in the order in which they run; those that leave a few megabytes are left out."""
    downloads = [
        StageRoom(
            stage=name,
            kept=() if work.linked else (Part(what=f"{model} in bf16", bytes=model_folder_bytes(shape, BFLOAT16)),),
            scratch_bytes=0,
        )
        for name, model, shape in work.published
    ]
    made = [training_room(run) for run in work.runs]
    if work.is_random:
        weights = Part(what="random weights in bf16", bytes=model_folder_bytes(work.exported, BFLOAT16))
        made.append(StageRoom(stage="chat", kept=(weights,), scratch_bytes=0))
    exports = export_rooms(work.exported, encodings=work.encodings, ids=work.ids)
    return (*data_rooms(work), *downloads, *made, *exports)


def peak_disk_bytes(rooms: Sequence[StageRoom]) -> int:
    """The most that lies on the disk at one time, when stages run one after the other and all that they keep stays.

    dist/ is hard links to what is there and adds nothing.
    """
    before, peak = 0, 0
    for room in rooms:
        before += room.kept_bytes
        peak = max(peak, before + room.scratch_bytes)
    return peak


def data_rooms(work: Work) -> tuple[StageRoom, ...]:
    """Corpus and conversations: at least the tokens that training reads, as text and packed."""
    return tuple(
        StageRoom(
            stage=stage,
            kept=(
                Part(what=f"{tokens:,} tokens packed", bytes=PACKED_BYTES * tokens),
                Part(what="their documents, zipped", bytes=round(ZIPPED_TEXT_BYTES * tokens)),
            ),
            scratch_bytes=round(TEXT_BYTES * tokens),
        )
        for stage, tokens in (("corpus", work.corpus_tokens), ("conversations", work.conversation_tokens))
        if tokens
    )


def model_folder_bytes(geometry: Geometry, weight_bytes: int) -> int:
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


def export_rooms(geometry: Geometry, *, encodings: Sequence[str], ids: int) -> tuple[StageRoom, ...]:
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
            ram_bytes=PROCESS_BYTES + GGUF_BYTES_PER_WEIGHT * geometry.rows * geometry.hidden,
            basis=GGUF_BASIS,
        ),
        StageRoom(
            stage="coreml",
            kept=(Part(what="float16 .mlpackage and tokenizer", bytes=package + TOKENIZER_BYTES),),
            # coremltools writes the package in the system's folder for temporary files, and copies it.
            scratch_bytes=package,
            ram_bytes=PROCESS_BYTES + round(size * weights / COREML_WEIGHTS),
            basis=COREML_BASIS,
            seconds=COREML_SECONDS * weights / COREML_WEIGHTS,
        ),
    )
