"""When a document counts as holding a benchmark item. It looks for nothing."""

from dataclasses import dataclass

from common.errors import UserError

SHORTEST = 2
"""Characters of the shortest question that is looked for at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecontaminationConfig:
    """When a document holds a benchmark item. Characters are letters and digits, in normal form."""

    ngram_characters: int = 10
    """Length of an n-gram."""
    min_overlap: float = 0.8
    """Share of a text's n-grams that must occur in the document, above 0 up to 1."""
    min_characters: int = 10
    """A question of this length counts by its n-grams; at least `ngram_characters`."""
    min_alone_characters: int = 5
    """A question of this length counts without its answer, if closed as a question; from 2 up to `min_characters`."""
    near_characters: int = 100
    """How far from a shorter question its answer or choices are looked for, and how much of each."""

    def __post_init__(self) -> None:
        lengths = 1 <= self.ngram_characters <= self.min_characters
        alone = SHORTEST <= self.min_alone_characters <= self.min_characters
        if not (lengths and alone and 0 < self.min_overlap <= 1 and self.near_characters >= 1):
            raise UserError(
                wanted=f"ngram_characters from 1 and min_alone_characters from {SHORTEST}, both up to min_characters, "
                "min_overlap above 0 up to 1, near_characters of at least 1",
                got=f"{self.ngram_characters}, {self.min_alone_characters}, {self.min_characters}, {self.min_overlap}, "
                f"{self.near_characters}",
                next_step="Correct the config of the decontamination.",
            )
