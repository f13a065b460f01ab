"""The stage `world`: writes `text.jsonl`, `conversations.jsonl` and `questions.jsonl` of the generated world.

`python -m recipes mini --until world` runs it alone. The same config gives the same bytes. No two documents and no two
conversations are equal. Later stages read the files as they read the user's own.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from common.errors import UserError, require_at_least, require_between
from common.provenance import Terms, write_terms
from common.store import Workspace, stage
from recipes.toy_world import prose
from recipes.toy_world.conversations import conversation
from recipes.toy_world.draft import Draft, Question
from recipes.toy_world.facts import World, make_world
from recipes.toy_world.shapes import arithmetic, multiple_choice, reading, short_answer, translation

_MOST_REPEATS = 10_000
MAX_QUESTIONS_PER_SHAPE = 400
"""The world has facts for no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """The amounts of text, conversations and questions, and the shares of the kinds of text."""

    seed: int = 1
    """Seed of texts, conversations and questions: another seed gives new text about the same world."""
    facts_seed: int = 1
    """Seed of the facts themselves."""
    text_characters: int = 2_400_000
    """Length of all documents together, characters (about two for each token)."""
    num_conversations: int = 3_000
    """Conversations."""
    questions_per_shape: int = 320
    """Held-out questions of each shape, 10 to 400; half of the short answers are of each of their two groups."""
    share_prose: float = 0.30
    """Share of characters that are prose; the other shares are question documents."""
    share_short_answer: float = 0.22
    """Share of characters: short answers about people and towns."""
    share_multiple_choice: float = 0.16
    """Share of characters: questions with choices, and common sense."""
    share_reading: float = 0.10
    """Share of characters: passages with questions."""
    share_arithmetic: float = 0.12
    """Share of characters: worked problems."""
    share_translation: float = 0.10
    """Share of characters: translated sentences."""

    def __post_init__(self) -> None:
        if abs(sum(self.shares) - 1) > 1e-6 or min(self.shares) < 0:
            wanted, next_step = "shares of 0 or more that add up to 1", "change the share_ fields of WorldConfig"
            raise UserError("out-of-range", wanted=wanted, got=str(self.shares), next_step=next_step)
        require_at_least(1, text_characters=self.text_characters, num_conversations=self.num_conversations)
        require_between(10, MAX_QUESTIONS_PER_SHAPE, questions_per_shape=self.questions_per_shape)

    @property
    def shares(self) -> tuple[float, ...]:
        """The `share_` fields in the order of their declaration."""
        return tuple(getattr(self, field.name) for field in fields(self) if field.name.startswith("share_"))


def documents(config: WorldConfig, world: World) -> Iterator[Draft]:
    """Different documents until the text is long enough; the kinds have the config's shares of characters."""
    rng = random.Random(f"text {config.seed}")
    makers: tuple[Callable[[], Draft], ...] = (
        lambda: prose.document(rng, world),
        lambda: short_answer.document(rng, world),
        lambda: multiple_choice.document(rng, world),
        lambda: reading.document(rng),
        lambda: arithmetic.document(rng),
        lambda: translation.document(rng),
    )
    written = [0] * len(makers)
    seen: set[str] = set()
    repeats = 0
    while sum(written) < config.text_characters:
        # The kind that is furthest below its share; random numbers keep the kinds from taking turns in a fixed order.
        lag = [
            share * sum(written) - done + 600 * rng.random() for share, done in zip(config.shares, written, strict=True)
        ]
        kind = max((index for index, share in enumerate(config.shares) if share), key=lag.__getitem__)
        draft = makers[kind]()
        text = draft.text
        repeats = _repeats(repeats, is_new=text not in seen)
        if text in seen:
            continue
        seen.add(text)
        written[kind] += len(text)
        yield draft


def _repeats(before: int, *, is_new: bool) -> int:
    """Texts in a row that were written before; UserError where there are so many that the world has no others."""
    if before >= _MOST_REPEATS:
        wanted, got = "a world with that many different texts", f"{before} repeats in a row"
        next_step = "lower text_characters or num_conversations, or give more shapes a share"
        raise UserError("out-of-range", wanted=wanted, got=got, next_step=next_step)
    return 0 if is_new else before + 1


def held_out_questions(config: WorldConfig, world: World) -> list[Question]:
    """The questions of the test, equally many of each shape; none is in training."""
    rng = random.Random(f"questions {config.seed}")
    count = config.questions_per_shape
    half = count // 2
    phrasings = short_answer.held_phrasings(rng, world)
    world_choices = [multiple_choice.about_world(rng, world, one) for one in phrasings[half : half + count // 3]]
    commonsense = multiple_choice.held_commonsense(rng, world)[: count - len(world_choices)]
    # Shuffled, so that a limited evaluation, which takes the first ones, has both kinds.
    choices = [*world_choices, *commonsense]
    rng.shuffle(choices)
    return [
        *choices,
        *phrasings[:half],
        *short_answer.held_entities(rng, world)[: count - half],
        *reading.held_questions(rng, count),
        *arithmetic.held_questions(rng, count),
        *translation.held_questions(rng, count),
    ]


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _text_rows(config: WorldConfig, world: World) -> Iterator[dict[str, Any]]:
    for number, draft in enumerate(documents(config, world)):
        row: dict[str, Any] = {"id": f"text-{number:06d}", "text": draft.text}
        if draft.answers:
            row["answers"] = draft.answers
        yield row


def _conversation_rows(config: WorldConfig, world: World) -> Iterator[dict[str, Any]]:
    rng = random.Random(f"conversations {config.seed}")
    seen: set[str] = set()
    repeats = 0
    while len(seen) < config.num_conversations:
        messages = conversation(rng, world)
        written = json.dumps(messages, ensure_ascii=False)
        repeats = _repeats(repeats, is_new=written not in seen)
        if written not in seen:
            yield {"id": f"conversation-{len(seen):05d}", "messages": messages}
            seen.add(written)


def write_world(config: WorldConfig, folder: Path) -> dict[str, int]:
    """Write the three files into `folder` and return the number of rows of each."""
    facts = make_world(config.facts_seed)
    questions = held_out_questions(config, facts)
    return {
        "documents": _write(folder / "text.jsonl", _text_rows(config, facts)),
        "conversations": _write(folder / "conversations.jsonl", _conversation_rows(config, facts)),
        "questions": _write(folder / "questions.jsonl", (one.row(number) for number, one in enumerate(questions))),
    }


@stage(version=3)
def world(config: WorldConfig, workspace: Workspace) -> dict[str, Any]:
    """Write the world with its terms and return the number of rows of each file."""
    write_terms(workspace.folder, Terms(name="the embedded world", licence="Apache-2.0", quotable=True))
    return dict(write_world(config, workspace.folder))
