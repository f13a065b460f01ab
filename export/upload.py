"""`python -m export publish FOLDER --repo ORG/NAME`: what an upload of a release to the hub would do; --upload does it.

The command always lists files, where they go, what whoever passes them on owes, and what stands in the way; without
--upload nothing is sent. It makes no release, that is the stage `dist`, and sends nothing itself:
`export.upload_hub` does.
"""

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from common.disk import files_under, sha256_of
from common.errors import UserError
from common.provenance import DataSource, read_sources
from eval.report import wording
from export import card_terms
from export.card import CARD
from export.release import SUMS_FILE
from export.upload_hub import hub_address, upload_files

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SUM = re.compile(r"([0-9a-f]{64})  (.+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A release folder as its own files describe it."""

    folder: Path
    sums: dict[str, str]
    """sha256 by name inside the folder, as SHA256SUMS lists them."""
    sources: Sequence[DataSource]
    front_matter: dict[str, Any]
    """The fields of the card that hubs read."""

    @property
    def names(self) -> list[str]:
        """Everything that would be uploaded."""
        return [*self.sums, SUMS_FILE]


@dataclass(frozen=True, kw_only=True, slots=True)
class Obstacle:
    """Why a release may not be uploaded as it is."""

    got: str
    next_step: str


def publish(
    folder: Path,
    repo: str,
    *,
    upload: bool,
    private: bool = False,
    message: str | None = None,
    licence_checked: bool = False,
    say: Callable[[str], None] = print,
) -> int:
    """Tells what an upload does, and then does it if asked.

    Args:
        folder: a release, as `dist` leaves it.
        repo: `ORG/NAME` of the model repository; made if it is not there.
        upload: False only tells.
        private: makes the repository private; one that is public already is refused.
        message: of the commit.
        licence_checked: the user has read the terms of the sources whose licence is not recorded.
        say: takes each line.

    Returns:
        0, or 1 where something stands in the way of what was only told.

    Raises:
        UserError: no release folder, a malformed name; with `upload` also each obstacle and what the hub refuses.
    """
    _check_name(repo)
    release = read_release(folder)
    found = obstacles(release, repo, licence_checked=licence_checked)
    for line in _plan(release, repo, private=private, found=found):
        say(line)
    if not upload:
        say("a dry run: nothing was sent. --upload sends it, with HF_TOKEN in the environment.")
        return 1 if found else 0
    if found:
        raise UserError(
            wanted=f"a release that may be passed on as {repo}",
            got="; ".join(obstacle.got for obstacle in found),
            next_step="; ".join(dict.fromkeys(obstacle.next_step for obstacle in found)),
        )
    files = {name: folder / name for name in release.names}
    upload_files(files, repo, private=private, message=message or f"Release {PurePosixPath(repo).name}", say=say)
    return 0


def read_release(folder: Path) -> Release:
    """Reads what a release says of itself.

    Raises:
        UserError: the folder is no release, or has no card.
    """
    sums_file, next_step = folder / SUMS_FILE, "Name a folder that a recipe left in dist/."
    if not sums_file.is_file():
        raise UserError(wanted=f"a release folder with {SUMS_FILE}", got=f"none in {folder}", next_step=next_step)
    sums: dict[str, str] = {}
    for line in sums_file.read_text(encoding="utf-8").splitlines():
        said = _SUM.fullmatch(line)
        if said is None or PurePosixPath(said[2]).is_absolute() or ".." in PurePosixPath(said[2]).parts:
            raise UserError(
                wanted=f"sums and names of files inside the release in {sums_file}", got=repr(line), next_step=next_step
            )
        sums[said[2]] = said[1]
    if CARD not in sums or not (folder / CARD).is_file():
        raise UserError(
            wanted=f"a model card {CARD} that {SUMS_FILE} lists",
            got=f"none in {folder}",
            next_step="Build the release with a card in its recipe.",
        )
    return Release(folder=folder, sums=sums, sources=read_sources(folder), front_matter=_front_matter(folder / CARD))


def obstacles(release: Release, repo: str, *, licence_checked: bool) -> list[Obstacle]:
    """What stands in the way of an upload: damaged files, an owed name or text, terms that nobody has read."""
    found: list[Obstacle] = []
    damaged = [name for name, sha256 in release.sums.items() if not _holds(release.folder / name, sha256)]
    if damaged:
        found.append(
            Obstacle(
                got=f"other bytes than {SUMS_FILE} lists, or none, in {', '.join(damaged)}",
                next_step="Build the release again.",
            )
        )
    found += _names_in_the_way(release, repo)
    found += _texts_in_the_way(release)
    unknown = card_terms.unstated(release.sources) if release.sources else ["everything it learnt from"]
    if unknown and not licence_checked:
        found.append(
            Obstacle(
                got=f"no licence recorded of {', '.join(unknown)}",
                next_step="Read the publishers' terms, and say --licence-checked if they allow it.",
            )
        )
    return found


def _names_in_the_way(release: Release, repo: str) -> Generator[Obstacle, None, None]:
    """Names of repository and model that do not begin as a source's licence asks."""
    if not card_terms.needs_llama_name(release.sources):
        return
    wanted = f"where a source's licence asks for one that begins with {card_terms.LLAMA}"
    if not repo.partition("/")[2].startswith(card_terms.LLAMA):
        suggested = repo.replace("/", f"/{card_terms.LLAMA}-")
        yield Obstacle(got=f"the name {repo} {wanted}", next_step=f"Choose a name such as {suggested}.")
    title = str(release.front_matter.get("model_name"))
    if not title.startswith(card_terms.LLAMA):
        yield Obstacle(got=f"the title {title} {wanted}", next_step="Set card.title in the recipe and build again.")


def _texts_in_the_way(release: Release) -> Generator[Obstacle, None, None]:
    """Texts of terms that ask for a copy of themselves beside the model."""
    for name in card_terms.owed_texts(release.folder, release.sources):
        folder = card_terms.text_folder(name)
        yield Obstacle(
            got=f"no text of the terms of {name}, which ask to be passed on with the model",
            next_step=f"Put it into {folder}/ of the release, and its line into {SUMS_FILE}: in {release.folder}, "
            f"sha256sum {folder}/FILE >> {SUMS_FILE}.",
        )


def _holds(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        valid = False
    else:
        valid = bool(_NAME.fullmatch(repo))
    if not valid:
        raise UserError(
            wanted="the name of a model repository on the hub, ORG/NAME of letters, digits, - _ and .",
            got=repr(repo),
            next_step="Correct --repo.",
        )


def _front_matter(card: Path) -> dict[str, Any]:
    from huggingface_hub.repocard import metadata_load

    try:
        fields = metadata_load(card)
    except Exception as error:  # the YAML library has many classes
        raise UserError(
            wanted=f"front matter that is YAML in {card}",
            got=type(error).__name__,
            next_step="Build the release again; its card was changed.",
        ) from None
    return dict(fields or {})


def _plan(release: Release, repo: str, *, private: bool, found: Sequence[Obstacle]) -> Generator[str, None, None]:
    """What is printed before anything is sent."""
    sizes = {name: path.stat().st_size for name in release.names if (path := release.folder / name).is_file()}
    visibility = "private" if private else "public, unless the organisation's default is another"
    yield f"to {hub_address()}/{repo} ({visibility}):"
    for name, size in sizes.items():
        yield f"  {wording.size(size):>8}  {name}"
    yield f"{len(sizes)} files, {wording.size(sum(sizes.values()))}"
    inside = (path.relative_to(release.folder).as_posix() for path in files_under(release.folder))
    for name in sorted(set(inside) - set(release.names)):
        yield f"left out, since {SUMS_FILE} does not list it: {name}"
    licence = release.front_matter.get("license_name") or release.front_matter.get("license") or "not stated"
    yield f"licence on the hub: {licence}"
    for duty, names in card_terms.obligations(release.sources).items():
        yield f"owed ({', '.join(names)}): {duty}"
    for line in card_terms.attributions(release.sources):
        yield f"shown with it: {line}"
    base_models: Sequence[str] = release.front_matter.get("base_model") or []
    for name in card_terms.without_text(release.folder, release.sources, base_models):
        yield f"missing: the licence text of {name}, in {card_terms.text_folder(name)}/"
    for obstacle in found:
        yield f"in the way: {obstacle.got}. {obstacle.next_step}"
