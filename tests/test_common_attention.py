"""Attention of packed documents against each document alone, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.attention import attend, layout
from common.device import on_grid

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@given(lengths=LENGTHS, fill=st.booleans())
def test_every_token_has_one_slot_and_fillers_stay_few(lengths: list[int], fill: bool) -> None:
    where = layout(lengths, torch.device("cpu"), fill=fill)
    total = sum(lengths)
    assert where.num_real == total and len(where.slot_of_token) == (on_grid(total) if fill else total)
    assert sum(count * length for count, length in where.shapes) == len(where.token_of_slot)
    assert sum(count for count, _ in where.shapes) == len(lengths)
    slots = where.slot_of_token[:total]
    assert torch.equal(where.token_of_slot[slots], torch.arange(total))
    assert int(where.is_filler.sum()) == len(where.token_of_slot) - total
    assert not where.is_filler[slots].any()
    assert len(where.token_of_slot) <= (total / 0.75 if not fill else 32 * len(lengths))
    assert all(length == on_grid(length) for _, length in where.shapes) or not fill


@given(size=st.integers(1, 10**6))
def test_a_size_on_the_grid_is_near_and_one_of_few(size: int) -> None:
    filled = on_grid(size)
    assert on_grid(filled) == filled and 0 <= filled - size < max(32, size / 16)
    octave = range(2 ** (size.bit_length() - 1), min(2 ** size.bit_length(), 4096))
    assert len({on_grid(each) for each in octave}) <= 17


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
@given(lengths=LENGTHS, window=st.sampled_from([None, 1, 7]), fill=st.booleans(), seed=st.integers(0, 1000))
def test_documents_attend_as_they_do_alone(lengths: list[int], window: int | None, fill: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    line = on_grid(total) if fill else total
    ours = [
        torch.randn(line, heads, 5, dtype=torch.float64, generator=generator).requires_grad_() for heads in (4, 2, 2)
    ]
    theirs = [part[:total].detach().clone().requires_grad_() for part in ours]
    attended, _ = attend(
        nn.Identity(),
        ours[0].transpose(0, 1)[None],
        ours[1].transpose(0, 1)[None],
        ours[2].transpose(0, 1)[None],
        None,
        documents=layout(lengths, torch.device("cpu"), fill=fill),
        scaling=0.3,
        sliding_window=window,
    )
    expected = alone(theirs[0], theirs[1], theirs[2], lengths, window)
    assert attended.isfinite().all()
    assert torch.allclose(attended[0, :total], expected, atol=1e-12)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    (attended[0, :total] * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None and other.grad is not None
        assert torch.allclose(mine.grad[:total], other.grad, atol=1e-12)
        assert not mine.grad[total:].any(), "a filling token gets no gradient"


def test_an_empty_document_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        layout([3, 0], torch.device("cpu"))
