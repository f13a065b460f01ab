"""The stage `coreml`: a stateful Core ML package from a Qwen2, Qwen3 or Llama-family checkpoint.

`python -m export coreml CHECKPOINT --out DIR [--weights float16] [--context N]` runs it by itself. The package has
one function, for iOS 18 and macOS 15: `inputIds` and `causalMask` in, `logits` out, the KV cache in the states
`keyCache` and `valueCache`. Weights and arithmetic are float16, except the norms and the attention's scores and
softmax, which leave its range and stay in float32. The package is converted and read back, never run: Core ML runs on
Apple's systems only. Where coremltools has no wheel, the stage ends with the reason and no package.
"""

import contextlib
import importlib.util
import io
import json
import logging
import platform
import shutil
import sys
import uuid
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import UserError, unknown_name
from common.provenance import DataSource, read_sources, write_sources
from common.store import Workspace, not_here, stage
from common.tokenizer import Tokenizer
from export.coreml_model import KEY_CACHE, VALUE_CACHE, Decoder, causal_mask, step
from export.licences import ModelLicence, licence_of
from export.model_folder import Checkpoint, check_stem

WEIGHTS = ("float16",)
IDS, MASK, LOGITS = "inputIds", "causalMask", "logits"
# Modules of `coreml_model` that stay in float32.
FLOAT32_MODULES = ("RMSNorm", "AttentionWeights")
# The Neural Engine wants a state's sizes in steps of 32 (coremltools issue 2631).
CONTEXT_STEP = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class CoremlConfig:
    """What to write."""

    stem: str
    """The package is named `<stem>-<weights>-ctx<context_tokens>.mlpackage`."""
    context_tokens: int = 2048
    """Tokens of the KV cache, a multiple of 32."""
    weights: str = "float16"
    """How the weights are stored."""
    licence: str | None = None
    """The model's licence, an SPDX expression or a name; None takes what the sources of its data state."""

    def __post_init__(self) -> None:
        check_stem(self.stem)
        if self.weights not in WEIGHTS:
            raise unknown_name("type of the weights", self.weights, WEIGHTS)
        if self.context_tokens < CONTEXT_STEP or self.context_tokens % CONTEXT_STEP:
            wanted = f"a context of a multiple of {CONTEXT_STEP} tokens"
            raise UserError("out-of-range", wanted=wanted, got=str(self.context_tokens), next_step="correct --context")


@stage(version=2, can_run=lambda config: _why_absent())
def coreml(config: CoremlConfig, workspace: Workspace, checkpoint: Path) -> dict[str, Any]:
    """Writes the package, in `tokenizer/` the tokenizer and config files for an app, and the checkpoint's data sources.

    Returns:
        `file`, `bytes`, `weights`, `context_tokens`, `parameters`, `architecture`, `float32_parts`, `inputs`, `outputs`
        and `states` (name -> shape, -1 where it varies); or `skipped` and `not_here`, the reason why there is none.

    Raises:
        UserError: a checkpoint that cannot be exported, or a context longer than its positions.
    """
    if reason := _why_absent():
        return not_here(reason) | {"skipped": reason}
    source = Checkpoint(checkpoint)
    decoder = Decoder(source, context_tokens=config.context_tokens)
    package = workspace.folder / f"{config.stem}-{config.weights}-ctx{config.context_tokens}.mlpackage"
    sources = read_sources(checkpoint)
    _convert(_trace(decoder), decoder, source, package, origin=_origin(licence_of(sources, config.licence), sources))
    described = _read_back(package)
    _check_description(described, decoder, package)
    tokenizer_folder = workspace.folder / "tokenizer"
    Tokenizer.load(checkpoint).save(tokenizer_folder)
    for name in ("config.json", "generation_config.json"):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, tokenizer_folder / name)
    write_sources(workspace.folder, sources)
    return {
        "file": package.name,
        "bytes": sum(path.stat().st_size for path in package.rglob("*") if path.is_file()),
        "weights": config.weights,
        "context_tokens": config.context_tokens,
        "parameters": sum(value.numel() for value in decoder.parameters()),
        "architecture": source.architecture,
        "float32_parts": list(FLOAT32_MODULES),
        **described,
    }


def _why_absent() -> str | None:
    """Why there is no coremltools here, or None where there is; UserError where it should have been installed."""
    if importlib.util.find_spec("coremltools") is not None:
        return None
    system, processor = platform.system(), platform.machine()
    if system == "Darwin" or (system == "Linux" and processor == "x86_64"):
        wanted, next_step = "coremltools, which has a wheel for this platform", "run make, or install the export extra"
        raise UserError("not-installed", wanted=wanted, got="no such package here", next_step=next_step)
    return f"coremltools has no wheel for {system} on {processor}"


def _trace(decoder: Decoder) -> Any:
    """The traced decoder, checked to give the module's own logits on shapes that it was not traced with."""
    size = decoder.context_tokens
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns about shapes that become numbers; the check below decides
        ids = torch.tensor([[1, 2]], dtype=torch.int32)
        traced: Any = torch.jit.trace(decoder, (ids, causal_mask(2, 5)), check_trace=False)
    for new_ids, past in ([3, 1, 4, 1, 5], 0), ([9], 5), ([2, 6, 5], 6):
        eager, again = (step(run, new_ids, past_tokens=past, context_tokens=size) for run in (decoder, traced))
        assert torch.allclose(eager, again, rtol=1e-4, atol=1e-4 * float(eager.abs().max())), "the trace kept a shape"
    decoder.keyCache.zero_()
    decoder.valueCache.zero_()
    return traced


def _coremltools() -> Any:
    """The library, loaded when a package is made: it takes seconds and logs much that is of no use here."""
    with _quiet():
        import coremltools
    return coremltools


def _origin(licence: ModelLicence | None, sources: Sequence[DataSource]) -> dict[str, str]:
    """Licence and data sources as the package's own metadata, as far as known."""
    origin = {} if licence is None else {"licence": licence.name or licence.identifier}
    if sources:
        origin["data_sources"] = json.dumps([asdict(source) for source in sources], ensure_ascii=False)
    return origin


def _convert(traced: Any, decoder: Decoder, source: Checkpoint, package: Path, *, origin: Mapping[str, str]) -> None:
    ct = _coremltools()
    query, end = (ct.RangeDim(lower_bound=1, upper_bound=decoder.context_tokens, default=1) for _ in range(2))
    with _quiet():
        model: Any = ct.convert(
            traced,
            convert_to="mlprogram",
            inputs=[
                ct.TensorType(name=IDS, shape=(1, query), dtype=np.int32),
                ct.TensorType(name=MASK, shape=(1, 1, query, end), dtype=np.float16),
            ],
            outputs=[ct.TensorType(name=LOGITS, dtype=np.float16)],
            states=[
                ct.StateType(wrapped_type=ct.TensorType(shape=tuple(cache.shape), dtype=np.float16), name=name)
                for name, cache in ((KEY_CACHE, decoder.keyCache), (VALUE_CACHE, decoder.valueCache))
            ],
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.transform.FP16ComputePrecision(op_selector=_fits_float16),
            skip_model_load=True,
        )
        model.short_description = f"{source.architecture}, KV cache of {decoder.context_tokens} tokens as state"
        model.user_defined_metadata.update({"context_tokens": str(decoder.context_tokens), **origin})
        if "licence" in origin:
            model.license = origin["licence"]
        model.save(str(package))
    _make_reproducible(package)


def _fits_float16(operation: Any) -> bool:
    """False for what came from a module that stays in float32."""
    from coremltools.converters.mil.mil.scope import ScopeSource

    kinds = operation.scopes.get(ScopeSource.TORCHSCRIPT_MODULE_TYPE, [])
    return not any(kind in FLOAT32_MODULES for kind in kinds)


def _make_reproducible(package: Path) -> None:
    """Makes equal models equal files: rewrites the order of maps and the random identifiers."""
    for saved in package.rglob("*.mlmodel"):
        specification: Any = _coremltools().proto.Model_pb2.Model()
        specification.ParseFromString(saved.read_bytes())
        saved.write_bytes(specification.SerializeToString(deterministic=True))
    path = package / "Manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    entries: dict[str, dict[str, str]] = manifest["itemInfoEntries"]
    renamed = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])).upper() for old, entry in entries.items()}
    manifest["itemInfoEntries"] = {renamed[old]: entry for old, entry in entries.items()}
    manifest["rootModelIdentifier"] = renamed[manifest["rootModelIdentifier"]]
    path.write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", encoding="utf-8")


def _read_back(package: Path) -> dict[str, dict[str, list[int]]]:
    """Names and shapes of inputs, outputs and states as the saved package declares them; -1 where a size varies."""
    ct = _coremltools()
    with _quiet():
        description: Any = ct.models.MLModel(str(package), skip_model_load=True).get_spec().description
    return {
        "inputs": {feature.name: _shape(feature.type.multiArrayType) for feature in description.input},
        "outputs": {feature.name: _shape(feature.type.multiArrayType) for feature in description.output},
        "states": {feature.name: _shape(feature.type.stateType.arrayType) for feature in description.state},
    }


def _shape(array: Any) -> list[int]:
    ranges = array.shapeRange.sizeRanges
    if not ranges:
        return list(array.shape)
    return [int(size.lowerBound) if size.lowerBound == size.upperBound else -1 for size in ranges]


def _check_description(described: dict[str, dict[str, list[int]]], decoder: Decoder, package: Path) -> None:
    cache = list(decoder.keyCache.shape)
    inputs, states = {IDS: [1, -1], MASK: [1, 1, -1, -1]}, {KEY_CACHE: cache, VALUE_CACHE: cache}
    if (described["inputs"], described["states"], list(described["outputs"])) != (inputs, states, [LOGITS]):
        wanted = f"inputs {inputs}, states {states} and the output {LOGITS} in {package.name}"
        next_step = "install the tested versions of coremltools and torch (constraints.txt) and start again"
        raise UserError("mismatch", wanted=wanted, got=str(described), next_step=next_step)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Hides coremltools' warnings about versions and, where no terminal reads them, its progress bars."""
    logger = logging.getLogger("coremltools")
    level, logger.level = logger.level, logging.ERROR
    hidden = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        with warnings.catch_warnings(), hidden:
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
