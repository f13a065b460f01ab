"""The decoder that becomes the Core ML package: Qwen2, Qwen3 and Llama with the KV cache in two buffers.

One function serves prefill and decode: it appends the keys and values of the new tokens to the buffers and attends over
all of them. The shape of the causal mask says how many there are, as in Apple's "On Device Llama 3.1 with Core ML",
whose names of inputs and states are kept. The operations are few and plain, so that torch.jit.trace and coremltools
convert them one to one.

Shapes: B batch (1), T new tokens, S all tokens so far, D hidden size, H heads, G key-value heads, E head size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.weights import EMBEDDING
from export.model_folder import SAVE_AGAIN, Checkpoint

KEY_CACHE, VALUE_CACHE = "keyCache", "valueCache"
# Hides a key. Finite, since minus infinity turns whole rows into NaN in float16 on some devices.
MASKED = -4e4


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last axis; its squares leave float16's range, so it is kept in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """Same shape as `hidden`."""
        return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.epsilon) * self.weight


class AttentionWeights(nn.Module):
    """Softmax of the masked scores. Qwen2's products of query and key leave float16's range: kept in float32."""

    def forward(self, query: Tensor, key: Tensor, mask_11TS: Tensor) -> Tensor:
        """Weights [1, G, H/G * T, S] of queries [1, G, H/G * T, E] on keys [1, G, S, E]."""
        groups, head_dim = query.shape[1], query.shape[3]
        scores = (query * head_dim**-0.5) @ key.transpose(-1, -2)
        # The heads of a group share the mask: apart for the sum, then together again.
        apart = scores.reshape(groups, -1, mask_11TS.shape[2], mask_11TS.shape[3]) + mask_11TS
        return apart.softmax(-1).reshape(1, groups, -1, mask_11TS.shape[3])


class Attention(nn.Module):
    """Grouped-query attention over the cached keys and values."""

    def __init__(self, config: Any, head_dim: int, names: set[str]) -> None:
        super().__init__()
        self.heads, self.groups, self.head_dim = config.num_attention_heads, config.num_key_value_heads, head_dim
        queries, keys = self.heads * head_dim, self.groups * head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias="q_proj.bias" in names)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias="k_proj.bias" in names)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias="v_proj.bias" in names)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias="o_proj.bias" in names)
        has_norms = "q_norm.weight" in names
        self.q_norm = RMSNorm(head_dim, config.rms_norm_eps) if has_norms else nn.Identity()
        self.k_norm = RMSNorm(head_dim, config.rms_norm_eps) if has_norms else nn.Identity()
        self.weights = AttentionWeights()

    def project(self, hidden_BTD: Tensor, cosine_TE: Tensor, sine_TE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [1, H, T, E], rotated keys and values [1, G, T, E] of the new tokens."""
        query = self.q_norm(self.q_proj(hidden_BTD).reshape(1, -1, self.heads, self.head_dim)).transpose(1, 2)
        key = self.k_norm(self.k_proj(hidden_BTD).reshape(1, -1, self.groups, self.head_dim)).transpose(1, 2)
        value = self.v_proj(hidden_BTD).reshape(1, -1, self.groups, self.head_dim).transpose(1, 2)
        return _rotate(query, cosine_TE, sine_TE), _rotate(key, cosine_TE, sine_TE), value

    def attend(self, query_BHTE: Tensor, key_BGSE: Tensor, value_BGSE: Tensor, mask_11TS: Tensor) -> Tensor:
        """Output [1, T, D] of the new tokens."""
        grouped = query_BHTE.reshape(1, self.groups, -1, self.head_dim)
        mixed = self.weights(grouped, key_BGSE, mask_11TS) @ value_BGSE
        merged = mixed.reshape(1, self.heads, -1, self.head_dim).transpose(1, 2)
        return self.o_proj(merged.reshape(1, -1, self.heads * self.head_dim))


class GatedMLP(nn.Module):
    """SwiGLU; SiLU written out, which every compute unit runs."""

    def __init__(self, config: Any, names: set[str]) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias="gate_proj.bias" in names)
        self.up_proj = nn.Linear(width, inner, bias="up_proj.bias" in names)
        self.down_proj = nn.Linear(inner, width, bias="down_proj.bias" in names)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Same shape as `hidden_BTD`."""
        gate = self.gate_proj(hidden_BTD)
        return self.down_proj(gate * gate.sigmoid() * self.up_proj(hidden_BTD))


class Block(nn.Module):
    """The parts of one decoder block; `Decoder.forward` runs them, because it owns the cache."""

    def __init__(self, config: Any, head_dim: int, names: set[str]) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, head_dim, names)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config, names)


class Decoder(nn.Module):
    """The whole model with its cache: `forward(inputIds [1, T], causalMask [1, 1, T, S]) -> logits [1, T, rows]`.

    The caches are [layers, 1, G, context_tokens, E]; nothing beyond S is read from them.
    """

    keyCache: Tensor
    valueCache: Tensor
    cosine: Tensor
    sine: Tensor

    def __init__(self, checkpoint: Checkpoint, *, context_tokens: int) -> None:
        """Loads the weights in float32; UserError for more context than positions, or shapes unlike config.json's."""
        super().__init__()
        config = checkpoint.config
        if context_tokens > config.max_position_embeddings:
            wanted = f"a context of at most {config.max_position_embeddings} tokens, the model's positions"
            got = f"{context_tokens} tokens"
            raise UserError("out-of-range", wanted=wanted, got=got, next_step="choose a smaller --context")
        self.context_tokens = context_tokens
        suffixes = {name.split(".", 4)[-1] for name in checkpoint.names() if ".layers." in name}
        with torch.device("meta"):
            self.embed_tokens = nn.Embedding(checkpoint.rows, config.hidden_size)
            self.layers = nn.ModuleList(
                Block(config, checkpoint.head_dim, suffixes) for _ in range(config.num_hidden_layers)
            )
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
            self.lm_head = None if checkpoint.tied else nn.Linear(config.hidden_size, checkpoint.rows, bias=False)
        self._load(checkpoint)
        rope = checkpoint.rope()
        angles = torch.outer(torch.arange(context_tokens).float(), rope.inverse_frequencies.float())
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("cosine", angles.cos() * rope.attention_factor, persistent=False)
        self.register_buffer("sine", angles.sin() * rope.attention_factor, persistent=False)
        cache = (config.num_hidden_layers, 1, config.num_key_value_heads, context_tokens, checkpoint.head_dim)
        self.register_buffer(KEY_CACHE, torch.zeros(cache), persistent=False)
        self.register_buffer(VALUE_CACHE, torch.zeros(cache), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, input_ids_BT: Tensor, mask_11TS: Tensor) -> Tensor:
        """Logits [1, T, rows] of the new tokens; the caches hold their keys and values afterwards."""
        end = mask_11TS.shape[3]
        begin = end - input_ids_BT.shape[1]
        cosine_TE, sine_TE = self.cosine[begin:end], self.sine[begin:end]
        hidden_BTD = self.embed_tokens(input_ids_BT)
        for index, block in enumerate(self.layers):
            assert isinstance(block, Block)
            normed_BTD = block.input_layernorm(hidden_BTD)
            query, key, value = block.self_attn.project(normed_BTD, cosine_TE, sine_TE)
            self.keyCache[index, :, :, begin:end, :] = key
            self.valueCache[index, :, :, begin:end, :] = value
            keys, values = self.keyCache[index, :, :, :end, :], self.valueCache[index, :, :, :end, :]
            hidden_BTD = hidden_BTD + block.self_attn.attend(query, keys, values, mask_11TS)
            hidden_BTD = hidden_BTD + block.mlp(block.post_attention_layernorm(hidden_BTD))
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return nn.functional.linear(self.norm(hidden_BTD), head.weight)

    def _load(self, checkpoint: Checkpoint) -> None:
        for name in checkpoint.names():
            path, _, leaf = name.removeprefix("model.").rpartition(".")
            module = self.get_submodule(path)
            expected, value = tuple(getattr(module, leaf).shape), checkpoint.read(name).float()
            if tuple(value.shape) != expected:
                wanted = f"{name} of shape {list(expected)}, by config.json"
                got = f"{list(value.shape)} in {checkpoint.folder}"
                raise UserError("mismatch", wanted=wanted, got=got, next_step=SAVE_AGAIN)
            setattr(module, leaf, nn.Parameter(value, requires_grad=False))
        assert tuple(self.embed_tokens.weight.shape) == checkpoint.shape(EMBEDDING)


@torch.no_grad()
def step(
    decoder: Callable[[Tensor, Tensor], Tensor], ids: list[int], *, past_tokens: int, context_tokens: int
) -> Tensor:
    """Logits [T, rows] of `ids` after the `past_tokens` in the cache; UserError if they do not fit into the context."""
    end = past_tokens + len(ids)
    if not ids or end > context_tokens:
        wanted = f"1 to {context_tokens - past_tokens} tokens after {past_tokens} in a context of {context_tokens}"
        next_step = "shorten the text, or export with a larger --context"
        raise UserError("out-of-range", wanted=wanted, got=str(len(ids)), next_step=next_step)
    return decoder(torch.tensor([ids], dtype=torch.int32), causal_mask(len(ids), end))[0]


def causal_mask(new_tokens: int, end: int) -> Tensor:
    """Mask [1, 1, T, S]: 0 where a new token attends, `MASKED` on keys that come after it."""
    future = torch.arange(end)[None, :] > torch.arange(end - new_tokens, end)[:, None]
    return torch.zeros(1, 1, new_tokens, end).masked_fill(future, MASKED)


def _rotate(value: Tensor, cosine_TE: Tensor, sine_TE: Tensor) -> Tensor:
    """Rotary positions on [1, heads, T, E]: the two halves of a head are the pairs."""
    half = value.shape[-1] // 2
    turned = torch.cat([-value[..., half:], value[..., :half]], dim=-1)
    return value * cosine_TE + turned * sine_TE
