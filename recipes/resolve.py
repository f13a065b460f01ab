"""From the names in a recipe to files, before anything is computed: `resolve(recipe)` fills the files in.

Everything that is missing is reported at once, so that a build of many hours does not stop at the second source. What
was found is written into `sources.lock.json` in the build folder, and later starts use the same commits. Only the
tokenizers and config files of models are downloaded, to compare them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from common.errors import UserError, not_found
from common.sources import LOCK_FILE, Found, HubDataset, HubFiles, HubModel, SourcesLock, kept_file, local_mirror
from common.tokenizer import Tokenizer
from distill.corpus import TextSource
from distill.teacher import require_same_vocabulary
from instruct.conversations import ConversationSource
from instruct.conversations.published import original_of, published_source
from recipes.recipe import Recipe, stages_until
from recipes.stages.benchmarks import BenchmarkQuestionsConfig
from recipes.stages.published import LicenceTexts, LicenceTextsConfig, PublishedModelConfig

T = TypeVar("T")
BENCHMARKS_FOLDER = "benchmarks"
_PAIR = ("student_before", "teacher")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json")
"""What a tokenizer is loaded from; the first one decides the ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unresolved:
    """One name (`org/name`) that was not resolved, or what else is missing."""

    what: str
    error: UserError


def resolve(recipe: Recipe, build_folder: Path, *, until: str | None = None) -> Recipe:
    """The recipe with the files of every name that a build up to `until` reads.

    The environment variable SOURCES names a folder that takes the place of the hub.

    Raises:
        UserError: what is missing, refused, incomplete or changed, everything in one error; an unknown `until`.
    """
    resolved, missing = attempt(recipe, build_folder, sources=local_mirror(None), until=until)
    if len(missing) == 1:
        raise missing[0].error
    if missing:
        raise UserError(
            "several",
            wanted=" | ".join(one.error.wanted for one in missing),
            got=" | ".join(one.error.got for one in missing),
            next_step=" | ".join(dict.fromkeys(one.error.next_step for one in missing)),
        )
    return resolved


def attempt(
    recipe: Recipe, build_folder: Path, *, sources: Path | None, until: str | None = None, ask: bool = True
) -> tuple[Recipe, list[Unresolved]]:
    """The recipe with the files that can be found, and each name that cannot, with the reason.

    The lock is in `build_folder`; the folder `sources` replaces the hub. Names that only stages after `until` read stay
    as they are. With `ask=False` the lock alone is used: a name not in it stays unresolved, and nothing is written.
    """
    found = _Resolver(build_folder, sources, ask=ask)
    wanted = {stage.name for stage in stages_until(recipe, until)}
    if recipe.benchmarks is not None and sources is not None:
        recipe = found.benchmarks(recipe, needed=bool(wanted & {"benchmarks", "world", "conversations", "corpus"}))
    lock = found.tried(LOCK_FILE, lambda: SourcesLock(build_folder / LOCK_FILE, sources=sources, ask=ask))
    if lock is None:
        return recipe, found.missing
    models = {name: found.model(lock, model) for name, model in recipe.published_models.items() if name in wanted}
    recipe = replace(recipe, **models)
    if ask and all(name in models and not isinstance(models[name].files, HubModel) for name in _PAIR):
        found.tried("the teacher's tokenizer", lambda: found.require_one_tokenizer(models))
    if "conversations" in wanted and recipe.conversations is not None:
        named = [found.conversations(lock, source) for source in recipe.conversations.sources]
        recipe = replace(recipe, conversations=replace(recipe.conversations, sources=tuple(named)))
    if "corpus" in wanted:
        texts = tuple(found.text(lock, source) for source in recipe.corpus.sources)
        recipe = replace(recipe, corpus=replace(recipe.corpus, sources=texts))
    if "licences" in wanted:
        recipe = replace(recipe, licences=found.licences(lock, recipe))
    return recipe, found.missing


class _Resolver:
    """Finds the sources of a build, and collects what cannot be found."""

    def __init__(self, build_folder: Path, sources: Path | None, *, ask: bool) -> None:
        self._build_folder, self._sources, self._ask = build_folder, sources, ask
        self._datasets: list[tuple[HubDataset, Found]] = []
        self.missing: list[Unresolved] = []

    def tried(self, what: str, find: Callable[[], T]) -> T | None:
        """What `find` returns; None where it refuses, and the error is kept under the name `what`."""
        try:
            return find()
        except UserError as error:
            self.missing.append(Unresolved(what=what, error=error))
            return None

    def benchmarks(self, recipe: Recipe, *, needed: bool) -> Recipe:
        """The benchmark files of SOURCES in the place of a download."""
        assert self._sources is not None
        folder = self._sources / BENCHMARKS_FOLDER
        if needed and not folder.is_dir():
            what = f"the benchmark files in the folder {BENCHMARKS_FOLDER} of SOURCES"
            next_step = "put them there; docs/reproduce.md says where they are published"
            error = not_found(what, f"no folder {folder}", next_step=next_step)
            self.missing.append(Unresolved(what=BENCHMARKS_FOLDER, error=error))
            return recipe
        world = recipe.world
        return replace(
            recipe,
            benchmarks=None,
            world=replace(world, benchmarks=folder) if isinstance(world, BenchmarkQuestionsConfig) else world,
            corpus=replace(recipe.corpus, benchmarks=folder),
            conversations=recipe.conversations and replace(recipe.conversations, benchmarks=folder),
        )

    def model(self, lock: SourcesLock, model: PublishedModelConfig) -> PublishedModelConfig:
        if not isinstance(model.files, HubModel):
            return model
        name = model.files

        def find() -> Found:
            files = lock.find(name)
            if isinstance(files, HubFiles) and self._ask:  # the next plan reads it, with or without a network
                kept_file(files, "config.json", build_folder=self._build_folder)
            return files

        files = self.tried(name.name, find)
        return model if files is None else replace(model, files=files)

    def text(self, lock: SourcesLock, source: TextSource) -> TextSource:
        if not isinstance(source.files, HubDataset):
            return source
        name = source.files
        files = self.tried(name.name, partial(lock.find, name, max_files=source.max_files))
        if files is None:
            return source
        self._datasets.append((name, files))
        return replace(source, files=files)

    def conversations(self, lock: SourcesLock, source: ConversationSource) -> ConversationSource:
        if not isinstance(source.files, HubDataset):
            return source
        name = source.files
        find = partial(published_source, name, sources=self._sources, weight=source.weight, find=lock.find)
        found = self.tried(name.name, find)
        if found is None:
            return source
        assert not isinstance(found.files, HubDataset)
        self._datasets.append((name, found.files))
        original = original_of(name.name)
        if original is not None and found.original:  # its terms hold for the instructions that derive from it
            self._datasets.append((HubDataset(name=original), found.original))
        return found

    def licences(self, lock: SourcesLock, recipe: Recipe) -> LicenceTextsConfig:
        """The licence texts of the data sets that were found; those of models are in their folders."""
        texts: list[LicenceTexts] = []
        for dataset, found in self._datasets:
            files = self.tried(f"licence texts of {dataset.name}", partial(lock.licences, dataset, found))
            if files is not None and (files.files if isinstance(files, HubFiles) else files):
                texts.append(LicenceTexts(name=dataset.name, files=files))
        names = tuple(model.terms.name for model in recipe.published_models.values())
        return replace(recipe.licences, data_sets=tuple(texts), model_names=names)

    def require_one_tokenizer(self, models: Mapping[str, PublishedModelConfig]) -> None:
        """Refuse a teacher with other token ids than the student's, before 65 GB of it are downloaded."""
        student, teacher = (self._tokenizer_folder(models[name]) for name in _PAIR)
        if (student / _TOKENIZER_FILES[0]).read_bytes() == (teacher / _TOKENIZER_FILES[0]).read_bytes():
            return
        try:
            require_same_vocabulary(Tokenizer.load(student), teacher)
        except UserError as error:
            ours, other = (models[name].terms.name for name in _PAIR)
            wanted, got = f"a teacher with the tokenizer of {ours}", f"{other}: {error.got}"
            raise UserError("mismatch", wanted=wanted, got=got, next_step=error.next_step) from error

    def _tokenizer_folder(self, model: PublishedModelConfig) -> Path:
        """The folder of a model's tokenizer: in SOURCES, or kept in the build folder."""
        files = model.files
        assert not isinstance(files, HubModel)
        if not isinstance(files, HubFiles):
            return files[0].parent
        listed = [name for name in _TOKENIZER_FILES if name in files.files]
        kept = [kept_file(files, name, build_folder=self._build_folder) for name in listed]
        return kept[0].parent
