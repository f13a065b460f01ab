"""Packed documents through a whole model, by the attention that training uses, against each document alone."""

import json
import random
from typing import Any

import pytest
import torch
from text_tiny import MACHINE, VOCABULARY, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from common.checkpoint import hidden_states
from common.device import Machine
from common.packing import PackedRows, rows_of_step, write_packed
from common.tokenizer import Tokenizer
from distill.initial import qwen2_config

SEQUENCE_TOKENS = 64
ROWS_PER_BATCH = 3


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    """Random ids; from a single token up to a whole row."""
    chance = random.Random(0)
    lengths = [1, 2, SEQUENCE_TOKENS, *(chance.randint(1, SEQUENCE_TOKENS) for _ in range(30))]
    return [[chance.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


@pytest.fixture(scope="module")
def rows(documents: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> PackedRows:
    folder = tmp_path_factory.mktemp("packed")
    tokenizer = Tokenizer.load(tiny_tokenizer(folder / "tokenizer"))
    weighted = [(ids, [100] * len(ids)) for ids in documents]
    write_packed(folder / "train", weighted, sequence_tokens=SEQUENCE_TOKENS, tokenizer=tokenizer)
    return PackedRows(folder / "train")


@pytest.fixture(scope="module")
def model() -> Any:
    """A small Qwen2 in float32 with weights and biases large enough that every token sees those before it."""
    settings = json.loads(
        qwen2_config(
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            max_position_embeddings=SEQUENCE_TOKENS,
        )
    )
    made: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


@torch.inference_mode()
def logits_by_document(model: Any, rows: PackedRows, order: list[int]) -> dict[tuple[int, ...], torch.Tensor]:
    """[tokens, V] of every document, from batches of rows in this order."""
    found: dict[tuple[int, ...], torch.Tensor] = {}
    for start in range(0, len(order), ROWS_PER_BATCH):
        real = rows.batch(order[start : start + ROWS_PER_BATCH]).varlen()
        logits_MV = model.lm_head(hidden_states(model, real, MACHINE))
        for ids_T, logits_TV in zip(real.tokens_M.split(real.lengths), logits_MV.split(real.lengths), strict=True):
            found[tuple(ids_T.tolist())] = logits_TV
    return found


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("epoch", [None, 0, 1])
def test_packed_logits_are_each_documents_own(
    documents: list[list[int]],
    rows: PackedRows,
    model: Any,
    epoch: int | None,
    fill: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Machine, "compiles_shapes", fill)
    count = rows.num_rows
    order = list(range(count))
    if epoch is not None:  # a step that takes all rows: a fresh order in every epoch
        order = rows_of_step(epoch, rows_per_step=count, num_rows=count, seed=0)
        assert sorted(order) == list(range(count)) != order
    packed = logits_by_document(model, rows, order)
    assert sorted(packed) == sorted(map(tuple, documents)) and count < len(documents)
    for ids, logits_TV in packed.items():
        with torch.inference_mode():
            alone_TV = model(input_ids=torch.tensor([ids])).logits[0]
        assert logits_TV.dtype == torch.float32
        torch.testing.assert_close(logits_TV, alone_TV, rtol=0, atol=1e-5)


def test_a_row_read_as_one_document_has_other_logits(rows: PackedRows, model: Any) -> None:
    batch = rows.batch(range(rows.num_rows))
    row = next(row for row in range(rows.num_rows) if batch.doc_ids_BT[row].max() > 1)
    packed = logits_by_document(model, rows, [row])
    ids_M = batch.tokens_BT[row][batch.doc_ids_BT[row] > 0]
    with torch.inference_mode():
        joined_MV = model(input_ids=ids_M[None]).logits[0]
    difference = (torch.cat(list(packed.values())) - joined_MV).abs().amax(dim=1)
    first = len(next(iter(packed)))
    assert difference[:first].max() < 1e-5 and difference[first:].min() > 1e-2


def test_filling_changes_no_gradient_and_leaves_few_shapes(
    rows: PackedRows, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: dict[bool, set[torch.Size]] = {False: set(), True: set()}
    gradients: dict[bool, list[torch.Tensor]] = {}
    for fill in (False, True):
        monkeypatch.setattr(Machine, "compiles_shapes", fill)
        hook = model.model.norm.register_forward_hook(lambda _, given, out, fill=fill: shapes[fill].add(out.shape))
        model.zero_grad()
        for row in range(rows.num_rows):
            real = rows.batch([row]).varlen()
            (hidden_states(model, real, MACHINE) ** 2).sum().backward()
        hook.remove()
        gradients[fill] = [parameter.grad.clone() for parameter in model.model.parameters()]
    model.zero_grad()
    assert len(shapes[True]) <= 2 < len(shapes[False])
    for plain, filled in zip(gradients[False], gradients[True], strict=True):
        torch.testing.assert_close(filled, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))
