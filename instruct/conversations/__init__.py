"""Conversations to packed rows with a loss mask.

- `stage`: the config, and the steps in order
- `layouts`: reads chat files in the usual layouts
- `lmsys`: joins a set whose instructions are encrypted (`gpg` decrypts them)
- `rules`: the form of a conversation, and filters on its content (`filters.toml` has the words)
- `screening`: the rules, duplicates, benchmarks and length for one conversation, and the weights of sources
- `counts`: rows by rule, for the data card
- `published`: the known sets by name, with their terms
- `cli`: the verb `python -m instruct conversations`
"""

from instruct.conversations.layouts import ConversationSource
from instruct.conversations.published import hub_conversations
from instruct.conversations.rules import FiltersConfig, LmsysConfig, fault_of
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
