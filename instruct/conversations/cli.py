"""The verb `python -m instruct conversations`: its options, and the config and inputs that they stand for."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from common.cli import HelpWithDefaults
from common.documents import kept_lines
from common.rows import SUFFIXES
from common.sources import local_mirror, parse_name, require_weights
from common.splits import Shares
from common.store import run_alone
from instruct.conversations.config import ConversationsConfig, ConversationSource
from instruct.conversations.filters import FiltersConfig
from instruct.conversations.lmsys import PASSPHRASE_VARIABLE
from instruct.conversations.lmsys_rows import LmsysConfig
from instruct.conversations.published import published_source, set_names
from instruct.conversations.stage import conversations

Subparsers = Any  # argparse's own class for this is private


def add_verb(subparsers: Subparsers) -> None:
    """Adds the verb `conversations`."""
    verb = subparsers.add_parser(
        "conversations",
        help="check, render and pack conversations",
        description="Writes documents/, packed/, tokenizer/ and data_card.json, which tells what was removed and why.",
        epilog=f"Known sets: {', '.join(set_names())}. The LMSYS set takes its passphrase from the environment "
        f"variable {PASSPHRASE_VARIABLE} and needs your own copy of lmsys/lmsys-chat-1m.",
        formatter_class=HelpWithDefaults,
    )
    _add_files(verb.add_argument)
    _add_rules(verb.add_argument)
    _add_splits(verb.add_argument)
    verb.set_defaults(function=_conversations)


def _add_files(add: Callable[..., Any]) -> None:
    kinds = ", ".join(suffix for suffix in SUFFIXES if suffix != ".txt")
    add(
        "files",
        nargs="+",
        metavar="FILE_OR_SET",
        help=f"{kinds} of conversations in a usual layout, a folder with conversations.jsonl, or a known set: "
        "ORG/NAME[:PART][@REVISION]",
    )
    add("--tokenizer", type=Path, required=True, metavar="DIR", help="a tokenizer folder with a chat template")
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    add(
        "--sources",
        type=Path,
        metavar="DIR",
        help="DIR/ORG/NAME stands in for the hub (default: $SOURCES)",
    )
    add(
        "--benchmarks",
        type=Path,
        metavar="DIR",
        help="remove conversations that hold an item of a benchmark in DIR (default: none is looked for)",
    )
    add(
        "--weights",
        type=float,
        nargs="+",
        metavar="X",
        help="share of the rows for each FILE_OR_SET, in their order: sources are thinned, never repeated "
        "(default: everything of all)",
    )


def _add_rules(add: Callable[..., Any]) -> None:
    default = ConversationsConfig()
    add("--sequence-tokens", type=int, default=default.sequence_tokens, metavar="N", help="tokens in a packed row")
    add(
        "--overlong",
        choices=("drop", "cut"),
        default=default.overlong,
        help="conversations longer than a row go, or are cut after the last answer that fits",
    )
    number = {"type": int, "metavar": "N"}
    filters = default.filters
    add(
        "--min-turn-characters",
        **number,
        default=filters.min_turn_characters,
        help="remove conversations with a shorter turn",
    )
    add(
        "--max-turn-characters",
        **number,
        default=filters.max_turn_characters,
        help="remove conversations with a longer turn (default: a turn may be of any length)",
    )
    add(
        "--min-japanese-share",
        type=float,
        default=filters.min_japanese_share,
        metavar="X",
        help="remove what is asked in Japanese and answered with fewer Japanese letters than this share; 0 keeps all",
    )
    add(
        "--drop-refusals",
        action="store_true",
        help="remove conversations in which the assistant declines (default: keep them)",
    )
    add(
        "--keep-personal-data",
        action="store_true",
        help="LMSYS sets: keep rows with blacked-out personal data (default: remove them)",
    )
    add(
        "--keep-templates",
        action="store_true",
        help="LMSYS sets: keep instructions that many users sent (default: remove them)",
    )


def _add_splits(add: Callable[..., Any]) -> None:
    default = ConversationsConfig()
    for split in ("calibration", "validation", "test"):
        share = getattr(default.shares, split)
        add(
            f"--{split}-share", type=float, default=share, metavar="X", help=f"of the conversations for {split}, 0 to 1"
        )
    add(
        "--max-bad-share",
        type=float,
        default=default.max_bad_share,
        metavar="X",
        help="bad rows allowed of each source, 0 to 1",
    )
    add("--seed", type=int, default=default.seed, metavar="N", help="chooses another cut into splits")


def _conversations(parsed: argparse.Namespace) -> None:
    sources, inputs = _sources(parsed.files, parsed.weights, local_mirror(parsed.sources))
    config = ConversationsConfig(
        sources=sources,
        sequence_tokens=parsed.sequence_tokens,
        overlong=parsed.overlong,
        filters=FiltersConfig(
            min_turn_characters=parsed.min_turn_characters,
            max_turn_characters=parsed.max_turn_characters,
            min_japanese_share=parsed.min_japanese_share or None,
            drop_refusals=parsed.drop_refusals,
        ),
        lmsys=LmsysConfig(
            exclude_personal_data=not parsed.keep_personal_data, exclude_templates=not parsed.keep_templates
        ),
        benchmarks=parsed.benchmarks,
        shares=Shares(**{share.name: getattr(parsed, f"{share.name}_share") for share in fields(Shares)}),
        max_bad_share=parsed.max_bad_share,
        seed=parsed.seed,
    )
    made = run_alone(conversations, config, parsed.out, *inputs, parsed.tokenizer)
    print(*kept_lines(made.manifest["facts"]), sep="\n")


def _sources(
    names: Sequence[str], weights: Sequence[float] | None, sources: Path | None
) -> tuple[tuple[ConversationSource, ...], list[Path]]:
    """The config's sources, and the files that are inputs of the stage: files alone, with nothing said about them."""
    sets = [parse_name(name) for name in names]
    if not any(sets) and weights is None:
        return (), [Path(name) for name in names]
    require_weights(names, weights)
    found: list[ConversationSource] = []
    for name, dataset, weight in zip(names, sets, weights or [None] * len(names), strict=True):
        if dataset is None:
            path = Path(name)
            found.append(ConversationSource(name=path.resolve().name, files=(path,), weight=weight))
        else:
            found.append(published_source(dataset, sources=sources, weight=weight))
    return tuple(found), []
