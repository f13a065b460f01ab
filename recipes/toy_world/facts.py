"""The facts of the generated world: its people and towns, what is true of them, and every wording of a fact.

Names, values and wordings are in `data/*.toml`. `facts_seed` decides which person has which value, so any amount of new
text can be generated about the same world. Training asks no question about nine people and three towns: texts state
their facts, and questions about them are part of the test.
"""

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

Register = Literal["plain", "polite"]
REGISTERS: tuple[Register, ...] = ("plain", "polite")
DATA = Path(__file__).parent / "data"

DERIVED = {"home_specialty": "specialty"}
"""Attributes that take two steps, as in JEMHopQA: person's attribute to that of the home town which it repeats."""


@cache
def data(name: str) -> dict[str, Any]:
    """The parsed file `data/<name>.toml`."""
    return tomllib.loads((DATA / f"{name}.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribute:
    """An attribute of which every person, or every town, has one value, with its wordings."""

    name: str
    of: str
    """`people` or `towns`."""
    label: str
    values: tuple[str, ...]
    tell: dict[Register, tuple[str, ...]]
    ask: tuple[str, ...]
    """Wordings of training questions."""
    ask_held: tuple[str, ...]
    """Wordings of held-out questions only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entity:
    """A person or a town."""

    name: str
    of: str
    values: dict[str, str]
    askable: tuple[str, ...]
    """Names of the attributes that training may ask about; empty for an entity of the test."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """Common sense: pairs of subject and value, with questions for the value and, where natural, for the subject."""

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
        """The entities that training asks about."""
        return tuple(entity for entity in self.entities if entity.askable)

    @property
    def never_asked(self) -> tuple[Entity, ...]:
        return tuple(entity for entity in self.entities if not entity.askable)


def make_world(facts_seed: int) -> World:
    """The world of this seed: every name and value, and the entities that training never asks about."""
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
        values = data("world")["attributes"][DERIVED[name]]["values"]
    return Attribute(name=name, of=entry["of"], label=entry["label"], values=tuple(values), **_wordings(entry))


def _relation(name: str, entry: dict[str, Any]) -> Relation:
    return Relation(
        name=name,
        **_wordings(entry),
        ask_reverse=tuple(entry.get("ask_reverse", ())),
        ask_reverse_held=tuple(entry.get("ask_reverse_held", ())),
        value_of={subject: value for value, subjects in entry["pairs"].items() for subject in subjects},
    )


def _wordings(entry: dict[str, Any]) -> dict[str, Any]:
    tell = {register: tuple(entry[f"tell_{register}"]) for register in REGISTERS}
    return {"tell": tell, "ask": tuple(entry["ask"]), "ask_held": tuple(entry["ask_held"])}


def _deal(rng: random.Random, attributes: dict[str, Attribute], of: str, count: int) -> dict[str, list[str]]:
    """Values of each attribute for `count` people or towns, each value about equally often: none is a good guess."""
    dealt: dict[str, list[str]] = {}
    for attribute in attributes.values():
        if attribute.of == of and attribute.name not in DERIVED:
            dealt[attribute.name] = list(islice(cycle(attribute.values), count))
            rng.shuffle(dealt[attribute.name])
    return dealt


def _towns(rng: random.Random, attributes: dict[str, Attribute]) -> tuple[Entity, ...]:
    names: list[str] = data("world")["towns"]["names"]
    dealt = _deal(rng, attributes, "towns", len(names))
    silent = set(rng.sample(names, data("world")["towns"]["never_asked"]))
    towns: list[Entity] = []
    for index, name in enumerate(names):
        values = {attribute: column[index] for attribute, column in dealt.items()}
        towns.append(Entity(name=name, of="towns", values=values, askable=() if name in silent else tuple(dealt)))
    return tuple(towns)


def _people(rng: random.Random, attributes: dict[str, Attribute], towns: tuple[Entity, ...]) -> tuple[Entity, ...]:
    surnames: list[str] = data("world")["people"]["surnames"]
    given = rng.sample(data("world")["people"]["given"], len(surnames))
    dealt = _deal(rng, attributes, "people", len(surnames))
    silent = set(rng.sample(surnames, data("world")["people"]["never_asked"]))
    town_of = {town.name: town for town in towns}
    people: list[Entity] = []
    for index, surname in enumerate(surnames):
        values = {attribute: column[index] for attribute, column in dealt.items()}
        home = town_of[values["home"]]
        values |= {name: home.values[attribute] for name, attribute in DERIVED.items()}
        # A question about the home's specialty is one about the town: not for towns of the test.
        askable = () if surname in silent else tuple(dealt) + (tuple(DERIVED) if home.askable else ())
        people.append(Entity(name=surname + given[index], of="people", values=values, askable=askable))
    return tuple(people)
