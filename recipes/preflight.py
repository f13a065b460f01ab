"""Before anything is spent: what this machine has beside what a recipe needs, everything that is missing at once.

`RECIPE=auto` asks `choose` which recipe this machine can hold; `before_start` stands before every build: it names what
is missing, and where models come from elsewhere it prints what will be spent and waits for a yes. Deciding asks nobody
on the network and loads no torch, where no release was begun; only a build that will go there anyway asks the hub.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.model_shape import config_of
from common.sources import LOCK_FILE, local_mirror
from recipes.plan import Needs, Plan, needs_of, plan_of
from recipes.plan_data import PASSPHRASE_VARIABLE, TOKEN_VARIABLE
from recipes.plan_machine import Room, room_here
from recipes.plan_text import short_lines
from recipes.plan_training import fits
from recipes.plan_work import Run, release_work

if TYPE_CHECKING:
    from recipes.plan_done import Done
    from recipes.recipe import Recipe
    from recipes.resolving import Refusal

RELEASE, EMBEDDED = "tinyswallow", "mini"
WAIT_SECONDS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """One thing that a recipe needs and this machine lacks."""

    what: str
    """In a few words."""
    error: UserError


def choose(
    here: Room,
    *,
    left: Collection[str] | None = None,
    sources: Path | None = None,
    build_folder: Path | None = None,
) -> tuple[str, str]:
    """The recipe's name for RECIPE=auto, and the line that says why.

    Args:
        here: the machine.
        left: the release's artifacts that are still to be made; None where it was not begun.
        sources: the folder that stands in for the hub, or None.
        build_folder: where it would be built.

    Raises:
        UserError: a config.json in `sources` that does not read.
    """
    work = release_work(sources=sources, build_folder=build_folder)
    names = [name for _, name, _ in work.published]
    absent = [] if sources is None else [name for name in names if not config_of(name, sources).is_file()]
    if absent:
        return EMBEDDED, f"RECIPE=auto builds {EMBEDDED}: the release needs {' and '.join(absent)}, not in {sources}"
    needs = needs_of(work, stages=left)
    rows = [
        ("GPU memory", needs.gpu_bytes, sum(here.gpus_bytes)),
        ("main memory", needs.ram_bytes, here.ram_bytes),
        ("disk", needs.disk_bytes, here.disk_bytes),
    ]
    compared = ", ".join(f"{_gb(needed)} of {what} (here {_gb(has)})" for what, needed, has in rows if needed)
    short = list(_short(work.gpu_runs(left), needs, here))
    name, verdict = (EMBEDDED, f"too little {' and '.join(short)} here") if short else (RELEASE, "enough here")
    what = "the release" if left is None else "what is left of the release"
    return name, f"RECIPE=auto builds {name}: {what} needs {compared or 'nothing more'}: {verdict}"


def release_here(build_folder: Path) -> tuple[Room, list[str] | None]:
    """What this machine has for the release, and which of its artifacts are left where it was begun in this folder."""
    if not (build_folder / LOCK_FILE).is_file():
        return room_here(build_folder), None
    from recipes.recipe import order
    from recipes.tinyswallow import tinyswallow  # loads torch, which a machine that has begun a release can bear

    done = _done(tinyswallow(), build_folder)
    left = [name for name in order(tinyswallow()) if name not in done.stages]
    return room_here(build_folder, done_bytes=done.half_done_bytes), left if done.stages else None


def before_start(
    recipe: "Recipe",
    *,
    asked: str,
    build_folder: Path,
    say: Callable[[str], None],
    until: str | None = None,
    anew: Collection[str] = (),
) -> None:
    """Everything that comes before a recipe's first stage. A recipe that makes its own models is never asked about.

    Args:
        recipe: what will be built.
        asked: what the user said: its name or file, or `auto`.
        build_folder: where.
        say: told the plan in short, and what is missing, a line each.
        until: the last artifact wanted; what only later ones need, or finished ones needed, may be missing.
        anew: artifacts that cost what they cost, whether or not they are finished.

    Raises:
        UserError: an unknown artifact, something missing (all of it is named), or `auto` and nobody who could say no.
    """
    if int(os.environ.get("RANK", "0")) > 0:  # of several processes the first one asks
        return
    sources = local_mirror(None)
    refused = _refused(recipe, build_folder, sources, until)
    done = _done(recipe, build_folder)
    # With the sizes that the hub has just told.
    plan = plan_of(recipe, build_folder=build_folder, sources=sources, until=until, done=done.stages.difference(anew))
    if recipe.models:
        for line in short_lines(plan):
            say(line)
    here = room_here(build_folder, done_bytes=done.half_done_bytes)
    found = list(missing(plan, here, build_folder=build_folder, refused=refused))
    for one in found:
        say(f"missing: {one.error}")
    if len(found) == 1:
        raise found[0].error
    if found:
        raise UserError(
            wanted=f"all that the recipe {recipe.name} needs",
            got=f"{len(found)} things missing: {', '.join(one.what for one in found)}",
            next_step="see the line on each above" + ("; RECIPE=mini needs none of it" if recipe.models else ""),
        )
    if recipe.models and (plan.needs.gpu or plan.downloads):
        _ask(asked, recipe.name, say)


def missing(plan: Plan, here: Room, *, build_folder: Path, refused: "Sequence[Refusal]" = ()) -> Iterator[Missing]:
    """What a build needs and does not find.

    Args:
        plan: what it costs, or what is left of it.
        here: the machine.
        build_folder: where it is built.
        refused: names that the hub, or the folder that stands in for it, did not give.
    """
    yield from (_too_little(what, plan, here, build_folder) for what in _short(plan.gpu_runs, plan.needs, here))
    if plan.needs.gpu and here.gpus_bytes:
        yield from _without_cuda()
    yield from _closed_gates(plan)
    yield from _without_keys(plan)
    yield from (Missing(what=one.what, error=one.error) for one in refused)


def _done(recipe: "Recipe", build_folder: Path) -> "Done":
    """What of this build lies in its folder."""
    from recipes.plan_done import done_here

    return done_here(recipe, build_folder, sources=local_mirror(None))


def _gb(count: int) -> str:
    return f"{count / 1e9:,.0f} GB"


def _short(runs: Sequence[Run], needs: Needs, here: Room) -> Iterator[str]:
    """What there is too little of."""
    if needs.gpu and not all(fits(run, here.gpus_bytes) for run in runs):
        yield "GPU memory"
    if here.ram_bytes < needs.ram_bytes:
        yield "main memory"
    if here.disk_bytes < needs.disk_bytes:
        yield "disk"


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
            more = f", and more for {', '.join(needs.disk_unknown)}" if needs.disk_unknown else ""
            error = UserError(
                wanted=f"{_gb(needs.disk_bytes)} on the disk of {build_folder}{more}",
                got=f"{_gb(here.disk_bytes)} free, with what the build has half done",
                next_step="free some space, or build on another disk with --build DIR",
            )
    return Missing(what=what, error=error)


def _without_cuda() -> Iterator[Missing]:
    """A torch that would leave the GPUs alone, and compute for weeks on the processor."""
    if not _sees_cuda():
        error = UserError(
            wanted="a torch that computes on the GPUs that their driver names",
            got="one that sees none",
            next_step="update the driver, or install the torch that is built for it into .venv",
        )
        yield Missing(what="CUDA in torch", error=error)


def _sees_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


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


def _refused(recipe: "Recipe", build_folder: Path, sources: Path | None, until: str | None) -> "Sequence[Refusal]":
    """Names that the hub, or the folder that stands in for it, does not give; what it gives enters the build's lock."""
    from recipes.recipe import names_of
    from recipes.resolving import Resolver

    return Resolver(build_folder, sources=sources).attempt(names_of(recipe, until))[1]


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
