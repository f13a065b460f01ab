"""The shape of a model from its config.json, and what follows from the shape alone: parameters, tensors, FLOPs.

Shapes of known models of the hub are in `KNOWN`, so that a plan needs no network. No model is loaded.
"""

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, not_found
from common.sources import HubModel, small_text

_FAMILIES = ("qwen2", "qwen3", "llama")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The fields of config.json that decide the tensors of a Qwen2, Qwen3 or Llama model."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    padded_vocab_size: int
    """`vocab_size` of config.json: rows of the embedding, which may be more than the tokenizer's ids."""
    tie_word_embeddings: bool
    """Whether the head is the embedding."""
    head_dim: int
    """Features of a head; heads x head_dim need not be hidden_size."""
    qkv_bias: bool
    """Whether query, key and value have biases, as in Qwen2."""
    qk_norms: bool
    """Whether queries and keys are normalised, as in Qwen3."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "ModelShape":
        """From the content of a Hugging Face `config.json`; UserError for another family or a missing field."""
        family = fields.get("model_type")
        if family not in _FAMILIES:
            wanted, next_step = f"a config of type {', '.join(_FAMILIES)}", "name a model of these families"
            raise UserError("unsupported", wanted=wanted, got=str(family), next_step=next_step)
        try:
            hidden, heads = int(fields["hidden_size"]), int(fields["num_attention_heads"])
            return cls(
                hidden_size=hidden,
                intermediate_size=int(fields["intermediate_size"]),
                num_hidden_layers=int(fields["num_hidden_layers"]),
                num_attention_heads=heads,
                num_key_value_heads=int(fields.get("num_key_value_heads") or heads),
                padded_vocab_size=int(fields["vocab_size"]),
                tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
                head_dim=int(fields.get("head_dim") or hidden // heads),
                qkv_bias=family == "qwen2" or bool(fields.get("attention_bias")),
                qk_norms=family == "qwen3",
            )
        except (KeyError, TypeError, ValueError) as error:
            names = "hidden_size, intermediate_size, num_hidden_layers, num_attention_heads and vocab_size"
            raise _unreadable(f"{names} in a model's config.json", f"{type(error).__name__}: {error}") from error

    @property
    def attention(self) -> int:
        """Features of all query heads together."""
        return self.num_attention_heads * self.head_dim

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """GGUF's name and the shape of each tensor, the row length last."""
        keys = self.num_key_value_heads * self.head_dim
        yield "token_embd.weight", (self.padded_vocab_size, self.hidden_size)
        for layer in range(self.num_hidden_layers):
            for name, rows, columns in (
                ("attn_q", self.attention, self.hidden_size),
                ("attn_k", keys, self.hidden_size),
                ("attn_v", keys, self.hidden_size),
                ("attn_output", self.hidden_size, self.attention),
                ("ffn_gate", self.intermediate_size, self.hidden_size),
                ("ffn_up", self.intermediate_size, self.hidden_size),
                ("ffn_down", self.hidden_size, self.intermediate_size),
            ):
                yield f"blk.{layer}.{name}.weight", (rows, columns)
                if self.qkv_bias and name in ("attn_q", "attn_k", "attn_v"):
                    yield f"blk.{layer}.{name}.bias", (rows,)
            if self.qk_norms:
                yield f"blk.{layer}.attn_q_norm.weight", (self.head_dim,)
                yield f"blk.{layer}.attn_k_norm.weight", (self.head_dim,)
            yield f"blk.{layer}.attn_norm.weight", (self.hidden_size,)
            yield f"blk.{layer}.ffn_norm.weight", (self.hidden_size,)
        yield "output_norm.weight", (self.hidden_size,)
        if not self.tie_word_embeddings:
            yield "output.weight", (self.padded_vocab_size, self.hidden_size)

    def parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(shape) for _, shape in self.tensors())

    def block_matrices(self) -> int:
        """Weights of the blocks' matrices: each multiplies every token once. Embedding and head are not counted."""
        shapes = [shape for name, shape in self.tensors() if name.startswith("blk.") and len(shape) == 2]
        return sum(math.prod(shape) for shape in shapes)


def forward_flops(shape: ModelShape, *, vocab_size: int, sequence_tokens: int) -> float:
    """FLOPs of one token's forward pass, with a head of `vocab_size` columns.

    One document is taken to fill a packed row of `sequence_tokens`, so that a token attends to half of it on average;
    shorter documents need less.
    """
    attention = 2 * 2 * (sequence_tokens / 2) * shape.attention * shape.num_hidden_layers
    return 2 * (shape.block_matrices() + vocab_size * shape.hidden_size) + attention


def step_flops(shape: ModelShape, lengths: Sequence[int], *, vocab_size: int, passes: int) -> float:
    """FLOPs of the matrix products of documents of these `lengths` in one step, attention included.

    `vocab_size` counts the columns of the logits. `passes` is 1 for a forward pass and 3 for a trained model, whose
    backward pass costs two forward ones.
    """
    num_tokens = sum(lengths)
    head = vocab_size * shape.hidden_size * (num_tokens - len(lengths))  # a document's last token predicts nothing
    pairs = sum(length**2 / 2 for length in lengths)
    attention = 2 * pairs * shape.num_hidden_layers * shape.attention
    return 2 * passes * (shape.block_matrices() * num_tokens + head + attention)


KNOWN: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("known_models.toml").read_text("utf-8"))
"""Models of the hub by name, with the fields of their publishers' config.json."""


def shape_of(model: HubModel, *, sources: Path | None, build_folder: Path | None = None) -> ModelShape:
    """The shape of a model of the hub.

    Args:
        model: its name, and for a name that is not in `KNOWN` its revision.
        sources: the folder in the place of the hub; a config.json there comes before `KNOWN`.
        build_folder: where a build may have kept the config.json; else the hub is asked for a name not in `KNOWN`.

    Raises:
        UserError: a model that is not known here, whose config.json is not to be had or cannot be read.
    """
    unknown = "and it is none of the models whose shapes are known"
    if sources is not None and config_of(model.name, sources).is_file():
        text = config_of(model.name, sources).read_text(encoding="utf-8", errors="replace")
    elif model.name in KNOWN:
        return ModelShape.of(KNOWN[model.name])
    elif sources is not None:
        raise _unknown(model, f"no {config_of(model.name, sources)}, {unknown}")
    else:
        try:
            text = small_text(model, "config.json", build_folder=build_folder)
        except UserError as error:
            raise _unknown(model, f"{error.got}, {unknown}") from error
    try:
        return ModelShape.of(dict(json.loads(text)))
    except (ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        got = f"one that cannot be parsed ({type(error).__name__})"
        raise _unreadable(f"the config.json of {model.name}", got) from error


def config_of(name: str, sources: Path) -> Path:
    """Where SOURCES has a model's config.json, if it has it."""
    return sources / name / "config.json"


def _unreadable(wanted: str, got: str) -> UserError:
    return UserError("wrong-format", wanted=wanted, got=got, next_step="copy the publisher's config.json again")


def _unknown(model: HubModel, got: str) -> UserError:
    next_step = f"check the name and the network, or put its config.json into DIR/{model.name} and say SOURCES=DIR"
    return not_found(f"the shapes of {model.name}, before anything of its size is downloaded", got, next_step=next_step)
