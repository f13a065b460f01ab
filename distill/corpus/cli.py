"""The verb `python -m distill corpus`: its options, and their config and inputs."""

import argparse
from pathlib import Path
from typing import Any

from common.cli import Add, HelpWithDefaults, add_input_options, add_packing_options, packing_settings
from common.documents import kept_lines
from common.duplicates import NearDuplicatesConfig
from common.known_sets import terms_of
from common.provenance import Terms
from common.rows import SUFFIXES, data_files
from common.sources import local_mirror, parse_name, require_weights, resolve
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
    sources, inputs = _sources(parsed)
    quality = None if parsed.no_quality else QualityConfig()
    cleaning = CleaningConfig(normalise=not parsed.no_normalise, quality=quality, redact=parsed.redact)
    near = None if parsed.no_near_duplicates else NearDuplicatesConfig(similarity=parsed.similarity)
    more: dict[str, Any] = {"prompt_weight": parsed.prompt_weight, **packing_settings(parsed)}
    config = CorpusConfig(sources=sources, cleaning=cleaning, near_duplicates=near, **more)
    made = run_alone(corpus, config, parsed.out, *inputs, parsed.tokenizer)
    print(*kept_lines(made.manifest["facts"]), sep="\n")


def _sources(parsed: argparse.Namespace) -> tuple[tuple[TextSource, ...], list[Path]]:
    """The sources of the config, and the inputs of the stage: files without a set, a weight or a field next to them."""
    sets = [parse_name(name) for name in parsed.files]
    if not any(sets) and parsed.weights is None and parsed.text_field == "text":
        return (), [Path(name) for name in parsed.files]
    require_weights(parsed.files, parsed.weights)
    found: list[TextSource] = []
    for name, dataset, weight in zip(parsed.files, sets, parsed.weights or [None] * len(sets), strict=True):
        if dataset is None:
            files = tuple(data_files(Path(name), "text"))
            terms = Terms(name=name_of(files[0], [source.terms.name for source in found]))
        else:
            files, terms = resolve(dataset, sources=local_mirror(parsed.sources)), terms_of(dataset.name)
        found.append(TextSource(terms=terms, files=files, weight=weight, text_field=parsed.text_field))
    return tuple(found), []
