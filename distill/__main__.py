"""`python -m distill corpus | tokenizer | init | train`: one stage alone, on the user's text and models.

Each verb turns its arguments into the config of the stage and runs it into `--out`; a second run finds it done.
Defaults are those of the config. Independent of recipes.
"""

import argparse
from pathlib import Path
from typing import Any

from common.cli import command, run
from common.rows import SUFFIXES
from common.store import run_alone


def main(arguments: list[str]) -> None:
    """Parse `arguments` and run one verb."""
    # Imported here, so that an import of this module does not load torch.
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
    add = verb.add_argument
    files = f"{', '.join(SUFFIXES)} with a `text`, or a folder with text.jsonl"
    add("files", type=Path, nargs="+", metavar="FILE", help=files)
    add("--vocabulary", type=int, required=True, metavar="N", help="ids in total")
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    for name, kind, metavar, text in (
        ("min_frequency", int, "N", "smallest number of occurrences of a character or a pair that becomes a token"),
        ("character_share", float, "X", "largest share of the ids beyond bytes spent on building characters, 0 to 1"),
        ("max_characters", int, "N", "characters of text to read"),
        ("max_bad_share", float, "X", "share of bad rows allowed, 0 to 1"),
    ):
        option = f"--{name.replace('_', '-')}"
        add(option, type=kind, default=getattr(default, name), metavar=metavar, help=text)
    verb.set_defaults(function=_tokenizer)


def _tokenizer(parsed: argparse.Namespace) -> None:
    from distill.train_tokenizer import TokenizerConfig, train_tokenizer

    names = ("vocabulary", "min_frequency", "character_share", "max_characters", "max_bad_share")
    config = TokenizerConfig(**{name: getattr(parsed, name) for name in names})
    run_alone(train_tokenizer, config, parsed.out, *parsed.files)


if __name__ == "__main__":
    run(main)
