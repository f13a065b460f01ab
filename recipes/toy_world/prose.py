"""Prose about the world: descriptions, surveys, town guides, stories, dialogues, general knowledge.

It states every fact, those of people and towns of the test as often as the others, and asks no question about them. A
text keeps one register throughout; dialogues are polite.
"""

import random
from collections.abc import Sequence

from recipes.toy_world.draft import Draft
from recipes.toy_world.facts import DERIVED, REGISTERS, Entity, Register, World, data
from recipes.toy_world.shapes import arithmetic, reading

PAIR_SHARE = 0.2
"""Share of sentences that state two facts."""


def tell(rng: random.Random, world: World, entity: Entity, attribute: str, register: Register) -> str:
    """One sentence that states this fact."""
    return rng.choice(world.attributes[attribute].tell[register]).format(n=entity.name, v=entity.values[attribute])


def _tell_pair(world: World, entity: Entity, first: str, second: str, register: Register) -> str:
    """One sentence that states two facts."""
    label, value = world.attributes[first].label, entity.values[first]
    other_label, other_value = world.attributes[second].label, entity.values[second]
    end = "である" if register == "plain" else "です"
    return f"{entity.name}の{label}は{value}、{other_label}は{other_value}{end}。"


def _tell_all(rng: random.Random, world: World, entity: Entity, told: list[str], register: Register) -> str:
    """These facts, mostly in a sentence each."""
    sentences: list[str] = []
    left = list(told)
    while left:
        if len(left) > 1 and not DERIVED.keys() & set(left[-2:]) and rng.random() < PAIR_SHARE:
            sentences.append(_tell_pair(world, entity, left.pop(), left.pop(), register))
        else:
            sentences.append(tell(rng, world, entity, left.pop(), register))
    return "".join(sentences)


def _some(rng: random.Random, entity: Entity, least: int, most: int) -> list[str]:
    """`least` to `most` names of its attributes, in random order."""
    return rng.sample(list(entity.values), min(rng.randint(least, most), len(entity.values)))


def profile(rng: random.Random, world: World) -> Draft:
    """Descriptions of up to three people, or a guide to up to three towns."""
    draft = Draft()
    register = rng.choice(REGISTERS)
    entities = rng.sample(world.people if rng.random() < 0.75 else world.towns, rng.randint(1, 3))
    for entity in entities:
        frame = "profile" if entity.of == "people" else "guide"
        opening = rng.choice(data("prose")[frame][register]).format(p=entity.name)
        draft.line(opening + _tell_all(rng, world, entity, _some(rng, entity, 4, 7), register))
    return draft


def records(rng: random.Random, world: World) -> Draft:
    """Notes in the form `name's label: value`, one line for each fact."""
    draft = Draft()
    for entity in rng.sample(world.entities, rng.randint(2, 3)):
        draft.line(f"{entity.name}の記録")
        for attribute in _some(rng, entity, 4, 6):
            draft.line(f"{entity.name}の{world.attributes[attribute].label}：{entity.values[attribute]}")
    return draft


def survey(rng: random.Random, world: World) -> Draft:
    """One attribute of many people or towns."""
    register = rng.choice(REGISTERS)
    attribute = rng.choice(list(world.attributes.values()))
    entities = world.people if attribute.of == "people" else world.towns
    opening = rng.choice(data("prose")["survey" if attribute.of == "people" else "survey_towns"][register])
    told = [tell(rng, world, one, attribute.name, register) for one in rng.sample(entities, rng.randint(7, 11))]
    return Draft.of(opening.format(l=attribute.label), *told)


def story(rng: random.Random, world: World) -> Draft:
    """Two people meet; sentences of what they do alternate with facts about them."""
    register = rng.choice(REGISTERS)
    frames = data("prose")["story"]
    one, other = rng.sample(world.people, 2)
    names = {"p": one.name, "q": other.name}
    season = rng.choice(["春", "夏", "秋", "冬"])
    before, after = rng.sample(frames[f"scene_{register}"], 2)
    return Draft.of(
        rng.choice(frames[f"open_{register}"]).format(x=season, **names),
        before,
        _tell_all(rng, world, one, _some(rng, one, 2, 4), register),
        rng.choice(frames[f"bridge_{register}"]).format(**names),
        _tell_all(rng, world, other, _some(rng, other, 2, 4), register),
        after,
        rng.choice(frames[f"close_{register}"]).format(**names),
    )


def dialogue(rng: random.Random, world: World) -> Draft:
    """Two speakers in turn state facts about two people or towns."""
    frames = data("prose")["dialogue"]
    speakers = rng.sample(frames["speakers"], 2)
    lines = [rng.choice(frames["open"])]
    nods = rng.sample(frames["nod"], len(frames["nod"]))
    for entity in rng.sample(world.entities, 2):
        told = _some(rng, entity, 3, 4)
        lines.append(_tell_all(rng, world, entity, told[:-1], "polite"))
        lines.append(nods.pop() + tell(rng, world, entity, told[-1], "polite"))
    lines.append(rng.choice(frames["close"]))
    draft = Draft()
    for number, line in enumerate(lines):
        draft.line(f"{speakers[number % 2]}「{line}」")
    return draft


def invented(rng: random.Random, _world: World) -> Draft:
    """Passages about invented people and things, without questions."""
    register = rng.choice(REGISTERS)
    draft = Draft()
    for _ in range(rng.randint(2, 3)):
        draft.line(reading.passage(rng, test=False, register=register).text)
    return draft


def shopping(rng: random.Random, _world: World) -> Draft:
    """Purchases with their sums."""
    return Draft.of(arithmetic.shopping(rng, rng.choice(REGISTERS)))


def knowledge(rng: random.Random, world: World) -> Draft:
    """General knowledge: some pairs of two or three relations."""
    register = rng.choice(REGISTERS)
    told: list[str] = []
    for relation in rng.sample(world.relations, rng.randint(2, 3)):
        pairs = list(relation.value_of.items())
        for subject, value in rng.sample(pairs, min(len(pairs), rng.randint(3, 5))):
            told.append(rng.choice(relation.tell[register]).format(s=subject, v=value))
    return Draft.of(rng.choice(data("prose")["knowledge"][register]), *told)


KINDS = (profile, records, survey, story, dialogue, knowledge, invented, shopping)
WEIGHTS: Sequence[float] = (4, 3, 3, 3, 2, 2, 1, 1)


def document(rng: random.Random, world: World) -> Draft:
    """A text of one of `KINDS`, which `WEIGHTS` makes more or less frequent."""
    return rng.choices(KINDS, WEIGHTS)[0](rng, world)
