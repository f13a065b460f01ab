"""Export a Hugging Face folder (Qwen2, Qwen3 or the Llama family) to one GGUF file.

    .venv/bin/python examples/export_one.py CHECKPOINT OUT --encoding Q4_K_M

llama.cpp has loaded the file before it gets its name. OUT also holds `manifest.json`, with the file's checksum.
"""

from pathlib import Path

from common.cli import Command, run
from common.store import run_alone
from export.gguf import GgufConfig, gguf


def main(arguments: list[str]) -> None:
    """Writes the file and prints what it weighs."""
    parser = Command(description="Export CHECKPOINT to one GGUF file.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--encoding", default="Q8_0", metavar="NAME", help="weight scheme")
    parsed = parser.parse_args(arguments)

    config = GgufConfig(stem=parsed.checkpoint.resolve().name, encodings=(parsed.encoding,))
    made = run_alone(gguf, config, parsed.out, parsed.checkpoint)
    (file,) = made.manifest["facts"]["files"]
    print(f"{made.folder / file['file']}: {file['bytes']:,} bytes, {file['bits_per_weight']:.2f} bits per weight")


if __name__ == "__main__":
    run(main)
