"""A recipe's names to files, before anything is computed: models, texts, conversations, benchmarks and licence texts.

Everything that is missing is named at once: whoever starts a build of many hours wants to hear of it now. What was
found is written into the lock beside the build, and a later start keeps to it. Of models it downloads the tokenizers,
to compare them; of all else nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from common.errors import UserError
from common.sources import LOCK_FILE, Found, HubDataset, HubFiles, SourcesLock, kept_file
from common.tokenizer import Tokenizer
from distill.corpus import TextSource
from distill.teacher import require_same_vocabulary
from instruct.conversations import ConversationSource
from instruct.conversations.published import original_of, published_source
from recipes.hub_names import HubConversations, HubText, PublishedModel
from recipes.stages.licence_texts import LicenceTexts
from recipes.stages.published_model import PublishedModelConfig

T = TypeVar("T")
BENCHMARKS_FOLDER = "benchmarks"
_PAIR = ("student_before", "teacher")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json")
"""What a tokenizer is loaded from; the first one decides about ids."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """What a build wants of the hub, or of the folder that stands in for it."""

    models: dict[str, PublishedModel] = field(default_factory=dict[str, PublishedModel])
    """By artifact."""
    text: tuple[HubText, ...] = ()
    conversations: tuple[HubConversations, ...] = ()
    benchmarks: bool = False
    """Whether the benchmark files are wanted."""
    licences: bool = False
    """Whether the licence texts of text and conversations are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """One name that was not resolved."""

    what: str
    """`org/name`, or what else is missing."""
    error: UserError


class Resolver:
    """Finds a build's sources, and gathers what cannot be found."""

    def __init__(self, build_folder: Path, *, sources: Path | None, ask: bool = True) -> None:
        """Nothing is read yet.

        Args:
            build_folder: where the lock lies, or will.
            sources: the folder that stands in for the hub, or None.
            ask: False resolves by the lock alone: what is not in it is refused, and nothing is written.
        """
        self._build_folder, self._sources, self._ask = build_folder, sources, ask

    def resolve(self, names: Names) -> Resolved:
        """All of it.

        Raises:
            UserError: what is missing, refused, incomplete or not what it was, everything in one error.
        """
        resolved, refused = self.attempt(names)
        if len(refused) == 1:
            raise refused[0].error
        if refused:
            raise UserError(
                wanted=" | ".join(one.error.wanted for one in refused),
                got=" | ".join(one.error.got for one in refused),
                next_step=" | ".join(dict.fromkeys(one.error.next_step for one in refused)),
            )
        return resolved

    def attempt(self, names: Names) -> tuple[Resolved, list[Refusal]]:
        """What can be found, and each name that cannot with the reason."""
        refused: list[Refusal] = []

        def tried(what: str, find: Callable[[], T]) -> T | None:
            try:
                return find()
            except UserError as error:
                refused.append(Refusal(what=what, error=error))
                return None

        opened = tried(LOCK_FILE, self._open_lock)
        if opened is None:
            return Resolved(), refused
        lock: SourcesLock = opened
        models = {
            name: tried(model.model.name, lambda model=model: self._model(lock, model))
            for name, model in names.models.items()
        }
        text = [tried(one.dataset.name, lambda one=one: self._text(lock, one)) for one in names.text]
        talks = [tried(one.dataset.name, lambda one=one: self._talks(lock, one)) for one in names.conversations]
        benchmarks = tried(BENCHMARKS_FOLDER, self._benchmarks) if names.benchmarks else None
        found_models = {name: model for name, model in models.items() if model is not None}
        if len(found_models) == len(_PAIR) and self._ask:
            tried("the teacher's tokenizer", lambda: self._require_one_tokenizer(names, found_models))
        licences = [
            tried(f"licence texts of {dataset.name}", lambda dataset=dataset, found=found: _texts(lock, dataset, found))
            for dataset, found in (*_sets_of_text(names, text), *_sets_of_talks(names, talks))
            if names.licences
        ]
        resolved = Resolved(
            models=found_models,
            text=tuple(source for source in text if source is not None),
            conversations=tuple(source for source in talks if source is not None),
            benchmarks=benchmarks,
            licences=tuple(texts for texts in licences if texts is not None),
        )
        return resolved, refused

    def _open_lock(self) -> SourcesLock:
        return SourcesLock(self._build_folder / LOCK_FILE, sources=self._sources, ask=self._ask)

    def _require_one_tokenizer(self, names: Names, found: dict[str, PublishedModelConfig]) -> None:
        """Refuses a teacher whose ids mean other tokens than the student's, before 65 GB of it are downloaded."""
        folders = [self._tokenizer_folder(found[name]) for name in _PAIR]
        whole = [(folder / _TOKENIZER_FILES[0]).read_bytes() for folder in folders]
        if whole[0] == whole[1]:
            return
        student, teacher = folders
        try:
            require_same_vocabulary(Tokenizer.load(student), teacher)
        except UserError as error:
            called = {name: names.models[name].model.name for name in _PAIR}
            raise UserError(
                wanted=f"a teacher with the tokenizer of {called['student_before']}",
                got=f"{called['teacher']}: {error.got}",
                next_step=error.next_step,
            ) from error

    def _tokenizer_folder(self, model: PublishedModelConfig) -> Path:
        """Where a model's tokenizer lies: in SOURCES, or kept beside the build."""
        if not isinstance(model.files, HubFiles):
            return model.files[0].parent
        files = [file for file in _TOKENIZER_FILES if file in model.files.files]
        kept = [kept_file(model.files, file, build_folder=self._build_folder) for file in files]
        return kept[0].parent

    def _model(self, lock: SourcesLock, model: PublishedModel) -> PublishedModelConfig:
        files = lock.find(model.model)
        if isinstance(files, HubFiles) and self._ask:  # the next plan reads it, with or without a network
            kept_file(files, "config.json", build_folder=self._build_folder)
        return PublishedModelConfig(files=files, terms=model.terms)

    def _text(self, lock: SourcesLock, source: HubText) -> TextSource:
        return TextSource(
            terms=source.terms,
            files=lock.find(source.dataset, max_files=source.max_files),
            weight=source.weight,
            japanese=source.japanese,
            text_field=source.text_field,
        )

    def _talks(self, lock: SourcesLock, source: HubConversations) -> ConversationSource:
        return published_source(source.dataset, sources=self._sources, weight=source.weight, find=lock.find)

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


def _sets_of_text(names: Names, found: Sequence[TextSource | None]) -> Iterator[tuple[HubDataset, Found]]:
    for wanted, source in zip(names.text, found, strict=True):
        if source is not None:
            yield wanted.dataset, source.files


def _sets_of_talks(names: Names, found: Sequence[ConversationSource | None]) -> Iterator[tuple[HubDataset, Found]]:
    """The sets, and those that their instructions derive from: the agreements of these hold as well."""
    for wanted, source in zip(names.conversations, found, strict=True):
        if source is not None:
            yield wanted.dataset, source.files
            original = original_of(wanted.dataset.name)
            if original is not None and source.original:
                yield HubDataset(name=original), source.original


def _texts(lock: SourcesLock, dataset: HubDataset, found: Found) -> LicenceTexts | None:
    texts = lock.licences(dataset, found)
    there = texts.files if isinstance(texts, HubFiles) else texts
    return LicenceTexts(name=dataset.name, files=texts) if there else None
