"""On-policy mixing: some batches of a distillation run hold responses that the student wrote itself.

The student learns where its own words lead it (GKD, arXiv 2306.13649); responses are kept in a replay buffer and used
again, because writing them costs more than learning from them (DistiLLM, arXiv 2402.03898). How many batches are the
student's own is a fixed share, or follows the held-out loss by DistiLLM's rule: a value, passed in and returned. The
prompt of a document is what comes before its first token that counts in the loss or, where all of it counts, its first
part. Generation is transformers' own, batched, with the KV cache and outside the autograd graph. Everything random
follows from the seed and the step, so that a resumed run writes and draws the same. It knows no objective and no
optimizer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from common.device import Machine
from common.errors import UserError
from common.packing import VarlenBatch
from common.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class OnPolicyConfig:
    """How often, how long, and how often anew.

    The defaults of probability, max_new_tokens and buffer_documents are those of SakanaAI/TAID@a062892, those of rise
    and tolerance_nats of jongwooko/distillm@17c0f98, which starts at a probability of 0.
    """

    probability: float = 0.5
    """Share of the micro-batches that hold the student's own responses; where it adapts, the share at the start."""
    schedule: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive`: the share rises where the held-out loss does, and replay takes over as the run goes on."""
    rise: float = 0.1
    """What one rise adds to an adaptive share, up to 1."""
    tolerance_nats: float = 0.1
    """Rise of the held-out loss, since the share rose last or the run began, from which an adaptive share rises."""
    max_new_tokens: int = 512
    """Longest response, tokens."""
    buffer_documents: int = 1000
    """Responses that the replay buffer holds; the oldest goes first."""
    replay: float = 0.0
    """Share of those micro-batches that come from the buffer, once it holds enough for one; 0 always writes anew. Where
    the share adapts it is the share of the run's steps that are done, once the buffer is full, and this one stays 0."""
    temperature: float = 0.0
    """Of the sampling; 0 takes the likeliest token, as the released code does."""
    prompt_share: float = 0.5
    """Share of a document that is its prompt, where every token of it counts in the loss."""

    def __post_init__(self) -> None:
        shares = (self.probability, self.replay, self.prompt_share)
        if any(not 0.0 <= share <= 1.0 for share in shares) or not 0.0 < self.prompt_share < 1.0:
            raise UserError(
                wanted="probability and replay from 0 to 1, prompt_share between 0 and 1",
                got=f"{self.probability:g}, {self.replay:g}, {self.prompt_share:g}",
                next_step="mend the on-policy settings",
            )
        if self.max_new_tokens < 1 or self.buffer_documents < 1 or self.temperature < 0.0:
            raise UserError(
                wanted="max_new_tokens and buffer_documents of at least 1, temperature of at least 0",
                got=f"{self.max_new_tokens}, {self.buffer_documents}, {self.temperature:g}",
                next_step="mend the on-policy settings",
            )
        if not 0.0 < self.rise <= 1.0 or not self.tolerance_nats >= 0.0:
            raise UserError(
                wanted="rise above 0 and at most 1, tolerance_nats of at least 0",
                got=f"{self.rise:g}, {self.tolerance_nats:g}",
                next_step="mend the on-policy settings",
            )
        if self.schedule == "adaptive" and self.replay != 0.0:
            raise UserError(
                wanted="no replay share beside the adaptive schedule, whose own follows the run",
                got=f"replay {self.replay:g}",
                next_step="leave the replay share out, or keep the fixed schedule",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareState:
    """What the schedule of the share remembers between validations."""

    probability: float
    """Share of the micro-batches in use, 0 to 1; never falls."""
    reference_nats: float | None = None
    """Held-out loss that a rise is measured from; None before the first validation."""


def next_share(state: ShareState, held_out_nats: float, config: OnPolicyConfig) -> ShareState:
    """The state after a validation (jongwooko/distillm@17c0f98 finetune.py, `adaptive_threshold`).

    The first call, which comes before the first step, only stores the loss. As in the released code the stored loss
    changes only where the share rises: a loss that falls first must climb back over where it started.
    """
    if state.reference_nats is None:
        return ShareState(probability=state.probability, reference_nats=held_out_nats)
    if held_out_nats < state.reference_nats + config.tolerance_nats:
        return state
    return ShareState(probability=min(1.0, state.probability + config.rise), reference_nats=held_out_nats)


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A prompt and the student's response to it."""

    ids: tuple[int, ...]
    """All token ids, the response's end token included where it came to one."""
    prompt_tokens: int
    """How many of them are the prompt."""


def prompts_of(real: VarlenBatch, config: OnPolicyConfig) -> list[list[int]]:
    """The prompt of each document that has one and a token after it."""
    prompts: list[list[int]] = []
    for part in _documents(real):
        ids, weights = real.tokens_M[part].tolist(), real.weights_M[part].tolist()
        # weights[i] is that of predicting token i + 1.
        first = next((place for place, weight in enumerate(weights) if weight > 0), len(ids))
        length = first + 1 if first > 0 else round(len(ids) * config.prompt_share)
        if 0 < length < len(ids):
            prompts.append(ids[:length])
    return prompts


def _documents(real: VarlenBatch) -> Iterator[slice]:
    start = 0
    for length in real.lengths:
        yield slice(start, start + length)
        start += length


def pack_rollouts(written: Sequence[Written]) -> VarlenBatch:
    """Documents ready for a training step: every token of a response counts, none of a prompt."""
    tokens: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for document in written:
        ids = document.ids
        tokens += ids
        positions += range(len(ids))
        targets += [*ids[1:], 0]
        weights += [float(place + 1 >= document.prompt_tokens) for place in range(len(ids) - 1)] + [0.0]
    return VarlenBatch(
        tokens_M=torch.tensor(tokens),
        positions_M=torch.tensor(positions),
        targets_M=torch.tensor(targets),
        weights_M=torch.tensor(weights, dtype=torch.float32),
        lengths=tuple(len(document.ids) for document in written),
    )


class OnPolicy:
    """Replaces batches by the student's own responses; remembers them in the replay buffer."""

    def __init__(
        self, config: OnPolicyConfig, model: "PreTrainedModel", tokenizer: Tokenizer, machine: Machine, *, seed: int
    ) -> None:
        self._config, self._model, self._tokenizer, self._machine = config, model, tokenizer, machine
        self._seed = seed
        self._buffer: list[Written] = []
        self._share = ShareState(probability=config.probability)

    @property
    def adapts(self) -> bool:
        """Whether the share follows the held-out loss: then it wants to know the loss before the first step too."""
        return self._config.schedule == "adaptive"

    def validated(self, held_out_nats: float) -> None:
        """A held-out loss for the schedule of the share; one that is fixed stays as it is."""
        if self.adapts:
            self._share = next_share(self._share, held_out_nats, self._config)

    def shown(self) -> dict[str, float]:
        """The share in use, for the log, where it is not the same throughout."""
        return {"on_policy_share": self._share.probability} if self.adapts else {}

    def saved(self) -> dict[str, Any]:
        """The replay buffer and the share, as JSON."""
        replay = [[document.prompt_tokens, *document.ids] for document in self._buffer]
        return {"replay": replay, "on_policy_share": asdict(self._share)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """The inverse of `saved`."""
        self._buffer = [Written(ids=tuple(ids), prompt_tokens=prompt_tokens) for prompt_tokens, *ids in saved["replay"]]
        self._share = ShareState(**saved["on_policy_share"])

    def mixed(self, real: VarlenBatch, *, step: int, steps: int, index: int, rank: int) -> VarlenBatch:
        """The batch, or the student's responses instead.

        Args:
            real: the micro-batch as the corpus has it.
            step, index, rank: which micro-batch of the run it is; with the seed they decide everything random.
            steps: optimizer steps of the whole run.
        """
        random = np.random.Generator(np.random.Philox(seed=[self._seed, step, index, rank]))
        own, old = random.random(2)
        prompts = prompts_of(real, self._config)
        if own >= self._share.probability or not prompts:
            return real
        if self._replays(old, len(prompts), done=(step + 1) / steps):
            chosen = random.choice(len(self._buffer), size=min(len(prompts), len(self._buffer)), replace=False)
            return pack_rollouts([self._buffer[place] for place in chosen])
        written = self._write(prompts, seed=int(random.integers(2**31)))
        self._buffer = [*self._buffer, *written][-self._config.buffer_documents :]
        return pack_rollouts(written)

    def _replays(self, drawn: float, wanted_documents: int, *, done: float) -> bool:
        """Whether a batch comes from the buffer, by a number drawn from 0 to 1 and the share of the run that is done.

        An adaptive share writes anew until the buffer is full, with a chance of 1 - n/N in step n of N after that. A
        buffer smaller than a batch replays all that it holds.
        """
        config = self._config
        replay, full = (done, config.buffer_documents) if self.adapts else (config.replay, wanted_documents)
        return drawn < replay and len(self._buffer) >= min(max(full, wanted_documents), config.buffer_documents)

    @torch.no_grad()
    def _write(self, prompts: Sequence[Sequence[int]], *, seed: int) -> list[Written]:
        """The student's responses, all prompts in one batch, padded on the left."""
        device, width = self._machine.torch_device, max(map(len, prompts))
        ids_BT = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask_BT = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        room = int(self._model.config.max_position_embeddings) - width
        training = self._model.training
        self._model.eval()
        try:
            # Sampling draws from torch's global generator: its state is put back (not on MPS), so nothing else moves.
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), self._machine.autocast():
                torch.manual_seed(seed)
                generated_BT: Any = self._generate(ids_BT, mask_BT, min(self._config.max_new_tokens, room))
        finally:
            self._model.train(training)
        return [
            Written(ids=(*prompt, *self._until_end(answer)), prompt_tokens=len(prompt))
            for prompt, answer in zip(prompts, generated_BT[:, width:].tolist(), strict=True)
        ]

    def _generate(self, ids_BT: Tensor, mask_BT: Tensor, max_new_tokens: int) -> Tensor:
        from transformers import GenerationConfig

        sampling = (
            {"do_sample": False}
            if self._config.temperature == 0.0
            else {"do_sample": True, "temperature": self._config.temperature, "top_k": 0, "top_p": 1.0}
        )
        rows = int(self._model.config.vocab_size)
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=list(self._tokenizer.stop_ids),
            pad_token_id=self._tokenizer.document_end_id,
            # Rows of the head that are no token.
            suppress_tokens=list(range(self._tokenizer.size, rows)) or None,
            use_cache=True,
            **sampling,
        )
        model: Any = self._model
        # What settings leave open, transformers takes from the model's own file: a penalty there would not be greedy.
        usual, model.generation_config = model.generation_config, GenerationConfig()
        try:
            return model.generate(ids_BT, attention_mask=mask_BT, generation_config=settings)
        finally:
            model.generation_config = usual

    def _until_end(self, answer: Sequence[int]) -> list[int]:
        """A response up to and with its end token; what follows is padding."""
        for place, token in enumerate(answer):
            if token in self._tokenizer.stop_ids:
                return list(answer[: place + 1])
        return list(answer)
