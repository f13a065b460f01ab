"""The embedded world: who lives in it, what is true of them, and every wording of a fact.

Names, values and wordings stand in `data/*.toml`; which person has which value is drawn from `facts_seed`, so that any
amount of fresh text can be written about one and the same world. Nine people and three towns are never asked about:
their facts are told, and questions about them are kept for the test. This module knows no document and no file format.
"""

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

Register = Literal["plain", "polite"]
REGISTERS: tuple[Register, ...] = ("plain", "polite")
DATA = Path(__file__).parent / "data"


DERIVED = {"home_specialty": ("home", "specialty")}
"""Attributes that take two steps: of the person's home town, as JEMHopQA asks."""


@cache
def data(name: str) -> dict[str, Any]:
    """The parsed file `data/<name>.toml`."""
    return tomllib.loads((DATA / f"{name}.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribute:
    """Something that every person (or every town) has one of, with its wordings."""

    name: str
    of: str
    """`people` or `towns`."""
    label: str
    values: tuple[str, ...]
    tell: dict[Register, tuple[str, ...]]
    ask: tuple[str, ...]
    """Wordings of training."""
    ask_held: tuple[str, ...]
    """Wordings that only held-out questions use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entity:
    """A person or a town."""

    name: str
    of: str
    values: dict[str, str]
    askable: tuple[str, ...]
    """Names of the attributes that training may ask about; empty for an entity that is never asked about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """A piece of common sense: pairs of subject and value, asked forwards and, where it is natural, backwards."""

    name: str
    tell: dict[Register, tuple[str, ...]]
    ask: tuple[str, ...]
    ask_held: tuple[str, ...]
    ask_reverse: tuple[str, ...]
    ask_reverse_held: tuple[str, ...]
    value_of: dict[str, str]
    """Subject -> value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """All facts."""

    people: tuple[Entity, ...]
    towns: tuple[Entity, ...]
    attributes: dict[str, Attribute]
    relations: tuple[Relation, ...]

    @property
    def entities(self) -> tuple[Entity, ...]:
        return self.people + self.towns

    @property
    def asked(self) -> tuple[Entity, ...]:
        """Those about whom training asks."""
        return tuple(entity for entity in self.entities if entity.askable)

    @property
    def never_asked(self) -> tuple[Entity, ...]:
        return tuple(entity for entity in self.entities if not entity.askable)


def make_world(facts_seed: int) -> World:
    """The world of this seed: which name belongs to whom, every value, and who is never asked about."""
    rng = random.Random(f"facts {facts_seed}")
    attributes = {name: _attribute(name, entry) for name, entry in data("world")["attributes"].items()}
    towns = _towns(rng, attributes)
    return World(
        people=_people(rng, attributes, towns),
        towns=towns,
        attributes=attributes,
        relations=tuple(_relation(name, entry) for name, entry in data("commonsense").items()),
    )


def _attribute(name: str, entry: dict[str, Any]) -> Attribute:
    values = entry["values"]
    if values == "towns":
        values = data("world")["towns"]["names"]
    elif name in DERIVED:
        values = data("world")["attributes"][DERIVED[name][1]]["values"]
    return Attribute(
        name=name,
        of=entry["of"],
        label=entry["label"],
        values=tuple(values),
        tell={register: tuple(entry[f"tell_{register}"]) for register in REGISTERS},
        ask=tuple(entry["ask"]),
        ask_held=tuple(entry["ask_held"]),
    )


def _relation(name: str, entry: dict[str, Any]) -> Relation:
    return Relation(
        name=name,
        tell={register: tuple(entry[f"tell_{register}"]) for register in REGISTERS},
        ask=tuple(entry["ask"]),
        ask_held=tuple(entry["ask_held"]),
        ask_reverse=tuple(entry.get("ask_reverse", ())),
        ask_reverse_held=tuple(entry.get("ask_reverse_held", ())),
        value_of={subject: value for value, subjects in entry["pairs"].items() for subject in subjects},
    )


def _spread(rng: random.Random, values: tuple[str, ...], count: int) -> list[str]:
    """`count` values, each about equally often, so that no value is a good guess."""
    dealt = [values[index % len(values)] for index in range(count)]
    rng.shuffle(dealt)
    return dealt


def _towns(rng: random.Random, attributes: dict[str, Attribute]) -> tuple[Entity, ...]:
    names: list[str] = data("world")["towns"]["names"]
    own = [attribute for attribute in attributes.values() if attribute.of == "towns"]
    dealt = {attribute.name: _spread(rng, attribute.values, len(names)) for attribute in own}
    silent = set(rng.sample(names, data("world")["towns"]["never_asked"]))
    return tuple(
        Entity(
            name=name,
            of="towns",
            values={attribute: values[index] for attribute, values in dealt.items()},
            askable=() if name in silent else tuple(dealt),
        )
        for index, name in enumerate(names)
    )


def _people(rng: random.Random, attributes: dict[str, Attribute], towns: tuple[Entity, ...]) -> tuple[Entity, ...]:
    surnames: list[str] = data("world")["people"]["surnames"]
    given = rng.sample(data("world")["people"]["given"], len(surnames))
    own = [attribute for attribute in attributes.values() if attribute.of == "people" and attribute.name not in DERIVED]
    dealt = {attribute.name: _spread(rng, attribute.values, len(surnames)) for attribute in own}
    silent = set(rng.sample(surnames, data("world")["people"]["never_asked"]))
    town_of = {town.name: town for town in towns}
    people: list[Entity] = []
    for index, surname in enumerate(surnames):
        values = {attribute: column[index] for attribute, column in dealt.items()}
        home = town_of[values["home"]]
        # A question about the home's specialty would ask about the town: not where the town is never asked about.
        for name, (via, attribute) in DERIVED.items():
            assert via == "home", via
            values[name] = home.values[attribute]
        askable = () if surname in silent else tuple(dealt) + (tuple(DERIVED) if home.askable else ())
        people.append(Entity(name=surname + given[index], of="people", values=values, askable=askable))
    return tuple(people)
