"""One row of Gemma-2-LMSYS-Chat-1M-Synth: the conversation in it, or the rule that removes it.

A row has the Japanese instruction (`translated_conversation`, empty until the encrypted file is joined), up to six
answers (`synthesized_assistant_responses`), and optionally a whole conversation of one or two turns
(`synthesized_multiturn_conversation`). The publisher documents no score field: it is found by its form.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from common.rows import Row
from instruct.conversations.rules import conversation_row

ID = "conversation_id"
CONVERSATION = "synthesized_multiturn_conversation"
RESPONSES = "synthesized_assistant_responses"
INSTRUCTION = "translated_conversation"
NO_INSTRUCTION = "no instruction"
PERSONAL_DATA = "personal data"

FIRST_ANSWER = "the first answer"
"""How an answer is chosen if there are no scores."""

_SCORE = "score"


@dataclass(frozen=True, kw_only=True, slots=True)
class LmsysConfig:
    """Which rows of LMSYS sets are removed; the publisher's own script has both options."""

    exclude_personal_data: bool = True
    """Rows whose original has personal data blacked out (`redacted`)."""
    exclude_templates: bool = True
    """Rows whose instruction is a template that many users sent (`is_template_instruction`)."""


def is_synthesized(row: Mapping[str, Any]) -> bool:
    """Whether a row has this set's answers, joined with its instruction or not."""
    return CONVERSATION in row or RESPONSES in row


def rule_against_row(row: Mapping[str, Any], config: LmsysConfig) -> str | None:
    """The rule that removes the row, from the publisher's own marks, or None."""
    if row.get("empty_user_instruction_ja") is True:
        return "empty instruction"
    if row.get("duplicate_user_instruction_ja") not in (None, False, ""):
        return "duplicate instruction"
    if config.exclude_templates and row.get("is_template_instruction"):
        return "template instruction"
    if not row.get(CONVERSATION) and not row.get(RESPONSES):
        return "no answer"
    if config.exclude_personal_data and row.get("redacted") is True:
        return PERSONAL_DATA
    return None


def instruction_of(row: Mapping[str, Any]) -> str | None:
    """The user's first turn in a row of the joined or of the decrypted file; None if it has no text."""
    for name in (INSTRUCTION, "conversation", "messages"):
        turns = row.get(name)
        if isinstance(turns, list) and turns and isinstance(turns[0], Mapping):
            content = cast(Mapping[str, Any], turns[0]).get("content")
            if isinstance(content, str) and content.strip():
                return content
    for name in ("user_instruction_ja", "instruction_ja", "instruction", "text"):
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value
    return None


def joined_row(row: Mapping[str, Any], instruction: str | None, chosen_by: Counter[str]) -> Row | str:
    """`{id, messages}`, or the reason why the row is bad.

    Args:
        row: with the answers of this set, kept by `rule_against_row`.
        instruction: the user's first turn; None if the conversation has its own.
        chosen_by: counts the field that chose the answer.
    """
    conversation = row.get(CONVERSATION)
    if conversation:
        if not isinstance(conversation, list):
            return f"field {CONVERSATION} is not a list"
        return conversation_row(row.get(ID), _completed(cast(list[Any], conversation), instruction))
    responses = row.get(RESPONSES)
    if not isinstance(responses, list) or not responses:
        return f"field {RESPONSES} is not a list"
    if instruction is None:
        return NO_INSTRUCTION
    place, field = best_response(row, cast(list[Any], responses))
    chosen_by[field or FIRST_ANSWER] += 1
    response: Any = responses[place]
    answer = {"role": "assistant", "content": response} if isinstance(response, str) else response
    if not isinstance(answer, Mapping):
        return "an answer without text"
    plain = {name: cast(Mapping[str, Any], answer).get(name) for name in ("role", "content")}
    return conversation_row(row.get(ID), [{"role": "user", "content": instruction}, plain])


def best_response(row: Mapping[str, Any], responses: Sequence[Any]) -> tuple[int, str | None]:
    """Index of the best of `responses`, and the field with its scores; (0, None) if there are no scores.

    Scores are a list of numbers, one for each response, in a field of the row whose name contains "score", or such a
    number in each response. The first of equals wins, and of several such fields the first by name.
    """
    candidates: dict[str, list[Any]] = {
        name: cast(list[Any], value)
        for name, value in row.items()
        if _SCORE in name.lower() and isinstance(value, list) and len(cast(list[Any], value)) == len(responses)
    }
    if all(isinstance(response, Mapping) for response in responses):
        named = {str(name) for response in responses for name in response if _SCORE in str(name).lower()}
        candidates |= {f"{RESPONSES}.{name}": [response.get(name) for response in responses] for name in named}
    for name in sorted(candidates):
        scores = [_number(score) for score in candidates[name]]
        known = [score for score in scores if score is not None]
        if known:
            return scores.index(max(known)), name
    return 0, None


def _completed(conversation: list[Any], instruction: str | None) -> list[Any]:
    """With the user's first turn, if the publisher left it out or empty because it must not be passed on."""
    messages = [
        {name: message.get(name) for name in ("role", "content")} if isinstance(message, Mapping) else message
        for message in conversation
    ]
    if instruction is None or not isinstance(messages[0], Mapping):
        return messages
    opening = {"role": "user", "content": instruction}
    first = cast(Mapping[str, Any], messages[0])
    if first.get("role") == "assistant":
        return [opening, *messages]
    if first.get("role") == "user" and not first.get("content"):
        return [opening, *messages[1:]]
    return messages


def _number(value: Any) -> float | None:
    """A score that can be compared: not a truth value, not NaN."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return value if is_number else None
