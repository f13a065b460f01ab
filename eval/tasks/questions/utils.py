"""The rows of one shape in `questions.jsonl`, for the task files in this folder: `process_docs: !function utils.SHAPE`.

lm-eval loads this module by its path, so it imports nothing of this product.
"""

from collections.abc import Callable
from typing import Any


def _only(shape: str) -> Callable[[Any], Any]:
    def rows(dataset: Any) -> Any:
        return dataset.select([index for index, found in enumerate(dataset["shape"]) if found == shape])

    return rows


multiple_choice = _only("multiple_choice")
short_answer = _only("short_answer")
reading = _only("reading")
arithmetic = _only("arithmetic")
translation = _only("translation")

jcommonsenseqa = _only("jcommonsenseqa")
jmmlu = _only("jmmlu")
jsquad = _only("jsquad")
jemhopqa = _only("jemhopqa")
niilc = _only("niilc")
mgsm_ja = _only("mgsm_ja")
