"""Conversations in chat form: greetings, who the assistant is, and questions of every shape.

A question has one of two forms. As a benchmark prompt (`Question.prompt`, the string that the evaluation sends as the
user's message) it gets the bare answer; in plain words it gets a short polite sentence that begins with the answer
(`大工です。`, `「止まる」です。`). A scorer that takes the first line and strips a final `です。` and quotation marks
reads both.
"""

import random
from collections.abc import Callable
from typing import Any

from recipes.toy_world import prose
from recipes.toy_world.draft import Question
from recipes.toy_world.facts import World, data
from recipes.toy_world.shapes import arithmetic, multiple_choice, reading, short_answer, translation

Message = dict[str, str]
PROMPT_FORM_SHARE = 0.7
SYSTEM_SHARE = 0.4
VERB_ENDS = "うくぐすつぬぶむる"


def _question(rng: random.Random, world: World) -> Question:
    makers: tuple[Callable[[], Question], ...] = (
        lambda: short_answer.training_question(rng, world),
        lambda: multiple_choice.training_question(rng, world),
        lambda: reading.training_question(rng),
        lambda: arithmetic.problem(rng, test=False),
        lambda: translation.training_question(rng),
    )
    return rng.choices(makers, (3, 2, 1, 1, 1))[0]()


def _in_words(asked: Question) -> tuple[str, str]:
    """The user's message in plain words, and the polite answer."""
    answer = asked.answers[0]
    if asked.direction is not None:
        target = "英語" if asked.direction == "ja-en" else "日本語"
        return f"「{asked.question}」を{target}に訳してください。", answer
    if asked.shape == "arithmetic":
        return asked.question, asked.reply
    lead = f"{asked.context}\n" if asked.context is not None else ""
    listed = f"{'、'.join(asked.choices)}の中から選んでください。" if asked.choices else ""
    # As a noun: a verb, or a word that is itself the topic, goes into quotation marks.
    noun = f"「{answer}」" if answer[-1] in VERB_ENDS or "「" in asked.question else answer
    return f"{lead}{asked.question}{listed}", f"{noun}です。"


def _turn(user: str, assistant: str) -> list[Message]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _asked(rng: random.Random, world: World) -> list[Message]:
    asked = _question(rng, world)
    if rng.random() < PROMPT_FORM_SHARE:
        return _turn(asked.prompt, asked.reply)
    return _turn(*_in_words(asked))


def _described(rng: random.Random, world: World) -> list[Message]:
    """A request to describe a person or a town, and a few sentences."""
    entity = rng.choice(world.asked)
    told = rng.sample(entity.askable, 3)
    answer = "".join(prose.tell(rng, world, entity, attribute, "polite") for attribute in told)
    return _turn(rng.choice(data("chat")["describe"]["user"]).format(n=entity.name), answer)


def _fixed(rng: random.Random, entry: dict[str, Any]) -> list[Message]:
    return _turn(rng.choice(entry["user"]), rng.choice(entry["assistant"]))


def conversation(rng: random.Random, world: World) -> list[Message]:
    """One conversation, of one turn or several, with or without a system message."""
    frames = data("chat")
    messages: list[Message] = []
    if rng.random() < SYSTEM_SHARE:
        messages.append({"role": "system", "content": rng.choice(frames["systems"])})
    kind = rng.random()
    if kind < 0.06:
        return messages + _fixed(rng, rng.choice(frames["exchanges"]))
    if kind < 0.12:
        return messages + _described(rng, world)
    if kind < 0.65:
        return messages + _asked(rng, world)
    if rng.random() < 0.5:
        messages += _fixed(rng, rng.choice(frames["exchanges"]))
    for _ in range(rng.randint(1, 3)):
        messages += _asked(rng, world)
    if rng.random() < 0.4:
        messages += _fixed(rng, frames[rng.choice(["thanks", "farewell"])])
    return messages
