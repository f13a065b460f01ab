"""The iPhone gate: what an artifact charges to an app's memory on each phone, against what iOS allows.

All bytes are predictions from the artifact's own header and from constants that are given with their source, here and
in the output; no phone was measured, and `measured_bytes` says so. Phones and limits are data (`phones.toml`).
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, not_found
from common.model_shape import ModelShape

PHONES = Path(__file__).with_name("phones.toml")
DEFAULT_CONTEXT_TOKENS = 4096
MIB = 2**20
UBATCH_TOKENS = 512
"""llama.cpp's default n_ubatch: tokens computed together while a prompt is read."""
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
    "state": "(kernel - 1) x (width + 2 x groups x state) + state x width, 4 bytes each, a recurrent layer (llama.cpp)",
    "app": "97 MB before a model is loaded (pocketpal-ai, iPhone 13 Pro)",
}
NOT_MEASURED = "not measured: needs the phone"


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """What decides an artifact's memory."""

    artifact: str
    """File name."""
    weights: str
    """"mapped" (not charged) or "charged"."""
    weight_bytes: int
    kv_bytes_per_token: int
    vocab_size: int
    """Logits a position."""
    hidden_size: int
    max_context_tokens: int
    """Positions of the model; of a Core ML package, its only context."""
    ubatch_tokens: int
    """Positions whose logits are held together."""
    state_bytes: int = 0
    """Of layers that keep a state of one size instead of a cache."""
    cache_note: str = ""
    """Why the cache is an upper bound; "" where it is counted."""

    def parts(self, context_tokens: int) -> dict[str, int]:
        """Predicted bytes charged to the app, by cause."""
        return {
            "weights": self.weight_bytes if self.weights == "charged" else 0,
            "kv_cache": self.kv_bytes_per_token * context_tokens,
            "compute": self.ubatch_tokens * (self.vocab_size + self.hidden_size) * 4,
            "vocabulary": VOCABULARY_BYTES_PER_TOKEN * self.vocab_size,
            "app": APP_BYTES,
        } | ({"state": self.state_bytes} if self.state_bytes else {})

    def largest_context(self, limit_bytes: int) -> int:
        """Most tokens of context that fit, 0 where none do."""
        room = limit_bytes - sum(self.parts(0).values())
        if self.weights == "charged":  # a Core ML package has one size of cache
            return self.max_context_tokens if room >= self.kv_bytes_per_token * self.max_context_tokens else 0
        per_token = max(self.kv_bytes_per_token, 1)  # a recurrent model has no cache
        return max(0, min(self.max_context_tokens, room // per_token))


def footprint(artifact: Path) -> Footprint:
    """Reads a GGUF's header, or the config.json in `tokenizer/` next to a Core ML package; UserError if it fails."""
    if artifact.suffix == ".gguf" and artifact.is_file():
        return _gguf_footprint(artifact)
    if artifact.suffix == ".mlpackage" and artifact.is_dir():
        return _coreml_footprint(artifact)
    wanted, next_step = "a .gguf file or a .mlpackage, which a phone loads", "export the checkpoint first"
    if artifact.exists():
        raise UserError("unsupported", wanted=wanted, got=artifact.name, next_step=next_step)
    raise not_found(wanted, f"{artifact.name}, which does not exist", next_step=next_step)


def phone_rows(
    artifacts: Sequence[Path], *, context_tokens: int = DEFAULT_CONTEXT_TOKENS, phones: Path = PHONES
) -> list[dict[str, Any]]:
    """The report's `phones[]`: for each artifact and phone a row, and another at the largest context that fits.

    An artifact with fewer positions than the wanted context gets all of them.
    """
    table = tomllib.loads(phones.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = []
    for mark in map(footprint, artifacts):
        wanted = mark.max_context_tokens if mark.weights == "charged" else min(context_tokens, mark.max_context_tokens)
        for phone in table["phone"]:
            row = _row(mark.artifact, phone, mark=mark, context=wanted, date=table["date"])
            rows.append(row)
            largest = row["largest_context_tokens"]
            if largest not in (None, 0, wanted):
                rows.append(_row(mark.artifact, phone, mark=mark, context=largest, date=table["date"]))
    return rows


def unread_rows(artifact: Path, reason: str, *, phones: Path = PHONES) -> list[dict[str, Any]]:
    """Rows of an artifact whose footprint could not be read: the phones' limits alone, and the reason."""
    table = tomllib.loads(phones.read_text(encoding="utf-8"))
    return [_row(artifact.name, phone, reason=reason) for phone in table["phone"]]


def _row(
    artifact: str,
    phone: dict[str, Any],
    *,
    mark: Footprint | None = None,
    context: int | None = None,
    date: str = "",
    reason: str = NOT_MEASURED,
) -> dict[str, Any]:
    """A phone's limits and what they mean for an artifact; without its footprint, the limits alone."""
    parts = mark.parts(context or 0) if mark else {}
    predicted = sum(parts.values()) if mark else None
    row: dict[str, Any] = {"phone": phone["name"], "artifact": artifact, "context_tokens": context}
    row |= {"predicted_bytes": predicted, "parts": parts, "weights": mark.weights if mark else None}
    row |= {"measured_bytes": None, "measured_reason": reason}
    for kind, prefix in (("default", ""), ("entitled", "entitled_")):
        limit: dict[str, Any] = phone.get(kind, {"source": f"no {kind} limit has been reported"})
        limit_bytes = limit["limit_mib"] * MIB if "limit_mib" in limit else None
        fits = largest = None
        if mark is not None and predicted is not None and limit_bytes is not None:
            fits, largest = predicted <= limit_bytes, mark.largest_context(limit_bytes)
        row |= {
            f"{prefix}limit_bytes": limit_bytes,
            f"{prefix}limit_measured": limit.get("measured"),
            f"{prefix}limit_source": limit["source"],
            f"{prefix}fits": fits,
            f"{prefix}largest_context_tokens": largest,
        }
    coreml = {"weights": "weights_coreml", "compute": "compute_coreml"} if mark and mark.weights == "charged" else {}
    sources = {part: SOURCES[coreml.get(part, part)] for part in parts}
    if mark and mark.cache_note:
        sources["kv_cache"] += f"; an upper bound: {mark.cache_note}"
    return row | {"sources": sources | ({"limits": f"as of {date}"} if mark else {})}


def _gguf_footprint(path: Path) -> Footprint:
    from common.gguf_header import read_header

    fields = read_header(path).fields
    try:
        of_model = f"{fields['general.architecture']}."
        layers, width = fields[f"{of_model}block_count"], fields[f"{of_model}embedding_length"]
        heads = _of_each(fields.get(f"{of_model}attention.head_count", 0), layers)
        kv_heads = _of_each(fields.get(f"{of_model}attention.head_count_kv", heads), layers)
        key_size = fields.get(f"{of_model}attention.key_length") or width // max(*heads, 1)
        value_size = fields.get(f"{of_model}attention.value_length") or key_size
        state_elements = _state_elements(fields, of_model)
        if not (state_elements or any(kv_heads)):
            raise KeyError(f"{of_model}attention.head_count")
        return Footprint(
            artifact=path.name,
            weights="mapped",
            weight_bytes=path.stat().st_size,
            kv_bytes_per_token=sum(kv_heads) * (key_size + value_size) * KV_ELEMENT_BYTES,
            vocab_size=len(fields["tokenizer.ggml.tokens"]),
            hidden_size=width,
            max_context_tokens=fields[f"{of_model}context_length"],
            ubatch_tokens=UBATCH_TOKENS,
            state_bytes=4 * state_elements * (kv_heads.count(0) if any(kv_heads) else layers),
            cache_note=_cache_note(fields, of_model),
        )
    except (TypeError, ZeroDivisionError, KeyError) as error:
        got = f"{path.name} without a usable {error}" if isinstance(error, KeyError) else f"{path.name}: {error}"
        wanted = "a GGUF file with a language model's header"
        raise UserError("wrong-format", wanted=wanted, got=got, next_step="export the file again") from error


def _of_each(value: Any, layers: int) -> list[int]:
    """A number of each layer, from one for all or a list."""
    numbers = [int(each) for each in value] if isinstance(value, Sequence) else [int(value)] * layers
    if len(numbers) != layers:
        raise TypeError(f"{len(numbers)} values for {layers} layers")
    return numbers


def _state_elements(fields: Mapping[str, Any], of_model: str) -> int:
    """Elements of the state of one recurrent layer; 0 for a model without."""
    kernel, inner, state = (
        fields.get(f"{of_model}ssm.{name}", 0) for name in ("conv_kernel", "inner_size", "state_size")
    )
    groups = fields.get(f"{of_model}ssm.group_count", 0)
    return max(kernel - 1, 0) * (inner + 2 * groups * state) + state * inner


def _cache_note(fields: Mapping[str, Any], of_model: str) -> str:
    if window := fields.get(f"{of_model}attention.sliding_window"):
        return f"layers with a sliding window keep at most {window} tokens"
    if rank := fields.get(f"{of_model}attention.kv_lora_rank"):
        return f"the cache is latent, of rank {rank}"
    return ""


def _coreml_footprint(package: Path) -> Footprint:
    """From the package's own size, the context in its name and the model's config.json."""
    context = re.search(r"-ctx(\d+)$", package.stem)
    places = [package.parent / "tokenizer" / "config.json", package.parent / "config.json"]
    config_file = next(filter(Path.is_file, places), None)
    if context is None or config_file is None:
        wanted = "a package named ...-ctx<tokens>.mlpackage and the model's config.json in tokenizer/ next to it"
        got = f"{package.name} without {'a context in its name' if context is None else 'config.json'}"
        raise not_found(wanted, got, next_step="keep the files of an export together")
    shape = ModelShape.of(json.loads(config_file.read_text(encoding="utf-8")))
    kv_elements = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
    return Footprint(
        artifact=package.name,
        weights="charged",
        weight_bytes=sum(file.stat().st_size for file in package.rglob("*") if file.is_file()),
        kv_bytes_per_token=kv_elements * KV_ELEMENT_BYTES,
        vocab_size=shape.padded_vocab_size,
        hidden_size=shape.hidden_size,
        max_context_tokens=int(context[1]),
        ubatch_tokens=1,
    )
