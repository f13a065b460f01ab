"""`python -m distill corpus | tokenizer | init | train`: one stage by itself, on one's own text and models.

Each verb turns its arguments into the stage's config and runs it into `--out`; running it again finds it done. Every
default is the config's own. It knows no recipe.
"""

import argparse
from pathlib import Path
from typing import Any

from common.cli import HelpWithDefaults, command, run
from common.store import run_alone

Subparsers = Any  # argparse's own class for this is private


def main(arguments: list[str]) -> None:
    """Parses `arguments` and runs one verb."""
    # Here and not above: reading this module, as a test or a tool does, need not load torch.
    from distill.corpus.cli import add_verb
    from distill.train_cli import add_verbs

    parser = command("distill", "Text and a teacher to a base checkpoint.")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_verb(subparsers)
    _add_tokenizer(subparsers)
    add_verbs(subparsers)
    parsed = parser.parse_args(arguments)
    parsed.function(parsed)


def _add_tokenizer(subparsers: Subparsers) -> None:
    from distill.train_tokenizer import NUM_BYTES, TokenizerConfig

    default = TokenizerConfig(vocabulary=2 * NUM_BYTES)
    verb = subparsers.add_parser(
        "tokenizer",
        help="train a byte-level BPE tokenizer",
        description="Writes a Hugging Face tokenizer folder: Qwen2's pre-tokenizer, ChatML.",
        formatter_class=HelpWithDefaults,
    )
    _add_files(verb)
    verb.add_argument("--vocabulary", type=int, required=True, metavar="N", help="ids in total")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    verb.add_argument(
        "--min-frequency",
        type=int,
        default=default.min_frequency,
        metavar="N",
        help="times that a character or a pair must occur",
    )
    verb.add_argument(
        "--character-share",
        type=float,
        default=default.character_share,
        metavar="X",
        help="largest share of the ids beyond bytes that building characters may take, 0 to 1",
    )
    verb.add_argument(
        "--max-characters", type=int, default=default.max_characters, metavar="N", help="characters of text read"
    )
    _add_max_bad_share(verb, default.max_bad_share)
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


def _add_files(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help=".jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt with a `text`, or a folder with text.jsonl",
    )


def _add_max_bad_share(verb: argparse.ArgumentParser, default: float) -> None:
    verb.add_argument(
        "--max-bad-share", type=float, default=default, metavar="X", help="bad rows allowed, as a share, 0 to 1"
    )


if __name__ == "__main__":
    run(main)
