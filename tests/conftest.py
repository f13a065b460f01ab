"""What every test shares: no network, no thread storms, and the markers that skip themselves.

It knows no stage and holds no fixture that only one file needs.
"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Set before any test imports transformers: the suite never asks the hub for anything.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The same numbers on every machine; `make test-bfloat16` runs the training paths in the other precision.
os.environ.setdefault("TINYSWALLOW_PRECISION", "float32")

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from hub_stand_in import Hub

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
LONGEST = ("test_recipes_release.py", "test_recipes_build.py", "test_bench.py", "test_distill_train.py", "test_docs.py")
"""Files of a minute and more. They go first: two processes share the suite, and whatever is last, one does alone."""
QUICK: dict[str, tuple[str, ...]] = {
    "test_common_attention.py": (),
    "test_common_fused_linear_loss.py": (),
    "test_common_gguf_header.py": (),
    "test_common_packing.py": (),
    "test_common_store.py": (),
    "test_common_tokenizer.py": (),
    "test_distill_objectives.py": (),
    "test_distill_taid.py": (),
    "test_distill_text_normalise.py": (),
    "test_distill_train.py": ("test_training_lowers_the_held_out_loss_and_writes_a_loadable_folder",),
    "test_instruct_conversations.py": (),
    "test_instruct_train.py": ("test_replay_keeps_the_text_better",),
    "test_export_card.py": (),
    "test_export_checkpoint.py": (),
    "test_export_gguf.py": ("test_f16_file_gives_the_checkpoints_logits",),
    "test_export_vocabulary.py": (),
    "test_eval_fidelity.py": (),
    "test_eval_items.py": (),
    "test_eval_phones.py": (),
    "test_recipes_main.py": (),
    "test_recipes_plan.py": (),
    "test_recipes_user_files.py": (),
    "test_bench.py": ("test_loss_without_the_dense_side_says_so",),
    "test_studies_run_curves.py": (
        "test_each_loss_stands_under_its_name",
        "test_the_curves_of_a_run_are_what_its_controller_did",
        "test_the_floor_leads_from_where_a_written_out_run_meets_it_last",
    ),
}
"""What `make test-quick` runs: of these files the tests named, or all of them. A minute on two cores."""

# A loaded machine is no failure; the examples are the same in every run.
settings.register_profile("product", deadline=None, derandomize=True)
settings.load_profile("product")


def _cuda_is_here() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m quick` the other files are not even imported."""
    other = collection_path.suffix == ".py" and collection_path.name not in QUICK
    return True if other and config.getoption("markexpr") == "quick" else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, marks the quick tests, and skips `shared_data` and `gpu` tests where their need is
    absent."""
    for item in items:
        names = QUICK.get(item.path.name)
        if names is not None and (not names or getattr(item, "originalname", item.name) in names):
            item.add_marker("quick")
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
    absent: dict[str, str] = {}
    if not SHARED_DATA.is_dir():
        absent["shared_data"] = "needs ../shared/data"
    if any(item.get_closest_marker("gpu") for item in items) and not _cuda_is_here():
        absent["gpu"] = "needs a CUDA device"
    for item in items:
        for marker, reason in absent.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def loopback() -> None:
    """For tests that serve or meet on 127.0.0.1: skips where even this interface is switched off."""
    with socket.socket() as listening, socket.socket() as calling:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        try:
            calling.connect(listening.getsockname())
        except OSError:
            pytest.skip("no loopback interface here")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, loopback: None) -> "Iterator[Hub]":
    """A stand-in for the model hub on loopback, named by HF_ENDPOINT."""
    from hub_stand_in import running

    with running(monkeypatch) as server:
        yield server


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data beside the checkout; use it only in tests marked `shared_data`."""
    return SHARED_DATA
