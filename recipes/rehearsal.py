"""The TinySwallow recipe at its true size with random weights: its memory, time and file sizes, without a download.

Model shapes, encodings and context are those of TinySwallow. Text and questions are a few of the generated world, since
random weights answer nothing. Where a GPU holds the 32B teacher and the student together, twenty optimizer steps show
the speed of the distillation. `figure_lines` prints measured figures next to computed ones.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from common.documents import Shares
from common.gguf_header import read_header
from common.model_shape import KNOWN, ModelShape
from common.store import Artifact
from distill.corpus import CorpusConfig
from distill.initial import InitConfig
from eval.evaluation import EvaluationConfig
from eval.report import Licence, ReportConfig
from export.card import CardConfig
from export.coreml import CoremlConfig
from export.gguf import GgufConfig
from export.release import DistConfig
from recipes.plan.gguf_bytes import QWEN_VOCABULARY_BYTES, computed_tensor_bytes
from recipes.recipe import Recipe
from recipes.stages.gpu_steps import GpuStepsConfig
from recipes.stages.random_model import RandomModelConfig
from recipes.stages.synthetic_tokenizer import SyntheticTokenizerConfig
from recipes.toy_world import WorldConfig

STEM = "Random-1.5B"
CONTEXT_TOKENS = 4096

STUDENT = json.dumps(KNOWN["Qwen/Qwen2.5-1.5B-Instruct"], sort_keys=True)
TEACHER = json.dumps(KNOWN["Qwen/Qwen2.5-32B-Instruct"], sort_keys=True)

WORLD = WorldConfig(text_characters=100_000, num_conversations=10, questions_per_shape=10)
TOKENIZER = SyntheticTokenizerConfig()
CORPUS = CorpusConfig(
    sequence_tokens=512,
    shares=Shares(calibration=0.01, validation=0.01, test=0.02),
    near_duplicates=None,
    reason_off="synthetic: repetition is intended, no personal data, and no model learns from it",
)
MODEL = RandomModelConfig(init=InitConfig(config_json=STUDENT))
"""Replaces student, base and chat: later stages need a checkpoint, whatever its weights are."""
GGUF = GgufConfig(stem=STEM, encodings=("F16", "Q8_0", "Q5_K_M", "Q4_K_M"))
COREML = CoremlConfig(stem=STEM, context_tokens=CONTEXT_TOKENS)
EVALUATION = EvaluationConfig(
    items_per_shape=1,
    items_per_shape_other=1,
    main_encodings=("Q4_K_M",),
    fidelity_tokens=256,
    context_tokens=CONTEXT_TOKENS,
    sample_prompts=("こんにちは。",),
    sample_questions=0,
    sample_max_tokens=8,
)
GPU = GpuStepsConfig(teacher=InitConfig(config_json=TEACHER, seed=1))
REPORT = ReportConfig(
    recipe="rehearsal",
    licences=(
        Licence(what="the generated texts, conversations and questions", licence="Apache-2.0"),
        Licence(what="the weights, random numbers", licence="Apache-2.0"),
    ),
)
DIST = DistConfig(
    card=CardConfig(
        title="Random-1.5B, a rehearsal",
        description_ja=(
            "実寸の重みを乱数で埋めた、リハーサル用のファイルです。学習は一切しておらず、意味のある文章は書けません。メモリ、"
            "速度、ファイルの大きさを測るためのものです。"
        ),
        description_en=(
            "Files of a rehearsal: weights of the true size, filled with random numbers. Nothing was trained and it "
            "writes no sensible text; it is there to measure memory, speed and file sizes."
        ),
        licence="Apache-2.0",
    )
)


def rehearsal() -> Recipe:
    """The rehearsal."""
    return Recipe(
        name="rehearsal",
        world=WORLD,
        tokenizer=TOKENIZER,
        corpus=CORPUS,
        teacher=None,
        student_before=None,
        base=None,
        conversations=None,
        chat=MODEL,
        gguf=GGUF,
        coreml=COREML,
        gpu_steps=GPU,
        evaluation=EVALUATION,
        report=REPORT,
        dist=DIST,
    )


def figure_lines(recipe: Recipe, made: Mapping[str, Artifact]) -> Iterator[str]:
    """The figures of a rehearsal's build, each as one line of JSON; nothing for other recipes."""
    if isinstance(recipe.chat, RandomModelConfig):
        for figure in rehearsal_figures(made, ModelShape.of(recipe.chat.init.fields())):
            yield json.dumps(figure, ensure_ascii=False)


def rehearsal_figures(made: Mapping[str, Artifact], shape: ModelShape) -> Iterator[dict[str, Any]]:
    """The figures of a build of artifacts `made`, whose exported model has `shape`.

    Yields:
        `stage, seconds, peak_bytes` of each artifact (without the child processes that run llama.cpp); `gguf_figures`;
        of the Core ML package `file, bytes, computed_bytes, bytes_ratio`, computed as 2 bytes for each weight; the
        facts of the GPU steps.

    Raises:
        UserError: a GGUF file that is damaged.
    """
    for name, artifact in made.items():
        yield {"stage": name} | {key: artifact.manifest[key] for key in ("seconds", "peak_bytes")}
    if "gguf" in made:
        yield from gguf_figures(made["gguf"], shape)
    facts = made["coreml"].manifest["facts"] if "coreml" in made else {}
    if "file" in facts:  # absent where coremltools has no wheel
        computed = 2 * shape.parameters()
        sizes = {"bytes": facts["bytes"], "computed_bytes": computed, "bytes_ratio": facts["bytes"] / computed}
        yield {"file": facts["file"]} | sizes
    if "gpu_steps" in made:
        yield {"stage": "gpu_steps"} | made["gpu_steps"].manifest["facts"]


def gguf_figures(ggufs: Artifact, shape: ModelShape) -> Iterator[dict[str, Any]]:
    """Of each file `file, encoding, bytes`, measured and computed `tensor_bytes` with their ratio, `metadata_bytes`
    (the rest: vocabulary, header, gaps), and `bytes_ratio`, to the computed tensors plus Qwen2.5's vocabulary.
    """
    for file in ggufs.manifest["facts"]["files"]:
        contents = read_header(ggufs.folder / file["file"])
        tensor_bytes = sum(tensor.bytes for tensor in contents.tensors.values())
        computed = computed_tensor_bytes(shape, file["encoding"])
        yield {
            "file": file["file"],
            "encoding": file["encoding"],
            "bytes": contents.bytes,
            "tensor_bytes": tensor_bytes,
            "computed_tensor_bytes": computed,
            "tensor_bytes_ratio": tensor_bytes / computed,
            "metadata_bytes": contents.bytes - tensor_bytes,
            "bytes_ratio": contents.bytes / (computed + QWEN_VOCABULARY_BYTES),
        }
