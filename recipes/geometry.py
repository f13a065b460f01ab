"""The shapes of the models that recipes name, and what follows from them alone: weights, and which of them multiply.

A geometry comes from a `config.json`: that of a folder of SOURCES, that of a recipe which trains its own model, or one
of `KNOWN`, read at the publisher's, so that a plan can be made before anything is downloaded. It loads no model.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from recipes import sizes

_FAMILIES = ("qwen2", "qwen3", "llama")


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry(sizes.Geometry):
    """What decides about the tensors of a Qwen2, Qwen3 or Llama-family model; `tensors` has their names in a GGUF."""

    head_dim: int
    """Features of a head; heads times it need not be `hidden`."""
    qkv_bias: bool
    """Whether query, key and value have biases, as in Qwen2."""
    qk_norms: bool
    """Whether queries and keys are normalised, as in Qwen3."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Geometry":
        """From the content of a Hugging Face `config.json`.

        Raises:
            UserError: a model of another family, or a field that is missing.
        """
        family = fields.get("model_type")
        if family not in _FAMILIES:
            raise UserError(
                wanted=f"the config of a model of type {', '.join(_FAMILIES)}",
                got=str(family),
                next_step="name a model of these families",
            )
        try:
            hidden, heads = int(fields["hidden_size"]), int(fields["num_attention_heads"])
            return cls(
                hidden=hidden,
                inner=int(fields["intermediate_size"]),
                layers=int(fields["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(fields.get("num_key_value_heads") or heads),
                rows=int(fields["vocab_size"]),
                tied=bool(fields.get("tie_word_embeddings", False)),
                head_dim=int(fields.get("head_dim") or hidden // heads),
                qkv_bias=family == "qwen2" or bool(fields.get("attention_bias")),
                qk_norms=family == "qwen3",
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                wanted="hidden_size, intermediate_size, num_hidden_layers, num_attention_heads and vocab_size in a "
                "model's config.json",
                got=f"{type(error).__name__}: {error}",
                next_step="copy the publisher's config.json again",
            ) from error

    @property
    def attention(self) -> int:
        """Features of all query heads together."""
        return self.heads * self.head_dim

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """GGUF's name and the shape of each tensor, the row length last."""
        keys = self.kv_heads * self.head_dim
        yield "token_embd.weight", (self.rows, self.hidden)
        for layer in range(self.layers):
            for name, rows, columns in (
                ("attn_q", self.attention, self.hidden),
                ("attn_k", keys, self.hidden),
                ("attn_v", keys, self.hidden),
                ("attn_output", self.hidden, self.attention),
                ("ffn_gate", self.inner, self.hidden),
                ("ffn_up", self.inner, self.hidden),
                ("ffn_down", self.hidden, self.inner),
            ):
                yield f"blk.{layer}.{name}.weight", (rows, columns)
                if self.qkv_bias and name in ("attn_q", "attn_k", "attn_v"):
                    yield f"blk.{layer}.{name}.bias", (rows,)
            if self.qk_norms:
                yield f"blk.{layer}.attn_q_norm.weight", (self.head_dim,)
                yield f"blk.{layer}.attn_k_norm.weight", (self.head_dim,)
            yield f"blk.{layer}.attn_norm.weight", (self.hidden,)
            yield f"blk.{layer}.ffn_norm.weight", (self.hidden,)
        yield "output_norm.weight", (self.hidden,)
        if not self.tied:
            yield "output.weight", (self.rows, self.hidden)

    def block_matrices(self) -> int:
        """Weights of the blocks' matrices: each multiplies every token once. Embedding and head are apart."""
        shapes = [shape for name, shape in self.tensors() if name.startswith("blk.") and len(shape) == 2]
        return sum(math.prod(shape) for shape in shapes)


KNOWN = {
    # https://huggingface.co/Qwen/Qwen2.5-32B-Instruct, config.json
    "Qwen/Qwen2.5-32B-Instruct": Geometry(
        hidden=5120,
        inner=27_648,
        layers=64,
        heads=40,
        kv_heads=8,
        rows=152_064,
        tied=False,
        head_dim=128,
        qkv_bias=True,
        qk_norms=False,
    ),
    # https://huggingface.co/Qwen/Qwen2.5-1.5B-Instruct, config.json
    "Qwen/Qwen2.5-1.5B-Instruct": Geometry(
        hidden=1536,
        inner=8960,
        layers=28,
        heads=12,
        kv_heads=2,
        rows=151_936,
        tied=True,
        head_dim=128,
        qkv_bias=True,
        qk_norms=False,
    ),
    # Trained on from Qwen3-32B, whose config.json this is: https://huggingface.co/Qwen/Qwen3-32B
    "tokyotech-llm/Qwen3-Swallow-32B-SFT-v0.2": Geometry(
        hidden=5120,
        inner=25_600,
        layers=64,
        heads=64,
        kv_heads=8,
        rows=151_936,
        tied=False,
        head_dim=128,
        qkv_bias=False,
        qk_norms=True,
    ),
    # https://huggingface.co/Qwen/Qwen3-1.7B, config.json
    "Qwen/Qwen3-1.7B": Geometry(
        hidden=2048,
        inner=6144,
        layers=28,
        heads=16,
        kv_heads=8,
        rows=151_936,
        tied=True,
        head_dim=128,
        qkv_bias=False,
        qk_norms=True,
    ),
}
"""Models of the hub by name, as their publishers' config.json describes them."""


def geometry_of(name: str, *, sources: Path | None) -> Geometry:
    """The geometry of a model of the hub.

    Args:
        name: `org/name`.
        sources: the folder that stands in for the hub: where it has the model's config.json, that counts and not what
            is known by name.

    Raises:
        UserError: a model that is not known here, or whose config.json is not there or cannot be read.
    """
    if sources is not None and config_of(name, sources).is_file():
        return Geometry.of(_read(config_of(name, sources), name))
    if name not in KNOWN:
        raise UserError(
            wanted=f"the geometry of {name}, before anything is downloaded",
            got=f"those of {', '.join(KNOWN)}" + ("" if sources is None else f", and no {config_of(name, sources)}"),
            next_step=f"put its config.json into DIR/{name} and say SOURCES=DIR, or add it to recipes/geometry.py",
        )
    return KNOWN[name]


def config_of(name: str, sources: Path) -> Path:
    """Where SOURCES has a model's config.json, if it has it."""
    return sources / name / "config.json"


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return dict(content)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            wanted=f"the config.json of {name} in the folder of SOURCES",
            got=f"one that does not read: {path} ({type(error).__name__})",
            next_step="copy the publisher's config.json again",
        ) from error
