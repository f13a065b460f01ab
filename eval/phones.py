"""The iPhone gate: what an artifact charges to an app's memory on each phone, against what iOS allows.

Everything here is a prediction from the artifact's own header and from constants, each with its source, which the
output repeats; no phone was measured, and `measured_bytes` says so. Phones and limits are data (`phones.toml`).
"""

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError

PHONES = Path(__file__).with_name("phones.toml")
DEFAULT_CONTEXT_TOKENS = 4096
MIB = 2**20

UBATCH_TOKENS = 512
"""llama.cpp's default n_ubatch: tokens computed at once while a prompt is read."""
KV_ELEMENT_BYTES = 2
"""float16, llama.cpp's and our Core ML package's KV cache."""
VOCABULARY_BYTES_PER_TOKEN = 442
"""Token texts and merges in memory: 67 MB for 151,665 tokens, measured with llama.cpp on Linux."""
APP_BYTES = 100 * MIB
"""The app itself: 97 MB before a model is loaded, PocketPal on an iPhone 13 Pro."""

SOURCES = {
    "weights": "mapped GGUF weights are not charged (pocketpal-ai, iPhone 13 Pro: footprint 426 MB, resident 1.72 GB)",
    "weights_coreml": "charged in full to be safe: 200 MB to 1 GB are reported for 2B models (apple-silicon-llm-bench)",
    "kv_cache": "2 x layers x KV heads x head size x 2 bytes a token, from the artifact's header",
    "compute": f"n_ubatch x (vocabulary + width) x 4 bytes with n_ubatch {UBATCH_TOKENS} (pocketpal-ai's estimator)",
    "compute_coreml": "(vocabulary + width) x 4 bytes: one position of logits, the rest is not known",
    "vocabulary": f"{VOCABULARY_BYTES_PER_TOKEN} bytes a token, measured with llama.cpp on Linux",
    "app": "97 MB before a model is loaded (pocketpal-ai, iPhone 13 Pro)",
}
NOT_MEASURED = "not measured: needs the phone"


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """What decides an artifact's memory."""

    artifact: str
    weights: str
    """"mapped" (not charged) or "charged"."""
    weight_bytes: int
    kv_bytes_per_token: int
    vocabulary: int
    """Logits a position."""
    width: int
    """Hidden size."""
    max_context_tokens: int
    """What the model was made for; a Core ML package's only context."""
    ubatch_tokens: int
    """Positions whose logits are held at once."""

    def parts(self, context_tokens: int) -> dict[str, int]:
        """Predicted bytes charged to the app, by cause."""
        return {
            "weights": self.weight_bytes if self.weights == "charged" else 0,
            "kv_cache": self.kv_bytes_per_token * context_tokens,
            "compute": self.ubatch_tokens * (self.vocabulary + self.width) * 4,
            "vocabulary": VOCABULARY_BYTES_PER_TOKEN * self.vocabulary,
            "app": APP_BYTES,
        }

    def largest_context(self, limit_bytes: int) -> int:
        """Most tokens of context that fit, 0 where none do."""
        room = limit_bytes - sum(self.parts(0).values())
        if self.weights == "charged":  # a Core ML package has one size of cache
            return self.max_context_tokens if room >= self.kv_bytes_per_token * self.max_context_tokens else 0
        return max(0, min(self.max_context_tokens, room // self.kv_bytes_per_token))


def footprint(artifact: Path) -> Footprint:
    """Reads a GGUF's header, or the files of a Core ML package; UserError for anything else, or one that is broken."""
    if artifact.suffix == ".gguf" and artifact.is_file():
        return _gguf_footprint(artifact)
    if artifact.suffix == ".mlpackage" and artifact.is_dir():
        return _coreml_footprint(artifact)
    raise UserError(
        "wrong-format" if artifact.exists() else "not-found",
        wanted="a .gguf file or a .mlpackage, which a phone loads",
        got=f"{artifact.name}{'' if artifact.exists() else ', which does not exist'}",
        next_step="export the checkpoint first (python -m export gguf, python -m export coreml)",
    )


def phone_rows(
    artifacts: Sequence[Path], *, context_tokens: int = DEFAULT_CONTEXT_TOKENS, phones: Path = PHONES
) -> list[dict[str, Any]]:
    """The report's `phones[]`: for each artifact and phone a row, and another at the largest context that fits.

    An artifact made for fewer than `context_tokens` gets its own context; `phones` is a file like `phones.toml`.
    """
    table = tomllib.loads(phones.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = []
    for mark in map(footprint, artifacts):
        wanted = mark.max_context_tokens if mark.weights == "charged" else min(context_tokens, mark.max_context_tokens)
        for phone in table["phone"]:
            row = _row(mark, phone, wanted, table["date"])
            rows.append(row)
            if row["largest_context_tokens"] not in (None, 0, wanted):
                rows.append(_row(mark, phone, row["largest_context_tokens"], table["date"]))
    return rows


def unread_rows(artifact: Path, reason: str) -> list[dict[str, Any]]:
    """Rows of an artifact whose footprint could not be read: the phones' limits, nulls and the reason."""
    empty = {"context_tokens": None, "predicted_bytes": None, "parts": {}, "weights": None, "sources": {}}
    empty |= {"measured_bytes": None, "measured_reason": reason}
    return [
        {"phone": phone["name"], "artifact": artifact.name, **empty, **_limits(phone, None, 0)}
        for phone in tomllib.loads(PHONES.read_text(encoding="utf-8"))["phone"]
    ]


def _row(mark: Footprint, phone: dict[str, Any], context: int, date: str) -> dict[str, Any]:
    parts = mark.parts(context)
    names = {part: f"{part}_coreml" if mark.weights == "charged" else part for part in ("weights", "compute")}
    return {
        "phone": phone["name"],
        "artifact": mark.artifact,
        "context_tokens": context,
        "predicted_bytes": sum(parts.values()),
        "parts": parts,
        "weights": mark.weights,
        "measured_bytes": None,
        "measured_reason": NOT_MEASURED,
        **_limits(phone, mark, sum(parts.values())),
        "sources": {part: SOURCES[names.get(part, part)] for part in ("kv_cache", "vocabulary", "app", *names)}
        | {"limits": f"as of {date}"},
    }


def _limits(phone: dict[str, Any], mark: Footprint | None, predicted_bytes: int) -> dict[str, Any]:
    """A phone's limits and what they mean for an artifact; of one that could not be read, the limits alone."""
    fields: dict[str, Any] = {}
    for kind, prefix in (("default", ""), ("entitled", "entitled_")):
        limit: dict[str, Any] | None = phone.get(kind)
        limit_bytes = limit["limit_mib"] * MIB if limit else None
        fits = largest = None
        if mark is not None and limit_bytes is not None:
            fits, largest = predicted_bytes <= limit_bytes, mark.largest_context(limit_bytes)
        fields |= {
            f"{prefix}limit_bytes": limit_bytes,
            f"{prefix}limit_measured": limit["measured"] if limit else None,
            f"{prefix}limit_source": limit["source"] if limit else f"no {kind} limit has been reported",
            f"{prefix}fits": fits,
            f"{prefix}largest_context_tokens": largest,
        }
    return fields


def _gguf_footprint(path: Path) -> Footprint:
    from common.gguf_header import read_header

    fields = read_header(path).fields
    try:
        of_model = f"{fields['general.architecture']}."
        layers, heads = fields[f"{of_model}block_count"], fields[f"{of_model}attention.head_count"]
        kv_heads = fields.get(f"{of_model}attention.head_count_kv") or heads
        width = fields[f"{of_model}embedding_length"]
        head_size = fields.get(f"{of_model}attention.key_length") or width // heads
        value_size = fields.get(f"{of_model}attention.value_length") or head_size
        return Footprint(
            artifact=path.name,
            weights="mapped",
            weight_bytes=path.stat().st_size,
            kv_bytes_per_token=layers * kv_heads * (head_size + value_size) * KV_ELEMENT_BYTES,
            vocabulary=len(fields["tokenizer.ggml.tokens"]),
            width=width,
            max_context_tokens=fields[f"{of_model}context_length"],
            ubatch_tokens=UBATCH_TOKENS,
        )
    except (TypeError, ZeroDivisionError, KeyError) as error:
        got = f"{path.name} without a usable {error}" if isinstance(error, KeyError) else f"{path.name}: {error}"
        wanted, next_step = "a GGUF file with a language model's header", "export the file again"
        raise UserError("damaged", wanted=wanted, got=got, next_step=next_step) from error


def _coreml_footprint(package: Path) -> Footprint:
    """The package's own size, the context in its name and the model's config.json in `tokenizer/` beside it."""
    context = re.search(r"-ctx(\d+)$", package.stem)
    places = [package.parent / "tokenizer" / "config.json", package.parent / "config.json"]
    config_file = next((place for place in places if place.is_file()), None)
    if context is None or config_file is None:
        wanted = "a package named ...-ctx<tokens>.mlpackage, next to tokenizer/ with the model's config.json"
        got = f"{package.name} without {'a context in its name' if context is None else 'config.json'}"
        raise UserError("not-found", wanted=wanted, got=got, next_step="keep the files of an export together")
    config = json.loads(config_file.read_text(encoding="utf-8"))
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head_size = config.get("head_dim") or width // heads
    kv_heads = config.get("num_key_value_heads") or heads
    return Footprint(
        artifact=package.name,
        weights="charged",
        weight_bytes=sum(file.stat().st_size for file in package.rglob("*") if file.is_file()),
        kv_bytes_per_token=2 * config["num_hidden_layers"] * kv_heads * head_size * KV_ELEMENT_BYTES,
        vocabulary=config["vocab_size"],
        width=width,
        max_context_tokens=int(context[1]),
        ubatch_tokens=1,
    )
