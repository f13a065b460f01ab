"""Before anything is spent: what a recipe needs against what this machine has, with everything that is missing at once.

`before_start` runs before every build and prints what will be spent where models come from a publisher; there it waits
for a yes. `choose` picks the recipe of RECIPE=auto.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from common.errors import UserError
from common.model_shape import config_of
from common.sources import local_mirror
from distill.initial import InitConfig
from instruct.conversations.lmsys import KEY_HINT, PASSPHRASE_VARIABLE
from recipes.plan import Plan, plan_of
from recipes.plan.cost import fits
from recipes.plan.lines import gigabytes, short_lines
from recipes.plan.machine import Available, BuildState, available_here, build_state
from recipes.plan.sets import TOKEN_VARIABLE
from recipes.recipe import Recipe, Stage, stages_until
from recipes.resolve import Unresolved, attempt

EMBEDDED = "mini"
WAIT_SECONDS = 10


def choose(release: Recipe, here: Available, state: BuildState, *, build_folder: Path) -> tuple[str, str]:
    """The recipe's name for RECIPE=auto, and the line that says why: the release where the machine `here` can hold it.

    Raises:
        UserError: a config.json in SOURCES that cannot be parsed.
    """
    sources = local_mirror(None)
    names = [model.terms.name for model in release.published_models.values()]
    absent = [name for name in names if sources and not config_of(name, sources).is_file()]
    if absent:
        return EMBEDDED, f"RECIPE=auto builds {EMBEDDED}: the release needs {' and '.join(absent)}, not in {sources}"
    plan = plan_of(release, build_folder=build_folder, sources=sources, done=state.finished)
    needs, short = plan.needs, list(_short(plan, here))
    sizes = (
        ("GPU memory", needs.gpu_bytes, sum(here.gpus_bytes)),
        ("main memory", needs.ram_bytes, here.ram_bytes),
        ("disk", needs.disk_bytes, here.disk_bytes),
    )
    compared = ", ".join(f"{gigabytes(need)} of {what} (here {gigabytes(has)})" for what, need, has in sizes if need)
    name, verdict = (EMBEDDED, f"too little {' and '.join(short)} here") if short else (release.name, "enough here")
    what = "what is left of the release" if state.finished else "the release"
    return name, f"RECIPE=auto builds {name}: {what} needs {compared or 'nothing more'}: {verdict}"


def before_start(
    recipe: Recipe,
    *,
    asked: str,
    build_folder: Path,
    say: Callable[[str], None],
    until: str | None = None,
    rebuild: Collection[str] = (),
) -> None:
    """Everything that comes before a recipe's first stage. A recipe that makes its own models is never asked about.

    Args:
        asked: what the user named: its name or file, or `auto`.
        say: receives the plan in short, and what is missing, a line each.
        until: the last artifact wanted; what only later stages need, or finished ones needed, may be missing.
        rebuild: artifacts that are planned in full, whether or not they are finished.

    Raises:
        UserError: an unknown artifact, something missing (all of it is named), or `auto` and no terminal to ask on.
    """
    if int(os.environ.get("RANK", "0")) > 0:  # of several processes the first one asks
        return
    sources = local_mirror(None)
    _, unresolved = attempt(recipe, build_folder, sources=sources, until=until)
    state = build_state(recipe, build_folder, sources=sources)
    # Made after the names were resolved, so that it has the sizes that the hub has just given.
    done = state.finished.difference(rebuild)
    plan = plan_of(recipe, build_folder=build_folder, sources=sources, until=until, done=done)
    for line in short_lines(plan) if recipe.published_models else ():
        say(line)
    here = available_here(build_folder, partial_bytes=state.partial_bytes)
    lacks = list(missing(plan, here, build_folder=build_folder, unresolved=unresolved))
    lacks += _unknown_fields([stage for stage in stages_until(recipe, until) if stage.name not in done])
    or_mini = "; RECIPE=mini needs none of it" if recipe.published_models else ""
    if len(lacks) == 1:
        error = lacks[0].error
        raise UserError(error.code, wanted=error.wanted, got=error.got, next_step=error.next_step + or_mini)
    for one in lacks:
        say(f"missing: {one.error}")
    if lacks:
        raise UserError(
            "several",
            wanted=f"all that the recipe {recipe.name} needs",
            got=f"{len(lacks)} things missing: {', '.join(one.what for one in lacks)}",
            next_step=f"see the line on each above{or_mini}",
        )
    if recipe.published_models and (plan.needs.gpu or plan.downloads):
        _ask(asked, recipe.name, say)


def _unknown_fields(stages: Sequence[Stage]) -> Iterator[Unresolved]:
    """Configs of untrained models with a field that their type does not have."""
    for stage in stages:
        if isinstance(init := getattr(stage.config, "init", None), InitConfig):
            try:
                init.require_known_fields()
            except UserError as error:
                yield Unresolved(what=f"the config of {stage.name}", error=error)


def missing(
    plan: Plan, here: Available, *, build_folder: Path, unresolved: Sequence[Unresolved] = ()
) -> Iterator[Unresolved]:
    """What a build, or what is left of it, needs and does not find, each under a short name; `unresolved` come last."""
    yield from (Unresolved(what=what, error=_too_little(what, plan, here, build_folder)) for what in _short(plan, here))
    if plan.needs.gpu and here.gpus_bytes and not _sees_cuda():
        wanted, got = "a torch that computes on the GPUs that their driver names", "one that sees none"
        next_step = "update the driver, or install the torch that is built for it into .venv"
        error = UserError("not-installed", wanted=wanted, got=got, next_step=next_step)
        yield Unresolved(what="CUDA in torch", error=error)
    yield from _closed_gates(plan)
    yield from unresolved


def _short(plan: Plan, here: Available) -> Iterator[str]:
    """What there is too little of."""
    needs = plan.needs
    if needs.gpu and not all(fits(run, here.gpus_bytes) for run in plan.gpu_runs):
        yield "GPU memory"
    if here.ram_bytes < needs.ram_bytes:
        yield "main memory"
    if here.disk_bytes < needs.disk_bytes:
        yield "disk"


def _too_little(what: str, plan: Plan, here: Available, build_folder: Path) -> UserError:
    needs = plan.needs
    if what == "disk":
        more = f", and more for {', '.join(needs.disk_unknown)}" if needs.disk_unknown else ""
        wanted = f"{gigabytes(needs.disk_bytes)} on the disk of {build_folder}{more}"
        got = f"{gigabytes(here.disk_bytes)} free, with the unfinished files of this build"
        next_step = "free some space, or build on another disk with --build DIR"
        return UserError("no-space", wanted=wanted, got=got, next_step=next_step)
    if what == "main memory":
        wanted = f"{gigabytes(needs.ram_bytes)} of main memory, most of it for the stage {needs.ram_for}"
        got, next_step = gigabytes(here.ram_bytes), "take a machine with more"
    else:
        fitting = (f"{fit.devices} x {gigabytes(fit.memory_bytes)}" for fit in plan.fits() if fit.fits)
        wanted = f"{gigabytes(needs.gpu_bytes)} of GPU memory on one GPU, or more on several that each hold a part"
        got = " and ".join(map(gigabytes, here.gpus_bytes)) or "no GPU"
        machine = next(fitting, "more of them")
        next_step = f"take a machine with {machine}, lower micro_batch_rows in your own recipe, or build RECIPE=mini"
    return UserError("no-memory", wanted=wanted, got=got, next_step=next_step)


def _sees_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _closed_gates(plan: Plan) -> Iterator[Unresolved]:
    """Gated sets without a token, encrypted ones without gpg or a passphrase: their stage would refuse hours later."""
    encrypted = [gate.name for gate in plan.gates if gate.variable == PASSPHRASE_VARIABLE]
    if encrypted and shutil.which("gpg") is None:
        wanted = f"the program gpg, to decrypt the instructions of {', '.join(encrypted)}"
        next_step = "install GnuPG 2.1 or newer, or put the decrypted file into the folder of SOURCES"
        error = UserError("not-installed", wanted=wanted, got="none on the PATH", next_step=next_step)
        yield Unresolved(what="gpg", error=error)
    for gate in (gate for gate in plan.gates if not gate.is_open):
        if gate.variable == TOKEN_VARIABLE:
            wanted = f"a token of an account that has accepted the terms of {gate.name} ({gate.why})"
            next_step = f"accept the terms at https://huggingface.co/datasets/{gate.name} and set {TOKEN_VARIABLE}"
        else:
            wanted, next_step = f"the passphrase of {gate.name} ({gate.why})", KEY_HINT
        got = f"no {gate.variable} in the environment"
        yield Unresolved(what=gate.variable, error=UserError("no-access", wanted=wanted, got=got, next_step=next_step))


def _ask(asked: str, name: str, say: Callable[[str], None]) -> None:
    """A yes: given beforehand, by naming the recipe, or by ten seconds in which nobody stops it."""
    if os.environ.get("YES") == "1":
        return
    if sys.stdin.isatty() and sys.stdout.isatty():
        say(f"starts in {WAIT_SECONDS} s; Ctrl-C stops it, and nothing is spent")
        time.sleep(WAIT_SECONDS)
    elif asked == "auto":
        wanted = f"a yes before {name} is built: RECIPE=auto never assumes it"
        next_step = f"set RECIPE={name}, or YES=1, or RECIPE=mini"
        raise UserError("needs-consent", wanted=wanted, got="no terminal to ask on", next_step=next_step)
