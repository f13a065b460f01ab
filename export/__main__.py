"""`python -m export gguf|coreml CHECKPOINT --out DIR`: one export by itself, from any supported model folder.

Each verb runs its stage under the store's rules: complete or absent, and done once.
"""

import argparse
from pathlib import Path

from common.cli import run


def main(arguments: list[str]) -> None:
    """Parses the command line and runs one stage."""
    parser = argparse.ArgumentParser(prog="python -m export", description="Export a checkpoint for a phone.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in (
        ("gguf", "GGUF files for llama.cpp"),
        ("coreml", "a Core ML package with the KV cache as state"),
    ):
        command = verbs.add_parser(verb, help=what, description=f"Write {what}.")
        command.add_argument(
            "checkpoint", type=Path, help="model folder: a Qwen2, Qwen3 or Llama-family Hugging Face model"
        )
        command.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist yet")
        if verb == "gguf":
            command.add_argument(
                "--encoding",
                nargs="+",
                action="extend",
                help="F16, Q8_0 or Q4_K_M, a file each; default: all three",
            )
        else:
            command.add_argument("--weights", default="float16", help="float16, the default")
            command.add_argument("--context", type=int, default=2048, help="tokens of the KV cache; default: 2048")
    options = parser.parse_args(arguments)
    stem = options.checkpoint.resolve().name
    if options.verb == "gguf":
        _gguf(options.checkpoint, options.out, stem, options.encoding)
    else:
        _coreml(options.checkpoint, options.out, stem, weights=options.weights, context_tokens=options.context)


def _gguf(checkpoint: Path, out: Path, stem: str, encodings: list[str] | None) -> None:
    from common.store import run_alone
    from export.gguf import GgufConfig, gguf

    config = GgufConfig(stem=stem, encodings=tuple(encodings)) if encodings else GgufConfig(stem=stem)
    made = run_alone(gguf, config, out, checkpoint)
    for file in made.manifest["facts"]["files"]:
        print(f"{out / file['file']}  {file['bytes'] / 1e6:,.1f} MB  {file['bits_per_weight']:.2f} bits per weight")
        for fallback in file["fallbacks"]:
            print(f"  {fallback['tensor']} in {fallback['type']}: rows of {fallback['row_length']}")


def _coreml(checkpoint: Path, out: Path, stem: str, *, weights: str, context_tokens: int) -> None:
    from common.store import run_alone
    from export.coreml import CoremlConfig, coreml

    config = CoremlConfig(stem=stem, weights=weights, context_tokens=context_tokens)
    facts = run_alone(coreml, config, out, checkpoint).manifest["facts"]
    print(facts["skipped"] if "skipped" in facts else f"{out / facts['file']}  {facts['bytes'] / 1e6:,.1f} MB")


if __name__ == "__main__":
    run(main)
