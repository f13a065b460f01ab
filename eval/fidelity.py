"""How close an exported file is to the checkpoint that it was made from, on held-out text.

For every position of a text, both give a distribution of the next token: KL(reference || artifact), how often their
most likely tokens agree, and the bits that the artifact spends on the text. Each encodes by its own tokenizer, which
must give the same ids. Sums are float64, the vocabularies are cropped to the smaller one and renormalised.

Legend: C positions of one chunk, V vocabulary.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from common.store import say
from eval.runtimes.protocol import LogProbs, Runtime, shared_prefix

WINDOW_TOKENS = 2048
"""A longer text is measured in windows of this many tokens, each without what came before."""
Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class _Sums:
    """Sums over positions."""

    tokens: int = 0
    characters: int = 0
    kl: float = 0.0
    agreements: int = 0
    artifact_nats: float = 0.0
    reference_nats: float = 0.0


def fidelity(
    artifact: Runtime, reference: Runtime, texts: Sequence[str], *, limit_tokens: int | None = None
) -> dict[str, Any]:
    """Measures one artifact against its reference on held-out texts, of which the ids of all are compared.

    Open llama.cpp with `f32` as the KV type to compare weights rather than caches. `limit_tokens` is the most predicted
    tokens; without it, all of them.

    Returns:
        `kl` in nats per token, `top1_agreement` (0 to 1), `bits_per_character` of the artifact and of the reference,
        `tokens` predicted, in how many `texts`, `tokenization_mismatches`: texts left out because NFC changes them and
        only one of the two applies it.

    Raises:
        UserError: the two encode another text differently, or no text has two tokens.
    """
    window = min(WINDOW_TOKENS, artifact.context_tokens, reference.context_tokens)
    vocabulary = min(artifact.vocabulary, reference.vocabulary)
    sums, num_texts = _Sums(), 0
    encoded, num_changed = _encode_alike(artifact, reference, texts)
    if num_changed:
        lost = f"{num_changed} of {len(texts)} texts are left out"
        say(f"warning: {lost}: NFC changes them, and only the checkpoint's tokenizer applies it")
    for ids in encoded:
        if limit_tokens is not None and sums.tokens >= limit_tokens:
            break
        num_texts += 1
        for start in range(0, len(ids), window):
            part = ids[start : start + window]
            if limit_tokens is not None:
                part = part[: limit_tokens - sums.tokens + 1]
            if len(part) < 2:
                continue
            # The first token of a window is context only; a character counts where its last byte is predicted.
            sums.characters += len(_whole(reference, part)) - len(_whole(reference, part[:1]))
            _add(sums, part, artifact.logprobs(part), reference.logprobs(part), vocabulary)
    if sums.tokens == 0:
        got, next_step = f"{len(texts)} texts", "give longer held-out text"
        raise UserError("empty", wanted="texts of at least two tokens", got=got, next_step=next_step)
    bits = math.log(2) * max(1, sums.characters)
    return {
        "kl": sums.kl / sums.tokens,
        "top1_agreement": sums.agreements / sums.tokens,
        "bits_per_character": sums.artifact_nats / bits,
        "reference_bits_per_character": sums.reference_nats / bits,
        "tokens": sums.tokens,
        "texts": num_texts,
        "tokenization_mismatches": num_changed,
    }


def _encode_alike(artifact: Runtime, reference: Runtime, texts: Sequence[str]) -> tuple[list[list[int]], int]:
    """Ids of the texts that both encode alike, and the number of those that only NFC makes different."""
    encoded: list[list[int]] = []
    different: list[str] = []
    num_changed = 0
    for text in texts:
        ids, expected = artifact.encode(text), reference.encode(text)
        if ids == expected:
            encoded.append(expected)
        elif not unicodedata.is_normalized("NFC", text):
            num_changed += 1
        else:
            place = shared_prefix(ids, expected)
            part = slice(place, place + 3)
            different.append(f"token {place} of {text[:40]!r}: {ids[part]}, not {expected[part]}")
    if different:
        wanted, next_step = "the reference's ids from the artifact", "export it again with its checkpoint's tokenizer"
        got = f"tokenization mismatches in {len(different)} of {len(texts)} texts; first at {different[0]}"
        raise UserError("mismatch", wanted=wanted, got=got, next_step=next_step)
    return encoded, num_changed


def _whole(runtime: Runtime, ids: Sequence[int]) -> str:
    """Text of ids without a character that is still incomplete at the end."""
    return runtime.decode(ids, skip_special=False).rstrip("\N{REPLACEMENT CHARACTER}")


def _add(
    sums: _Sums, ids: Sequence[int], artifact: Iterator[LogProbs], reference: Iterator[LogProbs], vocabulary: int
) -> None:
    """Adds the positions of one window that have a next token."""
    targets = np.asarray(ids[1:])
    done = 0
    for ours_CV, theirs_CV in _aligned(artifact, reference):
        part = targets[done : done + len(ours_CV)]
        done += len(ours_CV)
        if len(part) == 0:
            continue
        log_q_CV = _renormalised(ours_CV[: len(part), :vocabulary])
        log_p_CV = _renormalised(theirs_CV[: len(part), :vocabulary])
        rows = np.arange(len(part))
        sums.tokens += len(part)
        sums.kl += float((np.exp(log_p_CV) * (log_p_CV - log_q_CV)).sum())
        sums.agreements += int((log_q_CV.argmax(1) == log_p_CV.argmax(1)).sum())
        sums.artifact_nats -= float(log_q_CV[rows, part].sum())
        sums.reference_nats -= float(log_p_CV[rows, part].sum())


def _aligned(a: Iterator[LogProbs], b: Iterator[LogProbs]) -> Iterator[tuple[LogProbs, LogProbs]]:
    """Chunks of both with the same positions, whatever the sizes in which they come."""
    left, right = next(a, None), next(b, None)
    while left is not None and right is not None:
        count = min(len(left), len(right))
        yield left[:count], right[:count]
        left = left[count:] if count < len(left) else next(a, None)
        right = right[count:] if count < len(right) else next(b, None)


def _renormalised(rows_CV: LogProbs) -> Floats:
    """Log-probabilities over the columns that are left, float64."""
    exact_CV = rows_CV.astype(np.float64)
    exact_CV -= exact_CV.max(1, keepdims=True)
    return exact_CV - np.log(np.exp(exact_CV).sum(1, keepdims=True))
