"""Writes a GGUF file in F16 from a checkpoint, one tensor in memory at a time.

One-dimensional tensors (norms, biases) stay float32, as llama.cpp wants them; matrices become float16.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.metrics import progress
from common.provenance import DataSource
from common.weights import EMBEDDING
from export.licences import ModelLicence
from export.model_folder import Checkpoint, Rope
from export.vocabulary import Vocabulary

_YARN_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
"""The usual ones."""


def write_f16(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary,
    path: Path,
    *,
    name: str,
    licence: ModelLicence | None = None,
    sources: Sequence[DataSource] = (),
) -> None:
    """Writes `checkpoint` to `path` as a GGUF file in F16, with the model's `name` and the `sources` of its data in it.

    UserError for a tensor with a value that is not finite or beyond float16's range.
    """
    architecture = gguf.MODEL_ARCH[checkpoint.architecture.removesuffix("ForCausalLM").upper()]
    _require_rope(checkpoint, architecture)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _add_model(writer, checkpoint, name=name)
    _add_origin(writer, licence, sources)
    _add_vocabulary(writer, vocabulary)
    planned = _plan(checkpoint, architecture)
    for target, (source, shape) in planned.items():
        kind = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        writer.add_tensor_info(target, shape, kind, math.prod(shape) * kind.itemsize)
        assert source is not None or target == "rope_freqs.weight"
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for target, (source, shape) in progress(planned.items(), label=f"{name}-F16", unit="tensors"):
            value = _rope_factors(checkpoint) if source is None else _read(checkpoint, source)
            assert tuple(value.shape) == shape, target
            writer.write_tensor_data(value.numpy())
    finally:
        writer.close()


def _plan(checkpoint: Checkpoint, architecture: gguf.MODEL_ARCH) -> dict[str, tuple[str | None, tuple[int, ...]]]:
    """GGUF's name of each tensor, with the checkpoint's name and shape; Llama 3's rope factors are computed."""
    names = gguf.get_tensor_name_map(architecture, checkpoint.config.num_hidden_layers)
    planned: dict[str, tuple[str | None, tuple[int, ...]]] = {}
    if checkpoint.rope().type == "llama3":
        planned["rope_freqs.weight"] = (None, (checkpoint.head_dim // 2,))
    for source in checkpoint.names():
        target = names.get_name(source, try_suffixes=(".weight", ".bias"))
        assert target is not None, source
        planned[target] = (source, checkpoint.shape(source))
    return planned


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    """One tensor in the file's type and row order."""
    stored = checkpoint.read(name)
    value = stored.float() if stored.ndim == 1 else stored.half()
    config: Any = checkpoint.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if checkpoint.architecture != "LlamaForCausalLM" or heads is None:
        return value.contiguous()
    # From rotating (i, i + half) pairs of rows in each head, as transformers does, to llama.cpp's (2i, 2i + 1).
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.transpose(1, 2).reshape(value.shape).contiguous()


def _rope_factors(checkpoint: Checkpoint) -> Tensor:
    """Divisors of the plain rope frequencies, float32 [head_dim / 2]: Llama 3's long-context scaling."""
    rope = checkpoint.rope()
    plain = rope.theta ** (-torch.arange(0, checkpoint.head_dim, 2).float() / checkpoint.head_dim)
    return plain / rope.inverse_frequencies


def _add_model(writer: gguf.GGUFWriter, checkpoint: Checkpoint, *, name: str) -> None:
    config: Any = checkpoint.config
    parameters = sum(math.prod(checkpoint.shape(tensor)) for tensor in checkpoint.names())
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_size_label(gguf.size_label(parameters, parameters, 0, 0))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(checkpoint.shape(EMBEDDING)[0])
    if getattr(config, "head_dim", None):
        writer.add_key_length(checkpoint.head_dim)
        writer.add_value_length(checkpoint.head_dim)
    writer.add_rope_dimension_count(checkpoint.head_dim)
    _add_rope(writer, checkpoint.rope())


def _require_rope(checkpoint: Checkpoint, architecture: gguf.MODEL_ARCH) -> None:
    """Refuse rotary embeddings that llama.cpp computes otherwise than transformers."""
    rope = checkpoint.rope()
    betas = tuple(float(rope.parameters.get(name) or usual) for name, usual in _YARN_BETAS.items())
    if architecture != gguf.MODEL_ARCH.LLAMA and rope.type == "llama3":
        wanted, got = "rope_type default, linear or yarn, which llama.cpp runs on Qwen models", "llama3"
    elif rope.type == "yarn" and betas != tuple(_YARN_BETAS.values()):
        wanted = "yarn with beta_fast 32 and beta_slow 1: llama.cpp computes with these whatever the file says"
        got = f"{betas[0]:g} and {betas[1]:g}"
    else:
        return
    got = f"{got} in {checkpoint.folder}/config.json"
    raise UserError("unsupported", wanted=wanted, got=got, next_step="correct rope_parameters, or export to Core ML")


def _add_rope(writer: gguf.GGUFWriter, rope: Rope) -> None:
    writer.add_rope_freq_base(rope.theta)
    factor = float(rope.parameters.get("factor") or 1.0)
    if rope.type in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType[rope.type.upper()])
        writer.add_rope_scaling_factor(factor)
    if rope.type == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope.parameters["original_max_position_embeddings"]))
        writer.add_rope_scaling_yarn_beta_fast(_YARN_BETAS["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(_YARN_BETAS["beta_slow"])
        # llama.cpp applies yarn's own factor by itself and multiplies this one onto it.
        own = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
        if not math.isclose(rope.attention_factor, own, rel_tol=1e-6):
            writer.add_rope_scaling_attn_factors(rope.attention_factor / own)


def _add_origin(writer: gguf.GGUFWriter, licence: ModelLicence | None, sources: Sequence[DataSource]) -> None:
    """Licence and data sources, each once, though it may have been both text and conversations."""
    if licence is not None:
        writer.add_license(licence.identifier)
        if licence.name is not None:
            writer.add_license_name(licence.name)
    datasets = list({(source.name, source.revision): source for source in sources}.values())
    if datasets:
        writer.add_dataset_count(len(datasets))
    for index, source in enumerate(datasets):
        writer.add_dataset_name(index, source.name)
        if source.revision is not None:
            writer.add_dataset_version(index, source.revision)
        if source.url is not None:
            writer.add_dataset_url(index, source.url)
        terms = [f"Licence: {source.licence or 'not stated'}.", source.attribution, *source.obligations]
        writer.add_dataset_description(index, " ".join(term for term in terms if term))


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_eos_token_id(vocabulary.eos_id)
    writer.add_eot_token_id(vocabulary.turn_end_id)
    for stop in vocabulary.more_stops[:1]:  # llama.cpp reads one more
        writer.add_eom_token_id(stop)
    if vocabulary.bos_id is not None:
        writer.add_bos_token_id(vocabulary.bos_id)
    if vocabulary.padding_id is not None:
        writer.add_pad_token_id(vocabulary.padding_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    templates = [{"name": name, "template": text} for name, text in vocabulary.chat_templates.items()]
    if templates:
        writer.add_chat_template(vocabulary.chat_templates["default"] if len(templates) == 1 else templates)
