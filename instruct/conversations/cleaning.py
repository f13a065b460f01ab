"""The first pass over the conversations: which are kept, and why the others are not.

Each source is read in its turn, and each row meets the rules in one order: form (`checking`), filters, copies,
benchmarks, length. Where the sources have weights they are thinned at the end. It writes no split and packs nothing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.duplicates import ExactDuplicates, digest
from common.errors import InputError, UserError
from common.provenance import Terms, read_terms
from common.rows import Row
from common.sources import HubFiles
from common.store import MANIFEST_FILE, read_manifest
from common.store.keys import readable
from common.tokenizer import Tokenizer
from eval.decontamination import Decontaminator
from instruct.conversations.checking import characters_of
from instruct.conversations.config import ConversationsConfig, ConversationSource
from instruct.conversations.cutting import Messages, longest_part
from instruct.conversations.filters import rule_against, settings_of
from instruct.conversations.lmsys import check_lmsys, read_lmsys
from instruct.conversations.lmsys_rows import FIRST_ANSWER
from instruct.conversations.local import files_of, read_chat
from instruct.conversations.mixing import Clean, thinned
from instruct.conversations.tally import Tally, gathered_samples, total

DUPLICATE, TOO_LONG, CONTAMINATED = "exact duplicate", "longer than a row", "benchmark item"
THINNED = "thinned to its weight"
CUT = "conversations cut between turns"
_REFUSED = "refused by the chat template"


class Cleaning:
    """The sources of a stage, read once."""

    def __init__(
        self, inputs: Sequence[Path], config: ConversationsConfig, tokenizer: Tokenizer, scratch: Path
    ) -> None:
        self._sources = [*_of_inputs(inputs, config.terms), *config.sources]
        if not self._sources:
            raise UserError(wanted="conversations", got="no source", next_step="Name at least one file or set.")
        self._config, self._tokenizer, self._scratch = config, tokenizer, scratch
        self._tallies = [_tally_of(source, name) for source, name in _named(self._sources)]
        self._duplicates = ExactDuplicates()
        self._benchmarks: Decontaminator | None = None
        self._template_error: UserError | None = None

    def kept(self) -> Iterator[tuple[bytes, Row]]:
        """Digest and content of each kept row, in the order of the sources.

        Raises:
            UserError: a file or the passphrase is missing; InputError: a file is damaged, too many rows of a source are
                bad, or no conversation is left.
        """
        tallies = self._tallies
        for source in self._sources:
            if source.kind == "lmsys":
                check_lmsys(source.found, source.original)
        # A template that refuses every conversation is no fault of the rows.
        self._tokenizer.render([{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}])
        if self._config.benchmarks is not None:
            self._benchmarks = Decontaminator.from_folder(self._config.benchmarks, self._config.decontamination)
        for clean, stays in self._mixed():
            if stays:
                tallies[clean.source].keep(clean.row, clean.tokens)
                yield clean.digest, clean.row
            else:
                tallies[clean.source].leave_out(THINNED, clean.row)
        if not any(tally.rows_out for tally in tallies):
            too_long = sum(tally.removed[TOO_LONG] for tally in tallies)
            raise InputError(
                wanted=f"at least one conversation of at most {self._config.sequence_tokens} tokens",
                got=f"none in {', '.join(tally.terms.name for tally in tallies)} ({too_long} are longer)",
                next_step="Give files whose rows hold conversations, or raise sequence_tokens.",
            )

    def card(self) -> dict[str, Any]:
        """Rows in, removed per rule and out, for each source and together; the steps, and samples of each rule."""
        tallies = self._tallies
        removed = total([tally.all_removed() for tally in tallies])
        for tally in tallies:
            tally.finish()
        return {
            "rows_in": sum(tally.counts.rows for tally in tallies),
            "removed": removed,
            "rows_out": sum(tally.rows_out for tally in tallies),
            "sources": [tally.card() for tally in tallies],
            "steps": self._steps(),
            "benchmarks": {} if self._benchmarks is None else self._benchmarks.card(),
            "contamination": total([tally.contamination for tally in tallies]),
            "samples": gathered_samples(tallies),
        }

    def _mixed(self) -> Iterator[tuple[Clean, bool]]:
        weights = [source.weight for source in self._sources if source.weight is not None]
        if not weights:
            return ((clean, True) for clean in self._clean())
        names = [tally.terms.name for tally in self._tallies]
        if len(weights) < len(names):
            raise UserError(
                wanted="a weight for every source, or for none",
                got=f"{len(weights)} for the {len(names)} sources {', '.join(names)}",
                next_step="Give the inputs as `sources` with weights, or leave all weights out.",
            )
        return thinned(self._clean(), names, weights, self._scratch)

    def _clean(self) -> Iterator[Clean]:
        """Every conversation that passes every rule; the others are booked."""
        for place, (source, tally) in enumerate(zip(self._sources, self._tallies, strict=True)):
            tally.removed.update({DUPLICATE: 0, TOO_LONG: 0})  # shown also where nothing was removed
            for row in self._read(source, tally):
                tally.characters_in += characters_of(row["messages"])
                judged = self._judge(row, tally)
                if judged is not None:
                    key, kept, tokens = judged
                    yield Clean(place, key, kept, tokens)
            self._check(tally)

    def _read(self, source: ConversationSource, tally: Tally) -> Iterator[Row]:
        config = self._config
        if source.kind == "lmsys":
            return read_lmsys(source.found, source.original, tally, config.lmsys, self._scratch, config.max_bad_share)
        return read_chat(files_of(source.found, self._scratch), tally, config.lmsys)

    def _judge(self, row: Row, tally: Tally) -> tuple[bytes, Row, int] | None:
        """Digest, row and tokens of a conversation that passes; None where a rule booked it."""
        config, messages = self._config, row["messages"]
        key = self._digest(row)
        rule = rule_against(messages, config.filters)
        if rule is None and self._duplicates.seen_before(key):
            rule = DUPLICATE
        if rule is None and self._benchmarks is not None:
            benchmark = self._benchmarks.find("\n".join(message.get("content") or "" for message in messages))
            if benchmark is not None:
                tally.contamination[benchmark] += 1
                # Not quoted: cards are published, and benchmark text must not spread with them.
                tally.leave_out(CONTAMINATED, row, quoted=f"(holds an item of {benchmark})")
                return None
        if rule is not None:
            tally.leave_out(rule, row)
            return None
        try:
            tokens = self._count(row, messages)
            tally.measure(row, tokens)
            if tokens <= config.sequence_tokens:
                return key, row, tokens
            return self._cut(row, tally)
        except UserError as error:
            self._template_error = error
            tally.bad(_REFUSED, row)
            return None

    def _cut(self, row: Row, tally: Tally) -> tuple[bytes, Row, int] | None:
        """The part of a long conversation that fits, where there is one and it is wanted."""
        limit = self._config.sequence_tokens
        part = (
            longest_part(row["messages"], lambda messages: self._count(row, messages) <= limit)
            if self._config.overlong == "cut"
            else None
        )
        if part is None:
            tally.leave_out(TOO_LONG, row)
            return None
        shorter = row | {"messages": part}
        key = self._digest(shorter)
        if self._duplicates.seen_before(key):
            tally.leave_out(DUPLICATE, shorter)
            return None
        tally.truncated[CUT] += 1
        return key, shorter, self._count(row, part)

    def _count(self, row: Row, messages: Messages) -> int:
        return len(self._tokenizer.render(messages, tools=row.get("tools"))[0])

    def _digest(self, row: Row) -> bytes:
        said = json.dumps([row["messages"], row.get("tools")], ensure_ascii=False, sort_keys=True)
        return digest(said, seed=self._config.seed)

    def _check(self, tally: Tally) -> None:
        """Too many bad rows, and what the template said of those that it refused."""
        try:
            tally.counts.check(self._config.max_bad_share)
        except InputError as error:
            if self._template_error is None or _REFUSED not in tally.counts.bad:
                raise
            got = f"{error.got}; the template says: {self._template_error.got}"
            raise InputError(wanted=error.wanted, got=got, next_step=error.next_step) from self._template_error

    def _steps(self) -> list[dict[str, Any]]:
        config, tallies = self._config, self._tallies
        rows_out = sum(tally.rows_out for tally in tallies)
        weighted = any(tally.weight is not None for tally in tallies)
        steps = [
            _step("form", settings={"max_bad_share": config.max_bad_share}),
            *settings_of(config.filters),
            _step("exact duplicates"),
            _step(
                "decontamination",
                off=None if config.benchmarks is not None else "no benchmark files were given",
                settings=readable(config.decontamination),
            ),
            _step("length", settings={"sequence_tokens": config.sequence_tokens, "overlong": config.overlong}),
            _step(
                "mixing",
                off=None if weighted else "no source has a weight",
                settings={tally.terms.name: round(tally.rows_out / rows_out, 6) for tally in tallies},
            ),
        ]
        for tally in tallies:
            if tally.joined:
                steps.append(_step("join", settings={"source": tally.terms.name, **tally.joined}))
            if tally.answers_chosen_by:
                by_score = set(tally.answers_chosen_by) != {FIRST_ANSWER}
                off = None if by_score else "the answers have no scores: the first one was taken"
                settings = {"source": tally.terms.name, **tally.answers_chosen_by}
                steps.append(_step("best answer by score", off=off, settings=settings))
        return steps


def _step(name: str, *, off: str | None = None, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A line of the card's list of steps; `off` says why a step was not taken."""
    return {"step": name, "on": off is None, "reason": off, "settings": dict(settings or {})}


def _of_inputs(inputs: Sequence[Path], terms: Sequence[Terms]) -> list[ConversationSource]:
    """The stage's plain inputs as sources."""
    if len(terms) > len(inputs):
        raise UserError(
            wanted=f"terms for at most {len(inputs)} inputs",
            got=f"{len(terms)}",
            next_step="Give the terms of the inputs only; a source brings its own.",
        )
    known = [*terms, *(read_terms(path) for path in inputs[len(terms) :])]
    return [
        ConversationSource(name=_name_of(path), files=(path,), terms=term)
        for path, term in zip(inputs, known, strict=True)
    ]


def _name_of(path: Path) -> str:
    """An artifact's own name, else that of the file or folder: never where it lies."""
    if path.is_dir() and (path / MANIFEST_FILE).is_file():
        return str(read_manifest(path)["name"])
    return path.resolve().name


def _named(sources: Sequence[ConversationSource]) -> Iterator[tuple[ConversationSource, str]]:
    """Each source with a name that no other has: two files may be called the same."""
    seen: dict[str, int] = {}
    for source in sources:
        name = source.name if source.terms is None else source.terms.name
        seen[name] = seen.get(name, 0) + 1
        yield source, name if seen[name] == 1 else f"{name} ({seen[name]})"


def _tally_of(source: ConversationSource, name: str) -> Tally:
    terms = Terms(name=name) if source.terms is None else replace(source.terms, name=name)
    revision = source.files.revision if isinstance(source.files, HubFiles) else None
    return Tally(terms=terms, revision=revision, weight=source.weight, quotable=source.quotable)
