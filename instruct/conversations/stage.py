"""The stage `conversations`: cleaned conversations as text and as packed rows with a loss mask, by split.

Renders each conversation with the tokenizer's own chat template, cuts train, calibration, validation and test by
digest, and packs every split. Loss counts on the assistant's turns only, in all splits. What is kept is decided in
`cleaning`; it does not know where the conversations come from, nor what will train on them.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.documents import Encoded, cut_documents, pack_documents
from common.metrics import progress
from common.packing import FULL_WEIGHT
from common.provenance import CARD_FILE
from common.rows import Row
from common.store import Workspace, stage
from common.tokenizer import Tokenizer
from instruct.conversations.cleaning import Cleaning
from instruct.conversations.config import ConversationsConfig


@stage(version=4)
def conversations(config: ConversationsConfig, workspace: Workspace, *inputs: Path) -> dict[str, Any]:
    """Writes documents/, packed/, tokenizer/ and data_card.json.

    Args:
        config: see ConversationsConfig; its sources are read after the inputs.
        workspace: where.
        inputs: files, or folders with `conversations.jsonl`; last the tokenizer's folder.

    Raises:
        UserError: a file or the passphrase is missing, or the tokenizer has no usable chat template; InputError: a file
            is damaged, too many rows are bad, or no conversation is left.
    """
    *files, tokenizer_folder = inputs
    tokenizer = Tokenizer.load(tokenizer_folder)
    cleaning = Cleaning(files, config, tokenizer, workspace.folder / "scratch")
    rows = progress(cleaning.kept(), label="cleaning", unit="conversations")
    card = cut_documents(workspace.folder, rows, config.shares, cleaning.card)
    start = time.perf_counter()

    def encode(_: str, batch: Sequence[Row]) -> list[Encoded]:
        rendered = [tokenizer.render(row["messages"], tools=row.get("tools")) for row in batch]
        return [(ids, [FULL_WEIGHT * supervised for supervised in mask]) for ids, mask in rendered]

    metas = pack_documents(workspace.folder, encode, sequence_tokens=config.sequence_tokens, tokenizer=tokenizer)
    tokenizer.save(workspace.folder / "tokenizer")
    # `distill` may train on these rows as well: whoever did is told what kind of data it was.
    card |= {"stage": "conversations", "splits": metas}
    card |= {"tokens": sum(meta["tokens"] for meta in metas.values())}
    (workspace.folder / CARD_FILE).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return card | {"tokens_per_s": round(card["tokens"] / (time.perf_counter() - start), 1)}
