"""From a name to files: at one commit of the hub, or in a local folder that replaces it. Explains the hub's refusals.

The exceptions of `huggingface_hub` contain addresses that may be signed and headers that may hold the token, so none of
their text enters an error. The token comes from the environment variable HF_TOKEN and from nowhere else.
"""

import contextlib
import json
import os
from collections.abc import Generator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from common.disk import files_under
from common.errors import Code, UserError, not_found
from common.sources.names import LOCK_FILE, NOUNS, HubDataset, HubFiles, HubModel, Kind
from common.sources.select import Repository, choose, choose_model, is_licence_text

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Found = HubFiles | tuple[Path, ...]
"""Files at one commit of the hub, or local files."""


def found_files(files: Found | HubDataset | HubModel) -> Found:
    """`files` where they are resolved; UserError ("not-found") for a name alone."""
    if isinstance(files, HubDataset | HubModel):
        next_step = "resolve the recipe's sources first: recipes.resolve.resolve(recipe, build_folder)"
        raise not_found(f"the files of {files.name}", "its name alone", next_step=next_step)
    return files


def resolve(wanted: HubDataset | HubModel, *, sources: Path | None, max_files: int | None = None) -> Found:
    """The files that a name means, sorted: those at the present commit of its revision, or local files.

    Args:
        wanted: the name.
        sources: the folder DIR of SOURCES=DIR: `DIR/<org>/<name>/` then replaces the hub, whatever the revision, and no
            request is made. None asks the hub, once.
        max_files: only the first N files, by path; None takes all.

    Raises:
        UserError: no such repository, config, split or revision, no access, no network; no such folder in `sources`; a
            model without its config, weights or tokenizer.
    """
    if sources is None:
        repository = HubRepository(wanted.name, wanted.revision, wanted.kind)
        chosen = dict(islice(_chosen(wanted, repository).items(), max_files))
        return HubFiles(
            kind=wanted.kind,
            name=wanted.name,
            config=None if isinstance(wanted, HubModel) else wanted.config,
            revision=repository.commit,
            files=tuple(chosen),
            bytes=sum(chosen.values()),
        )
    folder = sources / wanted.name
    if not folder.is_dir():
        what = f"the files of the {NOUNS[wanted.kind]} {wanted.name} in a folder of SOURCES"
        next_step = "put them there, or correct SOURCES, or leave it out to ask the hub"
        raise not_found(what, f"no folder {folder}", next_step=next_step)
    return tuple(folder / name for name in islice(_chosen(wanted, _Folder(folder)), max_files))


def licence_files(dataset: HubDataset, found: Found, *, sources: Path | None) -> Found:
    """The licence texts of the repository in which `resolve` found `found`; on the hub, at its commit."""
    if isinstance(found, HubFiles):
        sizes = _licence_sizes(HubRepository(dataset.name, found.revision, is_resolved=True))
        return replace(found, files=tuple(sizes), bytes=sum(sizes.values()))
    assert sources is not None
    return tuple(sources / dataset.name / name for name in _licence_sizes(_Folder(sources / dataset.name)))


def _licence_sizes(repository: Repository) -> dict[str, int]:
    return {file: size for file, size in sorted(repository.sizes_bytes("").items()) if is_licence_text(file)}


def _chosen(wanted: HubDataset | HubModel, repository: Repository) -> dict[str, int]:
    return choose_model(repository) if isinstance(wanted, HubModel) else choose(wanted, repository)


@dataclass(frozen=True, slots=True)
class _Folder:
    """A local copy of a repository, or of a part of it."""

    root: Path

    @property
    def place(self) -> str:
        return str(self.root)

    def text(self, name: str) -> str:
        path = self.root / name
        return path.read_text(encoding="utf-8-sig", errors="replace") if path.is_file() else ""

    def sizes_bytes(self, folder: str) -> dict[str, int]:
        return {path.relative_to(self.root).as_posix(): path.stat().st_size for path in files_under(self.root / folder)}


class HubRepository:
    """A data set or a model on the hub at one commit, which the constructor looks up."""

    def __init__(self, name: str, revision: str | None, kind: Kind = "dataset", *, is_resolved: bool = False) -> None:
        """The arguments are those of `explained`."""
        from huggingface_hub import constants

        self.name = name
        self.kind: Kind = kind
        self._api = hub()
        with explained(name, revision, kind, is_resolved=is_resolved):
            info = self._api.repo_info(name, revision=revision, repo_type=kind, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            if info.gated:  # the listing is public, the files are not: an error now, not after hours
                self._api.auth_check(name, repo_type=kind)
        if info.sha is None:
            raise no_hub(name, kind)
        self.commit: str = info.sha

    @property
    def place(self) -> str:
        return f"{self.name} at {self.commit[:8]}"

    def text(self, name: str) -> str:
        from huggingface_hub import constants
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.utils import get_session, hf_raise_for_status

        url, timeout = file_url(self.name, self.commit, name, self.kind), constants.HF_HUB_DOWNLOAD_TIMEOUT
        with explained(self.name, self.commit, self.kind):
            try:
                response = get_session().get(url, headers=request_headers(), timeout=timeout)
                hf_raise_for_status(response)
            except EntryNotFoundError:
                return ""
        return response.content.decode("utf-8-sig", errors="replace")

    def sizes_bytes(self, folder: str) -> dict[str, int]:
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        # The list in repo_info may be truncated for a large repository; this one is paged and complete.
        with explained(self.name, self.commit, self.kind), contextlib.suppress(EntryNotFoundError):
            entries = self._api.list_repo_tree(
                self.name, folder or None, recursive=True, revision=self.commit, repo_type=self.kind
            )
            return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
        return {}


def hub() -> "HfApi":
    """The hub's client, at HF_ENDPOINT and with the token of HF_TOKEN."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint(), token=_token())


def file_url(name: str, commit: str, file: str, kind: Kind = "dataset") -> str:
    """The download address of one file."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(name, file, repo_type=kind, revision=commit, endpoint=_endpoint())


def request_headers() -> dict[str, str]:
    """For a request without HfApi. Bytes come as they are stored, so that a download can be resumed."""
    from huggingface_hub.utils import build_hf_headers

    return {**build_hf_headers(token=_token()), "Accept-Encoding": "identity"}


def transport_error() -> type[Exception]:
    """The exception of a failed connection or an error status; its HTTP library depends on the installed version."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def status_of(error: Exception) -> int | None:
    """The HTTP status of an error; None if no answer came."""
    return getattr(getattr(error, "response", None), "status_code", None)


@contextlib.contextmanager
def explained(name: str, revision: str | None, kind: Kind = "dataset", *, is_resolved: bool = False) -> Generator[None]:
    """Turns what the hub's library raises inside into a UserError about the data set or model `name`.

    Args:
        name: `org/name`.
        revision: as it was asked for; None is main.
        kind: data set or model.
        is_resolved: whether the revision is a commit that an earlier start resolved, not the user's own word.
    """
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except json.JSONDecodeError:
        raise no_hub(name, kind) from None
    except (transport_error(), OfflineModeIsEnabled, HFValidationError) as error:
        wanted = f"the {NOUNS[kind]} {name}{'' if revision is None else ' at ' + revision}"
        code, got, next_step = _explain(error, name, kind, is_resolved=is_resolved)
        raise UserError(code, wanted=wanted, got=got, next_step=next_step) from None


def no_hub(name: str, kind: Kind = "dataset") -> UserError:
    """Something else answers: a proxy's page, a wrong HF_ENDPOINT."""
    wanted, got = f"the hub's answer about the {NOUNS[kind]} {name}", f"an answer of {_host()} that is not the hub's"
    next_step = f"check proxy, firewall and HF_ENDPOINT, or {_instead(name)}"
    return UserError("no-network", wanted=wanted, got=got, next_step=next_step)


def _explain(error: Exception, name: str, kind: Kind, *, is_resolved: bool) -> tuple[Code, str, str]:
    """Code, `got` and `next_step`."""
    from huggingface_hub import errors

    noun, status = NOUNS[kind], status_of(error)
    token = f"there is {'no' if _token() is False else 'an'} HF_TOKEN in the environment"
    page = f"{_public_address()}/{'datasets/' if kind == 'dataset' else ''}{name}"
    match error:
        case errors.OfflineModeIsEnabled():
            got = "offline mode, by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE"
            return "no-network", got, f"unset it, or {_instead(name)}"
        case errors.GatedRepoError():
            got = f"a refusal: its terms are not accepted; {token}"
            return "no-access", got, f"accept the terms at {page} and set HF_TOKEN to a token of that account"
        case errors.RevisionNotFoundError() if is_resolved:
            lock = f'delete the entries of "{kind} {name}" from {LOCK_FILE} in the build folder and start again'
            got = "no such revision: the commit that this build was resolved to is gone"
            return "not-found", got, f"{lock}: the build then keeps to the present commit"
        case errors.RevisionNotFoundError():
            return "not-found", "no such revision", f"take a branch, tag or commit that {page} shows"
        case errors.EntryNotFoundError():
            return "not-found", "a file that is not there", f"resolve the {noun} again"
        case errors.RepositoryNotFoundError():
            got = f"no such {noun}, or a private one; {token}"
            return "not-found", got, f"correct the name; if {page} exists, set HF_TOKEN to a token that may read it"
        case errors.DisabledRepoError():
            return "no-access", f"a {noun} that the hub has disabled", "take another one"
        case errors.HFValidationError():
            return "wrong-format", "a name that the hub does not allow", "correct the name"
        case errors.HfHubHTTPError() if status in (401, 403):
            got = f"a refusal (status {status}); {token}"
            return "no-access", got, f"set HF_TOKEN to a valid token that may read {page}"
        case errors.HfHubHTTPError() if status == 429:
            return "no-network", "too many requests", "start again in some minutes; with HF_TOKEN set, more are allowed"
        case errors.HfHubHTTPError():
            return "no-network", f"status {status} from {_host()}", f"start again later, or {_instead(name)}"
        case _:
            got = f"no answer from {_host()} ({type(error).__name__})"
            return "no-network", got, f"check the network and start again, or {_instead(name)}"


def _instead(name: str) -> str:
    return f"put its files into DIR/{name} and set SOURCES=DIR"


def _endpoint() -> str | None:
    """HF_ENDPOINT as it is now: the library reads it only once, when it is imported."""
    return (os.environ.get("HF_ENDPOINT") or "").rstrip("/") or None


def _public_address() -> str:
    """The hub's address without the password that a mirror's may hold."""
    from huggingface_hub import constants

    parts = urlsplit(_endpoint() or constants.ENDPOINT)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _host() -> str:
    return urlsplit(_public_address()).netloc


def _token() -> str | Literal[False]:
    """The token to send; False sends none, not even one that the library finds in a file."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if token and (not token.isascii() or not token.isprintable() or " " in token):
        wanted = "a token of the hub in the environment variable HF_TOKEN"
        got = "a value with blanks or characters that no token has"
        raise UserError("no-access", wanted=wanted, got=got, next_step="set it again, or unset it")
    return token or False
