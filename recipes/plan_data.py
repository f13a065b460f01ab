"""What a recipe takes from publishers: downloads, gated sets, licences to accept. It asks nobody on the network.

Sizes of models follow from their shapes, those of data sets are `plan_sets`'s. Terms are those of the recipe and of
`common.known_sets`.
"""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.known_sets import known_set, terms_of
from common.sources import HubDataset
from recipes.plan_files import model_folder_bytes
from recipes.plan_sets import TakenSet, size_of
from recipes.plan_training import BFLOAT16
from recipes.plan_work import Work

if TYPE_CHECKING:
    from recipes.hub_names import HubConversations
    from recipes.resolving import Names

BENCHMARK_FILES = "the benchmark files"
PASSPHRASE_VARIABLE = "LMSYS_SYNTH_PASSPHRASE"
"""What `instruct.conversations.lmsys` reads; named here because that module loads torch, and a test compares them."""
TOKEN_VARIABLE = "HF_TOKEN"


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """Files of one model or data set."""

    name: str
    bytes: int | None
    """None where nobody has been asked yet."""
    how: str
    """Where the figure is from, or when it will be known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TermsToAccept:
    """The terms of one source."""

    name: str
    licence: str | None
    """None = not stated by its publisher where we read."""
    obligations: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """A set that its publisher gives only to whoever has accepted its terms, or only encrypted."""

    name: str
    why: str
    variable: str
    """Environment variable that opens it."""

    @property
    def is_open(self) -> bool:
        """Whether the variable is set; whether it is the right one shows when it is used."""
        return bool(os.environ.get(self.variable, "").strip())


def downloads(
    work: Work,
    names: "Names",
    instructions: "Sequence[HubConversations]",
    stages: Collection[str],
    *,
    build_folder: Path,
) -> tuple[Download, ...]:
    """What a build fetches from the hub.

    Args:
        work: what is still to be done.
        names: what the recipe takes of the hub; without a set of text the sets are the user's own files.
        instructions: the sets of conversations that are still to be read.
        stages: the artifacts that are still to be made.
        build_folder: where a lock may lie.
    """
    models = [
        Download(name=name, bytes=model_folder_bytes(shape, BFLOAT16), how="computed from its shapes, bf16")
        for _, name, shape in work.published
    ]
    gated = [
        size_of(TakenSet(dataset=HubDataset(name=name), is_text=False), build_folder=build_folder, sources=None)
        for name in originals(instructions).values()
    ]
    named = (*(work.text if names.text else ()), *(work.talks if instructions else ()))
    sets = [Download(name=one.name, bytes=one.bytes, how=one.how) for one in (*named, *gated)]
    files = [Download(name=BENCHMARK_FILES, bytes=None, how="archives of their repositories, each at one commit")]
    return (*models, *sets, *(files if "benchmarks" in stages else ()))


def gates(instructions: "Sequence[HubConversations]", *, sources: Path | None) -> tuple[Gate, ...]:
    """The gates before sets of conversations. A folder of SOURCES that holds a set as conversations needs none."""
    found: list[Gate] = []
    for name, original in originals(instructions).items():
        if sources is None:
            why = f"the instructions of {name} derive from it"
            found.append(Gate(name=original, why=why, variable=TOKEN_VARIABLE))
        if sources is None or _is_encrypted(name, sources / name):
            found.append(Gate(name=name, why="its instructions are encrypted", variable=PASSPHRASE_VARIABLE))
    return tuple(found)


def _is_encrypted(name: str, folder: Path) -> bool:
    """Whether a local copy holds the encrypted file and nothing that was made of it."""
    known = known_set(name)
    is_readable = known is not None and known.local_patterns(folder) != ()
    return not is_readable and any(folder.rglob("*.gpg"))


def terms_to_accept(names: "Names") -> tuple[TermsToAccept, ...]:
    """The terms of everything that a build takes, models first."""
    stated = [model.terms for model in names.models.values()] + [source.terms for source in names.text]
    stated += [terms_of(source.dataset.name) for source in names.conversations]
    listed = [TermsToAccept(name=one.name, licence=one.licence, obligations=one.obligations) for one in stated]
    return tuple(listed)


def originals(instructions: "Sequence[HubConversations]") -> dict[str, str]:
    """The gated set behind each set that has one."""
    known = [known_set(source.dataset.name) for source in instructions]
    return {one.name: one.original for one in known if one is not None and one.original is not None}
