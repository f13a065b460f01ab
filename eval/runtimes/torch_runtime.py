"""A Hugging Face folder as a `Runtime`: transformers' model, the product's tokenizer; also its held-out loss.

On the CPU everything is computed in float32, so that a measurement does not depend on the machine's precision; on an
accelerator in the precision that the machine names, unless it is to be exact. Logits are cropped to the ids that the
tokenizer can produce, and are computed only for the positions that are asked about, a few hundred rows at once.

Legend: B rows, T tokens in a row, N positions, C positions of one chunk, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache

from common.checkpoint import head_weight, load_model
from common.device import Machine, cpu_name, os_name
from common.errors import UserError
from common.packing import PackedRows
from common.tokenizer import Tokenizer
from common.training import row_losses
from eval.runtimes.protocol import (
    Generation,
    LogProbs,
    Message,
    Pair,
    ScoreRow,
    by_budget,
    check_lengths,
    extend,
    score_rows,
)

# Padded tokens of one forward pass: large enough to fill two cores, small enough to stay in their caches.
BATCH_TOKENS = 4096
# Sequences that are decoded together; more would only wait for the longest answer.
BATCH_SEQUENCES = 64
LOGIT_ROWS = 256


def machine_here() -> Machine:
    """This machine without a probe: an accelerator in bfloat16 where there is one, else the CPU in float32."""
    cuda = torch.cuda.is_available()
    return Machine(
        device="cuda" if cuda else "cpu",
        compute_dtype="bfloat16" if cuda else "float32",
        cpu=cpu_name(),
        gpu=torch.cuda.get_device_name() if cuda else None,
        memory_bytes=0,
        os=os_name(),
        threads=torch.get_num_threads(),
    )


def _padded(rows: Sequence[Sequence[int]], *, value: int = 0, side: str = "right") -> Tensor:
    """Rows as one int64 tensor [B, T], padded with `value`."""
    tensors = [torch.tensor(list(row), dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)


def held_out_losses(model_folder: Path, packed_folder: Path, machine: Machine) -> list[tuple[float, float]]:
    """Loss of a checkpoint on each packed row of one split (`<corpus>/packed/<split>`), weighted as packed.

    Returns (sum over the tokens of the row in nats, number of tokens), a pair a row. Raises UserError for rows packed
    with another tokenizer and for an unreadable model.
    """
    tokenizer, rows = Tokenizer.load(model_folder), PackedRows(packed_folder)
    rows.require(tokenizer)
    model = load_model(model_folder, machine, dtype=dtype_on(machine, exact=False))
    return row_losses(model, rows, machine, vocab_size=tokenizer.size)


def dtype_on(machine: Machine, *, exact: bool) -> torch.dtype:
    """Precision in which a checkpoint is measured: a large teacher in float32 would not fit where it was used."""
    return torch.float32 if exact or machine.device == "cpu" else machine.torch_dtype


class CheckpointRuntime:
    """See `eval.runtimes.protocol.Runtime`."""

    def __init__(
        self, folder: Path, *, machine: Machine | None = None, context_tokens: int | None = None, exact: bool = False
    ) -> None:
        machine = machine or machine_here()
        self.tokenizer = Tokenizer.load(folder)
        self.model = load_model(folder, machine, dtype=dtype_on(machine, exact=exact))
        self.vocabulary = self.tokenizer.size
        positions = int(self.model.config.max_position_embeddings)
        self.context_tokens = min(positions, context_tokens or positions)
        self.document_end_id = self.tokenizer.document_end_id
        self._device = machine.torch_device
        rows = head_weight(self.model).size(0)
        if rows < self.vocabulary:
            wanted, got = f"a model with at least the tokenizer's {self.vocabulary} logits", f"{rows} in {folder.name}"
            raise UserError("mismatch", wanted=wanted, got=got, next_step="put the model's tokenizer into its folder")
        self._head_VD = head_weight(self.model)[: self.vocabulary].detach()

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def render(self, messages: Sequence[Message]) -> list[int]:
        return self.tokenizer.render_prompt(messages)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self.tokenizer.decode(ids, skip_special=skip_special)

    def close(self) -> None:
        del self.model, self._head_VD

    @torch.inference_mode()
    def logprobs(self, ids: Sequence[int]) -> Iterator[LogProbs]:
        check_lengths([len(ids)], self.context_tokens)
        hidden_ND = self._hidden(torch.tensor([list(ids)], device=self._device))[0]
        for start in range(0, len(ids), LOGIT_ROWS):
            yield self._log_softmax(hidden_ND[start : start + LOGIT_ROWS]).cpu().numpy()

    @torch.inference_mode()
    def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        rows = score_rows(pairs)
        check_lengths([row.longest for row in rows], self.context_tokens)
        results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        for batch in by_budget([len(row.ids) for row in rows], tokens=BATCH_TOKENS, rows=BATCH_SEQUENCES):
            self._score_batch([rows[index] for index in batch], results)
        return results

    def _score_batch(self, rows: Sequence[ScoreRow], results: list[tuple[float, bool]]) -> None:
        """One forward pass over rows that hold a context and all its continuations side by side."""
        ids_BT = _padded([row.ids for row in rows])
        positions_BT = _padded([row.positions for row in rows])
        # 0 is the context, 1.. the continuations, -1 the padding, which nothing that is asked about attends to.
        part_BT = _padded([row.parts for row in rows], value=-1)
        causal_TT = torch.ones(ids_BT.size(1), ids_BT.size(1), dtype=torch.bool).tril()
        same_BTT = (part_BT[:, None, :] == 0) | (part_BT[:, None, :] == part_BT[:, :, None])
        mask_B1TT = (same_BTT & causal_TT)[:, None].to(self._device)
        hidden_BTD = self._hidden(ids_BT.to(self._device), mask=mask_B1TT, positions=positions_BT.to(self._device))

        asked = [(b, target) for b, row in enumerate(rows) for target in row.targets]
        numbers = [(b, target.position, target.token) for b, target in asked]
        b_N, from_N, target_N = torch.tensor(numbers, device=self._device).unbind(1)
        for start in range(0, len(asked), LOGIT_ROWS):
            part = slice(start, start + LOGIT_ROWS)
            logprobs_CV = self._log_softmax(hidden_BTD[b_N[part], from_N[part]])
            chosen_C = logprobs_CV.gather(1, target_N[part, None])[:, 0].tolist()
            greedy_C = (logprobs_CV.argmax(-1) == target_N[part]).tolist()
            for (_, target), chosen, greedy in zip(asked[part], chosen_C, greedy_C, strict=True):
                total, all_greedy = results[target.pair]
                results[target.pair] = (total + chosen, all_greedy and greedy)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop: Sequence[str]) -> list[Generation]:
        check_lengths([len(prompt) + max_tokens for prompt in prompts], self.context_tokens)
        results: dict[int, Generation] = {}
        lengths = [len(prompt) for prompt in prompts]
        for batch in by_budget(lengths, tokens=2 * BATCH_TOKENS, rows=BATCH_SEQUENCES):
            answers = self._generate_batch([prompts[index] for index in batch], max_tokens, stop)
            results.update(zip(batch, answers, strict=True))
        return [results[index] for index in range(len(prompts))]

    def _generate_batch(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[str]
    ) -> list[Generation]:
        """Prompts padded on the left, decoded together; a row leaves the batch as soon as its answer is complete."""
        ids_BT = _padded(prompts, side="left").to(self._device)
        mask_BT = _padded([[1] * len(prompt) for prompt in prompts], side="left").to(self._device)
        positions_BT = (mask_BT.cumsum(1) - 1).clamp_min(0)
        cache = DynamicCache(config=self.model.config)
        answers: list[list[int]] = [[] for _ in prompts]
        done: dict[int, Generation] = {}
        rows = list(range(len(prompts)))
        while True:
            hidden_BTD = self._hidden(ids_BT, mask=mask_BT, positions=positions_BT, cache=cache)
            next_B = (hidden_BTD[:, -1] @ self._head_VD.t()).argmax(-1)
            for row, token in zip(rows, next_B.tolist(), strict=True):
                ends = token in self.tokenizer.stop_ids
                finished = extend(answers[row], token, ends=ends, decode=self.decode, max_tokens=max_tokens, stop=stop)
                if finished is not None:
                    done[row] = finished
            keep = [b for b, row in enumerate(rows) if row not in done]
            if not keep:
                return [done[row] for row in range(len(prompts))]
            keep_B = torch.tensor(keep, device=self._device)
            if len(keep) < len(rows):
                cache.batch_select_indices(keep_B)
                rows = [rows[b] for b in keep]
            ids_BT = next_B[keep_B, None]
            mask_BT = torch.cat([mask_BT[keep_B], mask_BT.new_ones(len(keep), 1)], dim=1)
            positions_BT = positions_BT[keep_B, -1:] + 1

    def _hidden(
        self, ids_BT: Tensor, *, mask: Tensor | None = None, positions: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Final hidden states [B, T, D]; `mask` is [B, T] over padding or [B, 1, T, T] over pairs of tokens."""
        return self.model.model(
            input_ids=ids_BT,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def _log_softmax(self, hidden_CD: Tensor) -> Tensor:
        """Float32 log-probabilities [C, V]."""
        return torch.log_softmax((hidden_CD @ self._head_VD.t()).float(), dim=-1)
