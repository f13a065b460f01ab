"""The metrics file after kills and resumes, the bar's silence, and the peak against an allocation of known size."""

import io
import json
import mmap
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.metrics import MetricsLog, peak_bytes, progress, read_metrics, reset_peak


def test_a_resumed_log_is_that_of_an_uninterrupted_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    @given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 40))
    def check(checkpoint: int, more: int, cut: int) -> None:
        straight, killed = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("killed")
        total = checkpoint + more
        run(straight, 0, total)
        run(killed, 0, total)
        # A kill somewhere after the checkpoint: later lines are there, the last of them perhaps cut in half.
        path = killed / "metrics.jsonl"
        length_at_checkpoint = len(b"".join(path.read_bytes().splitlines(keepends=True)[:checkpoint]))
        path.write_bytes(path.read_bytes()[: length_at_checkpoint + cut])
        run(killed, checkpoint, total)
        assert path.read_bytes() == (straight / "metrics.jsonl").read_bytes()

    def run(folder: Path, done: int, total: int) -> None:
        log = MetricsLog(folder, resume_after_step=done)
        for step in range(done + 1, total + 1):
            log.write({"step": step, "loss": 1 / step, "note": "損失"})

    check()


def test_a_fresh_start_drops_what_an_earlier_one_left(tmp_path: Path) -> None:
    MetricsLog(tmp_path).write({"step": 0, "loss": 1.0})
    MetricsLog(tmp_path)
    assert read_metrics(tmp_path) == []


def test_several_records_of_one_step_stay_in_order(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    records = [{"step": 5, "loss": 1.0}, {"step": 5, "validation_loss": 2.0}, {"step": 6, "loss": 0.5}]
    for record in records:
        log.write(record)
    MetricsLog(tmp_path, resume_after_step=5)
    assert read_metrics(tmp_path) == records[:2]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == records[:2]


def test_no_file_reads_as_no_records(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_never_reaches_the_file(tmp_path: Path, loss: float) -> None:
    log = MetricsLog(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        log.write({"step": 1, "loss": loss})
    assert read_metrics(tmp_path) == []


def test_a_record_without_a_step_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="step"):
        MetricsLog(tmp_path).write({"loss": 1.0})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress([1, 2, 3], label="reading", unit="rows")) == [1, 2, 3]
    with progress(100, label="training", unit="tokens") as bar:
        bar.update(60)
        bar.update(40)
    assert ("reading" in stream.getvalue()) == ("training" in stream.getvalue()) == terminal


def test_an_iterable_without_a_length_takes_its_total(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    assert sum(progress(iter(range(4)), label="reading", unit="rows", total=4)) == 6
    assert "/4" in stream.getvalue()


def touched(size: int) -> mmap.mmap:
    """Memory of the system's own, every page of it in use; what other tests' heap keeps does not serve it."""
    block = mmap.mmap(-1, size)
    block[:: mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)
    return block


def test_peak_grows_by_what_is_allocated() -> None:
    reset_peak()
    before = peak_bytes()
    block = touched(64 * 2**20)
    grown = peak_bytes() - before
    assert 48 * 2**20 < grown < 128 * 2**20
    block.close()
    assert peak_bytes() > before + grown - 2**20  # the system counts in batches of pages


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a process lower its own mark")
def test_reset_lowers_the_peak() -> None:
    block = touched(64 * 2**20)
    high = peak_bytes()
    block.close()
    reset_peak()
    assert peak_bytes() < high - 32 * 2**20
