"""`python -m instruct conversations | train`: one stage by itself, on one's own conversations and models.

Each verb turns its arguments into the stage's config and runs it into `--out`; running it again finds it done. Every
default is the config's own. It knows no recipe.
"""

import argparse
from pathlib import Path
from typing import Any

from common.cli import run
from common.store import run_alone

Subparsers = Any  # argparse's own class for this is private


def main(arguments: list[str]) -> None:
    """Parses `arguments` and runs one verb."""
    # Here and not above: reading this module, as a test or a tool does, need not load torch.
    from instruct.train_cli import add_verbs

    parser = argparse.ArgumentParser(prog="python -m instruct", description="Conversations to a chat checkpoint.")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_conversations(subparsers)
    add_verbs(subparsers)
    parsed = parser.parse_args(arguments)
    parsed.function(parsed)


def _add_conversations(subparsers: Subparsers) -> None:
    from instruct.conversations import ConversationsConfig

    default = ConversationsConfig()
    verb = subparsers.add_parser(
        "conversations",
        help="check, render and pack conversations",
        description="Writes documents/, packed/, tokenizer/ and data_card.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    verb.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help=".jsonl or .jsonl.gz with `messages`, or a folder with conversations.jsonl",
    )
    verb.add_argument(
        "--tokenizer", type=Path, required=True, metavar="DIR", help="a tokenizer folder with a chat template"
    )
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    verb.add_argument(
        "--sequence-tokens",
        type=int,
        default=default.sequence_tokens,
        metavar="N",
        help="tokens in a packed row; longer conversations are dropped",
    )
    for split in ("calibration", "validation", "test"):
        verb.add_argument(
            f"--{split}-share",
            type=float,
            default=getattr(default.shares, split),
            metavar="X",
            help=f"share of the conversations for {split}, 0 to 1",
        )
    verb.add_argument(
        "--max-bad-share",
        type=float,
        default=default.max_bad_share,
        metavar="X",
        help="bad rows allowed, as a share, 0 to 1",
    )
    verb.add_argument("--seed", type=int, default=default.seed, metavar="N", help="chooses another cut into splits")
    verb.set_defaults(function=_conversations)


def _conversations(parsed: argparse.Namespace) -> None:
    from common.documents import kept_line
    from common.splits import Shares
    from instruct.conversations import ConversationsConfig, conversations

    config = ConversationsConfig(
        sequence_tokens=parsed.sequence_tokens,
        shares=Shares(calibration=parsed.calibration_share, validation=parsed.validation_share, test=parsed.test_share),
        max_bad_share=parsed.max_bad_share,
        seed=parsed.seed,
    )
    made = run_alone(conversations, config, parsed.out, *parsed.files, parsed.tokenizer)
    print(kept_line(made.manifest["facts"]))


if __name__ == "__main__":
    run(main)
