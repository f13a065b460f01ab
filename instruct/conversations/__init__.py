"""Conversations to packed rows with a loss mask.

- `stage`: the config, and the steps in order
- `layouts`: reads chat files in the usual layouts
- `lmsys`: joins a set whose instructions are encrypted (`lmsys_rows` reads one row, `gpg` decrypts)
- `rules`: the form of a conversation, and filters on its content (`filters.toml` has the words)
- `screening`: the rules, duplicates, benchmarks and length, for one conversation
- `mixing`: thins sources to their weights
- `counts`: rows by rule, for the data card
- `published`: the known sets by name, with their terms
- `cli`: the verb `python -m instruct conversations`
"""

from instruct.conversations.layouts import ConversationSource
from instruct.conversations.lmsys_rows import LmsysConfig
from instruct.conversations.published import hub_conversations
from instruct.conversations.rules import FiltersConfig, fault_of
from instruct.conversations.stage import ConversationsConfig, conversations

__all__ = [
    "ConversationSource",
    "ConversationsConfig",
    "FiltersConfig",
    "LmsysConfig",
    "conversations",
    "fault_of",
    "hub_conversations",
]
