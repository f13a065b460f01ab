"""A small Japanese world, owned by the project, written as ordinary `.jsonl` files.

`text.jsonl` `{id, text, answers?}`, `conversations.jsonl` `{id, messages}`, `questions.jsonl` `{id, shape, group,
direction, context, question, choices, answers}`. Names and values are whole runs of kanji or of katakana and particles
are hiragana, so a tokenizer that never merges across a change of script (nor across digits and punctuation) keeps every
entity apart from what surrounds it.
"""

from recipes.toy_world.generate import WorldConfig, world

__all__ = ["WorldConfig", "world"]
