"""Which good conversations should not be learnt: too short or too long, answered in another language, declined.

Each rule can be off, and what a rule removes is counted and shown under the rule's name. Judged on text alone; it knows
no source, no tokenizer and no file of conversations.
"""

import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common.errors import UserError
from instruct.conversations.checking import said_by

SHORT_TURN, LONG_TURN = "a turn too short", "a turn too long"
OTHER_LANGUAGE, REFUSAL = "answered in another language", "a refusal"

_WORDS_FILE = Path(__file__).with_name("filters.toml")
_CODE_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_KANA = r"\u3041-\u309f\u30a1-\u30ff\uff66-\uff9f"
_KANJI = r"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_JAPANESE = re.compile(f"[{_KANA}{_KANJI}]")
_ONLY_KANA = re.compile(f"[{_KANA}]")
_LETTER = re.compile(r"[^\W\d_]")
_ASKED_IN_JAPANESE = 0.5
# Quotation marks, brackets and list signs before the first word.
_BEFORE_WORDS = re.compile(r"^[\W_]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class FiltersConfig:
    """What a conversation must be to be kept."""

    min_turn_characters: int = 1
    """Characters that every turn of user and assistant has at least; 1 is no limit."""
    max_turn_characters: int | None = None
    """Characters that every turn of user and assistant has at most; None is no limit."""
    min_japanese_share: float | None = 0.1
    """Share of Japanese letters in the assistant's text, 0 to 1, where the user writes Japanese and asks for no other
    language or code; code blocks do not count. None turns the rule off."""
    judged_letters: int = 100
    """Letters that the assistant's text has at least for that rule: names and terms are often written in Latin."""
    drop_refusals: bool = False
    """Whether conversations in which the assistant declines go. Off: declining what is harmful is to be learnt too."""

    def __post_init__(self) -> None:
        share, most = self.min_japanese_share, self.max_turn_characters
        if (
            self.min_turn_characters < 1
            or (most is not None and most < self.min_turn_characters)
            or not (share is None or 0 <= share <= 1)
            or self.judged_letters < 1
        ):
            raise UserError(
                wanted="turns of 1 character or more, at most max_turn_characters, a share of 0 to 1, 1 letter or more",
                got=f"{self.min_turn_characters}, {most}, {share}, {self.judged_letters}",
                next_step="Correct the conversations' filters.",
            )


def rule_against(messages: Sequence[Mapping[str, Any]], config: FiltersConfig) -> str | None:
    """The first rule by which a conversation goes, or None when it stays."""
    asked, answered = said_by(messages, "user"), said_by(messages, "assistant")
    turns = [*asked, *answered]
    if any(len(turn.strip()) < config.min_turn_characters for turn in turns):
        return SHORT_TURN
    if config.max_turn_characters is not None and any(len(turn) > config.max_turn_characters for turn in turns):
        return LONG_TURN
    if config.min_japanese_share is not None and _in_another_language(asked, answered, config):
        return OTHER_LANGUAGE
    if config.drop_refusals and any(is_refusal(turn) for turn in answered):
        return REFUSAL
    return None


def settings_of(config: FiltersConfig) -> list[dict[str, Any]]:
    """The rules for the data card: which are on, and with which numbers."""
    limited = config.min_turn_characters > 1 or config.max_turn_characters is not None
    return [
        {
            "step": "turn lengths",
            "on": limited,
            "reason": None if limited else "no limit was set",
            "settings": {"min_characters": config.min_turn_characters, "max_characters": config.max_turn_characters},
        },
        {
            "step": "language",
            "on": config.min_japanese_share is not None,
            "reason": None if config.min_japanese_share is not None else "turned off",
            "settings": {"min_japanese_share": config.min_japanese_share, "judged_letters": config.judged_letters},
        },
        {
            "step": "refusals",
            "on": config.drop_refusals,
            "reason": None if config.drop_refusals else "declining what is harmful is to be learnt too",
            "settings": {},
        },
    ]


def japanese_share(text: str) -> float | None:
    """Share of Japanese letters among the letters of `text` outside code blocks; None where there is no letter.

    Kanji count as Japanese only beside kana: without any, 20 letters or more are Chinese.
    """
    letters = _LETTER.findall(_CODE_BLOCK.sub(" ", text))
    if not letters:
        return None
    joined = "".join(letters)
    if len(letters) >= 20 and not _ONLY_KANA.search(joined):
        return 0.0
    return len(_JAPANESE.findall(joined)) / len(letters)


def is_refusal(turn: str) -> bool:
    """Whether an assistant's turn opens by declining."""
    words = _words()["refusals"]
    opening = _BEFORE_WORDS.sub("", _normal(turn[: 2 * words["opening_characters"]]))[: words["opening_characters"]]
    if opening.startswith(tuple(words["outright"])):
        return True
    return opening.startswith(tuple(words["apologies"])) and any(phrase in opening for phrase in words["unable"])


def _in_another_language(asked: Sequence[str], answered: Sequence[str], config: FiltersConfig) -> bool:
    answer = _CODE_BLOCK.sub(" ", "\n".join(answered))
    if len(_LETTER.findall(answer)) < config.judged_letters:
        return False
    question = "\n".join(asked)
    if (japanese_share(question) or 0.0) < _ASKED_IN_JAPANESE:
        return False
    share = japanese_share(answer)
    if share is None or config.min_japanese_share is None or share >= config.min_japanese_share:
        return False
    question = _normal(question)
    return not any(word in question for word in _words()["other_languages"]["asked_for"])


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower()


@cache
def _words() -> dict[str, dict[str, Any]]:
    return tomllib.loads(_WORDS_FILE.read_text(encoding="utf-8"))
