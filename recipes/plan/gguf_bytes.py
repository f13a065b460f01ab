"""The bytes of a GGUF file's tensors, computed from the model's shape alone: what a measurement is compared with.

They follow from the shapes, from the type that llama.cpp's quantiser gives each tensor (src/llama-quant.cpp) and from
that type's blocks. Written from the format's rules and independent of the exporter, so that the two can disagree.
"""

import math

from common.errors import unknown_name
from common.model_shape import ModelShape

BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "Q8_0": (32, 34),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
"""Weights of one block of a row, and its bytes."""
BASE_TYPES = {"F16": "F16", "Q8_0": "Q8_0", "Q5_K_M": "Q5_K", "Q4_K_M": "Q4_K"}
"""The type of most matrices in each encoding."""
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What takes the place of a type whose blocks do not fit a row."""
QWEN_VOCABULARY_BYTES = 5_920_747
"""Tokens, types and merges of Qwen2.5's tokenizer in a GGUF: 8 bytes and its UTF-8 for a string, 4 for a type."""


def tensor_type(model: ModelShape, encoding: str, name: str, shape: tuple[int, ...]) -> str:
    """The type of a tensor in an encoding of `BASE_TYPES`; of 80 layers llama.cpp makes exceptions not made here."""
    if len(shape) == 1:
        return "F32"
    wanted = base = BASE_TYPES[encoding]
    if encoding.endswith("_K_M"):
        if name == ("token_embd.weight" if model.tie_word_embeddings else "output.weight"):
            wanted = "Q6_K"
        elif ".attn_v." in name or ".ffn_down." in name:
            wanted = "Q6_K" if _has_more_bits(int(name.split(".")[1]), model.num_hidden_layers) else base
    if shape[-1] % BLOCKS[wanted][0]:
        wanted = FALLBACKS.get(wanted, "F16")
    return wanted if shape[-1] % BLOCKS[wanted][0] == 0 else "F16"


def _has_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's `use_more_bits`: the first and last eighth of the layers, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def computed_tensor_bytes(model: ModelShape, encoding: str) -> int:
    """Bytes of all tensors of a GGUF in `encoding`, without the file's metadata and the gaps that align them.

    Raises:
        UserError: an encoding whose rules are not here.
    """
    if encoding not in BASE_TYPES:
        raise unknown_name("an encoding", encoding, BASE_TYPES)
    total = 0
    for name, shape in model.tensors():
        weights, size = BLOCKS[tensor_type(model, encoding, name, shape)]
        total += math.prod(shape) // weights * size
    return total
