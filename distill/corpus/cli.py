"""The verb `python -m distill corpus`: its options, and the config and inputs that they stand for."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.cli import HelpWithDefaults
from common.documents import kept_lines
from common.duplicates import NearDuplicatesConfig
from common.known_sets import terms_of
from common.provenance import Terms
from common.rows import SUFFIXES, data_files
from common.sources import local_mirror, parse_name, require_weights, resolve
from common.splits import Shares
from common.store import run_alone
from distill.corpus.config import CorpusConfig, TextSource
from distill.corpus.stage import corpus, own_name
from distill.text.cleaning import CleaningConfig
from distill.text.quality import QualityConfig

Subparsers = Any  # argparse's own class for this is private


def add_verb(subparsers: Subparsers) -> None:
    """Adds the verb `corpus`."""
    verb = subparsers.add_parser(
        "corpus",
        help="clean, deduplicate, cut and pack text",
        description="Writes documents/, packed/, tokenizer/ and data_card.json, which tells what was removed and why.",
        formatter_class=HelpWithDefaults,
    )
    _add_files(verb.add_argument)
    _add_rules(verb.add_argument)
    verb.set_defaults(function=_corpus)


def _add_files(add: Callable[..., Any]) -> None:
    kinds = ", ".join(SUFFIXES)
    add(
        "files",
        nargs="+",
        metavar="FILE_OR_SET",
        help=f"{kinds} with a `text`, a folder with text.jsonl, or a set of the hub: ORG/NAME[:CONFIG][@REVISION]",
    )
    add("--tokenizer", type=Path, required=True, metavar="DIR", help="a Hugging Face tokenizer folder")
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    add("--sources", type=Path, metavar="DIR", help="DIR/ORG/NAME stands in for the hub (default: $SOURCES)")
    add(
        "--benchmarks",
        type=Path,
        metavar="DIR",
        help="remove documents that hold an item of a benchmark in DIR (default: none is looked for)",
    )
    add(
        "--weights",
        type=float,
        nargs="+",
        metavar="X",
        help="shares of the FILEs in any beginning of train (default: all of them, one after the other)",
    )


def _add_rules(add: Callable[..., Any]) -> None:
    default = CorpusConfig()
    near = NearDuplicatesConfig()
    add("--no-normalise", action="store_true", help="leave the text's Unicode as it is (default: normalise it)")
    add(
        "--no-quality",
        action="store_true",
        help="keep what the rules for Japanese web text would remove (default: remove it)",
    )
    add(
        "--no-near-duplicates",
        action="store_true",
        help="keep documents that are nearly the same (default: the first of them)",
    )
    add("--similarity", type=float, default=near.similarity, metavar="X", help="of near-duplicates, 0 to 1")
    add(
        "--redact",
        action="store_true",
        help="replace e-mail addresses, telephone numbers and the like (default: leave them)",
    )
    add("--text-field", default="text", metavar="NAME", help="the field or column that holds the text")
    add("--sequence-tokens", type=int, default=default.sequence_tokens, metavar="N", help="tokens in a packed row")
    for split in ("calibration", "validation", "test"):
        share = getattr(default.shares, split)
        add(f"--{split}-share", type=float, default=share, metavar="X", help=f"of the documents for {split}, 0 to 1")
    add(
        "--prompt-weight",
        type=int,
        default=default.prompt_weight,
        metavar="N",
        help="loss weight, in hundredths, outside the `answers` spans of train documents that have them",
    )
    add("--max-bad-share", type=float, default=default.max_bad_share, metavar="X", help="bad rows allowed, 0 to 1")
    add("--seed", type=int, default=default.seed, metavar="N", help="chooses another cut into splits")


def _corpus(parsed: argparse.Namespace) -> None:
    sources, inputs = _sources(parsed)
    config = CorpusConfig(
        sources=sources,
        cleaning=CleaningConfig(
            normalise=not parsed.no_normalise,
            quality=None if parsed.no_quality else QualityConfig(),
            redact=parsed.redact,
        ),
        near_duplicates=None if parsed.no_near_duplicates else NearDuplicatesConfig(similarity=parsed.similarity),
        benchmarks=parsed.benchmarks,
        sequence_tokens=parsed.sequence_tokens,
        shares=Shares(calibration=parsed.calibration_share, validation=parsed.validation_share, test=parsed.test_share),
        prompt_weight=parsed.prompt_weight,
        max_bad_share=parsed.max_bad_share,
        seed=parsed.seed,
    )
    made = run_alone(corpus, config, parsed.out, *inputs, parsed.tokenizer)
    print(*kept_lines(made.manifest["facts"]), sep="\n")


def _sources(parsed: argparse.Namespace) -> tuple[tuple[TextSource, ...], list[Path]]:
    """The config's sources, and the files that are inputs of the stage: files alone, with nothing said about them."""
    sets = [parse_name(name) for name in parsed.files]
    if not any(sets) and parsed.weights is None and parsed.text_field == "text":
        return (), [Path(name) for name in parsed.files]
    require_weights(parsed.files, parsed.weights)
    found: list[TextSource] = []
    for place, (name, dataset) in enumerate(zip(parsed.files, sets, strict=True)):
        if dataset is None:
            files = tuple(data_files(Path(name), "text"))
            terms = Terms(name=own_name(files[0], [source.terms.name for source in found]))
        else:
            files, terms = resolve(dataset, sources=local_mirror(parsed.sources)), terms_of(dataset.name)
        weight = None if parsed.weights is None else parsed.weights[place]
        found.append(TextSource(terms=terms, files=files, weight=weight, text_field=parsed.text_field))
    return tuple(found), []
