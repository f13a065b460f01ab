"""The benchmarks at toy sizes: what they print, and that both sides compute the same."""

import argparse
import contextlib
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tiny import texts, tokenizer_folder

from bench import step
from bench.__main__ import main
from bench.measure import medians, peak_above
from common.cli import run
from common.device import MatmulProbe

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def ordinary_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting of the whole process, which later tests would keep."""
    monkeypatch.setattr("bench.__main__.retain_freed_memory", lambda: None)


def result(*arguments: str) -> dict[str, Any]:
    """The figures of a benchmark in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(list(arguments))
    return json.loads(printed.getvalue().splitlines()[-1])


def result_alone(*arguments: str) -> dict[str, Any]:
    """The figures of a benchmark in a process of its own, whose peak of memory is its own too."""
    finished = subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


LOSS = ("loss", "--tokens", "96", "--hidden", "24", "--teacher-hidden", "40", "--vocabulary", "3000", "--rounds", "1")


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.03)])
def test_loss_prints_its_figures_and_its_gradients_agree(precision: str, tolerance: float) -> None:
    figures = result(*LOSS, "--precision", precision, "--chunk-tokens", "32")
    assert figures["precision"] == precision and figures["tokens"] == 96
    assert 0 < figures["max_gradient_difference"] < tolerance
    assert figures["fused_over_matmul"] == pytest.approx(figures["fused_s"] / figures["matmul_s"])
    assert figures["dense_over_fused"] == pytest.approx(figures["dense_s"] / figures["fused_s"])
    assert {"fused_extra_bytes", "dense_extra_bytes"} <= set(figures)


def test_memory_follows_the_chunk_and_not_the_tokens() -> None:
    """At sizes where logits outweigh what a process needs anyway: 8 MB a chunk, 192 MB for all tokens at once."""
    sizes = ("--hidden", "8", "--teacher-hidden", "8", "--vocabulary", "32000", "--chunk-tokens", "64", "--rounds", "1")
    few, many = (result_alone("loss", *sizes, "--tokens", tokens) for tokens in ("192", "1536"))
    if few["fused_extra_bytes"] is None:
        pytest.skip("this system does not tell a process its peak")
    assert many["fused_extra_bytes"] <= many["dense_extra_bytes"] / 4
    # The dense side grows by the logits of the further tokens. A tenth of that is more than an allocator's moods, which
    # are tens of megabytes, and far less than one copy of the logits would be.
    growth = many["dense_extra_bytes"] - few["dense_extra_bytes"]
    assert many["fused_extra_bytes"] - few["fused_extra_bytes"] <= 0.1 * growth


def test_loss_without_the_dense_side_says_so() -> None:
    figures = result(*LOSS, "--no-dense")
    absent = ("dense_s", "dense_over_fused", "dense_extra_bytes", "max_gradient_difference")
    assert all(figures[name] is None for name in absent) and figures["dense_reason"]


def test_step_takes_real_documents_and_both_sides_have_the_same_loss(tmp_path: Path) -> None:
    tokenizer = tokenizer_folder(tmp_path)
    with gzip.open(tmp_path / "text.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text * (1 + i)}) + "\n" for i, text in enumerate(texts(5)))
    given = ("--text", str(tmp_path / "text.jsonl.gz"), "--tokenizer", str(tokenizer), "--max-tokens", "64")
    figures = result("step", "--tiny", *given, "--documents", "3", "--rounds", "1")
    assert figures["loss"] == pytest.approx(figures["reference_loss"], rel=1e-5)
    assert 0.3 < figures["reference_real_share"] < 1.0
    assert figures["speedup"] == pytest.approx(figures["real_tok_per_s"] / figures["reference_real_tok_per_s"])
    assert 0 < figures["matmul_share"] < 1


def test_each_step_is_held_against_the_products_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine slows down from round to round: medians taken apart would pair a step with another round's rate."""
    flops = 2 * 2048**3 * step.TINY_MATMULS
    around = [1.0 * flops, 2.0 * flops, 4.0 * flops]
    seconds = {"probe before": around, "ours": [2.0, 8.0, 8.0], "probe after": around, "plain": [1.0, 16.0, 32.0]}
    monkeypatch.setattr(step, "turns", lambda sides, **_: {name: seconds[name] for name in sides})
    monkeypatch.setattr(step, "step_flops", lambda *_, passes, **__: 2.0 if passes == 1 else 4.0)
    parser = argparse.ArgumentParser()
    step.add_verb(parser.add_subparsers())
    figures = step.bench_step(parser.parse_args(["step", "--tiny", "--vocabulary", "99", "--max-tokens", "9"]))
    assert figures["product_flop_per_s"] == pytest.approx(0.5)
    assert figures["matmul_share"] == pytest.approx(3.0)  # of 3, 1.5 and 3
    assert figures["speedup"] == pytest.approx(2.0)


def test_embedded_lengths_have_the_share_that_is_promised() -> None:
    figures = result("step", "--tiny", "--vocabulary", "500", "--max-tokens", "100", "--rounds", "1")
    assert figures["reference_real_share"] == pytest.approx(0.65, abs=0.005)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("loss", "--tokens", "0"), "--tokens of at least 1"),
        (("loss", "--chunk-tokens", "0"), "--chunk-tokens of at least 1"),
        (("step", "--text", "x.jsonl"), "--text and --tokenizer together"),
        (("step", "--tiny", "--rounds", "0"), "--rounds of at least 1"),
    ],
)
def test_bad_sizes_are_one_line(
    arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        run(main)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and said in printed and printed.count("\n") == 1


def test_a_probe_computes_the_products_that_it_counts() -> None:
    probe = MatmulProbe(torch.float32, torch.device("cpu"), side=5, times=3)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 5, generator=generator) for _ in range(2))
    assert torch.allclose(probe().double(), a.double() @ b.double(), atol=1e-5)
    # A multiplication and an addition for each of 5 terms of each of 25 entries, three times over.
    assert probe.flops == 3 * 25 * 5 * 2


def test_measuring_is_in_turns_and_memory_is_what_is_added() -> None:
    order: list[str] = []
    seconds = medians(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, device=torch.device("cpu")
    )
    assert order == ["a", "b"] * 3 and set(seconds) == {"a", "b"}
    kept = torch.ones(2**20)
    added = peak_above(lambda: torch.ones(2**26).add_(1.0), torch.device("cpu"))
    assert added is None or 2**28 - 2**22 <= added < 2**28 + 2**25
    assert kept[0] == 1.0


def test_corpus_tells_speed_and_memory(tmp_path: Path) -> None:
    text = "".join(f"{place}番目の町には川が流れていて、春になると花が咲きます。" for place in range(1200))
    pieces = [text[start : start + 900] for start in range(0, len(text), 900)]
    rows = "".join(json.dumps({"text": piece}, ensure_ascii=False) + "\n" for piece in pieces)
    (tmp_path / "text.jsonl").write_text(rows, encoding="utf-8")
    sizes = ("--small", "1", "--large", "2", "--rounds", "1")
    figures = result("corpus", "--text", str(tmp_path / "text.jsonl"), *sizes)
    assert figures["text_bytes"] == len(rows.encode())
    assert figures["megabytes_per_s"] > 0 and figures["megabytes_per_s_near"] > 0
    for side in ("extra_bytes", "extra_bytes_near"):
        assert set(figures[side]) == {"1 MB", "2 MB"} and all(size > 0 for size in figures[side].values())
