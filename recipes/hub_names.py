"""What a recipe takes from the hub, by name: models, sets of text, sets of conversations.

These are names and numbers only. `recipes.resolving` finds the files when a build starts, and makes the stages' own
configs of them.
"""

from dataclasses import dataclass

from common.errors import UserError
from common.provenance import Terms
from common.sources import HubDataset, HubModel


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedModel:
    """A checkpoint of the hub, taken as it is."""

    model: HubModel
    terms: Terms
    """Its licence and obligations; they travel into everything made of it."""


def published(name: str, *, licence: str, attribution: str, obligations: tuple[str, ...] = ()) -> PublishedModel:
    """A model of the hub with its terms.

    Args:
        name: `org/name`.
        licence: SPDX identifier or the publisher's own name.
        attribution: the line that is shown with whatever is made of it.
        obligations: what whoever passes on a model that was made or taught by it must do, a sentence each.
    """
    url = f"https://huggingface.co/{name}"
    terms = Terms(name=name, licence=licence, url=url, attribution=attribution, obligations=obligations)
    return PublishedModel(model=HubModel(name=name), terms=terms)


@dataclass(frozen=True, kw_only=True, slots=True)
class HubText:
    """A set of text."""

    dataset: HubDataset
    terms: Terms
    weight: float | None = None
    """See `distill.corpus.TextSource`."""
    japanese: bool = True
    """Likewise."""
    text_field: str = "text"
    """The column that holds the text."""
    max_files: int | None = None
    """Only the first so many of its files, by name; None takes all. A set may be larger than any disk."""

    def __post_init__(self) -> None:
        if self.max_files is not None and self.max_files < 1:
            raise UserError(
                wanted=f"max_files of at least 1 for {self.dataset.name}",
                got=str(self.max_files),
                next_step="correct the recipe",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class HubConversations:
    """A set of conversations that `instruct.conversations.published` knows, with its terms."""

    dataset: HubDataset
    weight: float | None = None
    """See `instruct.conversations.ConversationSource`."""
