"""`python -m export publish FOLDER --repo ORG/NAME`: what an upload of a release to the hub would do; --upload does it.

The command always lists files, where they go, the duties of users who pass them on, and all obstacles; without --upload
nothing is sent. Files are sent one by one and become visible in one commit: readers of the repository see the old
release or the new one, and after an interruption the hub already has every file that had arrived. (The library's
`upload_large_folder` commits piece by piece and keeps files of its own inside the folder.) The token comes from
HF_TOKEN alone, and no text of the library enters an error.
"""

import contextlib
import json
import re
import traceback
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from common.disk import files_under, sha256_of
from common.errors import Code, UserError
from common.sources import hub
from eval.report import wording
from eval.report.data import quoted_rows, why_no_answers
from export import licences
from export.card import CARD, REPORT
from export.release import SUMS_FILE, Release, read_release

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_AGAIN = "start again: what has arrived is not sent twice"


def upload(
    folder: Path,
    repo: str,
    *,
    send: bool,
    private: bool = False,
    message: str | None = None,
    licence_checked: bool = False,
) -> int:
    """Print what an upload of the release in `folder` does, then do it if `send` asks for it.

    The model repository `repo`, `ORG/NAME`, is created if it is absent. `private` makes it private; one that is public
    already is refused. `licence_checked`: the user has read the terms of the sources whose licence is not recorded.

    Returns:
        0, or 1 where a dry run found an obstacle.

    Raises:
        UserError: no release folder, a malformed name; with `send` also each obstacle and what the hub refuses.
    """
    _check_name(repo)
    release = read_release(folder)
    found = obstacles(release, repo, licence_checked=licence_checked)
    for line in _plan(release, repo, private=private, found=found):
        print(line)
    if not send:
        print("a dry run: nothing was sent. --upload sends it, with HF_TOKEN in the environment.")
        return 1 if found else 0
    if found:
        code = found[0].code if len(found) == 1 else "several"
        got = "; ".join(obstacle.got for obstacle in found)
        next_step = "; ".join(dict.fromkeys(obstacle.next_step for obstacle in found))
        raise UserError(code, wanted=found[0].wanted, got=got, next_step=next_step)
    files = {name: folder / name for name in release.names}
    send_files(files, repo, private=private, message=message or f"Release {PurePosixPath(repo).name}")
    return 0


def obstacles(release: Release, repo: str, *, licence_checked: bool) -> list[UserError]:
    """The reasons against an upload: damaged files, a required name or text, terms that nobody has read."""
    found: list[UserError] = []

    def add(code: Code, got: str, next_step: str) -> None:
        wanted = f"a release that may be passed on as {repo}"
        found.append(UserError(code, wanted=wanted, got=got, next_step=next_step))

    there = {name: path for name in release.sums if (path := release.folder / name).is_file()}
    damaged = [name for name, sum_ in release.sums.items() if name not in there or sha256_of(there[name]) != sum_]
    if damaged:
        got = f"other bytes than {SUMS_FILE} lists, or none, in {', '.join(damaged)}"
        add("damaged", got, "build the release again")
    if licences.needs_llama_name(release.sources):
        where = f"where a source's licence asks for one that begins with {licences.LLAMA}"
        if not repo.partition("/")[2].startswith(licences.LLAMA):
            suggested = repo.replace("/", f"/{licences.LLAMA}-")
            add("contradiction", f"the name {repo} {where}", f"choose a name such as {suggested}")
        title = str(release.front_matter.get("model_name"))
        if not title.startswith(licences.LLAMA):
            add("contradiction", f"the title {title} {where}", "set card.title in the recipe and build again")
    for name in licences.owed_texts(release.folder, release.sources):
        texts, got = licences.text_folder(name), f"no text of the terms of {name}, which ask to be passed on"
        line = f"in {release.folder}, sha256sum {texts}/FILE >> {SUMS_FILE}"
        add("not-found", got, f"put it into {texts}/ of the release, and its line into {SUMS_FILE}: {line}")
    quotable = {source.name for source in release.sources if source.quotable}
    private = [name for name in quoted_rows(release.report) if name not in quotable]
    if private:
        got = f"rows of {', '.join(private)} in {REPORT}, and no terms that allow to quote them"
        add("needs-consent", got, "build the release again, which leaves them out, or state quotable terms before it")
    why_none = why_no_answers(release.sources, private_questions=False) if release.report.get("samples") else None
    if why_none:
        got = f"sample answers in {REPORT}: {why_none}"
        add("needs-consent", got, "build the release again, which leaves them out")
    pages = [name for name in ("report.html", "report.md") if name in release.sums]
    if pages and not release.report:
        got = f"{' and '.join(pages)} without {REPORT}, so that nobody can count the rows that they quote"
        add("not-found", got, f"add {REPORT} to report_files of the recipe's dist, and build the release again")
    unknown = licences.unstated(release.sources) if release.sources else ["everything it learnt from"]
    if unknown and not licence_checked:
        next_step = "read the publishers' terms, and give --licence-checked if they allow it"
        add("needs-consent", f"no licence recorded of {', '.join(unknown)}", next_step)
    return found


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    with contextlib.suppress(HFValidationError):
        validate_repo_id(repo)
        if _NAME.fullmatch(repo):
            return
    wanted = "the name of a model repository on the hub, ORG/NAME of letters, digits, - _ and ."
    raise UserError("wrong-format", wanted=wanted, got=repr(repo), next_step="correct --repo")


def _plan(release: Release, repo: str, *, private: bool, found: Sequence[UserError]) -> Generator[str]:
    """What is printed before anything is sent."""
    sizes = {name: path.stat().st_size for name in release.names if (path := release.folder / name).is_file()}
    visibility = "private" if private else "public, unless the organisation's default is another"
    yield f"to {_address(hub.hub().endpoint)}/{repo} ({visibility}):"
    for name, size in sizes.items():
        yield f"  {wording.size(size):>8}  {name}"
    yield f"{len(sizes)} files, {wording.size(sum(sizes.values()))}"
    inside = {path.relative_to(release.folder).as_posix() for path in files_under(release.folder)}
    for name in sorted(inside - set(release.names)):
        yield f"left out, since {SUMS_FILE} does not list it: {name}"
    licence = release.front_matter.get("license_name") or release.front_matter.get("license") or "not stated"
    yield f"licence on the hub: {licence}"
    for duty in licences.duties(release.sources):
        yield f"owed ({', '.join(duty.names)}): {duty.english}"
    for name, count in quoted_rows(release.report).items():
        yield f"quoted: {count} rows of {name}"
    yield f"sample answers of the model: {len(release.report.get('samples') or ()) or 'none'}"
    for line in licences.attributions(release.sources):
        yield f"shown with it: {line}"
    base_models: Sequence[str] = release.front_matter.get("base_model") or []
    for name in licences.without_text(release.folder, release.sources, base_models):
        yield f"missing: the licence text of {name}, in {licences.text_folder(name)}/"
    for obstacle in found:
        yield f"in the way: {obstacle.got}; next: {obstacle.next_step}"


def send_files(files: Mapping[str, Path], repo: str, *, private: bool, message: str) -> None:
    """Check the card, make the repository where it is absent, and commit all files at once.

    `files` are the paths on this machine by name in the repository; the card is among them.

    Raises:
        UserError: no token, or whatever the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd

    api = hub.hub()
    if not api.token:
        wanted = "a token of the hub with the right to write, in the environment variable HF_TOKEN"
        next_step = f"make one in your account's settings at {_address(api.endpoint)}, and set HF_TOKEN"
        raise UserError("no-access", wanted=wanted, got="none", next_step=next_step)
    with _explained(repo, api.endpoint):
        _check_card(api, files[CARD])  # before there is a repository that a refused card would leave empty
        api.create_repo(repo, private=True if private else None, exist_ok=True)
        if private and not api.model_info(repo).private:
            wanted, got = f"a private repository {repo}", "one that is public already"
            next_step = "make it private in its settings, choose another name, or leave out --private"
            raise UserError("exists", wanted=wanted, got=got, next_step=next_step)
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
        for addition in additions:
            # One by one: each is complete on the hub before the next begins, and is not sent twice.
            api.preupload_lfs_files(repo, additions=[addition], free_memory=False)
            print(f"{addition.path_in_repo}: {wording.size(addition.upload_info.size)}")
        api.create_commit(repo, additions, commit_message=message)
    print(f"published: {_address(api.endpoint)}/{repo}")


def _check_card(api: Any, card: Path) -> None:
    """Ask the hub whether it takes a card's front matter, as its library does before a commit; else UserError."""
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
        wanted, got = f"a card whose front matter {_host(api.endpoint)} takes", f"one that it refuses in {CARD}"
        next_step = "correct the card in the recipe (title, base models, licence) and build the release again"
        raise UserError("wrong-format", wanted=wanted, got=got, next_step=next_step)


@contextlib.contextmanager
def _explained(repo: str, endpoint: str) -> Generator[None]:
    """Turns errors of the hub's library into a UserError without any text of its own; it logs nothing."""
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
    # The library wraps a failed upload of a large file in RuntimeError, and raises ValueError for an answer that lacks
    # something; these of any other origin are defects of ours and stay what they are.
    except (RuntimeError, ValueError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] != "huggingface_hub":
            raise
        raise _explain(error, repo, endpoint) from None
    finally:
        logging.set_verbosity(verbosity)


def _explain(error: Exception, repo: str, endpoint: str) -> UserError:
    from huggingface_hub.errors import OfflineModeIsEnabled

    host, causes = _host(endpoint), list(_causes(error))
    status = next((status for cause in causes if (status := hub.status_of(cause)) is not None), None)
    unanswered = next((type(cause).__name__ for cause in causes if isinstance(cause, hub.transport_error())), None)
    refusal, code = f"a refusal of {host} (status {status})", "no-network"
    match status:
        case 401 | 403:
            code, got = "no-access", f"{refusal}; there is an HF_TOKEN in the environment"
            next_step = f"set HF_TOKEN to a valid token that may write to {repo.partition('/')[0]}"
        case 400 | 422:
            code, got, next_step = "wrong-format", refusal, f"look at the front matter of {CARD} and start again"
        case 404:
            code, got = "not-found", f"no such place on {host} (status 404)"
            next_step = "correct --repo, or the token's rights"
        case 429:
            got, next_step = f"too many requests to {host}", f"wait some minutes and {_AGAIN}"
        case int():
            code, got, next_step = "failed", f"status {status} from {host}", f"wait, and {_AGAIN}"
        case None if isinstance(error, OfflineModeIsEnabled):
            got, next_step = "offline mode, by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE", "unset it and start again"
        case None if isinstance(error, json.JSONDecodeError):
            got = f"an answer of {host} that is no JSON, such as a proxy's page"
            next_step = f"check HF_ENDPOINT and the proxy, and {_AGAIN}"
        case None if unanswered is not None:
            got, next_step = f"no answer from {host} ({unanswered})", f"check the network and {_AGAIN}"
        case None:
            code, got = "failed", f"a {type(error).__name__} inside the hub's library"
            next_step = f"check HF_ENDPOINT, and {_AGAIN}"
    return UserError(code, wanted=f"the release on the hub as {repo}", got=got, next_step=next_step)


def _causes(error: BaseException | None) -> Generator[Exception]:
    """An error, what it was caused by, and so on."""
    while error is not None:
        if isinstance(error, Exception):
            yield error
        error = error.__cause__


def _address(endpoint: str) -> str:
    """The hub's address without a password that a mirror's may hold."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _host(endpoint: str) -> str:
    return urlsplit(_address(endpoint)).netloc
