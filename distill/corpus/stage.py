"""The stage `corpus`: text to packed rows. `python -m distill corpus FILE... --tokenizer DIR --out DIR` runs it alone.

Reads text, cleans each document, drops what is there twice or belongs to a benchmark, cuts train, calibration,
validation and test by each text's digest, and packs every split. Question documents may mark their `answers`
(character spans): in train the rest of such a document then counts less, and in the held-out splits everything counts
fully, so that a held-out loss is the plain mean over tokens. Memory does not grow with the text, but for some 20 bytes
a document. What a killed run finished is kept: shards of cleaned documents, the cut, whole windows of packed rows.

It does not know what will train on the rows.
"""

import json
import shutil
import time
from bisect import bisect_left
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from common.disk import replace_text
from common.documents import Encoded, kept_line, pack_documents
from common.errors import InputError, UserError
from common.packing import FULL_WEIGHT
from common.provenance import CARD_FILE, Terms, read_terms
from common.rows import Row, data_files, printable
from common.store import Workspace, stage
from common.tokenizer import Tokenizer
from distill.corpus.config import CorpusConfig, TextSource
from distill.corpus.data_card import card_of_cleaning, with_tokens
from distill.corpus.dedup import KEPT, find_repeats
from distill.corpus.shards import write_shards
from distill.corpus.splitting import write_kept
from distill.text.cleaning import Cleaner, Spans
from eval.decontamination import Decontaminator

_SHARDS = "scratch/shards"
_CUT_FILE = "scratch/cut.json"


@stage(version=3)
def corpus(config: CorpusConfig, workspace: Workspace, *inputs: Path) -> dict[str, Any]:
    """Writes documents/, packed/, tokenizer/ and data_card.json.

    Args:
        config: see CorpusConfig.
        workspace: where, and how many worker processes (its machine's threads).
        inputs: text files, or folders with `text.jsonl`, beside the config's sources; last the tokenizer's folder.

    Raises:
        UserError: a file is missing, a download fails, or a worker is killed; InputError: a file is damaged, too many
            rows are bad, or no document is left.
    """
    *texts, tokenizer_folder = inputs
    tokenizer = Tokenizer.load(tokenizer_folder)
    card = _cleaned(config, workspace, open_sources(config, texts))
    start = time.perf_counter()

    def encode(split: str, batch: Sequence[Row]) -> list[Encoded]:
        return _encode(tokenizer, batch, prompt_weight=config.prompt_weight if split == "train" else FULL_WEIGHT)

    metas = pack_documents(workspace.folder, encode, sequence_tokens=config.sequence_tokens, tokenizer=tokenizer)
    tokenizer.save(workspace.folder / "tokenizer")
    card = with_tokens(card, metas)
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    (workspace.folder / CARD_FILE).write_text(text, encoding="utf-8")
    return card | {"tokens_per_s": round(card["tokens"] / (time.perf_counter() - start), 1)}


def open_sources(config: CorpusConfig, inputs: Sequence[Path]) -> list[TextSource]:
    """The stage's inputs and the config's sources, in this order, under names that all differ.

    Raises:
        UserError: two of one name, none at all, terms without an input, or inputs beside sources with weights.
    """
    weighted = [source.terms.name for source in config.sources if source.weight is not None]
    if len(config.terms) > len(inputs) or (inputs and weighted):
        raise UserError(
            wanted="terms for inputs that are there, and a weight for every source or for none",
            got=f"{len(inputs)} inputs, {len(config.terms)} terms, weights for {', '.join(weighted) or 'none'}",
            next_step="Give inputs as sources with weights, or leave the weights out.",
        )
    given: list[TextSource] = []
    for place, path in enumerate(inputs):
        files = data_files(path, "text")
        named = [source.terms.name for source in given]
        terms = config.terms[place] if place < len(config.terms) else read_terms(path)
        # Several files of a folder are one source, called as one file of it would be.
        terms = terms or Terms(name=own_name(Path("text") if path.is_dir() else files[0], named))
        given.append(TextSource(terms=terms, files=tuple(files)))
    given += config.sources
    names = [source.terms.name for source in given]
    if not given or len(set(names)) < len(names):
        raise UserError(
            wanted="at least one source of text, and sources of different names",
            got=", ".join(names) or "none",
            next_step="Name files, or sources in the config; `terms` gives inputs of one name different ones.",
        )
    return given


def own_name(file: Path, taken: Sequence[str]) -> str:
    """What a source without terms is called: its file's name without endings, numbered where that is taken."""
    stem = printable(file.name).split(".")[0] or "text"
    names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    return next(name for name in names if name not in taken)


def _cleaned(config: CorpusConfig, workspace: Workspace, sources: Sequence[TextSource]) -> dict[str, Any]:
    """The documents, written; the card so far, now or as an earlier start left it."""
    cut, folder = workspace.folder / _CUT_FILE, workspace.folder / _SHARDS
    if not cut.is_file():
        cleaner = cleaner_of(config)
        shards = write_shards(
            folder, sources, cleaner, workers=workspace.machine.threads, max_bad_share=config.max_bad_share
        )
        fates = find_repeats(shards, config.near_duplicates, folders=[folder])
        card = card_of_cleaning(config, sources, shards, fates, cleaner.benchmarks)
        if not (fates == KEPT).any():
            removed = ", ".join(f"{count:,} {rule}" for rule, count in card["removed"].items() if count)
            raise InputError(
                wanted="at least one document with text",
                got=f"none in {', '.join(source.terms.name for source in sources)} ({removed or 'no rows'})",
                next_step="Give files whose rows hold a `text`, or turn off the rules that removed it.",
            )
        for source, found in zip(sources, card["sources"], strict=True):
            if source.weight is not None and found["rows_out"] == 0:
                raise InputError(
                    wanted=f"documents of {found['name']}, which has a weight",
                    got=kept_line(found),
                    next_step="Correct the source or its text_field, or leave it out.",
                )
        write_kept(workspace.folder, sources, shards, fates, config.shares)
        replace_text(cut, json.dumps(card, ensure_ascii=False))
    card = json.loads(cut.read_text(encoding="utf-8"))
    shutil.rmtree(folder, ignore_errors=True)
    return card


def cleaner_of(config: CorpusConfig) -> Cleaner:
    """What the config wants done to each document; reads the benchmark files."""
    decontaminator = None
    if config.benchmarks is not None:
        decontaminator = Decontaminator.from_folder(config.benchmarks, config.decontamination)
    return Cleaner(
        config.cleaning, decontaminator=decontaminator, near_duplicates=config.near_duplicates, seed=config.seed
    )


def _encode(tokenizer: Tokenizer, rows: Sequence[Row], *, prompt_weight: int) -> list[Encoded]:
    """Ids closed by the document end, and weights."""
    encoded: list[Encoded] = []
    for row, encoding in zip(rows, tokenizer.encode_batch([row["text"] for row in rows]), strict=True):
        ids = encoding.ids
        answers = row.get("answers")
        if answers and prompt_weight < FULL_WEIGHT:
            weights = answer_weights(encoding.offsets, answers, prompt_weight=prompt_weight)
        else:
            weights = [FULL_WEIGHT] * len(ids)
        encoded.append(([*ids, tokenizer.document_end_id], [*weights, FULL_WEIGHT]))
    return encoded


def answer_weights(offsets: Sequence[tuple[int, int]], answers: Spans, *, prompt_weight: int) -> list[int]:
    """Loss weights in hundredths: full on every token that holds a part of an answer, and on the one that closes it.

    Args:
        offsets: character spans [start, end) of the tokens, in order.
        answers: character spans [start, end) of the answers.
        prompt_weight: of all other tokens.
    """
    weights = [prompt_weight] * len(offsets)
    ends = [end for _, end in offsets]
    for start, end in answers:
        place = bisect_left(ends, start + 1)  # the first token that ends after the answer's start
        while place < len(offsets) and offsets[place][0] < end:
            weights[place] = FULL_WEIGHT
            place += 1
        if place < len(offsets):
            weights[place] = FULL_WEIGHT
    return weights
