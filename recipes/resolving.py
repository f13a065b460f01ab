"""A recipe's names to files, before anything is computed: models, texts, conversations, benchmarks and licence texts.

Everything that is missing is named at once: whoever starts a build of many hours wants to hear of it now. What was
found is written into the lock beside the build, and a later start keeps to it. It downloads nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from common.errors import UserError
from common.sources import LOCK_FILE, Found, HubDataset, HubFiles, SourcesLock
from common.sources.resolving import licence_files
from distill.corpus import TextSource
from instruct.conversations import ConversationSource
from instruct.conversations.published import published_source
from recipes.hub_names import HubConversations, HubText, PublishedModel
from recipes.licence_texts import LicenceTexts
from recipes.published_models import PublishedModelConfig

T = TypeVar("T")
BENCHMARKS_FOLDER = "benchmarks"


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """What the names of a recipe stand for in one build."""

    models: dict[str, PublishedModelConfig] = field(default_factory=dict[str, PublishedModelConfig])
    """By artifact."""
    text: tuple[TextSource, ...] = ()
    conversations: tuple[ConversationSource, ...] = ()
    benchmarks: Path | None = None
    """Folder of the benchmark files in SOURCES; None where there is no SOURCES, or no need of them."""
    licences: tuple[LicenceTexts, ...] = ()
    """Licence texts of data sets; those of models lie in their folders."""


class Resolver:
    """Finds a build's sources, and gathers what cannot be found."""

    def __init__(self, build_folder: Path, *, sources: Path | None) -> None:
        self._sources = sources
        self._lock = SourcesLock(build_folder / LOCK_FILE, sources=sources)
        self._refused: list[UserError] = []

    def resolve(
        self,
        *,
        models: dict[str, PublishedModel],
        text: tuple[HubText, ...],
        conversations: tuple[HubConversations, ...],
        with_benchmarks: bool,
    ) -> Resolved:
        """All of it.

        Raises:
            UserError: what is missing, refused, incomplete or not what it was, everything in one error.
        """
        found_models = {name: self._tried(lambda model=model: self._model(model)) for name, model in models.items()}
        found_text = [self._tried(lambda source=source: self._text(source)) for source in text]
        found_talks = [self._tried(lambda source=source: self._conversations(source)) for source in conversations]
        benchmarks = self._tried(self._benchmarks) if with_benchmarks else None
        licences = [
            self._tried(lambda dataset=dataset, found=found: self._licences(dataset, found))
            for dataset, found in zip(
                [*(source.dataset for source in text), *(source.dataset for source in conversations)],
                [*found_text, *found_talks],
                strict=True,
            )
        ]
        self._raise_refused()
        return Resolved(
            models={name: model for name, model in found_models.items() if model is not None},
            text=tuple(source for source in found_text if source is not None),
            conversations=tuple(source for source in found_talks if source is not None),
            benchmarks=benchmarks,
            licences=tuple(texts for texts in licences if texts is not None and texts.files),
        )

    def _tried(self, find: Callable[[], T]) -> T | None:
        try:
            return find()
        except UserError as error:
            self._refused.append(error)
            return None

    def _raise_refused(self) -> None:
        if len(self._refused) == 1:
            raise self._refused[0]
        if self._refused:
            raise UserError(
                wanted=" | ".join(error.wanted for error in self._refused),
                got=" | ".join(error.got for error in self._refused),
                next_step=" | ".join(dict.fromkeys(error.next_step for error in self._refused)),
            )

    def _model(self, model: PublishedModel) -> PublishedModelConfig:
        return PublishedModelConfig(files=self._lock.find(model.model), terms=model.terms)

    def _text(self, source: HubText) -> TextSource:
        found = _first(self._lock.find(source.dataset), source.max_files)
        return TextSource(
            terms=source.terms,
            files=found,
            weight=source.weight,
            japanese=source.japanese,
            text_field=source.text_field,
        )

    def _conversations(self, source: HubConversations) -> ConversationSource:
        return published_source(source.dataset, sources=self._sources, weight=source.weight, find=self._lock.find)

    def _benchmarks(self) -> Path | None:
        if self._sources is None:
            return None
        folder = self._sources / BENCHMARKS_FOLDER
        if not folder.is_dir():
            raise UserError(
                wanted=f"the benchmark files in the folder {BENCHMARKS_FOLDER} of SOURCES",
                got=f"no folder {folder}",
                next_step="docs/reproduce.md tells where they are published and how they lie there",
            )
        return folder

    def _licences(self, dataset: HubDataset, found: TextSource | ConversationSource | None) -> LicenceTexts | None:
        if found is None:
            return None
        texts: Found = licence_files(dataset.name, "dataset", found.files, sources=self._sources)
        return LicenceTexts(name=dataset.name, files=texts) if _any(texts) else None


def _first(found: Found, count: int | None) -> Found:
    if count is None:
        return found
    if isinstance(found, HubFiles):
        return replace(found, files=found.files[:count])
    return found[:count]


def _any(found: Found) -> bool:
    return bool(found.files if isinstance(found, HubFiles) else found)
