"""Files to a model repository of the hub in one commit, and the hub's refusals in one clear line each.

Files are sent one by one and become visible together: whoever reads the repository sees the old release or the new, and
after an interruption the hub already has every file that had arrived. (The library's `upload_large_folder` commits
piece by piece and keeps files of its own inside the folder.) The token comes from HF_TOKEN and from nowhere else, and
none of the library's text enters an error. It does not know what a release is.
"""

import contextlib
import json
import traceback
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from common.errors import UserError
from common.sources import hub
from eval.report import wording
from export.card import CARD

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def upload_files(
    files: Mapping[str, Path], repo: str, *, private: bool, message: str, say: Callable[[str], None]
) -> None:
    """Has the card checked, makes the repository where it is not there, and one commit of all files in it.

    Args:
        files: path on this machine by name in the repository; the card is among them.
        repo: `ORG/NAME`.
        private: refuses a repository that is public already.
        message: of the commit.
        say: takes a line a file.

    Raises:
        UserError: no token, or whatever the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd

    api = hub.hub()
    if not api.token:
        raise UserError(
            wanted="a token of the hub with the right to write, in the environment variable HF_TOKEN",
            got="none",
            next_step=f"Make one in your account's settings at {_address(api.endpoint)}, and set HF_TOKEN.",
        )
    with _explained(repo, api.endpoint):
        _check_card(api, files[CARD])  # before there is a repository that a refused card would leave empty
        api.create_repo(repo, private=True if private else None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise UserError(
                wanted=f"a private repository {repo}",
                got="one that is public already",
                next_step="Make it private in its settings, choose another name, or leave out --private.",
            )
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
        for addition in additions:
            # One at a time: each is complete on the hub before the next begins, and is not sent twice.
            api.preupload_lfs_files(repo, additions=[addition], free_memory=False)
            say(f"{addition.path_in_repo}: {wording.size(addition.upload_info.size)}")
        api.create_commit(repo, additions, commit_message=message)
    say(f"published: {_address(api.endpoint)}/{repo}")


def _check_card(api: "HfApi", card: Path) -> None:
    """Asks the hub whether it takes a card's front matter, as its library does before a commit.

    Raises:
        UserError: it does not.
    """
    from huggingface_hub.errors import BadRequestError
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    response = get_session().post(
        f"{api.endpoint}/api/validate-yaml",
        json={"content": card.read_text(encoding="utf-8"), "repoType": "model"},
        headers=build_hf_headers(token=api.token),
    )
    try:
        hf_raise_for_status(response)
        refused = bool(response.json().get("errors"))
    except BadRequestError:
        refused = True
    if refused:
        raise UserError(
            wanted=f"a card whose front matter {_host(api.endpoint)} takes",
            got=f"one that it refuses in {CARD}",
            next_step="Correct the card in the recipe (title, base models, licence) and build the release again.",
        )


@contextlib.contextmanager
def _explained(repo: str, endpoint: str) -> Generator[None, None, None]:
    """Turns what the hub's library raises inside into a UserError without any text of its own; it logs nothing."""
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its warnings name addresses that are signed
    try:
        yield
    except UserError:
        raise
    except (hub.transport_error(), OfflineModeIsEnabled, HFValidationError, json.JSONDecodeError) as error:
        raise _explain(error, repo, endpoint) from None
    # The library wraps a failed upload of a large file in RuntimeError, and says ValueError to an answer that lacks
    # something; these of any other origin are defects of ours and stay what they are.
    except (RuntimeError, ValueError) as error:
        if not _is_the_librarys(error):
            raise
        raise _explain(error, repo, endpoint) from None
    finally:
        logging.set_verbosity(verbosity)


def _is_the_librarys(error: BaseException) -> bool:
    """Whether an error was raised inside the hub's library, and not by what it was given or in what calls it."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == "huggingface_hub"


def _explain(error: Exception, repo: str, endpoint: str) -> UserError:
    from huggingface_hub.errors import OfflineModeIsEnabled

    status, host = _status_in(error), _host(endpoint)
    unanswered = next((cause for cause in _causes(error) if isinstance(cause, hub.transport_error())), None)
    again = "start again: what has arrived is not sent twice"
    match status:
        case 401 | 403:
            got = f"a refusal of {host} (status {status}); there is an HF_TOKEN in the environment"
            next_step = f"set HF_TOKEN to a valid token that may write to {repo.partition('/')[0]}"
        case 400 | 422:
            got, next_step = (
                f"a refusal of {host} (status {status})",
                f"look at the front matter of {CARD} and start again",
            )
        case 404:
            got, next_step = f"no such place on {host} (status 404)", "correct --repo, or the token's rights"
        case 429:
            got, next_step = f"too many requests to {host}", f"wait some minutes and {again}"
        case int():
            got, next_step = f"status {status} from {host}", f"wait, and {again}"
        case None if isinstance(error, OfflineModeIsEnabled):
            got, next_step = "offline mode, by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE", "unset it and start again"
        case None if isinstance(error, json.JSONDecodeError):
            got = f"an answer of {host} that is no JSON, such as a proxy's page"
            next_step = f"check HF_ENDPOINT and the proxy, and {again}"
        case None if unanswered is not None:
            got, next_step = f"no answer from {host} ({type(unanswered).__name__})", f"check the network and {again}"
        case None:
            got, next_step = f"a {type(error).__name__} inside the hub's library", f"check HF_ENDPOINT, and {again}"
    return UserError(wanted=f"the release on the hub as {repo}", got=got, next_step=next_step)


def _status_in(error: Exception) -> int | None:
    """The HTTP status of an error or of what caused it."""
    found = (hub.status_of(cause) for cause in _causes(error) if isinstance(cause, Exception))
    return next((status for status in found if status is not None), None)


def _causes(error: BaseException | None) -> Generator[BaseException, None, None]:
    """An error, what it was caused by, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def hub_address() -> str:
    """Where uploads go."""
    return _address(hub.hub().endpoint)


def _address(endpoint: str) -> str:
    """The hub's address without a password that a mirror's may hold."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _host(endpoint: str) -> str:
    return urlsplit(_address(endpoint)).netloc
