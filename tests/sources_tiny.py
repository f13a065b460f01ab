"""What tests of sources share: the files of a small model, and a SOURCES folder that holds them."""

import json
import struct
from pathlib import Path


def safetensors(**shapes: tuple[int, ...]) -> bytes:
    """A file of zeros with these tensors, in float32."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


MODEL = {
    "config.json": b'{"model_type": "qwen2"}',
    "tokenizer.json": b"{}",
    "model-00001-of-00002.safetensors": safetensors(a=(2, 3)),
    "model-00002-of-00002.safetensors": safetensors(b=(4,)),
    "model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}',
    "LICENSE": b"the licence",
    "pytorch_model.bin": b"not wanted",
    "original/consolidated.safetensors": safetensors(c=(1,)),
    "README.md": b"# A model",
}
WANTED = tuple(sorted(set(MODEL) - {"pytorch_model.bin", "original/consolidated.safetensors", "README.md"}))


def local(root: Path, name: str, files: dict[str, bytes]) -> Path:
    for path, body in files.items():
        (root / name / path).parent.mkdir(parents=True, exist_ok=True)
        (root / name / path).write_bytes(body)
    return root
