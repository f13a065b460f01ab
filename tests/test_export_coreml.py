"""The decoder that is traced against transformers, prefill and decode through its state, and the converted package."""

import dataclasses
import hashlib
import importlib.util
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors_tiny import refuses
from export_tiny import SOURCES, reference_logits, token_ids, workspace, write_checkpoint
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from common.errors import Code
from common.provenance import read_sources, write_sources
from export import coreml as module
from export.coreml import CoremlConfig, coreml
from export.coreml_model import Decoder, causal_mask, step
from export.model_folder import Checkpoint

CONTEXT = 128
ROPE = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen2_untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen2_yarn": ("qwen2", {"rope_parameters": {"rope_type": "yarn", **ROPE}}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ROPE}},
    ),
}

needs_coremltools = pytest.mark.skipif(
    importlib.util.find_spec("coremltools") is None, reason="coremltools has no wheel here"
)


def feed(decoder: Any, pieces: list[list[int]]) -> Tensor:
    """Logits of all tokens, fed piece by piece through the state."""
    logits: list[Tensor] = []
    past = 0
    for piece in pieces:
        logits.append(step(decoder, piece, past_tokens=past, context_tokens=CONTEXT))
        past += len(piece)
    return torch.cat(logits)


@pytest.mark.parametrize("case", CASES)
def test_decoder_equals_the_checkpoint_at_once_and_through_the_state(case: str, tmp_path: Path) -> None:
    architecture, options = CASES[case]
    folder = write_checkpoint(tmp_path / "chat", architecture, **options)
    ids = token_ids(110, below=580)
    reference = reference_logits(folder, ids)
    decoder = Decoder(Checkpoint(folder), context_tokens=CONTEXT)
    assert torch.allclose(feed(decoder, [ids]), reference, atol=2e-4)
    # A prompt in two parts, then a token at a time, over a cache that still holds the first run.
    pieces = [ids[:40], ids[40:90], *([token] for token in ids[90:])]
    assert torch.allclose(feed(decoder, pieces), reference, atol=2e-4)


def test_tokens_beyond_the_context_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "chat")
    decoder = Decoder(Checkpoint(folder), context_tokens=CONTEXT)
    step(decoder, [1] * CONTEXT, past_tokens=0, context_tokens=CONTEXT)
    with refuses("out-of-range", wanted="1 to 0 tokens after 128", got="1"):
        step(decoder, [1], past_tokens=CONTEXT, context_tokens=CONTEXT)
    with refuses("out-of-range", wanted="a context of 128", got="129"):
        step(decoder, [1] * (CONTEXT + 1), past_tokens=0, context_tokens=CONTEXT)
    with refuses("out-of-range", wanted="512 tokens", got="544"):
        Decoder(Checkpoint(folder), context_tokens=544)


def test_causal_mask_hides_exactly_the_future() -> None:
    mask = causal_mask(3, 5)
    assert tuple(mask.shape) == (1, 1, 3, 5)
    for row in range(3):
        for key in range(5):
            assert bool(mask[0, 0, row, key] == 0) == (key <= 2 + row)
    assert torch.isfinite(mask.half()).all()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A checkpoint, the folder with its package, and the stage's facts; `again` beside it holds a second run's."""
    folder = tmp_path_factory.mktemp("coreml")
    checkpoint = write_checkpoint(folder / "chat", dtype=torch.bfloat16)
    config = CoremlConfig(stem="Tiny", context_tokens=CONTEXT)
    facts = coreml(config, workspace(folder / "out"), checkpoint)
    left_by_a_kill = folder / "again" / facts["file"] / "rest"
    left_by_a_kill.parent.mkdir(parents=True)
    left_by_a_kill.write_text("half")
    # At once: coremltools numbers some names on from packages that this process read before.
    assert coreml(config, workspace(folder / "again"), checkpoint) == facts
    return checkpoint, folder / "out", facts


@needs_coremltools
def test_package_reloads_with_its_states(package: tuple[Path, Path, dict[str, Any]]) -> None:
    import coremltools as ct

    _, out, facts = package
    assert facts["file"] == "Tiny-float16-ctx128.mlpackage"
    assert facts["inputs"] == {"inputIds": [1, -1], "causalMask": [1, 1, -1, -1]}
    assert facts["states"] == {name: [2, 1, 2, CONTEXT, 64] for name in ("keyCache", "valueCache")}
    assert facts["bytes"] == sum(file.stat().st_size for file in (out / facts["file"]).rglob("*") if file.is_file())
    specification: Any = ct.models.MLModel(str(out / facts["file"]), skip_model_load=True).get_spec()
    description = specification.description
    assert specification.specificationVersion == 9  # iOS 18
    assert [feature.name for feature in description.output] == ["logits"]
    array: Any = ct.proto.FeatureTypes_pb2.ArrayFeatureType
    kind = array.FLOAT16
    assert {feature.type.stateType.arrayType.dataType for feature in description.state} == {kind}
    for feature in description.input:
        sizes = feature.type.multiArrayType.shapeRange.sizeRanges
        assert (sizes[-1].lowerBound, sizes[-1].upperBound) == (1, CONTEXT)
    json.dumps(facts)


@needs_coremltools
def test_package_holds_the_checkpoints_weights_and_float32_islands(package: tuple[Path, Path, dict[str, Any]]) -> None:
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto import load as milproto

    checkpoint, out, facts = package
    model: Any = ct.models.MLModel(str(out / facts["file"]), skip_model_load=True)
    specification = model.get_spec()
    program: Any = milproto.load(specification, specification.specificationVersion, model.weights_dir)
    operations = list(program.functions["main"].operations)
    constants = [operation.outputs[0].val for operation in operations if operation.op_type == "const"]
    held = {hashlib.sha256(value.tobytes()).hexdigest() for value in constants if isinstance(value, np.ndarray)}
    for name, value in load_file(checkpoint / "model.safetensors").items():
        stored = value.float().numpy().astype(np.float32 if name.endswith("norm.weight") else np.float16)
        assert hashlib.sha256(stored.tobytes()).hexdigest() in held, name
    by_type: dict[str, set[str]] = {}
    for operation in operations:
        if operation.op_type in ("softmax", "rsqrt", "linear", "read_state"):
            dtype = operation.outputs[0].dtype.__name__
            by_type.setdefault(operation.op_type, set()).add(dtype)
    assert by_type == {"softmax": {"fp32"}, "rsqrt": {"fp32"}, "linear": {"fp16"}, "read_state": {"fp16"}}
    updates = [operation for operation in operations if operation.op_type == "coreml_update_state"]
    assert len(updates) == 4  # keys and values of two layers


@needs_coremltools
def test_tokenizer_and_config_lie_beside_the_package(package: tuple[Path, Path, dict[str, Any]]) -> None:
    checkpoint, out, _ = package
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / "tokenizer" / name).read_bytes() == (checkpoint / name).read_bytes()
    again: Any = AutoTokenizer.from_pretrained(out / "tokenizer")
    turns = [{"role": "user", "content": "川はどこ"}]
    original: Any = AutoTokenizer.from_pretrained(checkpoint)
    assert again.apply_chat_template(turns, tokenize=False) == original.apply_chat_template(turns, tokenize=False)


@needs_coremltools
def test_package_names_licence_and_data(tmp_path: Path, package: tuple[Path, Path, dict[str, Any]]) -> None:
    import coremltools as ct

    checkpoint = write_checkpoint(tmp_path / "chat")
    write_sources(checkpoint, SOURCES)
    facts = coreml(CoremlConfig(stem="Tiny", context_tokens=CONTEXT), workspace(tmp_path / "out"), checkpoint)
    model: Any = ct.models.MLModel(str(tmp_path / "out" / facts["file"]), skip_model_load=True)
    licence = "CC-BY-SA-3.0, Own terms | v2, not stated"
    metadata = dict(model.user_defined_metadata)
    assert model.license == metadata["licence"] == licence
    told = json.loads(metadata["data_sources"])
    assert [(source["name"], source["stage"], source["rows_out"]) for source in told] == [
        (source.name, source.stage, source.rows_out) for source in SOURCES
    ]
    assert read_sources(tmp_path / "out") == list(SOURCES)
    _, out, facts = package
    silent: Any = ct.models.MLModel(str(out / facts["file"]), skip_model_load=True)
    assert not silent.license and not {"licence", "data_sources"} & set(silent.user_defined_metadata)
    assert not (out / "data_sources.json").exists()


@needs_coremltools
def test_the_same_checkpoint_gives_the_same_files(package: tuple[Path, Path, dict[str, Any]]) -> None:
    _, out, _ = package
    first, second = (
        {file.relative_to(root): file.read_bytes() for file in root.rglob("*") if file.is_file()}
        for root in (out, out.with_name("again"))
    )
    assert len(first) > 5
    assert first == second


def test_without_coremltools_the_stage_tells_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    config = CoremlConfig(stem="Tiny", context_tokens=CONTEXT)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    facts = coreml(config, workspace(tmp_path / "out"), tmp_path / "chat")
    reason = "coremltools has no wheel for Linux on aarch64"
    assert facts == {"skipped": reason, "not_here": reason}
    assert coreml.__dict__["can_run"](config) == reason
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with refuses("not-installed", wanted="coremltools"):
        coreml(config, workspace(tmp_path / "out"), tmp_path / "chat")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"weights": "int4"}, "unknown-name"),
        ({"context_tokens": 100}, "out-of-range"),
        ({"context_tokens": 0}, "out-of-range"),
        ({"stem": ""}, "wrong-format"),
    ],
)
def test_config_that_contradicts_itself_is_refused(options: dict[str, Any], code: Code) -> None:
    with refuses(code):
        dataclasses.replace(CoremlConfig(stem="Tiny"), **options)
