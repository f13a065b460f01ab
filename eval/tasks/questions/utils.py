"""Rows of one shape out of `questions.jsonl`, for the task files beside this module.

lm-eval loads it by its path when a task file names `utils.<shape>`; it knows no other library and no product module.
"""

from typing import Any


def multiple_choice(dataset: Any) -> Any:
    """The questions with choices."""
    return _of_shape(dataset, "multiple_choice")


def short_answer(dataset: Any) -> Any:
    """The questions with a short answer, of both groups."""
    return _of_shape(dataset, "short_answer")


def reading(dataset: Any) -> Any:
    """The questions about a passage."""
    return _of_shape(dataset, "reading")


def arithmetic(dataset: Any) -> Any:
    """The word problems."""
    return _of_shape(dataset, "arithmetic")


def translation(dataset: Any) -> Any:
    """The sentences to translate, in both directions."""
    return _of_shape(dataset, "translation")


def _of_shape(dataset: Any, shape: str) -> Any:
    return dataset.select([index for index, found in enumerate(dataset["shape"]) if found == shape])
