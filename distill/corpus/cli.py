"""The verb `python -m distill corpus`: its options, and their config and inputs."""

import argparse
from pathlib import Path
from typing import Any

from common.cli import Add, HelpWithDefaults, add_input_options, add_packing_options, packing_settings
from common.documents import kept_lines
from common.duplicates import NearDuplicatesConfig
from common.known_sets import terms_of
from common.provenance import Terms, terms_in
from common.rows import SUFFIXES, data_files
from common.sources import HubDataset, given_sources, local_mirror, resolve
from common.store import run_alone
from distill.corpus import CorpusConfig, TextSource, corpus
from distill.corpus.stage import name_of
from distill.text.cleaning import CleaningConfig
from distill.text.quality import QualityConfig

Subparsers = Any  # argparse's own class for this is private


def add_verb(subparsers: Subparsers) -> None:
    """Add the verb `corpus`."""
    verb = subparsers.add_parser(
        "corpus",
        help="clean, deduplicate, split and pack text",
        description="Writes documents/, packed/, tokenizer/ and data_card.json, which says what was removed and why.",
        formatter_class=HelpWithDefaults,
    )
    add_input_options(
        verb.add_argument,
        files=f"{', '.join(SUFFIXES)} with a `text`, a folder with text.jsonl, or a set of the hub: "
        "ORG/NAME[:CONFIG][@REVISION]",
        tokenizer="a Hugging Face tokenizer folder",
        weights="share of each FILE_OR_SET in any prefix of train (default: one after the other)",
        unit="documents",
    )
    _add_rules(verb.add_argument)
    add_packing_options(verb.add_argument, CorpusConfig(), unit="documents")
    verb.set_defaults(function=_corpus)


def _add_rules(add: Add) -> None:
    similarity, prompt_weight = NearDuplicatesConfig().similarity, CorpusConfig().prompt_weight
    add("--no-normalise", action="store_true", help="do not normalise the Unicode of the text (default: normalise it)")
    add("--no-quality", action="store_true", help="skip the quality rules for Japanese web text (default: apply them)")
    add("--no-near-duplicates", action="store_true", help="keep near-duplicates (default: keep the first of them)")
    add("--similarity", type=float, default=similarity, metavar="X", help="of near-duplicates, 0 to 1")
    personal = "replace e-mail addresses, telephone numbers and similar data (default: keep them)"
    add("--redact", action="store_true", help=personal)
    add("--text-field", default="text", metavar="NAME", help="the field or column that holds the text")
    weight = "loss weight, in hundredths, outside the `answers` spans of train documents that have them"
    add("--prompt-weight", type=int, default=prompt_weight, metavar="N", help=weight)


def _corpus(parsed: argparse.Namespace) -> None:
    mirror, field = local_mirror(parsed.sources), parsed.text_field

    def of_set(dataset: HubDataset, weight: float | None) -> TextSource:
        files, terms = resolve(dataset, sources=mirror), terms_of(dataset.full_name)
        return TextSource(terms=terms, files=files, weight=weight, text_field=field)

    def of_file(path: Path, weight: float | None, before: list[TextSource]) -> TextSource:
        files = tuple(data_files(path, "text"))
        named = Terms(name=name_of(files[0], [source.terms.name for source in before]))
        terms = terms_in(path, None) or named
        return TextSource(terms=terms, files=files, weight=weight, text_field=field)

    sources, inputs = given_sources(parsed, of_set, of_file, plain=field == "text")
    quality = None if parsed.no_quality else QualityConfig()
    cleaning = CleaningConfig(normalise=not parsed.no_normalise, quality=quality, redact=parsed.redact)
    near = None if parsed.no_near_duplicates else NearDuplicatesConfig(similarity=parsed.similarity)
    more: dict[str, Any] = {"prompt_weight": parsed.prompt_weight, **packing_settings(parsed)}
    config = CorpusConfig(sources=sources, cleaning=cleaning, near_duplicates=near, **more)
    made = run_alone(corpus, config, parsed.out, *inputs, parsed.tokenizer)
    print(*kept_lines(made.manifest["facts"]), sep="\n")
