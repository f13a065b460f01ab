"""`python -m export gguf|coreml CHECKPOINT --out DIR`: one export by itself, from any supported model folder.

Each of these runs its stage under the store's rules: complete or absent, and done once. `python -m export publish
FOLDER --repo ORG/NAME` tells what an upload of a finished release would do, and with --upload does it.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from common.cli import command, run


def main(arguments: list[str]) -> int:
    """Parses the command line and runs one verb; 1 where a dry run found something in the way."""
    parser = command("export", "Export a checkpoint for a phone; publish a release.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in (
        ("gguf", "GGUF files for llama.cpp"),
        ("coreml", "a Core ML package with the KV cache as state"),
    ):
        export = verbs.add_parser(verb, help=what, description=f"Write {what}.")
        export.add_argument(
            "checkpoint", type=Path, help="model folder: a Qwen2, Qwen3 or Llama-family Hugging Face model"
        )
        export.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist yet")
        export.add_argument("--licence", help="of the model, an SPDX expression; default: what its data states")
        if verb == "gguf":
            export.add_argument(
                "--encoding",
                nargs="+",
                action="extend",
                help="F16, Q8_0, Q5_K_M or Q4_K_M, a file each; default: F16, Q8_0 and Q4_K_M",
            )
        else:
            export.add_argument("--weights", default="float16", help="float16, the default")
            export.add_argument("--context", type=int, default=2048, help="tokens of the KV cache; default: 2048")
    _add_publish(verbs.add_parser("publish", help="a finished release to the hub; a dry run by default"))
    options = parser.parse_args(arguments)
    if options.verb == "publish":
        return _publish(options)
    (_gguf if options.verb == "gguf" else _coreml)(options)
    return 0


def _add_publish(command: argparse.ArgumentParser) -> None:
    command.description = "Print what an upload of a release to the hub would do; with --upload, do it."
    command.add_argument("folder", type=Path, help="a release, such as dist/mini")
    command.add_argument("--repo", required=True, metavar="ORG/NAME", help="model repository; created if it is absent")
    command.add_argument("--upload", action="store_true", help="send it; needs HF_TOKEN in the environment")
    command.add_argument("--private", action="store_true", help="make the repository private")
    command.add_argument("--message", help="of the commit; default: Release NAME")
    command.add_argument(
        "--licence-checked",
        action="store_true",
        help="you have read the terms of the sources whose licence is not recorded, and they allow it",
    )


def _gguf(options: argparse.Namespace) -> None:
    from common.store import run_alone
    from export.gguf import GgufConfig, gguf

    config = GgufConfig(stem=options.checkpoint.resolve().name, licence=options.licence)
    if options.encoding:
        config = replace(config, encodings=tuple(options.encoding))
    made = run_alone(gguf, config, options.out, options.checkpoint)
    for file in made.manifest["facts"]["files"]:
        size, bits = f"{file['bytes'] / 1e6:,.1f} MB", f"{file['bits_per_weight']:.2f} bits per weight"
        print(f"{options.out / file['file']}  {size}  {bits}")
        for fallback in file["fallbacks"]:
            print(f"  {fallback['tensor']} in {fallback['type']}: rows of {fallback['row_length']}")


def _coreml(options: argparse.Namespace) -> None:
    from common.store import run_alone
    from export.coreml import CoremlConfig, coreml

    config = CoremlConfig(
        stem=options.checkpoint.resolve().name,
        weights=options.weights,
        context_tokens=options.context,
        licence=options.licence,
    )
    facts = run_alone(coreml, config, options.out, options.checkpoint).manifest["facts"]
    print(facts["skipped"] if "skipped" in facts else f"{options.out / facts['file']}  {facts['bytes'] / 1e6:,.1f} MB")


def _publish(options: argparse.Namespace) -> int:
    from export.upload import upload

    return upload(
        options.folder,
        options.repo,
        send=options.upload,
        private=options.private,
        message=options.message,
        licence_checked=options.licence_checked,
    )


if __name__ == "__main__":
    run(main)
