"""Conversations to packed rows with a loss mask: `python -m instruct conversations FILE_OR_SET... --tokenizer DIR`.

`published` turns the name of a known set into a source. `local` reads a file in any of the usual
chat layouts, `lmsys` joins a set whose user turns come encrypted (`lmsys_rows` reads one row of it, `gpg` decrypts).
`checking` says what is no conversation, `filters` what is one but should not be learnt, `cutting` shortens, `mixing`
thins sources to their shares, `tally` counts, `cleaning` puts these in order, and `stage` cuts the splits and packs.

None of it knows what will train on the rows.
"""

from instruct.conversations.checking import fault_of
from instruct.conversations.config import ConversationsConfig, ConversationSource, hub_conversations
from instruct.conversations.filters import FiltersConfig
from instruct.conversations.lmsys_rows import LmsysConfig
from instruct.conversations.stage import conversations

__all__ = [
    "ConversationSource",
    "ConversationsConfig",
    "FiltersConfig",
    "LmsysConfig",
    "conversations",
    "fault_of",
    "hub_conversations",
]
