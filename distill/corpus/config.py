"""What a corpus is made of and how: the configs of the stage `corpus`. It runs nothing."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from common.duplicates import NearDuplicatesConfig
from common.errors import UserError, require_at_least
from common.packing import FULL_WEIGHT
from common.provenance import Terms
from common.rows import MAX_BAD_SHARE
from common.sources import Found, HubDataset, HubFiles, found_files
from common.splits import Shares
from distill.text.cleaning import CleaningConfig
from eval.decontamination import DecontaminationConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSource:
    """One source of text: files, where they are from, and how much of the corpus they make."""

    terms: Terms
    """Its name in cards, licence and obligations."""
    files: tuple[Path, ...] | HubFiles | HubDataset
    """Local files, which count by content; files of a hub data set at one commit, fetched one at a time; or the name of
    a data set, in a recipe whose sources are not resolved yet."""
    weight: float | None = None
    """Share of the documents' characters, against the other sources' weights: documents are written in such an order
    that any beginning of train holds the sources in this ratio, until one of them ends. None for all of them: one after
    the other."""
    japanese: bool = True
    """Whether the quality rules, which are for Japanese, apply; false for English or code."""
    text_field: str = "text"
    """The column that holds the text."""
    max_files: int | None = None
    """Of a data set on the hub only the first files, by path; None takes all. A set may be larger than any disk."""

    def __post_init__(self) -> None:
        require_at_least(1, max_files=self.max_files)
        if self.weight is not None and not (math.isfinite(self.weight) and self.weight > 0):
            raise UserError(
                wanted=f"a weight above 0 for {self.terms.name}",
                got=str(self.weight),
                next_step="Correct the weight, or leave the source out.",
            )

    @property
    def found(self) -> Found:
        """Its files; UserError where only the data set's name is known."""
        return found_files(self.files)

    @property
    def num_files(self) -> int:
        """How many files it has."""
        return len(self.found.files if isinstance(self.found, HubFiles) else self.found)

    @property
    def revision(self) -> str | None:
        """The commit of a hub dataset."""
        return self.files.revision if isinstance(self.files, HubFiles) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """How text is cleaned, cut and packed."""

    sources: tuple[TextSource, ...] = ()
    """Where text comes from, besides the stage's inputs."""
    terms: tuple[Terms, ...] = ()
    """Names and licences of the stage's inputs, in their order; an input without is called by its file's name."""
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    """What is done to each document alone."""
    near_duplicates: NearDuplicatesConfig | None = field(default_factory=NearDuplicatesConfig)
    """When two documents count as one; None keeps near-duplicates. Exact ones always go: the cut into splits would put
    one copy into train and the other into test."""
    benchmarks: Path | None = None
    """Folder of benchmark files; documents that hold an item of one are removed. None looks for none."""
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    """When a document holds an item."""
    reason_off: str = "not asked for"
    """Why the steps that are off are off, for the data card."""
    sequence_tokens: int = 1024
    """Tokens in a packed row; longer documents are cut into pieces of this length."""
    shares: Shares = field(default_factory=Shares)
    """Shares of calibration, validation and test."""
    prompt_weight: int = 10
    """Loss weight, in hundredths, of text outside the answers of a train document that marks its answers."""
    max_bad_share: float = MAX_BAD_SHARE
    """Bad rows allowed (empty, not UTF-8, not JSON, no text), as a share of all rows, 0 to 1. Judged at the last row:
    bad rows often stand together; from 100,000 rows on, ten times the share stops the stage at once."""
    seed: int = 0
    """Chooses another cut into splits."""

    def __post_init__(self) -> None:
        if self.sequence_tokens < 2 or not 0 <= self.prompt_weight <= FULL_WEIGHT or self.seed < 0:
            raise UserError(
                wanted=f"sequence_tokens of at least 2, prompt_weight from 0 to {FULL_WEIGHT}, a seed of at least 0",
                got=f"{self.sequence_tokens}, {self.prompt_weight}, {self.seed}",
                next_step="Correct the corpus's config.",
            )
        weighted = [source.weight is not None for source in self.sources]
        if any(weighted) and not all(weighted):
            raise UserError(
                wanted="a weight for every source, or for none",
                got=f"{sum(weighted)} of {len(weighted)} sources with one",
                next_step="Give the others one too.",
            )
