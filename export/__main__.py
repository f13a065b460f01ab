"""`python -m export gguf|coreml CHECKPOINT --out DIR`: one export by itself, from any supported model folder.

Both run their stage under the store's rules: complete or absent, and done once. `python -m export publish FOLDER
--repo ORG/NAME` prints what an upload of a finished release would do, and with --upload does it.
"""

import argparse
from pathlib import Path

from common.cli import command, run


def main(arguments: list[str]) -> int:
    """Parses the command line and runs one verb; 1 where a dry run found something in the way."""
    parser = command("export", "Export a checkpoint for a phone; publish a release.")
    add_verb = parser.add_subparsers(dest="verb", required=True, metavar="VERB").add_parser
    gguf = add_verb("gguf", help="GGUF files for llama.cpp", description="Write GGUF files for llama.cpp.")
    encodings = "F16, Q8_0, Q5_K_M or Q4_K_M, a file each (default: F16, Q8_0 and Q4_K_M)"
    gguf.add_argument("--encoding", nargs="+", action="extend", metavar="TYPE", help=encodings)
    package = "a Core ML package with the KV cache as state"
    coreml = add_verb("coreml", help=package, description=f"Write {package}.")
    coreml.add_argument("--weights", default="float16", metavar="TYPE", help="how weights are stored: float16")
    coreml.add_argument("--context", type=int, default=2048, metavar="N", help="tokens of the KV cache")
    for verb, function in ((gguf, _gguf), (coreml, _coreml)):
        verb.set_defaults(function=function)
        verb.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a Qwen2, Qwen3 or Llama model")
        verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; it must not exist")
        verb.add_argument("--licence", metavar="SPDX", help="of the model (default: by the sources of its data)")
    dry_run = "Print what an upload of a release to the hub would do; with --upload, do it."
    publish = add_verb("publish", help="a finished release to the hub; a dry run by default", description=dry_run)
    publish.set_defaults(function=_publish)
    publish.add_argument("folder", type=Path, metavar="FOLDER", help="a release, such as dist/mini")
    publish.add_argument("--repo", required=True, metavar="ORG/NAME", help="model repository; made if it is absent")
    publish.add_argument("--upload", action="store_true", help="send it; needs HF_TOKEN in the environment")
    publish.add_argument("--private", action="store_true", help="make the repository private")
    publish.add_argument("--message", metavar="TEXT", help="of the commit (default: Release NAME)")
    checked = "you have read the terms of the sources whose licence is not recorded, and they allow it"
    publish.add_argument("--licence-checked", action="store_true", help=checked)
    options = parser.parse_args(arguments)
    return options.function(options)


def _gguf(options: argparse.Namespace) -> int:
    from common.store import run_alone
    from export.gguf import GgufConfig, gguf

    encodings = {"encodings": tuple(options.encoding)} if options.encoding else {}
    config = GgufConfig(stem=options.checkpoint.resolve().name, licence=options.licence, **encodings)
    made = run_alone(gguf, config, options.out, options.checkpoint)
    for file in made.manifest["facts"]["files"]:
        size, bits = f"{file['bytes'] / 1e6:,.1f} MB", f"{file['bits_per_weight']:.2f} bits per weight"
        print(f"{options.out / file['file']}  {size}  {bits}")
        for fallback in file["fallbacks"]:
            print(f"  {fallback['tensor']} in {fallback['type']}: rows of {fallback['row_length']}")
    return 0


def _coreml(options: argparse.Namespace) -> int:
    from common.store import run_alone
    from export.coreml import CoremlConfig, coreml

    stem, context_tokens = options.checkpoint.resolve().name, options.context
    config = CoremlConfig(stem=stem, context_tokens=context_tokens, weights=options.weights, licence=options.licence)
    facts = run_alone(coreml, config, options.out, options.checkpoint).manifest["facts"]
    print(facts["skipped"] if "skipped" in facts else f"{options.out / facts['file']}  {facts['bytes'] / 1e6:,.1f} MB")
    return 0


def _publish(options: argparse.Namespace) -> int:
    from export.upload import upload

    names = ("private", "message", "licence_checked")
    return upload(options.folder, options.repo, send=options.upload, **{name: getattr(options, name) for name in names})


if __name__ == "__main__":
    run(main)
