"""Which licence a file of the model names: the one that the recipe states, or what its sources have in common.

It copies what publishers state and draws no conclusion of law: where sources differ, all of their licences are named.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from common.provenance import DataSource

OTHER = "other"
"""What stands for terms that are no SPDX expression, in GGUF metadata as on model hubs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """A licence as metadata tells it."""

    identifier: str
    """An SPDX expression, or `other`."""
    name: str | None = None
    """The terms in words, for `other`."""
    is_gathered: bool = False
    """Whether `name` lists the terms of all that the model was made of, since nobody states one for the model."""


def spdx_expression(licence: str) -> str | None:
    """The SPDX expression in its canonical writing, None for terms that are none, such as a publisher's own."""
    try:
        return str(canonicalize_license_expression(licence))
    except InvalidLicenseExpression:
        return None


def licence_of(sources: Sequence[DataSource], stated: str | None = None) -> Licence | None:
    """The licence of a model, None where nothing is known.

    Args:
        sources: what it learnt from.
        stated: the terms that the recipe sets; None goes by the sources.
    """
    names = [stated] if stated is not None else [source.licence for source in sources]
    known = list(dict.fromkeys(spdx_expression(name) or name for name in names if name is not None))
    if not known:
        return None
    if len(known) == 1 and None not in names:
        expression = spdx_expression(known[0])
        return Licence(identifier=OTHER, name=known[0]) if expression is None else Licence(identifier=expression)
    gathered = ", ".join([*known, *(["not stated"] if None in names else [])])
    return Licence(identifier=OTHER, name=gathered, is_gathered=True)
