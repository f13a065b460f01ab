"""llama.cpp inside the child process of `eval.runtimes.llama_process`: numbers and text of a loaded file, quantising.

Sequences are computed next to each other, each in its own part of the KV cache, so that a wave of items costs one pass
over the weights. Text is the business of `eval.runtimes.llama_text`, the layout of waves that of `protocol`.

Legend: N positions with logits, V vocabulary.
"""

import codecs
import contextlib
import ctypes
import os
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from types import GeneratorType
from typing import Any

import llama_cpp
import numpy as np

from eval.runtimes.llama_text import FileText, LlamaError
from eval.runtimes.protocol import (
    Generation,
    LogProbs,
    Pair,
    Position,
    Step,
    by_budget,
    by_context,
    extend,
    score_waves,
    shared_prefix,
)

KV_TYPES = {"f16": 1, "f32": 0}  # ggml's numbers of these types
BATCH_TOKENS = 512
MAX_SEQUENCES = 32
CACHE_TOKENS = 16_384  # of all sequences of a wave: 448 MiB at the release's 28 KiB a token
LOGIT_ROWS = 256  # read at once: 155 MB with the release's vocabulary
# Below this, threads wait for one another longer than they compute, and on a busy machine 20 times as long.
SMALL_MODEL_BYTES = 64 * 2**20
_FLASH_ATTENTION_OFF = 0
_PARENT_S = 0.5  # between two looks whether the parent lives


def default_threads() -> int:
    """Cores that this process may use, or what OMP_NUM_THREADS says, as for torch."""
    if (asked := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quantize(source: str, target: str, file_type: int, threads: int) -> None:
    """Writes the GGUF file `target` from the F16 file `source`; `file_type` is a number of `gguf.LlamaFileType`."""
    _log_to_stderr()
    parameters: Any = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, threads
    given: Any = ctypes.byref(parameters)
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), given) != 0:
        raise LlamaError("failed", "llama.cpp refuses to quantise into it")


class Engine(FileText):
    """One loaded file, arguments as in `LlamaCppRuntime`; LlamaError if llama.cpp refuses it."""

    def __init__(self, path: str, *, kv: str, threads: int | None = None, repack: bool = True) -> None:
        _log_to_stderr()
        llama_cpp.llama_backend_init()
        parameters: Any = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers, parameters.use_extra_bufts = 0, repack
        model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if model is None:
            raise LlamaError("wrong-format", "llama.cpp refuses to load it")
        super().__init__(model)
        fitting = 1 if llama_cpp.llama_model_size(model) < SMALL_MODEL_BYTES else default_threads()
        self._kv, self._threads = KV_TYPES[kv], threads or fitting
        self._context: Any = None
        self._shape = (0, 0)
        self._cached: list[int] = []  # ids of sequence 0 that `stream` has computed
        self._batch: Any = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)

    def logprobs_chunk(self, ids: Sequence[int], start: int, total: int) -> LogProbs:
        """Log-softmax float32 [N, V] after each of `ids`, which are at positions `start`.. of a text of `total`."""
        if start == 0:
            self._prepare(total, 1)
        rows_NV = self._decode([Position(token, start + i, 0, True) for i, token in enumerate(ids)])
        return rows_NV - _log_sum_exp(rows_NV)[:, None].astype(np.float32)

    def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """See `Runtime.score`."""
        if not pairs:
            return []
        results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        # A context with more continuations than sequences is computed again for the rest of them.
        groups = by_context(pairs, most=MAX_SEQUENCES)
        longest = max(len(context) + len(continuation) for context, continuation in pairs)
        sequences = self._prepare(longest, max(map(len, groups)))
        for wave in score_waves(pairs, groups, sequences=sequences, logit_rows=LOGIT_ROWS):
            memory = self._clear()
            self._add_scores(wave.contexts, results)
            for source, target in wave.copies:
                llama_cpp.llama_memory_seq_cp(memory, source, target, -1, -1)
            for step in wave.continuations:
                self._add_scores(step, results)
        return results

    def _add_scores(self, step: Step, results: list[tuple[float, bool]]) -> None:
        logits_NV = self._decode(step.positions)
        total_N, best_N = _log_sum_exp(logits_NV), logits_NV.argmax(1)
        for target in step.targets:
            (score, greedy), row = results[target.pair], target.position
            score += float(logits_NV[row, target.token] - total_N[row])
            results[target.pair] = (score, greedy and int(best_N[row]) == target.token)

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[str]) -> list[Generation]:
        """See `Runtime.generate`."""
        if not prompts:
            return []
        lengths = list(map(len, prompts))
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
        complete = partial(extend, decode=self.decode, max_tokens=max_tokens, stop=stop)
        positions = [
            Position(token, i, sequence_of[index], i == len(prompt) - 1)
            for index, prompt in prompts.items()
            for i, token in enumerate(prompt)
        ]
        while active := [index for index in prompts if index not in done]:
            best = self._decode(positions).argmax(1).tolist()
            positions = []
            for index, token in zip(active, best, strict=True):
                if finished := complete(answers[index], token, ends=self.is_end(token)):
                    done[index] = finished
                else:
                    place = len(prompts[index]) + len(answers[index]) - 1
                    positions.append(Position(token, place, sequence_of[index], True))
        return done

    def stream(self, prompt: Sequence[int], max_tokens: int, temperature: float, *, room_tokens: int) -> Iterator[str]:
        """See `LlamaCppRuntime.stream`; the cache has room for `room_tokens`."""
        if room_tokens > self._shape[0]:
            self._prepare(room_tokens, 1)
        same = shared_prefix(self._cached, prompt[:-1])
        memory: Any = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_seq_rm(memory, 0, same, -1)
        del self._cached[same:]
        sampler, text = _sampler(temperature), codecs.getincrementaldecoder("utf-8")(errors="replace")
        new = list(prompt[same:])
        try:
            for _ in range(max_tokens):
                place, last = len(self._cached), len(new) - 1
                self._decode([Position(token, place + i, 0, i == last) for i, token in enumerate(new)])
                self._cached += new
                new = [llama_cpp.llama_sampler_sample(sampler, self._context, -1)]
                if self.is_end(new[0]):
                    break
                if piece := text.decode(self.piece(new[0])):
                    yield piece
            if rest := text.decode(b"", final=True):
                yield rest
        finally:
            llama_cpp.llama_sampler_free(sampler)

    def _prepare(self, tokens: int, sequences: int) -> int:
        """A context with room for sequences of `tokens`; returns how many of them it holds."""
        tokens = _rounded(tokens)
        sequences = max(sequences, min(MAX_SEQUENCES, CACHE_TOKENS // tokens)) if sequences > 1 else 1
        if tokens > self._shape[0] or sequences > self._shape[1]:
            if self._context is not None:
                llama_cpp.llama_free(self._context)
            self._context, self._shape = None, (0, 0)  # also after a refusal below
            parameters = llama_cpp.llama_context_default_params()
            parameters.n_ctx, parameters.n_seq_max = tokens * sequences, sequences
            parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
            parameters.n_threads = parameters.n_threads_batch = self._threads
            parameters.flash_attn_type = _FLASH_ATTENTION_OFF
            parameters.type_k = parameters.type_v = self._kv
            parameters.kv_unified = False
            self._context = llama_cpp.llama_init_from_model(self._model, parameters)
            if self._context is None:
                raise LlamaError("no-memory", "llama.cpp finds no memory for its context")
            self._shape = (tokens, sequences)
        self._clear()
        return self._shape[1]

    def _clear(self) -> Any:
        self._cached = []
        memory: Any = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_clear(memory, False)
        return memory

    def _decode(self, positions: Sequence[Position]) -> LogProbs:
        """Computes the positions in order; float32 logits [N, V] of those that want them."""
        found: list[LogProbs] = []
        for start in range(0, len(positions), BATCH_TOKENS):
            part = positions[start : start + BATCH_TOKENS]
            if code := llama_cpp.llama_decode(self._context, self._filled(part)):
                raise LlamaError("failed", f"llama_decode fails with code {code}")
            if count := sum(position.wants_logits for position in part):
                logits = llama_cpp.llama_get_logits(self._context)
                found.append(np.ctypeslib.as_array(logits, (count, self.vocabulary)).copy())
        rows_NV = np.concatenate(found)
        if np.isnan(rows_NV).any():
            raise LlamaError("not-finite", "its logits are not numbers")
        return rows_NV

    def _filled(self, positions: Sequence[Position]) -> Any:
        """The llama_batch of these positions, which is filled again and again."""
        batch = self._batch
        tokens, places, sequences, wanted = batch.token, batch.pos, batch.seq_id, batch.logits
        for i, position in enumerate(positions):
            tokens[i], places[i], wanted[i] = position.token, position.pos, position.wants_logits
            batch.n_seq_id[i], sequences[i][0] = 1, position.sequence
        batch.n_tokens = len(positions)
        return batch


def _sampler(temperature: float) -> Any:
    """A chain as llama-cpp-python's: greedy at 0, else the 40 likeliest, top-p 0.95, min-p 0.05, temperature."""
    chain: Any = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    add = partial(llama_cpp.llama_sampler_chain_add, chain)
    if temperature == 0:
        add(llama_cpp.llama_sampler_init_greedy())
        return chain
    add(llama_cpp.llama_sampler_init_top_k(40))
    add(llama_cpp.llama_sampler_init_top_p(0.95, 1))
    add(llama_cpp.llama_sampler_init_min_p(0.05, 1))
    add(llama_cpp.llama_sampler_init_temp(temperature))
    add(llama_cpp.llama_sampler_init_dist(llama_cpp.LLAMA_DEFAULT_SEED))
    return chain


def _log_to_stderr() -> None:
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))  # what a null callback does


def _rounded(tokens: int) -> int:
    """Tokens of a sequence's cache, in llama.cpp's steps."""
    return -(-tokens // 256) * 256


def _log_sum_exp(rows_NV: LogProbs) -> Any:
    """log sum exp of each row, accumulated in float64."""
    top_N = rows_NV.max(1)
    return top_N + np.log(np.exp(rows_NV - top_N[:, None]).sum(1, dtype=np.float64))


def serve(socket: int, parent: int) -> None:
    """The child: answers calls until the socket, a file descriptor, closes, or the process `parent` is gone."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    connection = Connection(socket)
    engine: Engine | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            if (request := connection.recv()) is None:  # cancels what has just ended
                continue
            function, arguments, keywords = request
            try:
                if function == "load":
                    engine = Engine(*arguments, **keywords)
                    value = engine.facts()
                else:
                    value = getattr(engine or sys.modules[__name__], function)(*arguments, **keywords)
                if isinstance(value, GeneratorType):
                    value = _send_pieces(connection, value)
            except LlamaError as error:
                connection.send(("error", (error.code, str(error))))
            except Exception:
                connection.send(("defect", traceback.format_exc()))
            else:
                connection.send(("result", value))


def _end_with(parent: int) -> None:
    """End this process, also in the middle of a call of llama.cpp, which lets other threads run."""
    while os.getppid() == parent:
        time.sleep(_PARENT_S)
    os._exit(1)


def _send_pieces(connection: Connection, pieces: Generator[Any]) -> None:
    with contextlib.closing(pieces):
        for piece in pieces:
            connection.send(("piece", piece))
            if connection.poll() and connection.recv() is None:
                return
