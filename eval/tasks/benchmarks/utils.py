"""Rows of one benchmark out of `questions.jsonl`, for the task files beside this module.

lm-eval loads it by its path when a task file names `utils.<benchmark>`; it knows no other library and no product
module.
"""

from typing import Any


def jcommonsenseqa(dataset: Any) -> Any:
    """Five choices."""
    return _of_benchmark(dataset, "jcommonsenseqa")


def jmmlu(dataset: Any) -> Any:
    """Four choices."""
    return _of_benchmark(dataset, "jmmlu")


def jsquad(dataset: Any) -> Any:
    """Questions about a passage."""
    return _of_benchmark(dataset, "jsquad")


def jemhopqa(dataset: Any) -> Any:
    """Questions that take two steps."""
    return _of_benchmark(dataset, "jemhopqa")


def niilc(dataset: Any) -> Any:
    """Questions of an encyclopedia's kind."""
    return _of_benchmark(dataset, "niilc")


def mgsm_ja(dataset: Any) -> Any:
    """Word problems."""
    return _of_benchmark(dataset, "mgsm_ja")


def _of_benchmark(dataset: Any, name: str) -> Any:
    return dataset.select([index for index, found in enumerate(dataset["shape"]) if found == name])
