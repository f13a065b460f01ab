"""Word problems with small numbers and worked answers, in the shape of MGSM.

A problem whose wording is held out is never in training; the same sum in another wording may be.
"""

import random
from typing import Any

from recipes.toy_world.draft import Draft, Question, held_out
from recipes.toy_world.facts import Register, data

PROBLEMS_PER_DOCUMENT = (8, 12)


def _sum(rng: random.Random, kind: str) -> tuple[dict[str, int], str, int]:
    """The numbers of a problem by placeholder, its worked steps and its result."""
    if kind == "add":
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        return {"a": a, "b": b}, f"{a}+{b}={a + b}", a + b
    if kind == "subtract":
        a = rng.randint(3, 15)
        b = rng.randint(1, min(9, a - 1))
        return {"a": a, "b": b}, f"{a}-{b}={a - b}", a - b
    if kind == "multiply":
        a, b = rng.randint(2, 6), rng.randint(2, 5)
        return {"a": a, "b": b}, f"{a}×{b}={a * b}", a * b
    if kind == "divide":
        b, result = rng.randint(2, 5), rng.randint(2, 6)
        return {"a": b * result, "b": b}, f"{b * result}÷{b}={result}", result
    if kind == "add_subtract":
        a, b = rng.randint(2, 9), rng.randint(1, 9)
        d = rng.randint(1, min(9, a + b - 1))
        return {"a": a, "b": b, "d": d}, f"{a}+{b}={a + b}、{a + b}-{d}={a + b - d}", a + b - d
    if kind == "price_add":
        a, b = 10 * rng.randint(1, 9), 10 * rng.randint(1, 9)
        return {"a": a, "b": b}, f"{a}+{b}={a + b}", a + b
    if kind == "price_multiply":
        a, b = 10 * rng.randint(1, 6), rng.randint(2, 5)
        return {"a": a, "b": b}, f"{a}×{b}={a * b}", a * b
    assert kind == "change", kind
    a = 10 * rng.randint(1, 9)
    return {"a": a}, f"100-{a}={100 - a}", 100 - a


def _words(rng: random.Random) -> dict[str, str]:
    """People, an object and goods for the placeholders of a wording."""
    source = data("arithmetic")
    p, q = rng.sample(source["people"], 2)
    (y, e), (z, _) = rng.sample(source["goods"], 2)
    o, c, u, m = rng.choice(source["objects"])
    return {"p": p, "q": q, "y": y, "e": e, "z": z, "o": o, "c": c, "u": u, "m": m}


def problem(rng: random.Random, *, test: bool) -> Question:
    """A problem of the test or of training."""
    problems: dict[str, list[str]] = data("arithmetic")["problems"]
    while True:
        kind = rng.choice(list(problems))
        wording = rng.choice(problems[kind])
        numbers, steps, result = _sum(rng, kind)
        words = _words(rng)
        asked = wording.format(**words, **numbers)
        if held_out(asked) == test:
            unit = words["c"] if "{c}" in wording else "円"
            return Question(
                shape="arithmetic", question=asked, answers=(str(result),), worked=f"{steps}。答えは{result}{unit}。"
            )


def document(rng: random.Random) -> Draft:
    """About ten worked problems."""
    draft = Draft()
    for _ in range(rng.randint(*PROBLEMS_PER_DOCUMENT)):
        draft.ask(problem(rng, test=False))
    return draft


def shopping(rng: random.Random, register: Register) -> str:
    """Prose: a few purchases with their sums."""
    stories: dict[str, Any] = data("arithmetic")["stories"]
    told = [rng.choice(stories[f"open_{register}"])]
    for _ in range(rng.randint(3, 5)):
        kind, sum_kind = rng.choice([("multiply", "price_multiply"), ("add", "price_add"), ("change", "change")])
        numbers, _, result = _sum(rng, sum_kind)
        told.append(rng.choice(stories[f"{kind}_{register}"]).format(**_words(rng), **numbers, r=result))
    return "".join(told)


def held_questions(rng: random.Random, count: int) -> list[Question]:
    """`count` different problems of the test."""
    found: dict[str, Question] = {}
    while len(found) < count:
        asked = problem(rng, test=True)
        found.setdefault(asked.question, asked)
    return list(found.values())
