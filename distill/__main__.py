"""`python -m distill corpus | tokenizer | init | train`: one stage by itself, on your own text and models.

Each verb makes the stage's config of its arguments and runs the stage into `--out`; a second run finds it done.
"""

import argparse
from pathlib import Path
from typing import Any

from common.cli import command, run
from common.store import run_alone


def main(arguments: list[str]) -> None:
    """Parse `arguments` and run one verb."""
    # Imported here: reading this module, as a test or a tool does, need not load torch.
    from distill.corpus.cli import add_verb
    from distill.train_cli import add_verbs

    parser = command("distill", "Text and a teacher to a base checkpoint.")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_verb(subparsers)
    _add_tokenizer(subparsers)
    add_verbs(subparsers)
    parsed = parser.parse_args(arguments)
    parsed.function(parsed)


def _add_tokenizer(subparsers: Any) -> None:
    from distill.train_tokenizer import NUM_BYTES, TokenizerConfig

    default = TokenizerConfig(vocabulary=2 * NUM_BYTES)
    verb = subparsers.add_parser(
        "tokenizer",
        help="train a byte-level BPE tokenizer",
        description="Writes a Hugging Face tokenizer folder: Qwen2's pre-tokenizer, ChatML.",
    )
    text = ".jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt with a `text`, or a folder with text.jsonl"
    verb.add_argument("files", type=Path, nargs="+", metavar="FILE", help=text)
    verb.add_argument("--vocabulary", type=int, required=True, metavar="N", help="ids in total")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    for name, metavar, meaning in (
        ("min_frequency", "N", "times that a character or a pair must occur"),
        ("character_share", "X", "largest share of the ids beyond bytes for building characters, 0 to 1"),
        ("max_characters", "N", "characters of text read"),
        ("max_bad_share", "X", "bad rows allowed, as a share, 0 to 1"),
    ):
        value, flag = getattr(default, name), "--" + name.replace("_", "-")
        verb.add_argument(flag, type=type(value), default=value, metavar=metavar, help=meaning)
    verb.set_defaults(function=_tokenizer)


def _tokenizer(parsed: argparse.Namespace) -> None:
    from distill.train_tokenizer import TokenizerConfig, train_tokenizer

    config = TokenizerConfig(
        vocabulary=parsed.vocabulary,
        min_frequency=parsed.min_frequency,
        character_share=parsed.character_share,
        max_characters=parsed.max_characters,
        max_bad_share=parsed.max_bad_share,
    )
    run_alone(train_tokenizer, config, parsed.out, *parsed.files)


if __name__ == "__main__":
    run(main)
