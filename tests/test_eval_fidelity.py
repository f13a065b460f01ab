"""Fidelity against closed forms on made-up distributions, and of a real GGUF file to its checkpoint."""

import itertools
import json
import math
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import eval_tiny
import numpy as np
import pytest
from errors_tiny import refuses
from eval_tiny import KnowItAll

from eval import fidelity as module
from eval.__main__ import main
from eval.fidelity import fidelity
from eval.runtimes.protocol import LogProbs


class Table:
    """A runtime over UTF-8 bytes whose next-token distribution depends on the last byte alone."""

    document_end_id = 0

    def __init__(self, seed: int, *, vocabulary: int = 256, chunk: int = 5, context_tokens: int = 64) -> None:
        self.vocabulary, self.context_tokens, self.chunk = vocabulary, context_tokens, chunk
        logits = np.random.default_rng(seed).normal(size=(256, vocabulary)) * 2
        self.logits = logits.astype(np.float32)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return bytes(ids).decode(errors="replace")

    def logprobs(self, ids: Sequence[int]) -> Iterator[LogProbs]:
        assert len(ids) <= self.context_tokens
        rows = self.logits[list(ids)]
        rows = rows - np.log(np.exp(rows).sum(1, keepdims=True))
        for start in range(0, len(ids), self.chunk):
            yield rows[start : start + self.chunk]


def softmax(logits: np.ndarray) -> np.ndarray:
    exact = np.exp(logits.astype(np.float64))
    return exact / exact.sum(-1, keepdims=True)


TEXTS = ["ab\u3042\u3044c", "x", "hello world"]


def expected(artifact: Table, reference: Table, texts: Sequence[str], vocabulary: int) -> dict[str, float]:
    kl, agree, nats, tokens, characters = 0.0, 0, 0.0, 0, 0
    for text in texts:
        ids = list(text.encode())
        for before, after in itertools.pairwise(ids):
            p, q = (softmax(table.logits[before, :vocabulary]) for table in (reference, artifact))
            kl += float((p * np.log(p / q)).sum())
            agree += int(p.argmax() == q.argmax())
            nats -= math.log(q[after])
            tokens += 1
        characters += len(text) - 1
    return {
        "kl": kl / tokens,
        "top1_agreement": agree / tokens,
        "bits_per_character": nats / math.log(2) / characters,
        "tokens": tokens,
    }


def test_sums_are_the_closed_forms_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, reference = Table(1, chunk=3), Table(2, chunk=7)
    artifact.logits[:40] = reference.logits[:40]  # spaces agree
    found = fidelity(artifact, reference, TEXTS)  # type: ignore[arg-type]
    for name, value in expected(artifact, reference, TEXTS, 256).items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    assert 0 < found["top1_agreement"] < 1
    assert found["texts"] == 3 and found["tokenization_mismatches"] == 0
    itself = fidelity(reference, reference, TEXTS)  # type: ignore[arg-type]
    assert itself["kl"] == 0 and itself["top1_agreement"] == 1
    # The chunks differ, and with them the order in which the terms are added.
    assert itself["bits_per_character"] == itself["reference_bits_per_character"]
    assert itself["bits_per_character"] == pytest.approx(found["reference_bits_per_character"], rel=1e-12)


def test_the_larger_vocabulary_is_cropped_and_renormalised() -> None:
    artifact, reference = Table(1, vocabulary=300), Table(2)
    found = fidelity(artifact, reference, TEXTS)  # type: ignore[arg-type]
    for name, value in expected(artifact, reference, TEXTS, 256).items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_long_texts_come_in_windows_and_the_limit_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_TOKENS", 10)
    artifact, reference = Table(1), Table(2)
    text = "a" * 25
    assert fidelity(artifact, reference, [text])["tokens"] == 9 + 9 + 4  # type: ignore[arg-type]
    limited = fidelity(artifact, reference, [text, text], limit_tokens=13)  # type: ignore[arg-type]
    assert limited["tokens"] == 13 and limited["texts"] == 1
    small = Table(1, context_tokens=8)
    assert fidelity(small, reference, [text])["tokens"] == 7 + 7 + 7  # type: ignore[arg-type]


def test_different_ids_are_counted_and_named() -> None:
    class Other(Table):
        def encode(self, text: str) -> list[int]:
            return [*text.encode()[:2], 32, *text.encode()[2:]] if "z" not in text else list(text.encode())

    with refuses("mismatch", got="3 of 4 texts; first at token 2 of 'abc': [32, 99], not [99]"):
        fidelity(Other(1), Table(2), ["abc", "hello", "xyz", "word"])  # type: ignore[arg-type]
    with refuses("empty", got="2 texts"):
        fidelity(Table(1), Table(2), ["a", "b"])  # type: ignore[arg-type]


def test_the_command_compares_a_gguf_with_its_checkpoint_and_names_what_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = eval_tiny.write_checkpoint(tmp_path / "checkpoint")
    good = eval_tiny.write_gguf(checkpoint, tmp_path / "tiny-F16.gguf")
    other = eval_tiny.write_gguf(eval_tiny.write_checkpoint(tmp_path / "other", seed=1), tmp_path / "other-F16.gguf")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(good.read_bytes()[:5000])
    text, out = tmp_path / "held_out.jsonl", tmp_path / "fidelity.json"
    text.write_text("".join(json.dumps({"text": row}) + "\n" for row in eval_tiny.sentences(6)), encoding="utf-8")
    command = ["fidelity", str(bad), str(good), str(other), "--reference", str(checkpoint), "--text", str(text)]
    with refuses("wrong-format", got="bad.gguf"):
        main([*command, "--limit-tokens", "200", "--out", str(out)])
    failed, same, different = json.loads(out.read_text(encoding="utf-8"))
    assert failed["kl"] is None and "bad.gguf" in failed["reason"]
    assert same["kl"] < 1e-4 and same["top1_agreement"] > 0.97 and same["tokens"] == 200
    assert same["bits_per_character"] == pytest.approx(same["reference_bits_per_character"], rel=0.01)
    assert different["kl"] > 0.5
    assert (same["artifact"], same["reference"], same["kv"]) == ("tiny-F16.gguf", "checkpoint", "f32")
    assert "tiny-F16.gguf: KL" in capsys.readouterr().out


def test_a_text_that_nfc_changes_is_left_out_and_counted() -> None:
    """llama.cpp applies no NFC: such a text is another one there. Any other difference is a fault of the export."""

    class Composing(KnowItAll):
        def encode(self, text: str) -> list[int]:
            return super().encode(unicodedata.normalize("NFC", text))

    plain, composing = KnowItAll(lambda prompt: None), Composing(lambda prompt: None)
    decomposed = unicodedata.normalize("NFD", "が")
    encoded, changed = module._encode_alike(plain, composing, ["春の町", decomposed])
    assert (len(encoded), changed) == (1, 1)

    class Broken(KnowItAll):
        def encode(self, text: str) -> list[int]:
            return super().encode(text)[::-1]

    with refuses("mismatch", got="1 of 2 texts"):
        module._encode_alike(Broken(lambda prompt: None), composing, ["春の町", decomposed])
