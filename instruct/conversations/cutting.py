"""Conversations that do not fit into a row: the part of them that does, cut between turns.

A cut inside a turn would teach to stop in the middle of a sentence. It knows no tokenizer: the caller says what fits.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]


def longest_part(messages: Messages, fits: Callable[[Messages], bool]) -> Messages | None:
    """The longest beginning of `messages` that is shorter than all, ends with an assistant's turn and fits.

    Args:
        messages: a conversation that does not fit.
        fits: of a longer beginning never true where it is false of a shorter one; it is asked few times.

    Returns:
        None where not even the first exchange fits.
    """
    ends = [place for place, message in enumerate(messages, start=1) if message["role"] == "assistant"]
    ends = [end for end in ends if end < len(messages)]
    count = bisect_left(ends, True, key=lambda end: not fits(messages[:end]))
    return messages[: ends[count - 1]] if count else None
