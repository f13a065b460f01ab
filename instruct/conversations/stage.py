"""The stage `conversations`: cleaned conversations as text and as packed rows with a loss mask, by split.

Reads each source in turn, screens every conversation, thins the sources to their weights, splits by digest into train,
calibration, validation and test, renders with the tokenizer's own chat template, and packs every split. Loss counts on
the turns of the assistant only, in all splits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from common.documents import MAX_DROPPED_SHARE, Encoded, Shares, drop_warnings, finish_documents, split_documents
from common.errors import InputError, UserError, require_at_least, unknown_name
from common.known_sets import known_set
from common.metrics import progress
from common.packing import FULL_WEIGHT
from common.provenance import Terms, terms_in
from common.rows import MAX_BAD_SHARE, Row
from common.sources import HubDataset, HubFiles
from common.store import MANIFEST_FILE, Workspace, read_manifest, stage
from common.store.keys import readable
from common.tokenizer import Tokenizer
from eval.decontamination import DecontaminationConfig, Decontaminator
from instruct.conversations.counts import RuleCounts, card_of, card_step
from instruct.conversations.layouts import FIRST_ANSWER, PERSONAL_DATA, ConversationSource, files_of, read_chat
from instruct.conversations.lmsys import check_lmsys, read_lmsys
from instruct.conversations.rules import FiltersConfig, LmsysConfig, filter_steps
from instruct.conversations.screening import CONTAMINATED, DUPLICATE, SHORTENED, TOO_LONG, Screened, Screener, thinned

THINNED = "thinned to its weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversationsConfig:
    """How conversations are read, screened, mixed, split and packed."""

    sources: tuple[ConversationSource, ...] = ()
    """Sources, read after the inputs of the stage."""
    terms: tuple[Terms, ...] = ()
    """Names and terms of the inputs, in their order; an input without is named after its file."""
    sequence_tokens: int = 1024
    """Tokens of a packed row."""
    overlong: Literal["drop", "cut"] = "drop"
    """What to do with a longer conversation: remove it, or cut it after the last answer that fits."""
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    """Which conversations are removed for their content."""
    lmsys: LmsysConfig = field(default_factory=LmsysConfig)
    """Which rows of LMSYS sets are removed."""
    benchmarks: Path | None = None
    """Folder of benchmark files; conversations that hold an item of one are removed. None turns the step off."""
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    """When a conversation holds an item."""
    shares: Shares = field(default_factory=Shares)
    """Shares of calibration, validation and test."""
    max_bad_share: float = MAX_BAD_SHARE
    """Bad rows allowed (not JSON, wrong order of roles, an empty or broken turn), as a share of the rows of a source, 0
    to 1. Each kind of file that an LMSYS set is joined from counts separately, and so do answers without a match."""
    seed: int = 0
    """Chooses other splits, and other rows of a source that is thinned."""

    def __post_init__(self) -> None:
        require_at_least(2, sequence_tokens=self.sequence_tokens)
        require_at_least(0, seed=self.seed)
        if self.overlong not in ("drop", "cut"):
            raise unknown_name("overlong", repr(self.overlong), ("drop", "cut"))
        _require_weights(self.sources)


@stage(version=8)
def conversations(config: ConversationsConfig, workspace: Workspace, *inputs: Path) -> dict[str, Any]:
    """Write documents/, packed/, tokenizer/ and data_card.json.

    The inputs are files, or folders with `conversations.jsonl`, read before the sources of the config, and last the
    folder of the tokenizer.

    Raises:
        UserError: a file or the passphrase is missing, or the tokenizer has no usable chat template; InputError: a file
            is damaged, too many rows are bad, or no conversation is left.
    """
    *files, tokenizer_folder = inputs
    tokenizer = Tokenizer.load(tokenizer_folder)
    selection = Selection(files, config, tokenizer, workspace.folder / "scratch")
    rows = progress(selection.kept(), label="cleaning", unit="conversations")
    selected = split_documents(workspace.folder, rows, config.shares, selection.card)

    def encode(_: str, batch: Sequence[Row]) -> list[Encoded]:
        rendered = [tokenizer.render(row["messages"], tools=row.get("tools")) for row in batch]
        return [(ids, [FULL_WEIGHT * supervised for supervised in mask]) for ids, mask in rendered]

    # `distill` can train on these rows too, and reads the kind of data from the card.
    warnings = [*drop_warnings(selected, _advice), *_shortened_warnings(selected)]
    card = selected | {"stage": "conversations", "warnings": warnings}
    return finish_documents(
        workspace.folder, encode, lambda _: card, sequence_tokens=config.sequence_tokens, tokenizer=tokenizer
    )


def _require_template(tokenizer: Tokenizer) -> None:
    """UserError for a template that refuses every conversation, which is no fault of the rows.

    A template whose prompts open the thoughts takes answers with thoughts alone.
    """
    asked, said = {"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}
    try:
        tokenizer.render([asked, said])
    except UserError:
        try:
            tokenizer.render([asked, said | {"reasoning_content": "3"}])
        except UserError:
            pass
        else:
            return
        raise


_ADVICE = {
    TOO_LONG: "raise --sequence-tokens, or give --overlong cut",
    "a turn too short": "lower --min-turn-characters",
    "a turn too long": "raise --max-turn-characters",
    "answered in another language": "--min-japanese-share 0 keeps them",
    PERSONAL_DATA: "--keep-personal-data keeps them",
    "template instruction": "--keep-templates keeps them",
    DUPLICATE: "each is kept once",
    CONTAMINATED: "they hold benchmark items and have to stay out",
}
_ASKED_FOR = (THINNED, "a refusal")
"""Rules that are off unless a user turns them on."""


def _shortened_warnings(card: Mapping[str, Any]) -> Iterator[str]:
    """A warning for each source of which the template shortens many answers: the model does not learn these parts."""
    for source in card["sources"]:
        shortened = source["truncated"].get(SHORTENED, 0)
        if shortened > MAX_DROPPED_SHARE * source["answers"]:
            answers = f"{shortened:,} of {source['answers']:,} answers"
            lost = f"the chat template leaves out a part of {answers} of {source['name']}"
            yield f"{lost}, such as their thoughts: take a template that writes them, or leave them out of the data"


def _advice(rule: str) -> str | None:
    """How a user keeps the rows that a rule removes; the flags are fields of the config in a recipe."""
    return None if rule in _ASKED_FOR else _ADVICE.get(rule, "data_card.json has samples")


class Selection:
    """The sources of a stage, read once: `kept` gives the conversations, then `card` their counts."""

    def __init__(
        self, inputs: Sequence[Path], config: ConversationsConfig, tokenizer: Tokenizer, scratch: Path
    ) -> None:
        self._sources = [*_of_inputs(inputs, config.terms), *config.sources]
        if not self._sources:
            raise UserError("empty", wanted="conversations", got="no source", next_step="name a file or a set")
        _require_weights(self._sources)
        self._config, self._tokenizer, self._scratch = config, tokenizer, scratch
        self._counts = list(_counts_of_each(self._sources))
        self._benchmarks: Decontaminator | None = None

    def kept(self) -> Iterator[tuple[bytes, Row]]:
        """Yield digest and content of each kept row, in the order of the sources.

        Raises:
            UserError: a file or the passphrase is missing; InputError: a file is damaged, too many rows of a source are
                bad, or no conversation is left.
        """
        for source in self._sources:
            if source.kind == "lmsys":
                check_lmsys(source.found, source.original)
        _require_template(self._tokenizer)
        if self._config.benchmarks is not None:
            self._benchmarks = Decontaminator.from_folder(self._config.benchmarks, self._config.decontamination)
        for one, is_kept in self._mixed():
            if is_kept:
                self._counts[one.source].count_kept(one.row, one.tokens)
                yield one.digest, one.row
            else:
                self._counts[one.source].count_removed(THINNED, one.row)
        if not any(counts.rows_out for counts in self._counts):
            too_long = sum(counts.removed[TOO_LONG] for counts in self._counts)
            wanted = f"at least one conversation of at most {self._config.sequence_tokens} tokens"
            got = f"none in {', '.join(counts.terms.name for counts in self._counts)} ({too_long} are longer)"
            next_step = "give files whose rows hold conversations, or raise sequence_tokens"
            raise InputError("empty", wanted=wanted, got=got, next_step=next_step)

    def card(self) -> dict[str, Any]:
        """Rows in, removed by rule and out, by source and in total; the steps, and samples of each rule."""
        return card_of(self._counts, self._steps(), {} if self._benchmarks is None else self._benchmarks.card())

    def _mixed(self) -> Iterator[tuple[Screened, bool]]:
        weights = [source.weight for source in self._sources if source.weight is not None]
        if not weights:
            return ((one, True) for one in self._screened())
        return thinned(self._screened(), [counts.terms.name for counts in self._counts], weights, self._scratch)

    def _screened(self) -> Iterator[Screened]:
        config = self._config
        screen = Screener(
            config.filters,
            self._tokenizer,
            sequence_tokens=config.sequence_tokens,
            truncate=config.overlong == "cut",
            decontaminator=self._benchmarks,
            seed=config.seed,
        )
        for place, (source, counts) in enumerate(zip(self._sources, self._counts, strict=True)):
            counts.removed.update({DUPLICATE: 0, TOO_LONG: 0})  # in the card even if nothing is removed
            if source.kind == "lmsys":
                scratch, share = self._scratch, config.max_bad_share
                rows = read_lmsys(source.found, source.original, counts, config.lmsys, scratch, share)
            else:
                rows = read_chat(files_of(source.found, self._scratch), counts, config.lmsys)
            yield from filter(None, (screen(row, counts, place) for row in rows))
            screen.check(counts, config.max_bad_share)

    def _steps(self) -> list[dict[str, Any]]:
        config, all_counts = self._config, self._counts
        rows_out = sum(counts.rows_out for counts in all_counts)
        shares = {counts.terms.name: round(counts.rows_out / rows_out, 6) for counts in all_counts}
        no_benchmarks = None if config.benchmarks is not None else "no benchmark files were given"
        no_weights = None if any(counts.weight is not None for counts in all_counts) else "no source has a weight"
        dated = {} if self._tokenizer.template_date is None else {"date": self._tokenizer.template_date}
        length = {"sequence_tokens": config.sequence_tokens, "overlong": config.overlong}
        steps = [
            card_step("form", settings={"max_bad_share": config.max_bad_share}),
            *filter_steps(config.filters),
            card_step("exact duplicates"),
            card_step("decontamination", off=no_benchmarks, settings=readable(config.decontamination)),
            card_step("length", settings=length),
            card_step("chat template", settings=dated),
            card_step("mixing", off=no_weights, settings=shares),
        ]
        for counts in all_counts:
            name = {"source": counts.terms.name}
            if counts.joined:
                steps.append(card_step("join", settings={**name, **counts.joined}))
            if counts.answers_chosen_by:
                by_score = set(counts.answers_chosen_by) != {FIRST_ANSWER}
                off = None if by_score else "the answers have no scores: the first one was taken"
                steps.append(card_step("best answer by score", off=off, settings={**name, **counts.answers_chosen_by}))
        return steps


def _require_weights(sources: Sequence[ConversationSource]) -> None:
    """UserError ("contradiction") where only some of the sources have a weight."""
    without = [source.name for source in sources if source.weight is None]
    if 0 < len(without) < len(sources):
        wanted, got = "a weight for every source, or for none", f"none for {', '.join(without)}"
        next_step = "give each source a weight, inputs as `sources`, or leave all weights out"
        raise UserError("contradiction", wanted=wanted, got=got, next_step=next_step)


def _of_inputs(inputs: Sequence[Path], terms: Sequence[Terms]) -> Iterator[ConversationSource]:
    """The inputs of the stage as sources, named as their artifact, else as their file or folder, never by a path."""
    if len(terms) > len(inputs):
        wanted, next_step = f"terms for at most {len(inputs)} inputs", "give no terms of sources, which have their own"
        raise UserError("contradiction", wanted=wanted, got=f"{len(terms)}", next_step=next_step)
    for path, known in zip_longest(inputs, terms):
        is_artifact = path.is_dir() and (path / MANIFEST_FILE).is_file()
        name = str(read_manifest(path)["name"]) if is_artifact else path.resolve().name
        yield ConversationSource(name=name, files=(path,), terms=terms_in(path, known))


def _counts_of_each(sources: Sequence[ConversationSource]) -> Iterator[RuleCounts]:
    """Empty counts of each source, under a name that no other has: two files can have one name."""
    seen: dict[str, int] = {}
    for source in sources:
        terms = source.terms or Terms(name=source.name)
        # By the set's own name, whatever terms call it, and before a number is added.
        named = source.files.name if isinstance(source.files, HubFiles | HubDataset) else terms.name
        is_closed = not terms.quotable and known_set(named) is not None
        seen[terms.name] = seen.get(terms.name, 0) + 1
        if seen[terms.name] > 1:
            terms = replace(terms, name=f"{terms.name} ({seen[terms.name]})")
        revision = source.files.revision if isinstance(source.files, HubFiles) else None
        yield RuleCounts(terms=terms, revision=revision, weight=source.weight, is_closed=is_closed)
