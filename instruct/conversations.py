"""Conversations to packed rows with a loss mask: `python -m instruct conversations FILE... --tokenizer DIR --out DIR`.

Reads `.jsonl` rows with `messages` (`role`, `content`; optionally `tool_calls`, and `tools` beside the messages),
checks that they form a conversation, renders each with the tokenizer's own chat template, drops what is longer than a
row or there twice, cuts train, calibration, validation and test by digest, and packs every split. Loss counts on the
assistant's turns only, in all splits.

It does not know where the conversations come from, nor what will train on them.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.documents import Encoded, cut_documents, pack_documents
from common.duplicates import ExactDuplicates, digest
from common.errors import UserError
from common.metrics import progress
from common.packing import FULL_WEIGHT
from common.rows import MAX_BAD_SHARE, Row, RowCounts, data_files, read_rows
from common.splits import Shares
from common.store import Workspace, stage
from common.tokenizer import Tokenizer

# Who may speak after whom. A conversation ends with the assistant, with or without a call.
_MAY_FOLLOW = {
    "beginning": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "assistant's call": ("tool",),
    "tool": ("tool", "assistant"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversationsConfig:
    """How conversations are checked, cut and packed."""

    sequence_tokens: int = 1024
    """Tokens in a packed row; longer conversations are dropped."""
    shares: Shares = field(default_factory=Shares)
    """Shares of calibration, validation and test."""
    max_bad_share: float = MAX_BAD_SHARE
    """Bad rows allowed (not JSON, wrong order of roles, an empty turn), as a share of all rows, 0 to 1."""
    seed: int = 0
    """Chooses another cut into splits."""

    def __post_init__(self) -> None:
        if self.sequence_tokens < 2 or self.seed < 0:
            raise UserError(
                wanted="sequence_tokens of at least 2 and a seed of at least 0",
                got=f"{self.sequence_tokens}, {self.seed}",
                next_step="Correct the conversations' config.",
            )


@stage(version=1)
def conversations(config: ConversationsConfig, workspace: Workspace, *inputs: Path) -> dict[str, Any]:
    """Writes documents/, packed/, tokenizer/ and data_card.json.

    Args:
        config: see ConversationsConfig.
        workspace: where.
        inputs: one or more files, or folders with `conversations.jsonl`; last the tokenizer's folder.

    Raises:
        UserError: a file is missing or damaged, too many rows are bad, no conversation is left, or the tokenizer has no
            usable chat template.
    """
    *sources, tokenizer_folder = inputs
    tokenizer = Tokenizer.load(tokenizer_folder)
    files = [file for source in sources for file in data_files(source, "conversations")]
    cleaning = _Cleaning(files, config, tokenizer)
    rows = progress(cleaning.kept(), label="cleaning", unit="conversations")
    card = cut_documents(workspace.folder, rows, config.shares, cleaning.card)
    start = time.perf_counter()

    def encode(_: str, batch: Sequence[Row]) -> list[Encoded]:
        rendered = [tokenizer.render(row["messages"], tools=row.get("tools")) for row in batch]
        return [(ids, [FULL_WEIGHT * supervised for supervised in mask]) for ids, mask in rendered]

    metas = pack_documents(workspace.folder, encode, sequence_tokens=config.sequence_tokens, tokenizer=tokenizer)
    tokenizer.save(workspace.folder / "tokenizer")
    card |= {"splits": metas}
    (workspace.folder / "data_card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    tokens = sum(meta["tokens"] for meta in metas.values())
    return card | {"tokens": tokens, "tokens_per_s": round(tokens / (time.perf_counter() - start), 1)}


class _Cleaning:
    """The first pass: which conversations are kept, and why the others are not."""

    def __init__(self, files: Sequence[Path], config: ConversationsConfig, tokenizer: Tokenizer) -> None:
        self._files, self._config, self._tokenizer = files, config, tokenizer
        self._counts = RowCounts()
        self._too_long = self._duplicates = self._kept = 0

    def kept(self) -> Iterator[tuple[bytes, Row]]:
        """Digest and content of each kept row, in the order of the files."""
        config, counts, duplicates = self._config, self._counts, ExactDuplicates()
        for row in read_rows(self._files, fields={"messages": list}, counts=counts, max_bad_share=config.max_bad_share):
            fault = fault_of(row["messages"])
            if fault:
                counts.add_bad(fault)
                continue
            said = json.dumps([row["messages"], row.get("tools")], ensure_ascii=False, sort_keys=True)
            key = digest(said, seed=config.seed)
            if duplicates.seen_before(key):
                self._duplicates += 1
            elif len(self._tokenizer.render(row["messages"], tools=row.get("tools"))[0]) > config.sequence_tokens:
                self._too_long += 1
            else:
                self._kept += 1
                yield key, row
        if not self._kept:
            raise UserError(
                wanted=f"at least one conversation of at most {config.sequence_tokens} tokens",
                got=f"none in {', '.join(file.name for file in self._files)} ({self._too_long} are longer)",
                next_step="Give .jsonl files whose rows hold `messages`, or raise sequence_tokens.",
            )

    def card(self) -> dict[str, Any]:
        """Rows in, removed per rule, out."""
        removed = dict(sorted(self._counts.bad.items()))
        removed |= {"exact duplicate": self._duplicates, "longer than a row": self._too_long}
        return {"rows_in": self._counts.rows, "removed": removed, "rows_out": self._kept}


def fault_of(messages: Sequence[Any]) -> str | None:
    """Why `messages` are no conversation, or None when they are one.

    A conversation: optionally one system message, then user and assistant in turn, the assistant last. An assistant's
    turn has text or tool calls; after calls come the tools' answers and the assistant again.
    """
    before = "beginning"
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return "a message without role"
        role, content = message["role"], message.get("content")
        calls = message.get("tool_calls") if role == "assistant" else None
        if role not in ("system", "user", "assistant", "tool"):
            return "unknown role"
        if role not in _MAY_FOLLOW[before]:
            return "roles out of order"
        if content is not None and not isinstance(content, str):
            return "content that is not text"
        if not calls and not (content and content.strip()):
            return "empty turn"
        before = "assistant's call" if calls else role
    return None if before.startswith("assistant") else "roles out of order"
