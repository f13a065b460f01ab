"""On-policy distillation: some batches of a run hold responses that the student generated itself (rollouts).

The student learns on its own continuations (GKD, arXiv 2306.13649). Rollouts are kept in a replay buffer and used
again, because generating them costs more than learning from them (DistiLLM, arXiv 2402.03898). The share of rollout
batches is fixed, or follows the held-out loss by DistiLLM's rule. The prompt of a document is what comes before its
first supervised token or, where every token is supervised, its first part. Generation is transformers' own, batched,
with the KV cache and outside the autograd graph. Everything random follows from the seed and the step, so that a
resumed run generates and draws the same. Independent of objectives and optimizers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from common.device import Machine
from common.errors import UserError, require_above, require_at_least, require_below, require_between
from common.packing import VarlenBatch
from common.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class OnPolicyConfig:
    """How many batches are rollouts, how long they are, and how many come from the buffer.

    The defaults of probability, max_new_tokens and buffer_documents are those of SakanaAI/TAID@a062892, those of rise
    and tolerance_nats are those of jongwooko/distillm@17c0f98, which starts at a probability of 0.
    """

    probability: float = 0.5
    """Share of the micro-batches that are rollouts; with the adaptive schedule, the share at the start."""
    schedule: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive`: the share rises when the held-out loss does, and replay takes over as the run goes on."""
    rise: float = 0.1
    """What one rise adds to an adaptive share, up to 1."""
    tolerance_nats: float = 0.1
    """An adaptive share rises when the held-out loss is this much above its value at the last rise or at the start."""
    max_new_tokens: int = 512
    """Longest response, tokens."""
    buffer_documents: int = 1000
    """Responses that the replay buffer holds; the oldest is dropped first."""
    replay: float = 0.0
    """Share of the rollout batches that come from the buffer, once it holds enough for one. The adaptive schedule
    ignores it (it stays 0): once the buffer is full, the share is that of the run's steps that are done."""
    temperature: float = 0.0
    """Of the sampling; 0 takes the likeliest token, as the released code does."""
    prompt_share: float = 0.5
    """Share of a document that is its prompt, where every token is supervised."""

    def __post_init__(self) -> None:
        require_between(0, 1, probability=self.probability, replay=self.replay, rise=self.rise)
        require_above(0, rise=self.rise, prompt_share=self.prompt_share)
        require_below(1, prompt_share=self.prompt_share)
        require_at_least(1, max_new_tokens=self.max_new_tokens, buffer_documents=self.buffer_documents)
        require_at_least(0, temperature=self.temperature, tolerance_nats=self.tolerance_nats)
        if self.schedule == "adaptive" and self.replay != 0.0:
            raise UserError(
                "contradiction",
                wanted="replay 0 with the adaptive schedule, which sets its own",
                got=f"replay {self.replay:g}",
                next_step="leave replay out, or keep the fixed schedule",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareState:
    """What the adaptive schedule remembers between validations."""

    probability: float
    """Share of the micro-batches in use, 0 to 1; never falls."""
    reference_nats: float | None = None
    """Held-out loss that a rise is measured from; None before the first validation."""


def next_share(state: ShareState, held_out_nats: float, config: OnPolicyConfig) -> ShareState:
    """The state after a validation (jongwooko/distillm@17c0f98 finetune.py, `adaptive_threshold`).

    The first call, before the first step, only stores the loss. As in the released code the stored loss changes only
    when the share rises: a loss that falls first must climb back above its start.
    """
    if state.reference_nats is None:
        return ShareState(probability=state.probability, reference_nats=held_out_nats)
    if held_out_nats < state.reference_nats + config.tolerance_nats:
        return state
    return ShareState(probability=min(1.0, state.probability + config.rise), reference_nats=held_out_nats)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """A prompt and the student's response to it."""

    ids: tuple[int, ...]
    """All token ids; the response ends with an end token or at its longest length."""
    prompt_tokens: int
    """Number of ids that are the prompt."""


def prompts_of(real: VarlenBatch, config: OnPolicyConfig) -> list[list[int]]:
    """The prompt of each document that has one and a token after it."""
    prompts: list[list[int]] = []
    ends = list(accumulate(real.lengths))
    for part in map(slice, [0, *ends], ends):
        ids, weights = real.tokens_M[part].tolist(), real.weights_M[part].tolist()
        # weights[i] is that of predicting token i + 1.
        first = next((index for index, weight in enumerate(weights) if weight > 0), len(ids))
        length = first + 1 if first > 0 else round(len(ids) * config.prompt_share)
        if 0 < length < len(ids):
            prompts.append(ids[:length])
    return prompts


def pack_rollouts(rollouts: Sequence[Rollout]) -> VarlenBatch:
    """A batch of rollouts: every token of a response is supervised, none of a prompt."""
    weights = [
        [float(index >= one.prompt_tokens) for index in range(1, len(one.ids))] + [0.0]  # of the token that follows
        for one in rollouts
    ]
    return VarlenBatch(
        tokens_M=torch.tensor([token for one in rollouts for token in one.ids]),
        positions_M=torch.tensor([index for one in rollouts for index in range(len(one.ids))]),
        targets_M=torch.tensor([token for one in rollouts for token in (*one.ids[1:], 0)]),
        weights_M=torch.tensor([weight for of_one in weights for weight in of_one], dtype=torch.float32),
        lengths=tuple(len(one.ids) for one in rollouts),
    )


class OnPolicy:
    """Replaces batches by rollouts, and keeps these in the replay buffer."""

    def __init__(
        self, config: OnPolicyConfig, model: "PreTrainedModel", tokenizer: Tokenizer, machine: Machine, *, seed: int
    ) -> None:
        self._config, self._model, self._tokenizer, self._machine = config, model, tokenizer, machine
        self._seed = seed
        self._buffer: list[Rollout] = []
        self._share = ShareState(probability=config.probability)

    @property
    def adapts(self) -> bool:
        """Whether the share follows the held-out loss; then `validated` is called before the first step too."""
        return self._config.schedule == "adaptive"

    def validated(self, held_out_nats: float) -> None:
        """Update an adaptive share from a held-out loss; a fixed one stays."""
        if self.adapts:
            self._share = next_share(self._share, held_out_nats, self._config)

    def metrics(self) -> dict[str, float]:
        """An adaptive share, for the log."""
        return {"on_policy_share": self._share.probability} if self.adapts else {}

    def state(self) -> dict[str, Any]:
        """The replay buffer and the share, as JSON."""
        replay = [[document.prompt_tokens, *document.ids] for document in self._buffer]
        return {"replay": replay, "on_policy_share": asdict(self._share)}

    def load_state(self, saved: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self._buffer = [Rollout(ids=tuple(ids), prompt_tokens=prompt_tokens) for prompt_tokens, *ids in saved["replay"]]
        self._share = ShareState(**saved["on_policy_share"])

    def mix_in_rollouts(self, real: VarlenBatch, *, step: int, steps: int, index: int, rank: int) -> VarlenBatch:
        """The micro-batch of the corpus, or rollouts instead.

        Args:
            real: the micro-batch of the corpus.
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
            return pack_rollouts([self._buffer[index] for index in chosen])
        rollouts = self._generate(prompts, seed=int(random.integers(2**31)))
        self._buffer = [*self._buffer, *rollouts][-self._config.buffer_documents :]
        return pack_rollouts(rollouts)

    def _replays(self, drawn: float, wanted_documents: int, *, done: float) -> bool:
        """Whether a batch comes from the buffer, by a number drawn from [0, 1) and the share of the run that is done.

        The adaptive schedule generates until the buffer is full, and after that with probability 1 - n/N in step n of
        N. A buffer smaller than a batch replays all that it holds.
        """
        config = self._config
        replay, full = (done, config.buffer_documents) if self.adapts else (config.replay, wanted_documents)
        return drawn < replay and len(self._buffer) >= min(max(full, wanted_documents), config.buffer_documents)

    @torch.no_grad()
    def _generate(self, prompts: Sequence[Sequence[int]], *, seed: int) -> list[Rollout]:
        """The student's responses, all prompts in one batch, padded on the left."""
        device, width = self._machine.torch_device, max(map(len, prompts))
        ids_BT = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask_BT = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        room = int(self._model.config.max_position_embeddings) - width
        training = self._model.training
        self._model.eval()
        try:
            # Sampling draws from torch's global generator, whose state is restored (not on MPS).
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), self._machine.autocast():
                torch.manual_seed(seed)
                generated_BT: Any = self._sample(ids_BT, mask_BT, min(self._config.max_new_tokens, room))
        finally:
            self._model.train(training)
        return [
            Rollout(ids=(*prompt, *self._until_end(answer)), prompt_tokens=len(prompt))
            for prompt, answer in zip(prompts, generated_BT[:, width:].tolist(), strict=True)
        ]

    def _sample(self, ids_BT: Tensor, mask_BT: Tensor, max_new_tokens: int) -> Tensor:
        from transformers import GenerationConfig

        sampling = (
            {"do_sample": False}
            if self._config.temperature == 0.0
            else {"do_sample": True, "temperature": self._config.temperature, "top_k": 0, "top_p": 1.0}
        )
        vocab_size = int(self._model.config.vocab_size)
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=list(self._tokenizer.stop_ids),
            pad_token_id=self._tokenizer.document_end_id,
            # Logits that belong to no token.
            suppress_tokens=list(range(self._tokenizer.size, vocab_size)) or None,
            use_cache=True,
            **sampling,
        )
        model: Any = self._model
        # transformers completes settings from the model's own file, whose penalties would change the distribution.
        usual, model.generation_config = model.generation_config, GenerationConfig()
        try:
            return model.generate(ids_BT, attention_mask=mask_BT, generation_config=settings)
        finally:
            model.generation_config = usual

    def _until_end(self, answer: Sequence[int]) -> list[int]:
        """A response up to its end token, which is included; what follows is padding."""
        stop = next((index for index, token in enumerate(answer) if token in self._tokenizer.stop_ids), len(answer))
        return list(answer[: stop + 1])
