"""The stage `report`: what was built, how good it is and how large, computed afterwards from the manifests.

Reads manifests, metrics and data cards of the build and the evaluation's JSON. Writes `report.json`, then `report.html`
and `report.md` from it. It measures nothing: what the evaluation did not measure is null, with the reason.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from common.disk import replace_text
from common.errors import UserError, unknown_name
from common.known_benchmarks import BENCHMARKS
from common.provenance import read_sources, read_terms
from common.store import Workspace, read_manifest, stage
from eval.report import collect
from eval.report.data import data_cards, why_no_answers
from eval.report.render import write_pages

Scalar = int | float | str
Manifests = Mapping[str, Mapping[str, Any]]
"""By artifact."""
MEASURED = ("tasks", "fidelity", "phones", "samples", "paired", "held_out")
"""Files of the evaluation, `<name>.json`, and the sections of report.json that they become."""
_GAPS = (
    ("scores", "tasks", "value", "artifact", "reason"),
    ("fidelity", "fidelity", "kl", "artifact", "reason"),
    ("held-out loss", "held_out", "loss", "artifact", "reason"),
    ("speed", "speed", "decode_tok_per_s", "artifact", "reason"),
    ("memory on a phone, measured", "phones", "measured_bytes", "artifact", "measured_reason"),
    ("whether it fits", "phones", "limit_bytes", "phone", "limit_source"),
)
"""(what is not measured, section, field that is null then, field of what it is about, field of the reason)."""
_NO_SPEED = {"prefill_tok_per_s": None, "decode_tok_per_s": None, "reason": "this build measures no speed"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """The terms of one part of the build."""

    what: str
    """The part: texts, a model, the code."""
    licence: str
    """Name of the licence, or the terms in a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One number of the recipe: published for the model that is reproduced, or chosen here.

    A number from the code or the script of another model counts as chosen, with that code as its source.
    """

    what: str
    """What the number is, such as "peak learning rate of the distillation"."""
    value: str
    """The number with its unit, as text."""
    published: bool = False
    """Whether its publishers state it for the model that is reproduced; otherwise it was chosen here."""
    source: str | None = None
    """Where it is published; for a chosen number, what it was taken from, such as another model's script."""
    reason: str | None = None
    """Why it was chosen."""
    fields: tuple[tuple[str, Scalar], ...] = ()
    """Fields that `value` describes, as `artifact.field`, with their values: ("base.steps", 8000), since the text does
    not follow a number that a user changes. The value of a list is its length."""

    def __post_init__(self) -> None:
        if self.published and not self.source:
            wanted, got = f"a source of {self.what}, which is called published", "none"
        elif not self.published and not self.reason:
            wanted = f"the reason why {self.what} was chosen, or published=True with a source"
            got = "a source alone" if self.source else "neither"
        else:
            return
        raise UserError("contradiction", wanted=wanted, got=got, next_step="complete this choice in the recipe")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Content of the report that is in no manifest."""

    recipe: str | None = None
    """The recipe's name, as in dist/<recipe>/."""
    title: str | None = None
    """The page's heading; None takes the common beginning of the files' names."""
    licences: tuple[Licence, ...] = ()
    """Terms of all inputs."""
    choices: tuple[Choice, ...] = ()
    """The recipe's numbers that a reader may ask about, published and chosen."""


@stage(version=8)
def report(config: ReportConfig, workspace: Workspace, *inputs: Path | None) -> dict[str, Any]:
    """Writes report.json, report.html and report.md.

    Args:
        config: content that is in no manifest.
        workspace: where to write.
        inputs: artifacts in the order of the build, None for an absent one; a manifest has the artifact's name.
            `corpus`, `chat`, `gguf`, `coreml` and `evaluation` are needed. Of `world` only the benchmarks that could
            not be asked are reported, and its terms say whether its questions may be quoted.

    Returns:
        `artifacts`, the number of files for phones, and `not_measured`, the number of gaps, each with a reason.

    Raises:
        UserError: an input without a complete manifest, or an evaluation file that is absent or broken.
    """
    folders = {str(read_manifest(folder)["name"]): folder for folder in inputs if folder is not None}
    content = assemble(config, folders, machine=workspace.machine.to_json(), world=folders.pop("world", None))
    replace_text(workspace.folder / "report.json", json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
    write_pages(content, workspace.folder)
    return {"artifacts": len(content["artifacts"]), "not_measured": len(content["not_measured"])}


def assemble(
    config: ReportConfig,
    folders: Mapping[str, Path],
    *,
    machine: Mapping[str, Any],
    world: Path | None = None,
) -> dict[str, Any]:
    """The content of report.json from the artifact folders by name, in the order of the build.

    `machine` is what this stage computes on (`Machine.to_json`). The manifest of `world` has the published benchmarks
    that were there and could not be asked, with the reasons.
    """
    left_out = {} if world is None else read_manifest(world)["facts"].get("left_out", {})
    manifests = {name: read_manifest(folder) for name, folder in folders.items()}
    here, *others = collect.machines(manifests, machine)
    files = collect.artifacts(manifests)
    places = {name: place for place, name in enumerate([*collect.TRAINED, *(file["path"] for file in files)])}
    measured = {
        name: sorted(  # the artifacts in the order of the build, whatever the evaluation's
            collect.read_json(folders["evaluation"] / f"{name}.json"),
            key=lambda row: places.get(row["artifact"], len(places)),
        )
        for name in MEASURED
    }
    why_not = _why_no_answers(folders["chat"], world, asked=manifests["evaluation"]["config"]["sample_questions"])
    if why_not is not None:
        measured["samples"] = []
    # The GGUF files' names begin with BaseName-SizeLabel-FineTune, and end with the encoding.
    stems = (file["path"].removesuffix(f"-{file['encoding']}.gguf") for file in files if file["format"] == "GGUF")
    content: dict[str, Any] = {
        "recipe": config.recipe,
        "title": config.title or next(stems, None) or config.recipe or "A model",
        "machine": {field: value for field, value in here.items() if field != "stages"},
        "other_machines": others,
        "built_from": collect.built_from(folders, manifests),
        "artifacts": files,
        "training": collect.training(manifests),
        "curves": collect.curves(folders),
        **measured,
        "samples_reason": why_not,
        "task_average": [row for row in measured["tasks"] if row["task"] == "average"],
        "speed": [{"artifact": file["path"], **_NO_SPEED} for file in files],
        "data": data_cards(folders),
        "licences": [asdict(each) for each in config.licences],
        "choices": [_choice(choice, manifests) for choice in config.choices],
    }
    content["not_measured"] = list(_gaps(content, manifests, left_out))
    return collect.without_paths(content)


def _why_no_answers(chat: Path, world: Path | None, *, asked: int) -> str | None:
    """See `why_no_answers`; `asked` is the number of questions of each shape among the sample answers."""
    has_questions = world is not None and asked > 0 and any(world.glob("questions.jsonl*"))
    terms = read_terms(world) if world is not None and has_questions else None
    private_questions = has_questions and not (terms is not None and terms.quotable)
    return why_no_answers(read_sources(chat), private_questions=private_questions)


def _gaps(content: Mapping[str, Any], manifests: Manifests, left_out: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """What is null in the report: {what, of: artifacts or phones, reason}, one for each kind of number and reason."""
    for task, why in left_out.items():
        yield {"what": f"scores in {BENCHMARKS[task].name}", "of": [], "reason": why}
    skipped = manifests.get("coreml", {}).get("facts", {}).get("skipped")
    if skipped:
        yield {"what": "Core ML package", "of": [], "reason": skipped}
    for what, section, field, of, reason in _GAPS:
        by_reason: dict[str, dict[str, None]] = {}
        for row in content[section]:
            if row[field] is None:
                by_reason.setdefault(row[reason].removeprefix("not measured: "), {})[row[of]] = None
        for why, names in by_reason.items():
            yield {"what": what, "of": list(names), "reason": why}


def read_choices(file: Path) -> tuple[Choice, ...]:
    """The choices of a TOML file: `[[choice]]` tables with the fields of `Choice`."""
    entries = tomllib.loads(file.read_text(encoding="utf-8"))["choice"]
    return tuple(Choice(**entry | {"fields": tuple(map(tuple, entry.get("fields", ())))}) for entry in entries)


def revised(choices: Iterable[Choice], *changed: Choice, without: Sequence[str] = ()) -> tuple[Choice, ...]:
    """The choices of a recipe that derives from another: some replaced by their `what`, some left out.

    Raises:
        UserError: no choice has that name, so that nothing would be replaced.
    """
    choices, new = tuple(choices), {choice.what: choice for choice in changed}
    known = {choice.what for choice in choices}
    for what in (*new, *without):
        if what not in known:
            raise unknown_name("the name of a choice", what, sorted(known))
    return tuple(new.get(choice.what, choice) for choice in choices if choice.what not in without)


def differences(choice: Choice, manifests: Manifests) -> list[dict[str, Scalar]]:
    """Where a build differs from the choice's `fields`: {field, says, built}. What no manifest holds is left out."""
    found: list[dict[str, Scalar]] = []
    for field, said in choice.fields:
        artifact, _, name = field.partition(".")
        built = _value(manifests.get(artifact, {}).get("config"), name)
        if built is not None and built != said:
            found.append({"field": field, "says": said, "built": built})
    return found


def _choice(choice: Choice, manifests: Manifests) -> dict[str, Any]:
    """A choice, and in `differs` where this build has another value: a recipe of another size keeps the text."""
    fields = {name: value for name, value in asdict(choice).items() if name != "fields"}
    return fields | {"differs": differences(choice, manifests)}


def _value(config: Any, name: str) -> Scalar | None:
    """A number or a word of a manifest's config by its dotted name, None for anything else, such as a path."""
    for part in re.findall(r"[^.\[\]]+", name):
        if isinstance(config, list):
            config = dict(enumerate(cast(list[Any], config))).get(int(part) if part.isdigit() else -1)
        else:
            config = cast(Mapping[str, Any], config).get(part) if isinstance(config, Mapping) else None
    if isinstance(config, list):
        return len(cast(list[Any], config))
    return config if isinstance(config, Scalar) else None
