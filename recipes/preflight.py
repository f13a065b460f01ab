"""Before anything is spent: what this machine has beside what a recipe needs, everything that is missing at once.

`RECIPE=auto` asks `choose` which recipe this machine can hold; `before_start` stands before every build that takes
models from elsewhere: it prints what will be spent, names what is missing, and waits for a yes. Deciding loads no torch
and asks nobody on the network; only a build that will go there anyway asks the hub for its names.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.disk import files_under, free_bytes
from common.errors import UserError
from common.sources import stand_in
from recipes.geometry import config_of
from recipes.plan import Needs, Plan, needs_of, plan_of
from recipes.plan_data import PASSPHRASE_VARIABLE, TOKEN_VARIABLE
from recipes.plan_text import short_lines
from recipes.plan_training import fits
from recipes.plan_work import Work, release_work, work_of

if TYPE_CHECKING:
    from recipes.recipe import Recipe

RELEASE, EMBEDDED = "tinyswallow", "mini"
WAIT_SECONDS = 10
DATA = ("world", "tokenizer", "corpus", "conversations")
"""Artifacts before the first one that trains or loads a model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What a machine has."""

    gpus_bytes: tuple[int, ...]
    """Memory of each GPU."""
    ram_bytes: int
    """Main memory, used or not."""
    disk_bytes: int
    """Free bytes where the build folder lies, and what lies in it already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """One thing that a recipe needs and this machine lacks."""

    what: str
    """In a few words."""
    error: UserError


def gpus_bytes() -> tuple[int, ...]:
    """Memory of each NVIDIA GPU; none where there is none or its driver does not answer."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    # A GPU without memory of its own answers [N/A].
    return tuple(int(line) * 2**20 for line in answer.splitlines() if line.strip().isdigit())


def room_here(build_folder: Path) -> Room:
    """What this machine has for a build in that folder, which need not be there yet."""
    # A build that goes on must not be refused for the room that its own first half takes.
    done = sum(path.stat().st_size for path in files_under(build_folder)) if build_folder.is_dir() else 0
    return Room(
        gpus_bytes=gpus_bytes(),
        ram_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        disk_bytes=free_bytes(build_folder) + done,
    )


def choose(here: Room, *, sources: Path | None = None) -> tuple[str, str]:
    """The recipe's name for RECIPE=auto, and the line that says why.

    Args:
        here: the machine.
        sources: the folder that stands in for the hub, or None.

    Raises:
        UserError: a config.json in `sources` that does not read.
    """
    work = release_work(sources=sources)
    names = [name for _, name, _ in work.published]
    absent = [] if sources is None else [name for name in names if not config_of(name, sources).is_file()]
    if absent:
        return EMBEDDED, f"RECIPE=auto builds {EMBEDDED}: the release needs {' and '.join(absent)}, not in {sources}"
    needs = needs_of(work)
    rows = [
        ("GPU memory", needs.gpu_bytes, sum(here.gpus_bytes)),
        ("main memory", needs.ram_bytes, here.ram_bytes),
        ("disk", needs.disk_bytes, here.disk_bytes),
    ]
    compared = ", ".join(f"{_gb(needed)} of {what} (here {_gb(has)})" for what, needed, has in rows if needed)
    short = list(_short(work, needs, here))
    name, verdict = (EMBEDDED, f"too little {' and '.join(short)} here") if short else (RELEASE, "enough here")
    return name, f"RECIPE=auto builds {name}: the release needs {compared}: {verdict}"


def before_start(
    recipe: "Recipe", *, asked: str, build_folder: Path, say: Callable[[str], None], until: str | None = None
) -> None:
    """Everything that comes before a recipe's first stage. A recipe that makes its own models is never asked about.

    Args:
        recipe: what will be built.
        asked: what the user said: its name or file, or `auto`.
        build_folder: where.
        say: told the plan in short, and what is missing, a line each.
        until: the last artifact wanted; a machine that only prepares data needs no room for training.

    Raises:
        UserError: something is missing (all of it is named), or `auto` and nobody who could say no.
    """
    if not recipe.models or int(os.environ.get("RANK", "0")) > 0:  # of several processes the first one asks
        return
    plan = plan_of(recipe, build_folder=build_folder, sources=stand_in(None))
    for line in short_lines(plan):
        say(line)
    found = list(missing(recipe, plan, room_here(build_folder), build_folder=build_folder, until=until))
    for one in found:
        say(f"missing: {one.error}")
    if len(found) == 1:
        raise found[0].error
    if found:
        raise UserError(
            wanted=f"all that the recipe {recipe.name} needs",
            got=f"{len(found)} things missing: {', '.join(one.what for one in found)}",
            next_step="see the line on each above; RECIPE=mini needs none of it",
        )
    if plan.needs.gpu or plan.downloads:
        _ask(asked, recipe.name, say)


def missing(
    recipe: "Recipe", plan: Plan, here: Room, *, build_folder: Path, until: str | None = None
) -> Iterator[Missing]:
    """What the recipe needs and does not find, cheapest question first, the hub's own answer last."""
    sources = stand_in(None)
    if until not in DATA:
        short = _short(work_of(recipe, sources=sources), plan.needs, here)
        yield from (_too_little(what, plan, here, build_folder) for what in short)
    yield from _closed_gates(plan)
    yield from _without_keys(plan)
    yield from _unresolved(recipe, build_folder, sources)


def _gb(count: int) -> str:
    return f"{count / 1e9:,.0f} GB"


def _short(work: Work, needs: Needs, here: Room) -> Iterator[str]:
    """What there is too little of."""
    if needs.gpu and not _holds(work, here.gpus_bytes):
        yield "GPU memory"
    if here.ram_bytes < needs.ram_bytes:
        yield "main memory"
    if here.disk_bytes < needs.disk_bytes:
        yield "disk"


def _holds(work: Work, memories: tuple[int, ...]) -> bool:
    """Whether the largest GPU holds everything, or all of them together do."""
    if not memories:
        return False
    places = ((max(memories), 1), (min(memories), len(memories)))
    return any(all(fits(run, memory_bytes=size, devices=count) for run in work.runs) for size, count in places)


def _too_little(what: str, plan: Plan, here: Room, build_folder: Path) -> Missing:
    needs = plan.needs
    match what:
        case "GPU memory":
            enough = next((f"{fit.devices} x {_gb(fit.memory_bytes)}" for fit in plan.fits if fit.fits), "more of them")
            error = UserError(
                wanted=f"{_gb(needs.gpu_bytes)} of GPU memory on one GPU, or so much more on several that each holds "
                "its part",
                got=" and ".join(map(_gb, here.gpus_bytes)) or "no GPU",
                next_step=f"take a machine with {enough}, lower micro_batch_rows in a recipe of your own, or build "
                "RECIPE=mini",
            )
        case "main memory":
            error = UserError(
                wanted=f"{_gb(needs.ram_bytes)} of main memory, most of it for the stage {needs.ram_for}",
                got=_gb(here.ram_bytes),
                next_step="take a machine with more",
            )
        case _:
            error = UserError(
                wanted=f"{_gb(needs.disk_bytes)} on the disk of {build_folder}",
                got=f"{_gb(here.disk_bytes)} free, with what the build has already",
                next_step="free some space, or build on another disk with --build DIR",
            )
    return Missing(what=what, error=error)


def _closed_gates(plan: Plan) -> Iterator[Missing]:
    """Gated sets for which no token is set; the passphrase is asked for with the program that takes it."""
    for gate in plan.gates:
        if gate.variable == TOKEN_VARIABLE and not gate.is_open:
            page = f"https://huggingface.co/datasets/{gate.name}"
            error = UserError(
                wanted=f"a token of an account that has accepted the terms of {gate.name} ({gate.why})",
                got=f"no {TOKEN_VARIABLE} in the environment",
                next_step=f"accept the terms at {page} and set {TOKEN_VARIABLE}",
            )
            yield Missing(what=TOKEN_VARIABLE, error=error)


def _without_keys(plan: Plan) -> Iterator[Missing]:
    """Encrypted sets without gpg or a passphrase: their stage would say so only after hours of cleaning text."""
    encrypted = [gate.name for gate in plan.gates if gate.variable == PASSPHRASE_VARIABLE]
    if encrypted and shutil.which("gpg") is None:
        error = UserError(
            wanted=f"the program gpg, to decrypt the instructions of {', '.join(encrypted)}",
            got="none on the PATH",
            next_step="install GnuPG 2.1 or newer, or put the decrypted file into the folder of SOURCES",
        )
        yield Missing(what="gpg", error=error)
    for gate in plan.gates:
        if gate.variable == PASSPHRASE_VARIABLE and not gate.is_open:
            from instruct.conversations.lmsys import KEY_HINT

            error = UserError(
                wanted=f"the passphrase of {gate.name} ({gate.why}) in the environment variable {gate.variable}",
                got="none",
                next_step=KEY_HINT,
            )
            yield Missing(what=gate.variable, error=error)


def _unresolved(recipe: "Recipe", build_folder: Path, sources: Path | None) -> Iterator[Missing]:
    """Names that the hub, or the folder that stands in for it, does not give; what it gives enters the build's lock."""
    from recipes.benchmark_questions import BenchmarkQuestionsConfig
    from recipes.resolving import BENCHMARKS_FOLDER, Resolver

    nothing: dict[str, Any] = {"models": {}, "text": (), "conversations": (), "with_benchmarks": False}
    questions: list[tuple[str, dict[str, Any]]] = [
        *((model.model.name, {"models": {name: model}}) for name, model in recipe.models.items()),
        *((source.dataset.name, {"text": (source,)}) for source in recipe.text),
        *((source.dataset.name, {"conversations": (source,)}) for source in recipe.instructions),
    ]
    if recipe.decontaminate or isinstance(recipe.world, BenchmarkQuestionsConfig):
        questions.append((BENCHMARKS_FOLDER, {"with_benchmarks": True}))
    for what, question in questions:  # one by one, so that each is a line of its own
        try:
            Resolver(build_folder, sources=sources).resolve(**(nothing | question))
        except UserError as error:
            yield Missing(what=what, error=error)


def _ask(asked: str, name: str, say: Callable[[str], None]) -> None:
    """A yes: said beforehand, by naming the recipe, or by ten seconds in which nobody stops it."""
    if os.environ.get("YES") == "1":
        return
    if sys.stdin.isatty() and sys.stdout.isatty():
        say(f"starts in {WAIT_SECONDS} s; Ctrl-C stops it, and nothing is spent")
        time.sleep(WAIT_SECONDS)
    elif asked == "auto":
        raise UserError(
            wanted=f"a yes before {name} is built, which RECIPE=auto never takes for granted",
            got="no terminal to ask on",
            next_step=f"say RECIPE={name}, or YES=1, or RECIPE=mini",
        )
