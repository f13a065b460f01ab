"""What the tests of the report share: a build as its manifests, metrics and evaluation would tell it, made up.

`write_build` writes the folders, `INPUTS` names them in the order of the report's inputs, `BUILT_FROM`
those that a report lists; `Page` reads report.html.
"""

import hashlib
import json
import math
import random
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from common.device import Machine
from common.store.keys import FORMAT

CHECKPOINTS = ("teacher", "student_before", "base", "chat")
INPUTS = ("world", "conversations", "corpus", *CHECKPOINTS, "gguf", "coreml", "evaluation")
BUILT_FROM = INPUTS[1:]
MACHINE = Machine(
    device="cpu",
    compute_dtype="bfloat16",
    cpu="Intel Xeon Platinum 8488C",
    gpu=None,
    memory_bytes=32 * 10**9,
    os="Debian GNU/Linux 12 (bookworm), x86_64",
    threads=2,
)
GGUFS = {"F16": 13_612_448, "Q8_0": 7_402_912, "Q4_K_M": 4_689_504}
PACKAGE = "Mini-7M-chat-float16-ctx512.mlpackage"
SHAPES = {
    "multiple_choice": (0.2, ()),
    "short_answer": (None, ("phrasing", "entity")),
    "reading": (0.31, ()),
    "arithmetic": (0.07, ()),
    "translation": (None, ("ja-en", "en-ja")),
}
HOSTILE = "</p><script>alert('x')</script> & \"<b>|太字|</b>\" `code` {{ 7 * 7 }}"
"""An answer that tries to become markup."""

PRIVATE = "社外秘の一文"
"""A row of a source whose terms do not allow to quote it."""

VOID = {"meta", "link", "br", "hr", "img", "input", "path"}


class Page(HTMLParser):
    """Collects tags, attributes and text; fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.texts: list[tuple[str, tuple[str, ...]]] = []
        self.feed(text)
        self.close()
        assert self.open == [], "elements left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.texts.append((data, tuple(self.open)))

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        """Attributes of every element of a kind."""
        return (attributes for name, attributes, _ in self.elements if name == tag)


def gguf_name(encoding: str) -> str:
    """The file of an encoding."""
    return f"Mini-7M-chat-{encoding}.gguf"


def write_manifest(folder: Path, facts: dict[str, Any], *, files: dict[str, Any] | None = None, **fields: Any) -> None:
    """A manifest as the store writes it, without the checks that the store makes."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "format": FORMAT,
        "name": folder.name,
        "key": hashlib.sha256(folder.name.encode()).hexdigest(),
        "function": "made.up:here",
        "version": 1,
        "config": {"path": "/home/someone/secret"},
        "inputs": [],
        "facts": facts,
        "files": files or {},
        "machine": MACHINE.to_json(),
        "seconds": 12.3,
        "resumed": False,
        "peak_bytes": 1_234_567_890,
        **fields,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def write_checkpoint(folder: Path, *, steps: int, parameters: int, taid: bool = False, width: int = 512) -> None:
    """Manifest, config.json and metrics.jsonl of a trained model."""
    noise = random.Random(folder.name)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 0.9 + 6.5 * math.exp(-6 * step / steps) + noise.gauss(0, 0.08)
        t = {"t": min(1.0, 0.4 + 0.7 * step / steps)} if taid else {}
        lines.append({"step": step, "loss": loss, **t, "learning_rate": 1e-3, "tokens": step * 2048})
        if step % (steps // 5) == 0:
            lines.append({"step": step, "validation_loss": 0.95 + 6.5 * math.exp(-6 * step / steps)})
    write_manifest(
        folder,
        {
            "method": "taid" if taid else "instruct" if folder.name == "chat" else "cross_entropy",
            "steps": steps,
            "tokens": steps * 2048,
            "corpus_tokens": 50_131 if taid else None,
            "tokens_per_s": 9_876.5,
            "parameters": parameters,
            "best_step": steps,
            "validation_loss": 0.967,
            "t_final": 1.0 if taid else None,
        },
        seconds=steps / 10,
        peak_bytes=2_100_000_000 + steps * 100_000,
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    config = {"model_type": "qwen2", "num_hidden_layers": 2, "hidden_size": width, "vocab_size": 2304}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def write_build(root: Path, *, machine: dict[str, Any] | None = None) -> dict[str, Path]:
    """Every input of the report under `root`, by name."""
    folders = {name: root / name for name in INPUTS}
    _write_data(folders)
    write_checkpoint(folders["teacher"], steps=1600, parameters=12_345_678, width=640)
    write_checkpoint(folders["student_before"], steps=120, parameters=6_790_144)
    write_checkpoint(folders["base"], steps=300, parameters=6_790_144, taid=True)
    write_checkpoint(folders["chat"], steps=200, parameters=6_790_144)
    facts = [
        {"file": gguf_name(encoding), "encoding": encoding, "bits_per_weight": 8 * size / 6_790_144}
        for encoding, size in GGUFS.items()
    ]
    files = {
        gguf_name(encoding): {"bytes": size, "sha256": hashlib.sha256(encoding.encode()).hexdigest()}
        for encoding, size in GGUFS.items()
    }
    write_manifest(folders["gguf"], {"files": facts, "parameters": 6_790_144}, files=files)
    inside = {
        f"{PACKAGE}/Data/weights/weight.bin": {"bytes": 13_580_288, "sha256": "a" * 64},
        f"{PACKAGE}/Manifest.json": {"bytes": 617, "sha256": "b" * 64},
        "tokenizer/config.json": {"bytes": 500, "sha256": "c" * 64},
    }
    write_manifest(
        folders["coreml"], {"file": PACKAGE, "weights": "float16", "parameters": 6_790_144}, files=inside, seconds=19.4
    )
    write_manifest(folders["world"], {})
    asked = {"config": {"path": "/home/someone/secret", "sample_questions": 2}}
    write_manifest(folders["evaluation"], {}, seconds=171.0, **asked, **({"machine": machine} if machine else {}))
    for name, rows in evaluation().items():
        (folders["evaluation"] / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return folders


def corpus_sources() -> list[dict[str, Any]]:
    """Two sources of a corpus as its data card has them; the second has few fields."""
    web = {
        "name": "HuggingFaceFW/fineweb-2",
        "licence": "ODC-By-1.0",
        "url": "https://huggingface.co/datasets/HuggingFaceFW/fineweb-2",
        "attribution": "FineWeb2 (HuggingFaceFW)",
        "obligations": ["Name FineWeb2 as a source.", f"Beware of {HOSTILE}"],
        "quotable": True,
        "revision": "af9c13333eb981300149d5ca60a8e9d659b276b9",
        "weight": 0.75,
        "rows_in": 20_000,
        "characters_in": 30_000_000,
        "removed": {"empty text": 2, "exact duplicate": 20, "too little Japanese": 4_000},
        "changed": {"normalisation": 1_500},
        "rows_out": 15_978,
        "characters_out": 24_000_000,
        "tokens_out": 12_000_000,
        "tokens_in_estimate": 15_000_000,
        "truncated": {"longer than a row": 12},
        "first_bad_rows": {"empty text": "/home/someone/secret/web.jsonl:17"},
    }
    own = {
        **{"name": "own.jsonl", "licence": None, "url": None, "attribution": None, "obligations": []},
        "quotable": False,
        **{"revision": None, "weight": 0.25, "rows_in": 1_734, "characters_in": 8_400_000},
        **{"removed": {"exact duplicate": 11}, "rows_out": 1_723, "characters_out": 8_000_000},
        **{"tokens_out": 4_000_000, "tokens_in_estimate": 4_200_000},
    }
    return [web, own]


def corpus_details() -> dict[str, Any]:
    """What a corpus' card holds besides the counts."""
    samples = [
        {"source": "HuggingFaceFW/fineweb-2", "id": "/home/someone/secret/web.jsonl:3", "text": HOSTILE},
        {"source": "HuggingFaceFW/fineweb-2", "id": "18", "text": ""},
        {"source": "own.jsonl", "id": PRIVATE, "text": PRIVATE},
    ]
    return {
        "removed": {"empty text": 2, "exact duplicate": 31, "too little Japanese": 4_000},
        "rows_out": 17_701,
        "sources": corpus_sources(),
        "steps": [
            {"step": "normalisation", "on": True, "reason": None, "settings": {}},
            {
                "step": "decontamination",
                "on": True,
                "reason": None,
                "settings": {"class": "C", "ngram_words": 13, "files": ["/home/someone/secret/jglue"]},
            },
            {"step": "near duplicates", "on": False, "reason": "its sentences recur by design", "settings": {}},
        ],
        "contamination": {"jglue": 3, "niilc": 0},
        "samples": {
            "exact duplicate": [{"source": "own.jsonl", "id": "7", "text": PRIVATE}],
            "kept": [{"source": "HuggingFaceFW/fineweb-2", "id": "17", "text": "春になると、桜が咲きます。"}],
            "too little Japanese": samples,
        },
    }


def _write_data(folders: dict[str, Path]) -> None:
    for name, rows, unit in (("corpus", 21_734, 1_000), ("conversations", 3_000, 90)):
        card = {
            "rows_in": rows,
            "removed": {"empty text": 2, "exact duplicate": 31},
            "rows_out": rows - 33,
            "splits": {
                split: {"rows": part, "tokens": part * unit, "documents": part * 9}
                for split, part in (("train", 960), ("calibration", 10), ("validation", 10), ("test", 20))
            },
        }
        if name == "corpus":  # the conversations' card stays as older builds wrote it
            card |= corpus_details()
        write_manifest(folders[name], {**card, "tokens": 1_000_000}, seconds=6.1)
        (folders[name] / "data_card.json").write_text(json.dumps(card), encoding="utf-8")


def evaluation() -> dict[str, Any]:
    """Every JSON file of the evaluation's folder by its stem."""
    measured = [*CHECKPOINTS, *map(gguf_name, GGUFS)]
    tasks = [row for place, name in enumerate(measured) for row in _task_rows(name, place)]
    tasks.append(_task_row(PACKAGE, "chat", "average", None, None) | {"n": None, "reason": "not run on this platform"})
    return {
        "tasks": tasks,
        "fidelity": _fidelity(),
        "phones": _phones(),
        "samples": _samples(),
        "paired": _paired(),
        "held_out": [
            {"artifact": name, "loss": loss, "interval": [loss - 0.01, loss + 0.01], "tokens": 20_000, "rows": 80}
            for name, loss in zip(CHECKPOINTS, (0.71, 1.423, 0.812, 1.02), strict=True)
        ],
    }


def _task_rows(name: str, place: int) -> list[dict[str, Any]]:
    form = "chat" if place > 2 else "plain"
    value = (0.83, 0.31, 0.68, 0.61, 0.61, 0.6, 0.58)[place]
    rows: list[dict[str, Any]] = []
    for shift, (task, (chance, groups)) in enumerate(SHAPES.items()):
        rows.append(_task_row(name, form, task, min(1.0, value + 0.07 * (2 - shift)), chance))
        rows += [_task_row(name, form, f"{task}/{group}", value, chance) for group in groups]
    return [*rows, _task_row(name, form, "average", value, None)]


def _task_row(name: str, form: str, task: str, value: float | None, chance: float | None) -> dict[str, Any]:
    return {
        "artifact": name,
        "task": task,
        "form": form,
        "metric": "mean" if task == "average" else "acc" if task == "multiple_choice" else "exact_match",
        "value": value,
        "n": 1500 if task == "average" else 300,
        "interval": None if value is None else [value - 0.05, min(1.0, value + 0.05)],
        "chance": chance,
        "extraction_failures": 0,
        "stopped_share": 0.997 if form == "chat" and value else None,
    }


def _fidelity() -> list[dict[str, Any]]:
    measured = {"F16": (3.2e-6, 0.9991), "Q8_0": (9.4e-4, 0.9873), "Q4_K_M": (0.0317, 0.931)}
    rows: list[dict[str, Any]] = [
        {
            "artifact": gguf_name(encoding),
            "reference": "chat",
            "kl": kl,
            "top1_agreement": agreement,
            "bits_per_character": 0.842,
            "tokens": 20_480,
        }
        for encoding, (kl, agreement) in measured.items()
    ]
    absent = dict.fromkeys(("kl", "top1_agreement", "bits_per_character", "tokens"))
    return [*rows, {"artifact": PACKAGE, "reference": "chat", **absent, "reason": "not run on this platform"}]


def _phones() -> list[dict[str, Any]]:
    phones = (
        ("iPhone 12, 12 mini", 2_192_572_416, True),
        ("iPhone SE (3rd generation)", 2_192_572_416, False),
        ("iPhone 15 Pro, Pro Max", 3_500_000_000, True),
        ("iPhone 17", None, None),
        ("A phone of long ago", 100_000_000, True),
    )
    artifacts = [*((gguf_name(encoding), size) for encoding, size in GGUFS.items()), (PACKAGE, 13_580_905)]
    rows: list[dict[str, Any]] = []
    for phone, limit, measured in phones:
        for artifact, size in artifacts:
            predicted = round(110e6 + size)
            rows.append(
                {
                    "phone": phone,
                    "artifact": artifact,
                    "context_tokens": 512 if artifact == PACKAGE else 1024,
                    "predicted_bytes": predicted,
                    "measured_bytes": None,
                    "measured_reason": "not measured: needs the phone",
                    "limit_bytes": limit,
                    "limit_measured": measured,
                    "limit_source": "a table" if limit else "no default limit has been reported",
                    "fits": None if limit is None else predicted <= limit,
                    "largest_context_tokens": None if limit is None else 1024 * (predicted <= limit),
                    "sources": {
                        "kv_cache": "from the artifact's header",
                        "weights": "charged in full" if artifact == PACKAGE else "mapped: not charged",
                    },
                }
            )
    return rows


def _samples() -> list[dict[str, Any]]:
    questions = [
        ([{"role": "user", "content": "こんにちは。"}], "こんにちは。どのようなご用件でしょうか。"),
        (
            [
                {"role": "system", "content": "あなたは丁寧な案内係です。"},
                {"role": "user", "content": "佐藤さんの好きな食べ物は何ですか。"},
            ],
            "佐藤さんの好きな食べ物はカレーライスです。",
        ),
        (
            [{"role": "user", "content": "りんごが3個で120円です。5個ではいくらですか。"}],
            "1個は40円です。40×5=200。答えは200円です。",
        ),
        ([{"role": "user", "content": "あなたは誰ですか。"}], HOSTILE),
    ]
    return [
        {"artifact": artifact, "messages": messages, "text": text, "stopped": artifact == "chat"}
        for messages, text in questions
        for artifact in ("chat", gguf_name("Q4_K_M"))
    ]


def _paired() -> list[dict[str, Any]]:
    rows = (
        ("task average", "base", "student_before", 0.37, [0.345, 0.396], 1500),
        ("task average", "chat", "base", -0.07, [-0.09, -0.05], 1500),
        ("held-out loss", "base", "student_before", -0.611, [-0.634, -0.588], 80),
    )
    fields = ("quantity", "artifact", "against", "difference", "interval", "n")
    paired: list[dict[str, Any]] = [dict(zip(fields, row, strict=True)) for row in rows]
    paired[1] |= {"ratio": 0.897, "ratio_interval": [0.868, 0.926]}
    return paired
