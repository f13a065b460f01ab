"""`make inspect`: what a recipe's models are trained on, token by token, as the training step reads it.

    python -m recipes.inspect NAME|FILE.py [--build DIR] [--rows N]

Prints packed rows of the corpus and rendered conversations: where each document begins, and the loss weight of each
token. In colour on a terminal, unless NO_COLOR is set: green is full weight, yellow part of it, grey none. Elsewhere a
change of the weight is written as `{0.1}`. It builds the data and trains no model.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from common.cli import command, require_at_least_one, run
from common.packing import PackedRows
from common.store import Store
from common.tokenizer import Tokenizer
from recipes.loading import KNOWN, load
from recipes.preflight import before_start
from recipes.recipe import build, pipeline
from recipes.resolve import resolve

DATA = ("corpus", "conversations")
"""The artifacts that are shown, where a recipe has them."""

GREEN, YELLOW, GREY, BOLD, PLAIN = "\x1b[32m", "\x1b[33m", "\x1b[90m", "\x1b[1m", "\x1b[0m"
_MOST_TOKENS = 8
"""Tokens that may make up one character; after them the text is printed as it is, since the ids may be no text."""


def main(arguments: list[str]) -> None:
    """Parse `arguments`, build the data and print it."""
    parser = command("recipes.inspect", "Print what a recipe trains on.")
    add = parser.add_argument
    add("recipe", metavar="NAME|FILE.py", help=f"{', '.join(KNOWN)}, auto, or a recipe's file")
    add("--build", type=Path, default=Path("build"), metavar="DIR", help="build folder, where artifacts are kept")
    add("--rows", type=int, default=2, metavar="N", help="rows of each kind, from the first on")
    parsed = parser.parse_args(arguments)
    require_at_least_one(rows=parsed.rows)
    recipe = load(parsed.recipe, say=print, build_folder=parsed.build)
    *_, last = (stage.name for stage in pipeline(recipe) if stage.name in DATA)
    before_start(recipe, asked=parsed.recipe, build_folder=parsed.build, say=print, until=last)
    made = build(resolve(recipe, parsed.build, until=last), Store(parsed.build), until=last)
    in_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for name in (name for name in DATA if name in made):
        folder = made[name].folder
        rows, tokenizer = PackedRows(folder / "packed" / "train"), Tokenizer.load(folder / "tokenizer")
        for row in range(min(parsed.rows, rows.num_rows)):
            print("\n".join(shown_row(name, rows, row, tokenizer, in_colour=in_colour)))


def shown_row(name: str, rows: PackedRows, row: int, tokenizer: Tokenizer, *, in_colour: bool) -> Iterator[str]:
    """Row `row` of `rows`, packed with `tokenizer`, as lines: a heading with `name`, and a heading for each document.

    Weights are terminal colours, or else numbers in braces.
    """
    batch = rows.batch([row])
    tokens, documents = batch.tokens_BT[0].tolist(), batch.doc_ids_BT[0].tolist()
    # The step has, for each token, the weight of predicting the next one; shown is the weight of predicting the token
    # itself. Nothing predicts the first.
    weights = [0.0, *batch.weights_BT[0].tolist()[:-1]]
    padding = documents.count(0)
    yield _heading(f"== {name}, row {row}: {len(tokens) - padding} tokens, {padding} of padding ==", in_colour)
    for document, group in groupby(range(len(tokens)), key=documents.__getitem__):
        places = list(group)
        if document == 0:
            continue
        ids, counts = [tokens[place] for place in places], [weights[place] for place in places]
        supervised = sum(weight > 0 for weight in counts)
        yield _heading(f"-- document {document}: {len(ids)} tokens, {supervised} supervised --", in_colour)
        yield weighted_text(tokenizer, ids, counts, in_colour=in_colour)


def weighted_text(tokenizer: Tokenizer, ids: Sequence[int], weights: Sequence[float], *, in_colour: bool) -> str:
    """The text of `ids`, control tokens included, with a colour (or a weight in braces) where the weight changes."""
    shown = ""
    for weight, pieces in groupby(_pieces(tokenizer, ids, weights), key=lambda piece: piece[1]):
        text = "".join(text for text, _ in pieces)
        colour = GREY if weight <= 0 else GREEN if weight >= 1 else YELLOW
        shown += f"{colour}{text}{PLAIN}" if in_colour else f"{{{weight:g}}}{text}"
    return shown


def _pieces(tokenizer: Tokenizer, ids: Sequence[int], weights: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Text, each with the weight of the token in which it begins; a token may end one character and begin another."""
    waiting: list[int] = []
    shown, begun = 0, 0.0
    for token, weight in zip(ids, weights, strict=True):
        begun = begun if waiting else weight
        waiting.append(token)
        text = tokenizer.decode(waiting, skip_special=False)
        incomplete = text.endswith("\ufffd") and len(waiting) < _MOST_TOKENS
        whole = text.rstrip("\ufffd") if incomplete else text
        if len(whole) > shown:
            yield whole[shown], round(begun, 2)
            yield whole[shown + 1 :], round(weight, 2)
            shown, begun = len(whole), weight
        if not incomplete:
            waiting, shown = [], 0
    if waiting:
        yield tokenizer.decode(waiting, skip_special=False)[shown:], round(begun, 2)


def _heading(text: str, in_colour: bool) -> str:
    return f"{BOLD}{text}{PLAIN}" if in_colour else text


if __name__ == "__main__":
    run(main)
