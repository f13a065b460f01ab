"""GGUF files against transformers (logits, ids) and against llama.cpp's own reading of them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf as gguf_library
import numpy as np
import pytest
import torch
from errors_tiny import refuses
from export_tiny import (
    LLAMA3_SPLIT,
    SOURCES,
    TEXTS,
    divergence,
    llama_logits,
    reference_logits,
    token_ids,
    workspace,
    write_checkpoint,
)
from safetensors.torch import load_file, save_file

from common.errors import Code
from common.gguf_header import read_header
from common.provenance import read_sources, write_sources
from common.tokenizer import Tokenizer
from export.gguf import PROBE, GgufConfig, gguf
from export.licences import licence_of, spdx_expression
from export.model_folder import Checkpoint

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "attention_factor": 1.3,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen2_untied": ("qwen2", {"tie_word_embeddings": False, "spare": 0}),
    "qwen2_linear": ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "qwen2_yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3": (
        "llama",
        {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False, "split": LLAMA3_SPLIT, "bos": True},
    ),
}


def fields(path: Path) -> dict[str, Any]:
    """All metadata of a file."""
    return {name: field.contents() for name, field in gguf_library.GGUFReader(path).fields.items()}


def export(checkpoint: Path, out: Path, *encodings: str) -> tuple[Path, dict[str, Any]]:
    """Runs the stage; returns the workspace's folder and the facts."""
    facts = gguf(GgufConfig(stem="Tiny", encodings=encodings), workspace(out), checkpoint)
    return out, facts


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A tied Qwen2 with padded rows: checkpoint, folder with all three files, facts."""
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = write_checkpoint(folder / "chat")
    out, facts = export(checkpoint, folder / "gguf", "F16", "Q8_0", "Q4_K_M")
    return checkpoint, out, facts


@pytest.mark.parametrize("case", CASES)
def test_f16_file_gives_the_checkpoints_logits(case: str, tmp_path: Path) -> None:
    architecture, options = CASES[case]
    checkpoint = write_checkpoint(tmp_path / "chat", architecture, **options)
    out, _ = export(checkpoint, tmp_path / "gguf", "F16")
    # Longer than the original positions of the scaled ropes, so that their scaling counts.
    ids = token_ids(220, below=Tokenizer.load(checkpoint).size)
    kl, top1 = divergence(reference_logits(checkpoint, ids), llama_logits(out / "Tiny-F16.gguf", ids))
    assert kl < 1e-4
    assert top1 >= 0.995


def test_yarn_that_llama_cpp_computes_otherwise_is_refused(tmp_path: Path) -> None:
    """With these betas in the file its logits are those of the usual ones (llama-cpp-python 0.3.36)."""
    folder = write_checkpoint(tmp_path / "c", rope_parameters=YARN | {"beta_fast": 4.0, "beta_slow": 2.0})
    with refuses("unsupported", wanted="beta_fast 32 and beta_slow 1", got="4 and 2", next_step="Core ML"):
        gguf(GgufConfig(stem="T", encodings=("F16",)), workspace(tmp_path / "out"), folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sharded_half_precision_checkpoint_gives_the_same_tensors(dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "chat", dtype=dtype, shard="200KB")
    assert len(list(checkpoint.glob("*.safetensors"))) > 3
    out, _ = export(checkpoint, tmp_path / "gguf", "F16")
    stored = {name: value for file in checkpoint.glob("*.safetensors") for name, value in load_file(file).items()}
    tensors = {tensor.name: tensor for tensor in gguf_library.GGUFReader(out / "Tiny-F16.gguf").tensors}
    assert len(tensors) == len(stored)
    for ours, theirs in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
        ("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias"),
    ):
        wanted = stored[theirs].float().numpy()
        assert np.array_equal(tensors[ours].data, wanted.astype(tensors[ours].data.dtype))


def test_vectors_stay_float32_and_a_tied_head_is_not_written(exported: tuple[Path, Path, dict[str, Any]]) -> None:
    _, out, _ = exported
    contents = read_header(out / "Tiny-F16.gguf")
    assert "output.weight" not in contents.tensors
    for name, tensor in contents.tensors.items():
        assert tensor.type == ("F32" if len(tensor.shape) == 1 else "F16"), name


def test_tied_head_that_was_stored_is_dropped_and_a_different_one_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "chat")
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file)
    out, _ = export(checkpoint, tmp_path / "same", "F16")
    assert "output.weight" not in read_header(out / "Tiny-F16.gguf").tensors
    tensors["lm_head.weight"][3, 3] += 1
    save_file(tensors, file)
    with refuses("contradiction", wanted="lm_head.weight"):
        export(checkpoint, tmp_path / "different", "F16")


def test_llama_cpp_tokenises_like_the_checkpoint(exported: tuple[Path, Path, dict[str, Any]]) -> None:
    import llama_cpp

    checkpoint, out, _ = exported
    tokenizer = Tokenizer.load(checkpoint)
    model: Any = llama_cpp.Llama(str(out / "Tiny-Q4_K_M.gguf"), vocab_only=True, verbose=False)
    for text in [*TEXTS, PROBE, "<|im_end|> は文字", "<tool_call>を呼ぶ"]:
        assert model.tokenize(text.encode(), add_bos=True, special=False) == tokenizer.encode(text), text
    turns = [{"role": "user", "content": "川はどこ"}, {"role": "assistant", "content": "春の町です。"}]
    rendered = "<|im_start|>user\n川はどこ<|im_end|>\n<|im_start|>assistant\n春の町です。<|im_end|>\n"
    assert model.tokenize(rendered.encode(), add_bos=True, special=True) == tokenizer.render(turns)[0]
    assert model.token_eos() == tokenizer.turn_end_id
    model.close()


def test_beginning_token_is_added_only_where_the_tokenizer_adds_it(tmp_path: Path) -> None:
    import llama_cpp

    architecture, options = CASES["llama3"]
    checkpoint = write_checkpoint(tmp_path / "chat", architecture, **options)
    out, facts = export(checkpoint, tmp_path / "gguf", "F16")
    assert facts["pre_tokenizer"] == "llama-bpe"
    model: Any = llama_cpp.Llama(str(out / "Tiny-F16.gguf"), vocab_only=True, verbose=False)
    plain = Tokenizer.load(checkpoint).encode(TEXTS[2])
    assert model.tokenize(TEXTS[2].encode(), add_bos=True) == [model.token_bos(), *plain]
    assert model.detokenize([model.token_bos()], special=True) == b"<|begin_of_text|>"
    model.close()


def test_metadata_tells_the_geometry_and_carries_the_template(exported: tuple[Path, Path, dict[str, Any]]) -> None:
    checkpoint, out, _ = exported
    for encoding, file_type in (("F16", 1), ("Q8_0", 7), ("Q4_K_M", 15)):
        found = fields(out / f"Tiny-{encoding}.gguf")
        assert found["general.architecture"] == "qwen2"
        assert found["general.name"] == "Tiny"
        assert found["general.file_type"] == file_type
        assert found["qwen2.context_length"] == 512
        assert found["qwen2.block_count"] == 2
        assert found["qwen2.attention.head_count_kv"] == 2
        assert found["tokenizer.ggml.pre"] == "qwen2"
        assert found["tokenizer.ggml.add_bos_token"] is False
        assert "tokenizer.ggml.bos_token_id" not in found
        assert found["tokenizer.chat_template"] == (checkpoint / "chat_template.jinja").read_text()
    tokenizer = Tokenizer.load(checkpoint)
    assert found["tokenizer.ggml.eos_token_id"] == tokenizer.turn_end_id
    assert found["tokenizer.ggml.padding_token_id"] == tokenizer.document_end_id


def test_padded_rows_are_unused_tokens(exported: tuple[Path, Path, dict[str, Any]]) -> None:
    checkpoint, out, facts = exported
    found = fields(out / "Tiny-F16.gguf")
    size, rows = Tokenizer.load(checkpoint).size, Checkpoint(checkpoint).rows
    assert facts["vocabulary"] == {"rows": rows, "tokens": size}
    types = [gguf_library.TokenType(kind) for kind in found["tokenizer.ggml.token_type"]]
    assert found["tokenizer.ggml.tokens"][size:] == [f"[PAD{index}]" for index in range(size, rows)]
    assert set(types[size:]) == {gguf_library.TokenType.UNUSED}
    by_token = dict(zip(found["tokenizer.ggml.tokens"], types, strict=True))
    assert by_token["<|im_end|>"] == gguf_library.TokenType.CONTROL
    assert by_token["<tool_call>"] == gguf_library.TokenType.USER_DEFINED


def origin(path: Path) -> dict[str, Any]:
    """Licence and data sets as gguf's own reader finds them."""
    return {name: value for name, value in fields(path).items() if name.startswith(("general.licen", "general.data"))}


def test_every_file_names_licence_and_data(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "chat")
    write_sources(checkpoint, SOURCES)
    out, _ = export(checkpoint, tmp_path / "gguf", "F16", "Q8_0", "Q4_K_M")
    for encoding in ("F16", "Q8_0", "Q4_K_M"):
        assert origin(out / f"Tiny-{encoding}.gguf") == {
            "general.license": "other",
            "general.license.name": "CC-BY-SA-3.0, Own terms | v2, not stated",
            "general.dataset.count": 3,
            "general.dataset.0.name": "wikimedia/wikipedia",
            "general.dataset.0.version": "b04c8d1ceb2f5cd4588862100d08de323dccfbaa",
            "general.dataset.0.url": "https://huggingface.co/datasets/wikimedia/wikipedia",
            "general.dataset.0.description": "Licence: CC-BY-SA-3.0. Wikipedia の執筆者 Name Wikipedia as a source. "
            "Pass text on under CC BY-SA only.",
            "general.dataset.1.name": "own.jsonl",
            "general.dataset.1.description": "Licence: not stated.",
            "general.dataset.2.name": "some/talks_ja",
            "general.dataset.2.description": "Licence: Own terms | v2.",
        }, encoding
    assert read_sources(out) == list(SOURCES)


def test_a_licence_that_the_recipe_states_comes_before_the_datas(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "chat")
    config = GgufConfig(stem="Tiny", encodings=("Q8_0",), licence="apache-2.0")
    gguf(config, workspace(tmp_path / "gguf"), checkpoint)
    assert origin(tmp_path / "gguf" / "Tiny-Q8_0.gguf") == {"general.license": "Apache-2.0"}


def test_without_known_sources_a_file_names_neither(exported: tuple[Path, Path, dict[str, Any]]) -> None:
    _, out, _ = exported
    assert origin(out / "Tiny-Q4_K_M.gguf") == {}
    assert not (out / "data_sources.json").exists()


@pytest.mark.parametrize(
    ("licences", "stated", "wanted"),
    [
        ((), None, None),
        ((None, None), None, None),
        (("apache-2.0", "Apache-2.0"), None, ("Apache-2.0", None)),
        (("Apache-2.0", None), None, ("other", "Apache-2.0, not stated")),
        (("CC-BY-4.0", "MIT", "CC-BY-4.0"), None, ("other", "CC-BY-4.0, MIT")),
        (("Own terms",), None, ("other", "Own terms")),
        ((None, "MIT"), "mit OR apache-2.0", ("MIT OR Apache-2.0", None)),
        (("MIT",), "Our terms", ("other", "Our terms")),
    ],
)
def test_one_licence_is_told_as_spdx_and_several_by_name(
    licences: tuple[str | None, ...], stated: str | None, wanted: tuple[str, str | None] | None
) -> None:
    sources = [dataclasses.replace(SOURCES[1], licence=licence) for licence in licences]
    found = licence_of(sources, stated)
    assert (found and (found.identifier, found.name)) == wanted
    assert found is None or found.identifier == "other" or spdx_expression(found.identifier) == found.identifier


def test_facts_agree_with_the_files(exported: tuple[Path, Path, dict[str, Any]]) -> None:
    checkpoint, out, facts = exported
    parameters = sum(value.numel() for value in load_file(checkpoint / "model.safetensors").values())
    assert [file["encoding"] for file in facts["files"]] == ["F16", "Q8_0", "Q4_K_M"]
    for file in facts["files"]:
        size = (out / file["file"]).stat().st_size
        assert (file["bytes"], file["parameters"], file["fallbacks"]) == (size, parameters, [])
        assert file["bits_per_weight"] == pytest.approx(8 * size / parameters, abs=1e-4)
    assert facts["files"][2]["tensor_types"] == {"F32": 11, "Q4_K": 12, "Q6_K": 3}
    json.dumps(facts)


def test_only_the_files_asked_for_remain(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "chat")
    out, facts = export(checkpoint, tmp_path / "gguf", "Q8_0")
    assert [path.name for path in out.iterdir() if path.name != "scratch"] == ["Tiny-Q8_0.gguf"]
    assert len(facts["files"]) == 1


@pytest.mark.parametrize("value", [7e4, -7e4, float("inf"), float("nan")])
def test_weight_beyond_float16_is_refused_by_name(value: float, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "chat", dtype=torch.bfloat16)
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][5, 7] = value
    save_file(tensors, file)
    with refuses("not-finite", got="layers.1.mlp.up_proj.weight"):
        export(checkpoint, tmp_path / "gguf", "F16")
    assert not list((tmp_path / "gguf").glob("*.gguf"))


def test_a_tokenizer_that_llama_cpp_splits_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "chat")
    from export import gguf as module

    right = module.read_vocabulary

    def wrong(folder: Path, *, rows: int) -> Any:
        return dataclasses.replace(right(folder, rows=rows), pre="gpt-2")

    monkeypatch.setattr(module, "read_vocabulary", wrong)
    with refuses("mismatch", got="Tiny-F16.gguf"):
        export(checkpoint, tmp_path / "gguf", "F16")
    assert not list((tmp_path / "gguf").glob("*.gguf"))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"encodings": ("Q3_K",)}, "unknown-name"),
        ({"encodings": ()}, "unknown-name"),
        ({"encodings": ("F16", "F16")}, "unknown-name"),
        ({"stem": "a/b"}, "wrong-format"),
    ],
)
def test_config_that_contradicts_itself_is_refused(options: dict[str, Any], code: Code) -> None:
    with refuses(code):
        dataclasses.replace(GgufConfig(stem="Tiny"), **options)
