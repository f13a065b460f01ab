"""Options that the commands over data sets share: inputs, splits, and the share of bad rows."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from common.sources import HubDataset, parse_name, require_weights
from common.splits import Shares

Add = Callable[..., Any]
"""`add_argument` of a parser."""
Source = TypeVar("Source")


def add_input_options(add: Add, *, files: str, tokenizer: str, weights: str, unit: str) -> None:
    """Add the files and sets, --tokenizer, --out, --sources, --benchmarks and --weights.

    `files`, `tokenizer` and `weights` are the help of these; `unit` is the word for rows, in the plural.
    """
    add("files", nargs="+", metavar="FILE_OR_SET", help=files)
    add("--tokenizer", type=Path, required=True, metavar="DIR", help=tokenizer)
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    add("--sources", type=Path, metavar="DIR", help="DIR/ORG/NAME replaces the hub (default: $SOURCES)")
    benchmarks = f"remove {unit} that hold an item of a benchmark in DIR (default: off)"
    add("--benchmarks", type=Path, metavar="DIR", help=benchmarks)
    add("--weights", type=float, nargs="+", metavar="X", help=weights)


def add_packing_options(add: Add, default: Any, *, unit: str) -> None:
    """Add --sequence-tokens, the share of each split, --max-bad-share and --seed, with the fields of `default`."""
    add("--sequence-tokens", type=int, default=default.sequence_tokens, metavar="N", help="tokens of a packed row")
    for split in ("calibration", "validation", "test"):
        share = getattr(default.shares, split)
        add(f"--{split}-share", type=float, default=share, metavar="X", help=f"share of the {unit} for {split}, 0 to 1")
    bad = "share of bad rows allowed, 0 to 1"
    add("--max-bad-share", type=float, default=default.max_bad_share, metavar="X", help=bad)
    add("--seed", type=int, default=default.seed, metavar="N", help="chooses other splits")


def packing_settings(parsed: argparse.Namespace) -> dict[str, Any]:
    """The fields of a config that `add_packing_options` sets, and `benchmarks`."""
    shares = Shares(calibration=parsed.calibration_share, validation=parsed.validation_share, test=parsed.test_share)
    fields = {name: getattr(parsed, name) for name in ("benchmarks", "sequence_tokens", "max_bad_share", "seed")}
    return fields | {"shares": shares}


def given_sources(
    parsed: argparse.Namespace,
    of_set: Callable[[HubDataset, float | None], Source],
    of_file: Callable[[Path, float | None, list[Source]], Source],
    *,
    plain: bool = True,
) -> tuple[tuple[Source, ...], list[Path]]:
    """The sources of a config, and the inputs of its stage: files without a set or a weight next to them.

    `of_set` and `of_file` make a source with its weight, the latter from the sources before it too; without `plain`
    files always become sources.
    """
    sets = [parse_name(name) for name in parsed.files]
    if not any(sets) and parsed.weights is None and plain:
        return (), [Path(name) for name in parsed.files]
    require_weights(parsed.files, parsed.weights)
    found: list[Source] = []
    for name, dataset, weight in zip(parsed.files, sets, parsed.weights or [None] * len(sets), strict=True):
        found.append(of_set(dataset, weight) if dataset else of_file(Path(name), weight, found))
    return tuple(found), []
