"""A generated Japanese world of people and towns, with its text, conversations and questions as `.jsonl` files.

`text.jsonl` `{id, text, answers?}`, `conversations.jsonl` `{id, messages}`, `questions.jsonl` `{id, shape, group,
direction, context, question, choices, answers}`. Names and values are whole runs of kanji or of katakana and particles
are hiragana, so a tokenizer that never merges across a change of script, digits or punctuation keeps entities separate.

`facts`: people, towns and what is true of them, from `data/*.toml`. `draft`: a question with its prompt, and a text
that records its answers. `shapes`: documents and questions of each of the five shapes. `prose`: documents that state
facts. `conversations`: the same in chat form. `generate`: the stage, which mixes and writes them.
"""

from recipes.toy_world.generate import WorldConfig, world

__all__ = ["WorldConfig", "world"]
