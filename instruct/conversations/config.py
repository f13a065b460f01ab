"""What the conversations stage is told: its sources, and how they are checked, filtered, mixed, cut and packed.

The filters' numbers stand in `filters`, those of LMSYS sets in `lmsys_rows`. It reads nothing.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common.errors import UserError
from common.known_sets import terms_of
from common.provenance import Terms
from common.rows import MAX_BAD_SHARE
from common.sources import Found, HubDataset, HubFiles, found_files
from common.splits import Shares
from eval.decontamination import DecontaminationConfig
from instruct.conversations.filters import FiltersConfig
from instruct.conversations.lmsys_rows import LmsysConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversationSource:
    """One set of conversations."""

    name: str
    """What cards and reports call it; never a path."""
    kind: Literal["auto", "lmsys"] = "auto"
    """`auto`: chat files, whose columns tell the layout. `lmsys`: answers and encrypted instructions to join."""
    files: tuple[Path, ...] | HubFiles | HubDataset
    """Local files (of a folder its `conversations.jsonl`); files of the hub; or the name of a known set, in a recipe
    whose sources are not resolved yet."""
    original: tuple[Path, ...] | HubFiles = ()
    """For `lmsys`: the files of the user's own copy of lmsys-chat-1m."""
    weight: float | None = None
    """Its share of the rows, relative to the other sources' weights; None takes everything of every source."""
    terms: Terms | None = None
    """Licence and obligations; None where nothing is known of them."""
    quotable: bool = True
    """Whether the data card may quote its conversations as samples."""

    def __post_init__(self) -> None:
        if self.weight is not None and not (math.isfinite(self.weight) and self.weight > 0):
            raise UserError(
                wanted=f"a weight above 0 for {self.name}",
                got=str(self.weight),
                next_step="Correct the weight, or leave the source out.",
            )
        if self.files == ():
            raise UserError(wanted=f"files of {self.name}", got="none", next_step="Name at least one.")

    @property
    def found(self) -> Found:
        """Its files; UserError where only the set's name is known."""
        return found_files(self.files)


def hub_conversations(name: str, *, config: str | None = None, weight: float | None = None) -> ConversationSource:
    """A set of conversations that is known by name, before its files are resolved."""
    whole = name if config is None else f"{name}:{config}"
    dataset = HubDataset(name=name, config=config)
    return ConversationSource(name=whole, files=dataset, weight=weight, terms=terms_of(whole))


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversationsConfig:
    """How conversations are checked, cut and packed."""

    sources: tuple[ConversationSource, ...] = ()
    """Sets to read after the stage's inputs, in this order."""
    terms: tuple[Terms, ...] = ()
    """Names and terms of the stage's inputs, in their order; an input without is called by its file's name."""
    sequence_tokens: int = 1024
    """Tokens in a packed row."""
    overlong: Literal["drop", "cut"] = "drop"
    """What becomes of a longer conversation: it goes, or is cut after the last answer that fits."""
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    """Which conversations are left out for what they say."""
    lmsys: LmsysConfig = field(default_factory=LmsysConfig)
    """Which rows of LMSYS sets are left out."""
    benchmarks: Path | None = None
    """Folder of benchmark files; a conversation that holds a question of theirs goes. None looks for nothing."""
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    """When a conversation holds a question of a benchmark."""
    shares: Shares = field(default_factory=Shares)
    """Shares of calibration, validation and test."""
    max_bad_share: float = MAX_BAD_SHARE
    """Bad rows allowed (not JSON, wrong order of roles, an empty or broken turn), as a share of a source's rows, 0 to
    1. Of the files that an LMSYS set is joined from, each kind counts by itself, and so do answers without a match."""
    seed: int = 0
    """Chooses another cut into splits, and other rows where a source is thinned."""

    def __post_init__(self) -> None:
        if self.sequence_tokens < 2 or self.seed < 0:
            raise UserError(
                wanted="sequence_tokens of at least 2 and a seed of at least 0",
                got=f"{self.sequence_tokens}, {self.seed}",
                next_step="Correct the conversations' config.",
            )
        if self.overlong not in ("drop", "cut"):
            raise UserError(wanted="overlong drop or cut", got=repr(self.overlong), next_step="Name one of these.")
        if len({source.weight is None for source in self.sources}) > 1:
            without = [source.name for source in self.sources if source.weight is None]
            raise UserError(
                wanted="a weight for every source, or for none",
                got=f"none for {', '.join(without)}",
                next_step="Give each source a weight, or leave all weights out.",
            )
