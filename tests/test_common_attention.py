"""Attention of packed documents against each document alone, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.attention import attend, layout

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@given(lengths=LENGTHS)
def test_every_token_has_one_slot_and_fillers_stay_few(lengths: list[int]) -> None:
    where = layout(lengths, torch.device("cpu"))
    total = sum(lengths)
    assert sum(count * length for count, length in where.shapes) == len(where.token_of_slot)
    assert sum(count for count, _ in where.shapes) == len(lengths)
    assert torch.equal(where.token_of_slot[where.slot_of_token], torch.arange(total))
    assert int(where.is_filler.sum()) == len(where.token_of_slot) - total
    assert not where.is_filler[where.slot_of_token].any()
    assert len(where.token_of_slot) <= total / 0.75


def alone(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], window: int | None) -> Tensor:
    """Softmax attention written out, one document and one token after the other; [M, H, F]."""
    shared, rows, start = query.size(1) // key.size(1), [], 0
    for length in lengths:
        for place in range(length):
            first = start if window is None else max(start, start + place - window + 1)
            seen = slice(first, start + place + 1)
            heads = [
                torch.softmax(key[seen, h // shared] @ query[start + place, h] * 0.3, 0) @ value[seen, h // shared]
                for h in range(query.size(1))
            ]
            rows.append(torch.stack(heads))
        start += length
    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, window=st.sampled_from([None, 1, 7]), seed=st.integers(0, 1000))
def test_documents_attend_as_they_do_alone(lengths: list[int], window: int | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    ours = [
        torch.randn(total, heads, 5, dtype=torch.float64, generator=generator).requires_grad_() for heads in (4, 2, 2)
    ]
    theirs = [part.detach().clone().requires_grad_() for part in ours]
    attended, _ = attend(
        nn.Identity(),
        ours[0].transpose(0, 1)[None],
        ours[1].transpose(0, 1)[None],
        ours[2].transpose(0, 1)[None],
        None,
        documents=layout(lengths, torch.device("cpu")),
        scaling=0.3,
        sliding_window=window,
    )
    expected = alone(theirs[0], theirs[1], theirs[2], lengths, window)
    assert torch.allclose(attended[0], expected, atol=1e-12)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    (attended[0] * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None and other.grad is not None
        assert torch.allclose(mine.grad, other.grad, atol=1e-12)


def test_an_empty_document_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        layout([3, 0], torch.device("cpu"))
