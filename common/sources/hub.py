"""The hub as a repository, and its refusals in one clear line each.

What the library `huggingface_hub` raises names addresses that may be signed and headers that may hold the token, so
none of its text enters an error. The token comes from the environment variable HF_TOKEN and from nowhere else. This
module chooses no file.
"""

import contextlib
import json
import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from common.errors import UserError
from common.sources.names import LOCK_FILE, NOUNS, Kind

if TYPE_CHECKING:
    from huggingface_hub import HfApi


class HubRepository:
    """A data set or a model on the hub at one commit, which is looked up when this is made."""

    def __init__(self, name: str, revision: str | None, kind: Kind = "dataset", *, is_resolved: bool = False) -> None:
        """The arguments are those of `explained`."""
        from huggingface_hub import constants

        self.name = name
        self.kind: Kind = kind
        self._api = hub()
        with explained(name, revision, kind, is_resolved=is_resolved):
            info = self._api.repo_info(name, revision=revision, repo_type=kind, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            if info.gated:  # the listing is public, the files are not: better said now than hours later
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

        with explained(self.name, self.commit, self.kind):
            try:
                response = get_session().get(
                    file_url(self.name, self.commit, name, self.kind),
                    headers=request_headers(),
                    timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                )
                hf_raise_for_status(response)
            except EntryNotFoundError:
                return ""
        return response.content.decode("utf-8-sig", errors="replace")

    def sizes_bytes(self, folder: str) -> dict[str, int]:
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        # The list in repo_info may be cut short for a large repository; this one comes in pages and is whole.
        with explained(self.name, self.commit, self.kind):
            try:
                entries = self._api.list_repo_tree(
                    self.name, folder or None, recursive=True, revision=self.commit, repo_type=self.kind
                )
                return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
            except EntryNotFoundError:
                return {}


def hub() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint(), token=_token())


def file_url(name: str, commit: str, file: str, kind: Kind = "dataset") -> str:
    """Where one file is downloaded from."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(name, file, repo_type=kind, revision=commit, endpoint=_endpoint())


def request_headers() -> dict[str, str]:
    """For a request that is made without HfApi. Bytes come as they are stored, so that a download can be resumed."""
    from huggingface_hub.utils import build_hf_headers

    return {**build_hf_headers(token=_token()), "Accept-Encoding": "identity"}


def transport_error() -> type[Exception]:
    """What a failed connection or an error status raises; which HTTP library is beneath depends on the version."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def status_of(error: Exception) -> int | None:
    """The HTTP status that an error carries; None where no answer came."""
    return getattr(getattr(error, "response", None), "status_code", None)


@contextlib.contextmanager
def explained(
    name: str, revision: str | None, kind: Kind = "dataset", *, is_resolved: bool = False
) -> Generator[None, None, None]:
    """Turns what the hub's library raises inside into a UserError about the data set or model `name`.

    Args:
        name: `org/name`.
        revision: as it was asked for; None is main.
        kind: data set or model.
        is_resolved: whether the revision is a commit that an earlier start resolved, and no word of the user's.
    """
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except json.JSONDecodeError:
        raise no_hub(name, kind) from None
    except (transport_error(), OfflineModeIsEnabled, HFValidationError) as error:
        raise _explain(error, name, revision, kind, is_resolved=is_resolved) from None


def no_hub(name: str, kind: Kind = "dataset") -> UserError:
    """What answers is something else: a proxy's page, a wrong HF_ENDPOINT."""
    return UserError(
        wanted=f"the hub's answer about the {NOUNS[kind]} {name}",
        got=f"an answer of {_host()} that is none",
        next_step=f"check proxy, firewall and HF_ENDPOINT, or {_instead(name)}",
    )


def _explain(error: Exception, name: str, revision: str | None, kind: Kind, *, is_resolved: bool) -> UserError:
    from huggingface_hub import errors

    noun = NOUNS[kind]
    wanted = f"the {noun} {name}{'' if revision is None else ' at ' + revision}"
    token_said = "there is no HF_TOKEN" if _token() is False else "there is an HF_TOKEN"
    page = f"{_public_address()}/{'datasets/' if kind == 'dataset' else ''}{name}"
    match error:
        case errors.OfflineModeIsEnabled():
            got, next_step = "offline mode, by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE", f"unset it, or {_instead(name)}"
        case errors.GatedRepoError():
            got = f"a refusal: its terms are not accepted; {token_said} in the environment"
            next_step = f"accept the terms at {page} and set HF_TOKEN to a token of that account"
        case errors.RevisionNotFoundError() if is_resolved:
            got = "no such revision: the commit that this build was resolved to is gone"
            next_step = (
                f'delete the entries of "{kind} {name}" from {LOCK_FILE} in the build folder and start again: it then '
                "keeps to the commit of today"
            )
        case errors.RevisionNotFoundError():
            got, next_step = "no such revision", f"take a branch, tag or commit that {page} shows"
        case errors.EntryNotFoundError():
            got, next_step = "a file that is not there", f"resolve the {noun} again"
        case errors.RepositoryNotFoundError():
            got = f"no such {noun}, or a private one; {token_said} in the environment"
            next_step = f"correct the name; if {page} exists, set HF_TOKEN to a token that may read it"
        case errors.DisabledRepoError():
            got, next_step = f"a {noun} that the hub has disabled", "take another one"
        case errors.HFValidationError():
            got, next_step = "a name that the hub does not allow", "correct the name"
        case errors.HfHubHTTPError() if status_of(error) in (401, 403):
            got = f"a refusal (status {status_of(error)}); {token_said} in the environment"
            next_step = f"set HF_TOKEN to a valid token that may read {page}"
        case errors.HfHubHTTPError() if status_of(error) == 429:
            got, next_step = (
                "too many requests",
                "wait some minutes and start again; with HF_TOKEN set, more are allowed",
            )
        case errors.HfHubHTTPError():
            got = f"status {status_of(error)} from {_host()}"
            next_step = f"start again later, or {_instead(name)}"
        case _:
            got = f"no answer from {_host()} ({type(error).__name__})"
            next_step = f"check the network and start again, or {_instead(name)}"
    return UserError(wanted=wanted, got=got, next_step=next_step)


def _instead(name: str) -> str:
    return f"put its files into DIR/{name} and say SOURCES=DIR"


def _endpoint() -> str | None:
    """HF_ENDPOINT as it is now: the library reads it only once, when it is imported."""
    return (os.environ.get("HF_ENDPOINT") or "").rstrip("/") or None


def _public_address() -> str:
    """The hub's address without a password that a mirror's may hold."""
    from huggingface_hub import constants

    parts = urlsplit(_endpoint() or constants.ENDPOINT)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _host() -> str:
    return urlsplit(_public_address()).netloc


def _token() -> str | Literal[False]:
    """The token to send; False sends none, not even one that the library finds in a file."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        return False
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            wanted="a token of the hub in the environment variable HF_TOKEN",
            got="a value with blanks or letters that no token has",
            next_step="set it again, or unset it",
        )
    return token
