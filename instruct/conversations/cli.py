"""The verb `python -m instruct conversations`: its options, and their config and inputs."""

import argparse
from typing import Any

from common.cli import Add, HelpWithDefaults, add_input_options, add_packing_options, packing_settings
from common.documents import kept_lines
from common.provenance import terms_in
from common.rows import SUFFIXES
from common.sources import given_sources, local_mirror
from common.store import run_alone
from instruct.conversations import ConversationsConfig, ConversationSource, FiltersConfig, LmsysConfig, conversations
from instruct.conversations.lmsys import PASSPHRASE_VARIABLE
from instruct.conversations.published import published_source, set_names

Subparsers = Any  # argparse's own class for this is private


def add_verb(subparsers: Subparsers) -> None:
    """Add the verb `conversations`."""
    verb = subparsers.add_parser(
        "conversations",
        help="check, render and pack conversations",
        description="Writes documents/, packed/, tokenizer/ and data_card.json, which says what was removed and why.",
        epilog=f"Known sets: {', '.join(set_names())}. The LMSYS set takes its passphrase from the environment "
        f"variable {PASSPHRASE_VARIABLE} and needs your own copy of lmsys/lmsys-chat-1m.",
        formatter_class=HelpWithDefaults,
    )
    kinds = ", ".join(suffix for suffix in SUFFIXES if suffix != ".txt")
    add_input_options(
        verb.add_argument,
        files=f"{kinds} of conversations in a usual layout, a folder with conversations.jsonl, or a known set: "
        "ORG/NAME[:PART][@REVISION]",
        tokenizer="a tokenizer folder with a chat template",
        weights="share of the rows for each FILE_OR_SET; sources are thinned, never repeated (default: all rows)",
        unit="conversations",
    )
    _add_rules(verb.add_argument)
    add_packing_options(verb.add_argument, ConversationsConfig(), unit="conversations")
    verb.set_defaults(function=_conversations)


def _add_rules(add: Add) -> None:
    config = ConversationsConfig()
    shortest, longest = config.filters.min_turn_characters, config.filters.max_turn_characters
    overlong = "remove conversations longer than a row, or cut them after the last answer that fits"
    add("--overlong", choices=("drop", "cut"), default=config.overlong, help=overlong)
    for option, default, text in (
        ("--min-turn-characters", shortest, "remove conversations with a shorter turn"),
        ("--max-turn-characters", longest, "remove conversations with a longer turn (default: no limit)"),
    ):
        add(option, type=int, default=default, metavar="N", help=text)
    share = "remove Japanese questions whose answers have a smaller share of Japanese letters; 0 keeps all"
    add("--min-japanese-share", type=float, default=config.filters.min_japanese_share, metavar="X", help=share)
    for option, text in (
        ("--drop-refusals", "remove conversations in which the assistant declines (default: keep them)"),
        ("--keep-personal-data", "LMSYS sets: keep rows with redacted personal data (default: remove them)"),
        ("--keep-templates", "LMSYS sets: keep instructions that many users sent (default: remove them)"),
    ):
        add(option, action="store_true", help=text)


def _conversations(parsed: argparse.Namespace) -> None:
    mirror = local_mirror(parsed.sources)
    sources, inputs = given_sources(
        parsed,
        lambda dataset, weight: published_source(dataset, sources=mirror, weight=weight),
        lambda path, weight, _: ConversationSource(
            name=path.resolve().name, files=(path,), weight=weight, terms=terms_in(path, None)
        ),
    )
    filters = FiltersConfig(
        min_turn_characters=parsed.min_turn_characters,
        max_turn_characters=parsed.max_turn_characters,
        min_japanese_share=parsed.min_japanese_share or None,
        drop_refusals=parsed.drop_refusals,
    )
    exclude = {"exclude_personal_data": not parsed.keep_personal_data, "exclude_templates": not parsed.keep_templates}
    more: dict[str, Any] = {"overlong": parsed.overlong, **packing_settings(parsed)}
    config = ConversationsConfig(sources=sources, filters=filters, lmsys=LmsysConfig(**exclude), **more)
    made = run_alone(conversations, config, parsed.out, *inputs, parsed.tokenizer)
    print(*kept_lines(made.manifest["facts"]), sep="\n")
