"""Passages about invented people and things, with questions whose answer is in the passage, as in JSQuAD.

The names of the test never occur in training. A passage with questions is polite, as its questions are.
"""

import random
from dataclasses import dataclass

from recipes.toy_world.draft import Draft, Question, held_out
from recipes.toy_world.facts import Register, data

SLOTS_PER_PASSAGE = (3, 5)


@dataclass(frozen=True, slots=True)
class Passage:
    text: str
    questions: tuple[Question, ...]


def _name(rng: random.Random, kind: str, *, test: bool) -> str:
    parts = data("names")[data("reading")["kinds"][kind]["name"]]
    while True:
        name = rng.choice(parts["first"]) + rng.choice(parts["second"])
        if held_out(name) == test:
            return name


def passage(rng: random.Random, *, test: bool, register: Register = "polite") -> Passage:
    """A passage about one name, of the test or of training, and a question for each of its facts."""
    kinds = data("reading")["kinds"]
    kind = rng.choice(list(kinds))
    slots = kinds[kind]["slots"]
    name = _name(rng, kind, test=test)
    told = rng.sample(list(slots), rng.randint(*SLOTS_PER_PASSAGE))
    values = {slot: rng.choice(slots[slot]["values"]) for slot in told}
    text = "".join(rng.choice(slots[slot][register]).format(n=name, v=values[slot]) for slot in told)
    questions = tuple(
        Question(
            shape="reading",
            context=text,
            question=rng.choice(slots[slot]["ask"]).format(n=name),
            answers=(values[slot],),
        )
        for slot in rng.sample(told, len(told))
        if text.count(values[slot]) == 1
    )
    return Passage(text, questions)


def document(rng: random.Random) -> Draft:
    """Two or three passages, each with its questions."""
    draft = Draft()
    for _ in range(rng.randint(2, 3)):
        for number, asked in enumerate(passage(rng, test=False).questions):
            draft.ask(asked, with_context=number == 0)
    return draft


def training_question(rng: random.Random) -> Question:
    """One passage with one question."""
    while not (questions := passage(rng, test=False).questions):
        pass
    return questions[0]


def held_questions(rng: random.Random, count: int) -> list[Question]:
    """`count` different questions, at most two about each passage."""
    found: dict[str, Question] = {}
    while len(found) < count:
        for asked in passage(rng, test=True).questions[:2]:
            found.setdefault(asked.question, asked)
    return list(found.values())[:count]
