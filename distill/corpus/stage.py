"""The stage `corpus`: text to packed rows. `python -m distill corpus FILE... --tokenizer DIR --out DIR` runs it alone.

Reads text, cleans each document, drops duplicates and documents of a benchmark, splits by the digest of each text into
train, calibration, validation and test, and packs every split. Question documents can mark their `answers` (character
spans): in train the rest of such a document then has a lower loss weight; the held-out splits have full weight, so that
a held-out loss is the plain mean over tokens. Memory grows by some 20 bytes a document only. A restarted run keeps what
the killed one finished: shards of cleaned documents, the splits, whole windows of packed rows.
"""

import json
import shutil
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, zip_longest
from pathlib import Path
from typing import Any

from common.disk import replace_text
from common.documents import SPLIT_FILE, Encoded, Shares, drop_warnings, finish_documents, kept_line
from common.duplicates import NearDuplicatesConfig
from common.errors import InputError, UserError, require_at_least, require_between
from common.packing import FULL_WEIGHT
from common.provenance import Terms, terms_in
from common.rows import MAX_BAD_SHARE, Row, data_files, printable
from common.store import Workspace, stage
from common.store.keys import readable
from common.tokenizer import Tokenizer
from distill.corpus.data_card import card_of_cleaning, with_tokens
from distill.corpus.kept import EXACT, NEAR, RULES, find_duplicates, write_kept
from distill.corpus.shards import TextSource, write_shards
from distill.text.cleaning import BENCHMARK_RULE, Cleaner, CleaningConfig, Spans
from distill.text.quality import QUALITY_RULES
from eval.decontamination import DecontaminationConfig, Decontaminator

_SHARDS = "scratch/shards"


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """How text is cleaned, split and packed."""

    sources: tuple[TextSource, ...] = ()
    """Sources of text, read after the inputs of the stage."""
    terms: tuple[Terms, ...] = ()
    """Names and licences of the inputs, in their order; an input without is named after its file."""
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    """Rules for each document alone."""
    near_duplicates: NearDuplicatesConfig | None = field(default_factory=NearDuplicatesConfig)
    """When two documents count as one; None keeps near-duplicates. Exact duplicates are always removed: one copy could
    be in train and the other in test."""
    benchmarks: Path | None = None
    """Folder of benchmark files; documents that hold an item of one are removed. None turns the step off."""
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    """When a document holds an item."""
    reason_off: str = "not asked for"
    """Reason of the steps that are off, for the data card."""
    sequence_tokens: int = 1024
    """Tokens of a packed row; longer documents are cut into pieces of this length."""
    shares: Shares = field(default_factory=Shares)
    """Shares of calibration, validation and test."""
    prompt_weight: int = 10
    """Loss weight, in hundredths, of text outside the answers of a train document that marks its answers."""
    max_bad_share: float = MAX_BAD_SHARE
    """Bad rows allowed (empty, not UTF-8, not JSON, no text), as a share of all rows, 0 to 1. Checked after the last
    row, since bad rows often follow one another; from 100,000 rows on, ten times the share stops the stage at once."""
    seed: int = 0
    """Chooses other splits."""

    def __post_init__(self) -> None:
        require_at_least(2, sequence_tokens=self.sequence_tokens)
        require_between(0, FULL_WEIGHT, prompt_weight=self.prompt_weight)
        require_at_least(0, seed=self.seed)
        weighted = [source.weight is not None for source in self.sources]
        if any(weighted) and not all(weighted):
            wanted, got = "a weight for every source, or for none", f"{sum(weighted)} of {len(weighted)} with one"
            raise UserError("contradiction", wanted=wanted, got=got, next_step="give the other sources a weight")


@stage(version=7)
def corpus(config: CorpusConfig, workspace: Workspace, *inputs: Path) -> dict[str, Any]:
    """Write documents/, packed/, tokenizer/ and data_card.json.

    The inputs are text files, or folders with `text.jsonl`, read before the sources of the config, and last the folder
    of the tokenizer. The threads of the machine are the number of worker processes.

    Raises:
        UserError: a file is missing, a download fails, or a worker is killed; InputError: a file is damaged, too many
            rows are bad, or no document is left.
    """
    *texts, tokenizer_folder = inputs
    tokenizer = Tokenizer.load(tokenizer_folder)
    card = _cleaned(config, workspace, open_sources(config, texts))

    def encode(split: str, batch: Sequence[Row]) -> list[Encoded]:
        return _encode(tokenizer, batch, prompt_weight=config.prompt_weight if split == "train" else FULL_WEIGHT)

    card |= {"warnings": drop_warnings(card, _advice)}
    return finish_documents(
        workspace.folder,
        encode,
        partial(with_tokens, card),
        sequence_tokens=config.sequence_tokens,
        tokenizer=tokenizer,
        sources=[source["name"] for source in card["sources"]],
        mixed_documents=card["mixed_documents"],
    )


def open_sources(config: CorpusConfig, inputs: Sequence[Path]) -> list[TextSource]:
    """The inputs of the stage and the sources of the config, in this order, under different names.

    Raises:
        UserError: two of one name, none at all, terms without an input, or inputs next to sources with weights.
    """
    weighted = [source.terms.name for source in config.sources if source.weight is not None]
    if len(config.terms) > len(inputs) or (inputs and weighted):
        wanted = "no more terms than inputs, and a weight for every source or for none"
        got = f"{len(inputs)} inputs, {len(config.terms)} terms, weights for {', '.join(weighted) or 'none'}"
        next_step = "give inputs as sources with weights, or leave the weights out"
        raise UserError("contradiction", wanted=wanted, got=got, next_step=next_step)
    given: list[TextSource] = []
    for path, known in zip_longest(inputs, config.terms):
        files = data_files(path, "text")
        # Several files of a folder are one source, named as if the folder had one file.
        named = Path("text") if path.is_dir() else files[0]
        terms = terms_in(path, known) or Terms(name=name_of(named, [source.terms.name for source in given]))
        given.append(TextSource(terms=terms, files=tuple(files)))
    given += config.sources
    names = [source.terms.name for source in given]
    if not given or len(set(names)) < len(names):
        wanted = "at least one source of text, and sources of different names"
        next_step = "name files or sources; `terms` gives inputs of one name different ones"
        raise UserError("contradiction", wanted=wanted, got=", ".join(names) or "none", next_step=next_step)
    return given


def name_of(file: Path, taken: Sequence[str]) -> str:
    """The name of a source without terms: the name of its file without suffixes, with a number if it is taken."""
    stem = printable(file.name).split(".")[0] or "text"
    names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    return next(name for name in names if name not in taken)


def _cleaned(config: CorpusConfig, workspace: Workspace, sources: Sequence[TextSource]) -> dict[str, Any]:
    """Write the documents; return the card without tokens, from this start or an earlier one."""
    done, folder = workspace.folder / SPLIT_FILE, workspace.folder / _SHARDS
    if not done.is_file():
        cleaner, workers = cleaner_of(config), workspace.machine.threads
        shards = write_shards(folder, sources, cleaner, workers=workers, max_bad_share=config.max_bad_share)
        status = find_duplicates(shards, config.near_duplicates, folders=[folder])
        card = card_of_cleaning(steps_of(config), sources, shards, status, cleaner.benchmarks)
        _require_documents(card)
        card["mixed_documents"] = write_kept(workspace.folder, sources, shards, status, config.shares)
        replace_text(done, json.dumps(card, ensure_ascii=False))
    card = json.loads(done.read_text(encoding="utf-8"))
    shutil.rmtree(folder, ignore_errors=True)
    return card


def _require_documents(card: Mapping[str, Any]) -> None:
    """Raise InputError if no document is left, or none of a source with a weight."""
    if not card["rows_out"]:
        removed = ", ".join(f"{number:,} {rule}" for rule, number in card["removed"].items() if number)
        got = f"none in {', '.join(source['name'] for source in card['sources'])} ({removed or 'no rows'})"
        next_step = "give files whose rows hold a `text`, or turn off the rules that removed it"
        raise InputError("empty", wanted="at least one document with text", got=got, next_step=next_step)
    for source in card["sources"]:
        if source["weight"] is not None and not source["rows_out"]:
            wanted = f"documents of {source['name']}, which has a weight"
            next_step = "correct the source or its text_field, or leave it out"
            raise InputError("empty", wanted=wanted, got=kept_line(source), next_step=next_step)


_ADVICE = {
    RULES[EXACT]: "each is kept once",
    RULES[NEAR]: "--no-near-duplicates keeps them",
    BENCHMARK_RULE: "they hold benchmark items and have to stay out",
    **dict.fromkeys(QUALITY_RULES, "--no-quality keeps them"),
}


def _advice(rule: str) -> str:
    """How a user keeps the rows that a rule removes; the flags are fields of the config in a recipe."""
    return _ADVICE.get(rule, "data_card.json has samples")


def cleaner_of(config: CorpusConfig) -> Cleaner:
    """The cleaner that the config describes; reads the benchmark files."""
    items = None if config.benchmarks is None else Decontaminator.from_folder(config.benchmarks, config.decontamination)
    return Cleaner(config.cleaning, decontaminator=items, near_duplicates=config.near_duplicates, seed=config.seed)


def steps_of(config: CorpusConfig) -> list[dict[str, Any]]:
    """Every step for the data card: whether it is on, its settings, and why it is off."""
    asked: dict[str, Any] = {
        "normalisation": config.cleaning.normalise,
        "quality rules": config.cleaning.quality,
        "replacement of personal data": config.cleaning.redact,
        "decontamination": None if config.benchmarks is None else config.decontamination,
        "exact duplicates": True,
        "near duplicates": config.near_duplicates,
    }
    return [
        {
            "step": name,
            "on": bool(setting),
            "reason": None if setting else config.reason_off,
            "settings": {} if isinstance(setting, bool) or setting is None else readable(setting),
        }
        for name, setting in asked.items()
    ]


def _encode(tokenizer: Tokenizer, rows: Sequence[Row], *, prompt_weight: int) -> list[Encoded]:
    """Ids with the document end, and weights."""
    encoded: list[Encoded] = []
    for row, encoding in zip(rows, tokenizer.encode_batch([row["text"] for row in rows]), strict=True):
        weights = [FULL_WEIGHT] * len(encoding.ids)
        if row.get("answers") and prompt_weight < FULL_WEIGHT:
            weights = answer_weights(encoding.offsets, row["answers"], prompt_weight=prompt_weight)
        encoded.append(([*encoding.ids, tokenizer.document_end_id], [*weights, FULL_WEIGHT]))
    return encoded


def answer_weights(offsets: Sequence[tuple[int, int]], answers: Spans, *, prompt_weight: int) -> list[int]:
    """Loss weights in hundredths: full on every token that holds a part of an answer, and on the token after it.

    `offsets` are the character spans [start, end) of the tokens, in order, `answers` those of the answers;
    `prompt_weight` is the weight of all other tokens.
    """
    weights = [prompt_weight] * len(offsets)
    ends = [end for _, end in offsets]
    for start, end in answers:
        place = bisect_left(ends, start + 1)  # the first token that ends after the start of the answer
        while place < len(offsets) and offsets[place][0] < end:
            weights[place] = FULL_WEIGHT
            place += 1
        if place < len(offsets):
            weights[place] = FULL_WEIGHT
    return weights
