"""`python -m recipes NAME|FILE.py [--until ARTIFACT]`: builds a recipe and publishes its deliverables in `--dist`.

It prints one line for each stage; a second run finds every stage done. The pipeline itself is in `recipes/recipe.py`.
"""

import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.cli import Command, command, run
from common.errors import UserError
from common.store import Store, say
from recipes.loading import KNOWN, RELEASE, load


def main(arguments: list[str]) -> None:
    """Parse `arguments` and do what they ask for."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.sources is not None:
        os.environ["SOURCES"] = str(parsed.sources)  # read in many places, also in child processes
    if parsed.list:
        for name, what in KNOWN.items():
            say(f"{name:<{max(map(len, KNOWN))}}  {what}")
    elif parsed.show is not None:
        say("\n".join(shown(load(parsed.show, say=say, build_folder=parsed.build))))
    elif parsed.fingerprints is not None:
        _rewrite_fingerprints(parsed.fingerprints, same_output=parsed.same_output, reason=parsed.reason)
    elif parsed.recipe is not None and parsed.plan:
        _plan(parsed.recipe, until=parsed.until, build_folder=parsed.build)
    elif parsed.recipe is not None:
        _build(parsed.recipe, until=parsed.until, build_folder=parsed.build, dist_folder=parsed.dist)
    else:
        parser.error("name a recipe; --list prints the known ones")


def _parser() -> Command:
    parser = command("recipes", "Build a recipe, from text to phone files.")
    add = parser.add_argument
    recipes = f"{', '.join(KNOWN)}, auto (what this machine can hold), or a file that defines recipe() -> Recipe"
    add("recipe", nargs="?", metavar="NAME|FILE.py", help=recipes)
    add("--until", metavar="ARTIFACT", help="stop after this artifact (default: build all)")
    add("--build", type=Path, default=Path("build"), metavar="DIR", help="build folder, where artifacts are kept")
    add("--dist", type=Path, default=Path("dist"), metavar="DIR", help="the deliverables go to DIR/<recipe>")
    add("--sources", type=Path, metavar="DIR", help="read DIR/<org>/<name> instead of the hub (default: $SOURCES)")
    add("--plan", action="store_true", help="print the cost and build nothing; auto means tinyswallow")
    add("--list", action="store_true", help="print the known recipes")
    add("--show", metavar="NAME|FILE.py", help="print every number of a recipe")
    add = parser.add_argument_group("for developers of this product").add_argument
    stages = "rewrite lines of tests/fingerprints.json: module:function, a function's name, or all"
    add("--fingerprints", nargs="+", metavar="STAGE", help=stages)
    add("--same-output", action="store_true", help="the changed code gives the same output, so its version stays")
    add("--reason", metavar="TEXT", help="with --same-output: why the output is the same, for the commit message")
    return parser


def _build(name: str, *, until: str | None, build_folder: Path, dist_folder: Path) -> None:
    start = time.perf_counter()
    recipe = load(name, say=say, build_folder=build_folder)
    # Imported after the name was found to be right, because these load torch.
    from recipes.preflight import before_start
    from recipes.publish import publish
    from recipes.recipe import build
    from recipes.rehearsal import figure_lines
    from recipes.resolve import resolve

    before_start(recipe, asked=name, build_folder=build_folder, say=say, until=until)
    made = build(resolve(recipe, build_folder, until=until), Store(build_folder, report=say), until=until)
    last = list(made.values())[-1]
    where = f"{last.name} in {last.folder}"
    if "dist" in made:
        published = dist_folder / recipe.name
        publish(made["dist"], published, say=say)
        where = f"deliverables in {published}, report in {published / 'report.html'}"
        for line in figure_lines(recipe, made):
            say(line)
    say(f"{'total':<16}  {time.perf_counter() - start:8.1f} s  {where}")


def _plan(name: str, *, until: str | None, build_folder: Path) -> None:
    from common.sources import local_mirror
    from recipes.plan import plan_of
    from recipes.plan.lines import plan_lines
    from recipes.plan.machine import available_here, build_state
    from recipes.preflight import missing

    recipe, sources = load(RELEASE if name == "auto" else name, say=say), local_mirror(None)
    plan = plan_of(recipe, build_folder=build_folder, sources=sources, until=until)
    for line in plan_lines(plan):
        say(line)
    state = build_state(recipe, build_folder, sources=sources)
    left = plan_of(recipe, build_folder=build_folder, sources=sources, until=until, done=state.finished)
    here = available_here(build_folder, partial_bytes=state.partial_bytes)
    lacks = list(missing(left, here, build_folder=build_folder))
    finished = [stage.stage for stage in plan.stages if stage.stage in state.finished]
    if finished:
        say(f"Finished in {build_folder}: {', '.join(finished)}")
    what = "the rest" if finished else "it"
    unasked = "; the hub was not asked for its names" if left.downloads else ""
    say(f"For {what} this machine lacks:" if lacks else f"This machine has everything for {what}{unasked}")
    for one in lacks:
        say(f"  missing: {one.error}")


def shown(recipe: Any) -> Iterator[str]:
    """Every number of a recipe, one line each, indented by depth."""
    for field in dataclasses.fields(recipe):
        yield from _shown(field.name, getattr(recipe, field.name))


def _shown(name: str, value: Any) -> Iterator[str]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield f"{name}: {type(value).__name__}"
        yield from (f"  {line}" for line in shown(value))
    elif isinstance(value, tuple) and any(dataclasses.is_dataclass(item) for item in value):
        for index, item in enumerate(value):
            yield from _shown(f"{name}[{index}]", item)
    else:
        yield f"{name}: {value if isinstance(value, Path) else repr(value)}"


def _rewrite_fingerprints(stages: list[str], *, same_output: bool, reason: str | None) -> None:
    from recipes.fingerprints import rewrite

    if same_output and not (reason and reason.strip()):
        wanted, next_step = "--reason TEXT with --same-output", "say why the output stays the same"
        raise UserError("empty", wanted=wanted, got="none", next_step=next_step)
    changes = rewrite(stages, same_output=same_output)
    for change in changes:
        say(f"{change.stage}  version {change.version}  {change.why}")
    if not changes:
        say("no change")
    elif same_output:
        say(f"for the commit message: same output, because {reason}")


if __name__ == "__main__":
    run(main)
