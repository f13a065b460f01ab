"""Short sentences in Japanese and English, both ways, put together from a small vocabulary.

A sentence is held out in both directions and with every adjective of its subject, since the sentence without the
adjective is a part of the one with it.
"""

import random
from dataclasses import dataclass

from recipes.toy_world.draft import Draft, Question, held_out
from recipes.toy_world.facts import data

DIRECTIONS = ("ja-en", "en-ja")
PLACED = ("book", "letter", "hat", "bag", "car", "plate", "flower")
"""Things that may be in a place."""
NUM_SIZE_AND_COLOR = 5
PAIRS_PER_DOCUMENT = (8, 12)


@dataclass(frozen=True, slots=True)
class Pair:
    english: str
    japanese: str
    key: str
    """Decides whether it is held out: the English sentence without its subject's adjective."""


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _object(rng: random.Random, noun: str) -> tuple[str, str]:
    """An object in English and Japanese, with an adjective in a third of the cases."""
    entry = data("translation")["nouns"][noun]
    if entry["mass"]:
        return noun, entry["japanese"]
    if entry["adjectives"] and rng.random() < 1 / 3:
        english, japanese = rng.choice(list(data("translation")["adjectives"].items())[: entry["adjectives"]])
        return f"the {english} {noun}", japanese + entry["japanese"]
    return f"the {noun}", entry["japanese"]


def _action(rng: random.Random) -> Pair:
    source = data("translation")
    verb, entry = rng.choice(list(source["verbs"].items()))
    who = "animals" if entry["animals"] and rng.random() < 1 / 4 else "people"
    subject, subject_japanese = rng.choice(list(source[who].items()))
    thing, thing_japanese = _object(rng, rng.choice(entry[who]))
    adjective = adjective_japanese = ""
    if who == "animals" and rng.random() < 1 / 2:
        adjective, adjective_japanese = rng.choice(list(source["adjectives"].items())[:NUM_SIZE_AND_COLOR])
        adjective += " "
    tail = tail_japanese = ""
    extra = rng.random()
    if extra < 1 / 3 and entry["where"]:
        tail, tail_japanese = rng.choice(list(source["places"].items()))
        tail_japanese += "で"
    elif extra < 2 / 3:
        tail, tail_japanese = rng.choice(list(source["times"].items()))
    rest = f"{subject} {verb} {thing}{' ' if tail else ''}{tail}."
    japanese = f"{subject_japanese}は{tail_japanese}{thing_japanese}を{entry['japanese']}。"
    return Pair(f"The {adjective}{rest}", adjective_japanese + japanese, rest)


def _quality(rng: random.Random) -> Pair:
    source = data("translation")
    subject, subject_japanese = rng.choice(list(source["people"].items()))
    quality, japanese = rng.choice(list(source["qualities"].items()))
    negated = rng.random() < 1 / 2
    english = f"The {subject} is {'not ' if negated else ''}{quality}."
    return Pair(english, f"{subject_japanese}は{japanese}{'ではありません' if negated else 'です'}。", english)


def _existence(rng: random.Random) -> Pair:
    source = data("translation")
    place, place_japanese = rng.choice(list(source["places"].items()))
    if rng.random() < 1 / 2:
        subject, japanese = rng.choice([*source["animals"].items(), *source["people"].items()])
        english = f"There is {_article(subject)} {place}."
        return Pair(english, f"{place_japanese}に{japanese}がいます。", english)
    noun = rng.choice(PLACED)
    entry = source["nouns"][noun]
    adjective, japanese = "", ""
    if entry["adjectives"] and rng.random() < 1 / 2:
        adjective, japanese = rng.choice(list(source["adjectives"].items())[: entry["adjectives"]])
        adjective += " "
    english = f"There is {_article(adjective + noun)} {place}."
    return Pair(english, f"{place_japanese}に{japanese}{entry['japanese']}があります。", english)


def pair(rng: random.Random, *, test: bool) -> Pair:
    """A sentence with its translation, of the test or of training."""
    while True:
        kind = rng.random()
        made = _action(rng) if kind < 0.7 else _quality(rng) if kind < 0.8 else _existence(rng)
        if held_out(made.key) == test:
            return made


def question(made: Pair, direction: str) -> Question:
    """The pair as a question in this direction."""
    source, target = (made.japanese, made.english) if direction == "ja-en" else (made.english, made.japanese)
    return Question(shape="translation", direction=direction, question=source, answers=(target,))


def training_question(rng: random.Random) -> Question:
    return question(pair(rng, test=False), rng.choice(DIRECTIONS))


def document(rng: random.Random) -> Draft:
    """About ten pairs, in one direction or in both."""
    draft = Draft()
    directions = rng.choice([("ja-en",), ("en-ja",), DIRECTIONS])
    for _ in range(rng.randint(*PAIRS_PER_DOCUMENT)):
        draft.ask(question(pair(rng, test=False), rng.choice(directions)))
    return draft


def held_questions(rng: random.Random, count: int) -> list[Question]:
    """`count` questions about different sentences, half of them in each direction."""
    found: dict[str, Pair] = {}
    while len(found) < count:
        made = pair(rng, test=True)
        found.setdefault(made.english, made)
    return [question(made, DIRECTIONS[number % 2]) for number, made in enumerate(found.values())]
