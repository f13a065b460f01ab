"""Short answers about the people and towns of the world, in the shape of NIILC and JEMHopQA.

Two groups are held out: `phrasing`, facts that training asks about, in a wording that it never uses; `entity`,
questions in a training wording about entities that training never asks about.
"""

import random

from recipes.toy_world.draft import Draft, Question
from recipes.toy_world.facts import Entity, World

QUESTIONS_PER_DOCUMENT = (7, 11)


def question(rng: random.Random, world: World, entity: Entity, attribute: str) -> Question:
    """A training question about this fact."""
    wording = rng.choice(world.attributes[attribute].ask)
    return Question(shape="short_answer", question=wording.format(n=entity.name), answers=(entity.values[attribute],))


def training_question(rng: random.Random, world: World) -> Question:
    """A training question about any fact of training; each entity equally often."""
    entity = rng.choice(world.asked)
    return question(rng, world, entity, rng.choice(entity.askable))


def document(rng: random.Random, world: World) -> Draft:
    """Many questions, about two entities or about many."""
    draft = Draft()
    if rng.random() < 0.5:
        for entity in rng.sample(world.asked, 2):
            for attribute in rng.sample(entity.askable, min(len(entity.askable), 5)):
                draft.ask(question(rng, world, entity, attribute))
        return draft
    for _ in range(rng.randint(*QUESTIONS_PER_DOCUMENT)):
        draft.ask(training_question(rng, world))
    return draft


def held_phrasings(rng: random.Random, world: World) -> list[Question]:
    """Every fact that training asks about, in every held-out wording, shuffled."""
    found = [
        Question(
            shape="short_answer",
            group="phrasing",
            question=wording.format(n=entity.name),
            answers=(entity.values[name],),
        )
        for entity in world.asked
        for name in entity.askable
        for wording in world.attributes[name].ask_held
    ]
    rng.shuffle(found)
    return found


def held_entities(rng: random.Random, world: World) -> list[Question]:
    """Every fact of the entities of the test, in the training wordings, shuffled."""
    found = [
        Question(shape="short_answer", group="entity", question=wording.format(n=entity.name), answers=(value,))
        for entity in world.never_asked
        for name, value in entity.values.items()
        for wording in world.attributes[name].ask
    ]
    rng.shuffle(found)
    return found
