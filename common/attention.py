"""Attention of packed documents, each to itself, without padding and without a mask.

The M real tokens of a batch are one sequence, document after document. For attention alone they are laid out as a few
stacks of documents of similar length: inside a stack a causal kernel needs no mask, because the filler of a shorter
document comes after its tokens. Everything else in a model works token by token and sees no padding.

Where a library compiles a kernel for every new shape (`Machine.compiles_shapes`), the line and the stacks are filled up
to a few sizes. A filling token has no slot: nothing attends to it, and its gradient is 0.

Legend: M tokens of the line, G documents of one stack, L slots of each, H heads, F features of a head.
"""

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from common.device import on_grid

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "packed_documents"
_SHORTEST_SHARE = 0.75
"""A document joins a stack if its length is at least this share of the longest, so that little filler is needed."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each real token is in the stacks; the stacks are one sequence of slots, one after the other."""

    shapes: tuple[tuple[int, int], ...]
    """(G, L) of each stack."""
    token_of_slot: Tensor
    """Index of the token in each slot; any index for filler."""
    is_filler: Tensor
    """True for slots without a token."""
    slot_of_token: Tensor
    """Index of each token's slot [M]; any index for a filling token."""
    num_real: int
    """Tokens before the filling ones."""

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> "Layout":
        """The same on another device. In a model spread over several devices, each layer moves its inputs so."""
        parts = (self.token_of_slot, self.is_filler, self.slot_of_token)
        moved = (part.to(device, non_blocking=non_blocking) for part in parts)
        return Layout(self.shapes, *moved, num_real=self.num_real)


def layout(lengths: Sequence[int], device: torch.device, *, fill: bool = False) -> Layout:
    """Stacks for documents of these lengths, in the order of their tokens; `fill` fills them and the line up."""
    starts = [0]
    for length in lengths:
        assert length > 0
        starts.append(starts[-1] + length)
    order = sorted(range(len(lengths)), key=lambda document: -lengths[document])
    stacks: list[list[int]] = []
    for document in order:
        if stacks and lengths[document] >= _SHORTEST_SHARE * lengths[stacks[-1][0]]:
            stacks[-1].append(document)
        else:
            stacks.append([document])
    num_real, size = starts[-1], on_grid if fill else int
    tokens, slots = [], torch.zeros(size(num_real), dtype=torch.int64)
    first_slot = 0
    for stack in stacks:
        longest = size(lengths[stack[0]])
        for document in stack:
            span = torch.arange(longest)
            slots[starts[document] : starts[document + 1]] = first_slot + span[: lengths[document]]
            tokens.append(torch.where(span < lengths[document], starts[document] + span, -1))
            first_slot += longest
    token_of_slot = torch.cat(tokens)
    return Layout(
        shapes=tuple((len(stack), size(lengths[stack[0]])) for stack in stacks),
        token_of_slot=token_of_slot.clamp(min=0).to(device),
        is_filler=(token_of_slot < 0).to(device),
        slot_of_token=slots.to(device),
        num_real=num_real,
    )


def _to_slots(tokens: Tensor, where: Layout) -> Tensor:
    return tokens.index_select(0, where.token_of_slot).masked_fill_(where.is_filler[:, None, None], 0.0)


class _ToSlots(torch.autograd.Function):
    """[M, H, F] to slots, 0 for filler. Its gradient is the inverse, since no two slots hold one token."""

    @staticmethod
    def forward(ctx: Any, tokens_MHF: Tensor, where: Layout) -> Tensor:  # type: ignore[override]
        ctx.where = where
        return _to_slots(tokens_MHF, where)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gradient_MHF = gradients[0].index_select(0, ctx.where.slot_of_token)
        gradient_MHF[ctx.where.num_real :] = 0.0
        return gradient_MHF, None


class _ToTokens(torch.autograd.Function):
    """Slots to [M, H, F]."""

    @staticmethod
    def forward(ctx: Any, slots_SHF: Tensor, where: Layout) -> Tensor:  # type: ignore[override]
        ctx.where = where
        return slots_SHF.index_select(0, where.slot_of_token)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _to_slots(gradients[0], ctx.where), None


def attend(
    module: nn.Module,
    query_1HMF: Tensor,
    key_1KMF: Tensor,
    value_1KMF: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: heads before tokens in, tokens before heads out; H is a multiple of K.

    There is no mask, and positions are in query and key: `module`, `attention_mask` and `others` are not used.
    `sliding_window` counts the tokens that a token attends to, itself included; None for all before it.
    """
    assert others.get("softcap") is None and others.get("s_aux") is None, "a kind of attention that is not this one"
    slots = [_ToSlots.apply(part[0].transpose(0, 1), documents) for part in (query_1HMF, key_1KMF, value_1KMF)]
    outputs: list[Tensor] = []
    start = 0
    for num_documents, length in documents.shapes:
        stop = start + num_documents * length
        query, key, value = (
            part[start:stop].unflatten(0, (num_documents, length)).transpose(1, 2)  # pyright: ignore
            for part in slots
        )
        shared = query.size(1) // key.size(1)
        if shared > 1:
            key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
        window = None if sliding_window is None or length <= sliding_window else _band(length, sliding_window, query)
        attended = scaled_dot_product_attention(
            query, key, value, attn_mask=window, dropout_p=dropout, scale=scaling, is_causal=window is None
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
        start = stop
    tokens: Any = _ToTokens.apply(torch.cat(outputs), documents)
    return tokens[None], None


def _band(length: int, window: int, like: Tensor) -> Tensor:
    """True where a token attends to another: not after it, and less than `window` before."""
    distance = torch.arange(length, device=like.device)
    distance = distance[:, None] - distance[None, :]
    return (distance >= 0) & (distance < window)


@contextlib.contextmanager
def packed_documents(model: "PreTrainedModel") -> Generator[None]:
    """Inside it, the model attends by `attend` and takes `documents=` in its forward pass."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    # The private name: the public setter looks for kernels and visits every layer, at each batch.
    config: Any = model.config
    usual = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = usual
