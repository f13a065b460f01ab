"""Finds benchmark items in training text, by character n-grams.

Both sides are brought to one form first: NFKC, case folded, letters and digits only. So line breaks, spaces, widths and
punctuation make no difference. A document holds an item when it holds one of the item's texts:

- Long texts (a passage; a question of at least `min_characters`) by their n-grams: a share of `min_overlap` of them
  occurs in the document within twice the text's length, so that stock phrases strewn over a long document do not add
  up. Of a question just long enough this asks for the very wording. The first turn of a question of several turns
  counts too: in a conversation an answer stands between the turns.
- Short questions are ordinary words once the punctuation is gone: the words of "What is red?" also open "What is red
  must be ...". They count only where the document closes them as a question, too: by a question mark if the benchmark
  has one, else by any sign, space or end.
- Very short questions (below `min_alone_characters`) are stock phrases even with their mark: "And today?". Without an
  answer they give nothing away, so they count only near one of their answers or two of their choices, or where they
  are the whole document. `too_short` counts the items that have no longer text.

Answers alone are not looked for: most of them are a word. The package knows no file format and no training stage.
"""

from eval.decontamination.config import DecontaminationConfig
from eval.decontamination.decontaminator import Decontaminator
from eval.decontamination.normal_form import normal_form

__all__ = ["DecontaminationConfig", "Decontaminator", "normal_form"]
