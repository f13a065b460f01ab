"""llama.cpp inside the child process of `eval.runtimes.llama_cpp`: log-probabilities, scores, greedy decoding.

Sequences are computed side by side, each in its own part of the KV cache, so that a wave of items costs one pass over
the weights. Text is `eval.runtimes.llama_text`'s. Errors are plain RuntimeErrors: the parent, which knows the file's
name, turns them into the user's.

Legend: N positions with logits, V vocabulary.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp
import numpy as np

from eval.runtimes import Generation, LogProbs, Pair
from eval.runtimes.batches import by_budget, cut_at_stop, score_rows
from eval.runtimes.llama_text import FileText

KV_TYPES = {"f16": 1, "f32": 0}  # ggml's numbers of these types
BATCH_TOKENS = 512
MAX_SEQUENCES = 32
# Tokens that the KV cache holds for all sequences of a wave: 448 MiB at the release's 28 KiB a token.
CACHE_TOKENS = 16_384
# Logits read at once: 256 rows of the release's vocabulary are 155 MB.
LOGIT_ROWS = 256
# Below this, threads wait for one another longer than they compute, and on a busy machine 20 times as long.
SMALL_MODEL_BYTES = 64 * 2**20
_FLASH_ATTENTION_OFF = 0


class Engine(FileText):
    """One loaded file.

    Args:
        path: the GGUF file.
        kv: type of the KV cache, "f16" or "f32".
        threads: threads to compute with; a small model takes one.

    Raises:
        RuntimeError: llama.cpp refuses the file.
    """

    def __init__(self, path: str, *, kv: str, threads: int) -> None:
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))  # a null callback logs to stderr
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if model is None:
            raise RuntimeError("llama.cpp refuses to load it")
        super().__init__(model)
        small = llama_cpp.llama_model_size(model) < SMALL_MODEL_BYTES
        self._kv, self._threads = KV_TYPES[kv], 1 if small else threads
        self._context: Any = None
        self._shape = (0, 0)
        self._batch = _Batch(BATCH_TOKENS)

    # --- numbers ------------------------------------------------------------------------------------------------------

    def logprobs_chunk(self, ids: Sequence[int], start: int, total: int) -> LogProbs:
        """Log-softmax float32 [N, V] after each of `ids`, which stand at positions `start`.. of a text of `total`."""
        if start == 0:
            self._prepare(total, 1)
        rows_NV = self._decode([(token, start + i, 0, True) for i, token in enumerate(ids)])
        return rows_NV - _log_sum_exp(rows_NV)[:, None].astype(np.float32)

    def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """See `Runtime.score`."""
        results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        rows = score_rows(pairs)
        if not rows:
            return results
        groups: list[tuple[Sequence[int], list[int]]] = []
        for row in rows:
            members = sorted({target.pair for target in row.targets})
            context = pairs[members[0]][0]
            # A context with more continuations than sequences is computed again for the rest of them.
            groups += [(context, members[i : i + MAX_SEQUENCES]) for i in range(0, len(members), MAX_SEQUENCES)]
        sequences = self._prepare(max(row.longest for row in rows), max(len(members) for _, members in groups))
        groups.sort(key=lambda group: -len(group[0]))
        while groups:
            count, used = 0, 0
            while count < len(groups) and used + len(groups[count][1]) <= sequences:
                used += len(groups[count][1])
                count += 1
            self._score_wave(groups[:count], pairs, results)
            groups = groups[count:]
        return results

    def _score_wave(
        self, groups: list[tuple[Sequence[int], list[int]]], pairs: Sequence[Pair], results: list[tuple[float, bool]]
    ) -> None:
        """Contexts once, one for each group; their cache copied to the sequences of the continuations."""
        memory = self._clear()
        contexts: list[tuple[int, int, int, bool]] = []
        rest: list[tuple[int, int, int, bool]] = []
        asked: list[tuple[int, int]] = []
        first: list[list[tuple[int, int]]] = []
        copies: list[tuple[int, int]] = []
        sequence = 0
        for context, members in groups:
            contexts += [(token, i, sequence, i == len(context) - 1) for i, token in enumerate(context)]
            first.append([(pair, pairs[pair][1][0]) for pair in members])
            for offset, pair in enumerate(members):
                continuation = pairs[pair][1]
                if offset > 0 and len(continuation) > 1:
                    copies.append((sequence, sequence + offset))
                for i, token in enumerate(continuation[:-1]):
                    rest.append((token, len(context) + i, sequence + offset, True))
                    asked.append((pair, continuation[i + 1]))
            sequence += len(members)

        def add(row: int, pair: int, token: int, logits_NV: LogProbs, total_N: Any, best_N: Any) -> None:
            score, greedy = results[pair]
            results[pair] = (score + float(logits_NV[row, token] - total_N[row]), greedy and int(best_N[row]) == token)

        logits_NV = self._decode(contexts)
        total_N, best_N = _log_sum_exp(logits_NV), logits_NV.argmax(1)
        for row, members in enumerate(first):
            for pair, token in members:
                add(row, pair, token, logits_NV, total_N, best_N)
        if not rest:
            return
        for source, target in copies:
            llama_cpp.llama_memory_seq_cp(memory, source, target, -1, -1)
        for start in range(0, len(rest), LOGIT_ROWS):
            logits_NV = self._decode(rest[start : start + LOGIT_ROWS])
            total_N, best_N = _log_sum_exp(logits_NV), logits_NV.argmax(1)
            for row, (pair, token) in enumerate(asked[start : start + LOGIT_ROWS]):
                add(row, pair, token, logits_NV, total_N, best_N)

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[str]) -> list[Generation]:
        """See `Runtime.generate`."""
        if not prompts:
            return []
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths) + max_tokens
        together = max(1, min(len(prompts), MAX_SEQUENCES, CACHE_TOKENS // _rounded(longest)))
        sequences = self._prepare(longest, together)
        results: dict[int, Generation] = {}
        for wave in by_budget(lengths, tokens=sequences * max(lengths), rows=sequences):
            results.update(self._generate_wave({index: prompts[index] for index in wave}, max_tokens, stop))
        return [results[index] for index in range(len(prompts))]

    def _generate_wave(
        self, prompts: dict[int, Sequence[int]], max_tokens: int, stop: Sequence[str]
    ) -> dict[int, Generation]:
        self._clear()
        answers: dict[int, list[int]] = {index: [] for index in prompts}
        done: dict[int, Generation] = {}
        sequence_of = {index: sequence for sequence, index in enumerate(prompts)}
        tokens = [
            (token, i, sequence_of[index], i == len(prompt) - 1)
            for index, prompt in prompts.items()
            for i, token in enumerate(prompt)
        ]
        active = list(prompts)
        while active:
            best = self._decode(tokens).argmax(1).tolist()
            tokens = []
            for index, token in zip(active, best, strict=True):
                finished = self._extend(answers[index], token, max_tokens, stop)
                if finished is not None:
                    done[index] = finished
                else:
                    place = len(prompts[index]) + len(answers[index]) - 1
                    tokens.append((token, place, sequence_of[index], True))
            active = [index for index in active if index not in done]
        return done

    def _extend(self, ids: list[int], token: int, max_tokens: int, stop: Sequence[str]) -> Generation | None:
        """Adds one token to an answer; the answer itself when that completes it."""
        if self.is_end(token):
            return Generation(text=self.decode(ids), ids=ids, stopped=True)
        ids.append(token)
        text = self.decode(ids) if stop or len(ids) == max_tokens else ""
        cut = cut_at_stop(text, stop)
        if cut is not None or len(ids) == max_tokens:
            return Generation(text=text if cut is None else cut, ids=ids, stopped=False)
        return None

    # --- llama.cpp ----------------------------------------------------------------------------------------------------

    def _prepare(self, tokens: int, sequences: int) -> int:
        """A context with room for sequences of `tokens`; returns how many of them it holds."""
        tokens = _rounded(tokens)
        sequences = max(sequences, min(MAX_SEQUENCES, CACHE_TOKENS // tokens)) if sequences > 1 else 1
        if tokens > self._shape[0] or sequences > self._shape[1]:
            if self._context is not None:
                llama_cpp.llama_free(self._context)
            parameters = llama_cpp.llama_context_default_params()
            parameters.n_ctx = tokens * sequences
            parameters.n_seq_max = sequences
            parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
            parameters.n_threads = parameters.n_threads_batch = self._threads
            parameters.flash_attn_type = _FLASH_ATTENTION_OFF
            parameters.type_k = parameters.type_v = self._kv
            parameters.kv_unified = False
            self._context = llama_cpp.llama_init_from_model(self._model, parameters)
            if self._context is None:
                raise RuntimeError("llama.cpp finds no memory for its context")
            self._shape = (tokens, sequences)
        self._clear()
        return self._shape[1]

    def _clear(self) -> Any:
        memory: Any = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_clear(memory, False)
        return memory

    def _decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> LogProbs:
        """Computes (id, position, sequence, logits wanted) in order; float32 logits [N, V] of those wanted."""
        found: list[LogProbs] = []
        for start in range(0, len(tokens), BATCH_TOKENS):
            part = tokens[start : start + BATCH_TOKENS]
            code = llama_cpp.llama_decode(self._context, self._batch.fill(part))
            if code != 0:
                raise RuntimeError(f"llama_decode fails with code {code}")
            count = sum(wanted for *_, wanted in part)
            if count:
                logits = llama_cpp.llama_get_logits(self._context)
                found.append(np.ctypeslib.as_array(logits, (count, self.vocabulary)).copy())
        rows_NV = np.concatenate(found)
        if np.isnan(rows_NV).any():
            raise RuntimeError("its logits are not numbers")
        return rows_NV


class _Batch:
    """A llama_batch over numpy arrays, filled again and again."""

    def __init__(self, room: int) -> None:
        self._arrays = np.zeros((4, room), dtype=np.int32)
        self._arrays[2] = 1  # each token belongs to one sequence
        self._wanted = np.zeros(room, dtype=np.int8)
        address = self._arrays[3].ctypes.data
        pointer = ctypes.POINTER(ctypes.c_int32)
        self._sequences = (pointer * room)(*(ctypes.cast(address + 4 * i, pointer) for i in range(room)))
        self._batch: Any = llama_cpp.llama_batch()
        as_pointer: Callable[[int], Any] = lambda row: self._arrays[row].ctypes.data_as(pointer)  # noqa: E731
        self._batch.token, self._batch.pos, self._batch.n_seq_id = as_pointer(0), as_pointer(1), as_pointer(2)
        self._batch.seq_id = ctypes.cast(self._sequences, ctypes.POINTER(pointer))
        self._batch.logits = self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

    def fill(self, tokens: Sequence[tuple[int, int, int, bool]]) -> Any:
        count = len(tokens)
        ids, positions, sequences, wanted = zip(*tokens, strict=True)
        self._arrays[0, :count], self._arrays[1, :count], self._arrays[3, :count] = ids, positions, sequences
        self._wanted[:count] = wanted
        self._batch.n_tokens = count
        return self._batch


def _rounded(tokens: int) -> int:
    """Tokens of a sequence's cache, in llama.cpp's steps."""
    return -(-tokens // 256) * 256


def _log_sum_exp(rows_NV: LogProbs) -> Any:
    """log sum exp of each row, accumulated in float64."""
    top_N = rows_NV.max(1)
    return top_N + np.log(np.exp(rows_NV - top_N[:, None]).sum(1, dtype=np.float64))
