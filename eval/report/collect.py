"""Manifests and metrics of a build as parts of the report's JSON.

Takes nothing from a manifest's config: a config may name local paths, and no path enters a report.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from common.errors import UserError
from common.metrics import read_metrics
from eval.report.plots import thin

CURVE_POINTS = 240
"""Points kept of a training curve: as many as a plot can show."""
TRAINED = ("teacher", "student_before", "base", "chat")
"""Model folders, in the order of the pipeline."""
_ABSOLUTE_PATH = re.compile(r"(?<![\w.~/])~?/(?:[^\s/:;,'\"]+/)*([^\s/:;,'\"]+)")
_SHAPE_FIELDS = {
    "architecture": "model_type",
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "vocabulary_rows": "vocab_size",
    "positions": "max_position_embeddings",
}
"""Fields of a row's `geometry`, and of config.json."""
_MACHINE_FIELDS = ("cpu", "gpu", "memory_bytes", "os", "device", "compute_dtype", "threads")


def machines(manifests: Mapping[str, Mapping[str, Any]], here: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The machine of this stage, then each other machine that an artifact was made on, with `stages`, their names.

    Only named fields are taken: no host, user or path, whatever else a manifest holds.
    """
    stages: dict[tuple[Any, ...], list[str]] = {}
    for name, machine in (("report", here), *((name, manifest["machine"]) for name, manifest in manifests.items())):
        stages.setdefault(tuple(machine.get(field) for field in _MACHINE_FIELDS), []).append(name)
    return [dict(zip(_MACHINE_FIELDS, key, strict=True)) | {"stages": names} for key, names in stages.items()]


def built_from(folders: Mapping[str, Path], manifests: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each stage: {stage, key, parameters, geometry, tokens, seconds, resumed, peak_bytes}, or null.

    `seconds` and `peak_bytes` are those of the stage's last start, which is not the whole stage where `resumed`.
    """
    return [
        {
            "stage": name,
            "key": manifest["key"],
            "parameters": manifest["facts"].get("parameters"),
            "geometry": _geometry(folders[name] / "config.json") if name in TRAINED else None,
            "tokens": manifest["facts"].get("tokens"),
            **{field: manifest[field] for field in ("seconds", "resumed", "peak_bytes")},
        }
        for name, manifest in manifests.items()
    ]


def _geometry(config_file: Path) -> dict[str, Any] | None:
    """The shape of a model as its config.json states it, of any family; null where a field is absent."""
    if not config_file.is_file():
        return None
    config = read_json(config_file)
    return {ours: config.get(theirs) for ours, theirs in _SHAPE_FIELDS.items()}


def training(manifests: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each training stage: {stage, method, steps, tokens, tokens_per_s, peak_bytes, warnings, ..}."""
    copied = (
        *("method", "steps", "tokens", "corpus_tokens", "tokens_per_s", "validation_loss_before", "validation_loss"),
        *("best_step", "t_final", "drawn"),
    )
    return [
        {
            "stage": name,
            **{field: manifests[name]["facts"].get(field) for field in copied},
            "peak_bytes": manifests[name]["peak_bytes"],
            "seconds": manifests[name]["seconds"],
            "warnings": manifests[name]["facts"].get("warnings", []),
        }
        for name in TRAINED
        if name in manifests and "steps" in manifests[name]["facts"]  # a published model was trained elsewhere
    ]


def curves(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """A row for each training stage: {stage, loss, t, validation_loss}, lists of [step, value], thinned by means."""
    rows: list[dict[str, Any]] = []
    for name in TRAINED:
        records = read_metrics(folders[name]) if name in folders else []
        if not records:
            continue
        row: dict[str, Any] = {"stage": name}
        for field in ("loss", "t", "validation_loss"):
            points = [(float(record["step"]), float(record[field])) for record in records if field in record]
            kept = points if field == "validation_loss" else thin(points, at_most=CURVE_POINTS)
            row[field] = [[round(step, 2), round(value, 6)] for step, value in kept]
        rows.append(row)
    return rows


def artifacts(manifests: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each file for phones: {path, format, encoding, bytes, sha256, bits_per_weight}, named as in dist/.

    A Core ML package is a folder: `bytes` is the sum over its files, and `sha256` that of its lines in SHA256SUMS:
    `grep PACKAGE/ SHA256SUMS | sha256sum`.
    """
    rows: list[dict[str, Any]] = []
    for file in manifests["gguf"]["facts"]["files"] if "gguf" in manifests else ():
        listed = manifests["gguf"]["files"][file["file"]]
        row = {"path": file["file"], "format": "GGUF", "encoding": file["encoding"], "bytes": listed["bytes"]}
        rows.append(row | {"sha256": listed["sha256"], "bits_per_weight": file["bits_per_weight"]})
    if "coreml" in manifests and "skipped" not in manifests["coreml"]["facts"]:
        rows.append(_package(manifests["coreml"]))
    return rows


def _package(manifest: Mapping[str, Any]) -> dict[str, Any]:
    facts = manifest["facts"]
    inside = {name: listed for name, listed in manifest["files"].items() if name.startswith(facts["file"] + "/")}
    lines = "".join(f"{inside[name]['sha256']}  {name}\n" for name in sorted(inside))
    total_bytes = sum(listed["bytes"] for listed in inside.values())
    return {
        "path": facts["file"],
        "format": "Core ML",
        "encoding": facts["weights"],
        "bytes": total_bytes,
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "bits_per_weight": round(8 * total_bytes / facts["parameters"], 4),
    }


def without_paths(content: Any) -> Any:
    """The same JSON with absolute paths in reasons and warnings cut: these quote error messages."""
    if isinstance(content, Mapping):
        fields = cast(Mapping[str, Any], content)
        return {
            name: cut_paths(value) if name.endswith("reason") or name == "warnings" else without_paths(value)
            for name, value in fields.items()
        }
    if isinstance(content, list):
        return [without_paths(item) for item in cast(list[Any], content)]
    return content


def cut_paths(value: Any) -> Any:
    """The same JSON with the absolute paths in all texts and names of fields cut to their last part."""
    if isinstance(value, Mapping):
        return {cut_paths(name): cut_paths(item) for name, item in cast(Mapping[str, Any], value).items()}
    if isinstance(value, list):
        return [cut_paths(item) for item in cast(list[Any], value)]
    return _ABSOLUTE_PATH.sub(r"\1", value) if isinstance(value, str) else value


def read_json(path: Path, *, next_step: str | None = None) -> Any:
    """The content of a JSON file; UserError if it is absent or broken, as one of an artifact without a `next_step`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        code = "not-found" if isinstance(error, FileNotFoundError) else "damaged"
        next_step = next_step or f"delete {path.parent} and build it again"
        raise UserError(code, wanted=f"a JSON file at {path}", got=str(error), next_step=next_step) from error
