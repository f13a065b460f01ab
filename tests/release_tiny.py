"""What the tests of cards, releases and uploads share: small GGUF files, sources, a release folder."""

from pathlib import Path

import numpy as np
from export_tiny import TEMPLATE, workspace
from gguf import GGUFWriter

from common.provenance import DataSource, write_sources
from export.card import CardConfig
from export.release import DistConfig, dist

DEFAULT_SYSTEM = "You are a swallow.\nBe brief."
SPEAKS_FIRST = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a swallow.\nBe brief.<|im_end|>\n' }}{% endif %}" + TEMPLATE
)
HEADERS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{{ '[assistant] ' }}"
OWN = DataSource(name="own.jsonl", licence="Apache-2.0", stage="corpus")
LLAMA = DataSource(
    name="org/talks",
    licence="Llama 3.1 Community License",
    attribution="Built with Llama",
    obligations=('A model trained on this has a name that begins with "Llama".',),
    stage="conversations",
)


def write_gguf(path: Path, template: str | None = TEMPLATE) -> Path:
    """A GGUF file with a vocabulary of four tokens, one tensor and a chat template."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, "qwen2")
    writer.add_token_list(["a", "<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    writer.add_eos_token_id(3)
    writer.add_eot_token_id(3)
    if template is not None:
        writer.add_chat_template(template)
    writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def release(root: Path, *sources: DataSource, title: str | None = None) -> Path:
    """A folder as `dist` leaves it."""
    for encoding in ("Q4_K_M", "Q8_0"):
        path = write_gguf(root / "gguf" / f"T-{encoding}.gguf")
        path.write_bytes(path.read_bytes() + encoding.encode())
    write_sources(root / "gguf", sources)
    space = workspace(root / "dist")
    dist(DistConfig(card=CardConfig(title=title)), space, root / "gguf", None, None)
    return space.folder
