"""Five choices, one right, in the shape of JCommonsenseQA: common sense, and facts of the world.

Training shows the choices and answers with the choice's text. Held-out questions use wordings that training never uses.
"""

import random

from recipes.toy_world.draft import Draft, Question
from recipes.toy_world.facts import Relation, World
from recipes.toy_world.shapes import short_answer

NUM_CHOICES = 5
QUESTIONS_PER_DOCUMENT = (5, 8)
WORLD_SHARE = 1 / 3
"""Share of questions about people and towns; the others are common sense."""


def _with_choices(rng: random.Random, asked: Question, others: list[str]) -> Question:
    choices = [asked.answers[0], *rng.sample(others, NUM_CHOICES - 1)]
    rng.shuffle(choices)
    return Question(shape="multiple_choice", question=asked.question, answers=asked.answers, choices=tuple(choices))


def about_world(rng: random.Random, world: World, asked: Question) -> Question:
    """A short-answer question with choices: the answer and other values of its attribute."""
    value = asked.answers[0]
    pool = next(attribute.values for attribute in world.attributes.values() if value in attribute.values)
    return _with_choices(rng, asked, [other for other in pool if other != value])


def _forwards(rng: random.Random, relation: Relation, subject: str, wording: str) -> Question:
    value = relation.value_of[subject]
    asked = Question(shape="multiple_choice", question=wording.format(s=subject), answers=(value,))
    return _with_choices(rng, asked, sorted(set(relation.value_of.values()) - {value}))


def _backwards(rng: random.Random, relation: Relation, subject: str, wording: str) -> Question:
    value = relation.value_of[subject]
    asked = Question(shape="multiple_choice", question=wording.format(v=value), answers=(subject,))
    return _with_choices(rng, asked, [other for other, its in relation.value_of.items() if its != value])


def commonsense_question(rng: random.Random, world: World) -> Question:
    """A training question of common sense, with choices."""
    relation = rng.choice(world.relations)
    subject = rng.choice(list(relation.value_of))
    if relation.ask_reverse and rng.random() < 0.3:
        return _backwards(rng, relation, subject, rng.choice(relation.ask_reverse))
    return _forwards(rng, relation, subject, rng.choice(relation.ask))


def open_question(rng: random.Random, world: World) -> Question:
    """A training question of common sense without choices, for the value, so that one answer is right."""
    relation = rng.choice(world.relations)
    subject, value = rng.choice(list(relation.value_of.items()))
    return Question(shape="short_answer", question=rng.choice(relation.ask).format(s=subject), answers=(value,))


def training_question(rng: random.Random, world: World) -> Question:
    """A training question with choices."""
    if rng.random() < WORLD_SHARE:
        return about_world(rng, world, short_answer.training_question(rng, world))
    return commonsense_question(rng, world)


def document(rng: random.Random, world: World) -> Draft:
    """Several questions; in a third of the documents all are common sense, without choices."""
    draft = Draft()
    make = open_question if rng.random() < 1 / 3 else training_question
    for _ in range(rng.randint(*QUESTIONS_PER_DOCUMENT)):
        draft.ask(make(rng, world))
    return draft


def held_commonsense(rng: random.Random, world: World) -> list[Question]:
    """Every piece of common sense in every wording that training never uses, shuffled; no question twice."""
    found: dict[str, Question] = {}
    for relation in world.relations:
        for subject in relation.value_of:
            for wording in relation.ask_held:
                asked = _forwards(rng, relation, subject, wording)
                found[asked.question] = asked
            for wording in relation.ask_reverse_held:
                asked = _backwards(rng, relation, subject, wording)
                found.setdefault(asked.question, asked)
    questions = list(found.values())
    rng.shuffle(questions)
    return questions
