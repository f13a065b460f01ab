"""What a rehearsal has measured, as JSON lines: time and memory by stage, sizes by file beside the computed ones.

Read from manifests and from the files' own headers after the build; nothing is measured again.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from common.gguf_header import read_header
from common.model_shape import ModelShape
from common.store import Artifact
from recipes.sizes import QWEN_VOCABULARY_BYTES, computed_tensor_bytes


def figure_lines(done: Mapping[str, Artifact], geometry: ModelShape) -> Iterator[str]:
    """`rehearsal_figures`, each as one line of JSON."""
    for figure in rehearsal_figures(done, geometry):
        yield json.dumps(figure, ensure_ascii=False)


def rehearsal_figures(done: Mapping[str, Artifact], geometry: ModelShape) -> Iterator[dict[str, Any]]:
    """The figures of a build.

    Args:
        done: artifacts by name; of `gguf`, `coreml` and `gpu_steps` those that are there are read.
        geometry: of the model that was exported.

    Yields:
        `stage, seconds, peak_bytes` of each artifact (the process itself, without the children that run llama.cpp);
        of each GGUF what `gguf_figures` tells; of the Core ML package `file, bytes, computed_bytes, bytes_ratio`
        against 2 bytes a weight; of the GPU steps their facts.

    Raises:
        UserError: a GGUF file that is damaged.
    """
    for name, artifact in done.items():
        yield {"stage": name} | {key: artifact.manifest[key] for key in ("seconds", "peak_bytes")}
    if "gguf" in done:
        yield from gguf_figures(done["gguf"], geometry)
    facts = done["coreml"].manifest["facts"] if "coreml" in done else {}
    if "file" in facts:  # absent where coremltools has no wheel
        computed = 2 * geometry.parameters()
        sizes = {"bytes": facts["bytes"], "computed_bytes": computed, "bytes_ratio": facts["bytes"] / computed}
        yield {"file": facts["file"]} | sizes
    if "gpu_steps" in done:
        yield {"stage": "gpu_steps"} | done["gpu_steps"].manifest["facts"]


def gguf_figures(ggufs: Artifact, geometry: ModelShape) -> Iterator[dict[str, Any]]:
    """Of each file `file, encoding, bytes`, measured and computed `tensor_bytes` with their ratio, `metadata_bytes`
    (everything else: vocabulary, header, gaps), and `bytes_ratio`: to the computed tensors and Qwen2.5's vocabulary.
    """
    for file in ggufs.manifest["facts"]["files"]:
        contents = read_header(ggufs.folder / file["file"])
        tensor_bytes = sum(tensor.bytes for tensor in contents.tensors.values())
        computed = computed_tensor_bytes(geometry, file["encoding"])
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
