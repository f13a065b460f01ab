"""The default world as its files' rows, generated once a test process. It knows no test."""

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from recipes.toy_world.facts import World, make_world
from recipes.toy_world.generate import WorldConfig, write_world


@dataclass(frozen=True)
class Sample:
    world: World
    rows: list[dict[str, Any]]
    conversations: list[dict[str, Any]]
    questions: list[dict[str, Any]]
    training: str
    """Every document and every message, a blank line between them."""


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@cache
def sample() -> Sample:
    config = WorldConfig()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_world(config, folder)
        rows, conversations = read(folder / "text.jsonl"), read(folder / "conversations.jsonl")
        questions = read(folder / "questions.jsonl")
    messages = [message["content"] for one in conversations for message in one["messages"]]
    training = "\n\n".join([row["text"] for row in rows] + messages)
    return Sample(make_world(config.facts_seed), rows, conversations, questions, training)
