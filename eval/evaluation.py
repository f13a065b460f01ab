"""The stage `evaluation`: every artifact of a build through tasks, fidelity, held-out loss, phones and sample answers.

It runs in parts: one kind of measurement of one artifact. The result of a part is written when it is complete and read
again after a kill. A file that cannot be run (an abort in llama.cpp, a Core ML package here) becomes a row with the
reason, and the other parts run. `eval.report` reads what it writes.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.disk import replace_text
from common.errors import UserError, require_at_least
from common.metrics import progress
from common.rows import read_rows
from common.store import Workspace, stage
from eval.phones import phone_rows, unread_rows
from eval.runtimes import open_runtime
from eval.runtimes.protocol import NOT_RUN, Runtime
from eval.tasks import scores

if TYPE_CHECKING:
    from eval.tasks.harness import Harness

PLAIN = ("teacher", "student_before", "base")
"""Checkpoints that get plain prompts, so that they are asked alike: a base is never trained to chat, others may be."""
CHAT = "chat"
HELD_OUT_PAIRS = (("base", "student_before"), ("base", "teacher"), ("chat", "base"))
Rows = list[dict[str, Any]]
Results = Mapping[str, Mapping[str, Any]]
"""The result of each part by kind of measurement and artifact."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """How much is measured."""

    items_per_shape: int = 300
    """Items of each task for the checkpoints and the files in `main_encodings`."""
    items_per_shape_other: int = 100
    """Items of each task for the other files."""
    main_encodings: tuple[str, ...] = ("Q4_K_M",)
    """GGUF encodings that are measured in full and give sample answers."""
    fidelity_tokens: int = 10_000
    """Tokens of held-out text on which a file is compared with the chat checkpoint."""
    context_tokens: int = 4096
    """Context for which a phone's memory is predicted; a model made for less gets its own."""
    sample_prompts: tuple[str, ...] = ("こんにちは。", "あなたは誰ですか。", "自己紹介をしてください。")
    """User messages for the sample answers, before the held-out questions."""
    sample_questions: int = 2
    """Held-out questions of each shape among the samples."""
    sample_max_tokens: int = 96
    """Longest sample answer, tokens."""

    def __post_init__(self) -> None:
        for name in ("items_per_shape", "items_per_shape_other", "fidelity_tokens", "context_tokens"):
            require_at_least(1, **{name: getattr(self, name)})

    def is_main(self, artifact: str) -> bool:
        """Whether the artifact is a GGUF file in one of `main_encodings`."""
        return any(artifact.endswith(f"-{encoding}.gguf") for encoding in self.main_encodings)


@stage(version=5)
def evaluation(
    config: EvaluationConfig,
    workspace: Workspace,
    world: Path | None,
    corpus: Path,
    teacher: Path | None,
    student_before: Path | None,
    base: Path | None,
    chat: Path,
    gguf: Path | None,
    coreml: Path | None,
) -> dict[str, Any]:
    """Measures everything and writes `tasks`, `fidelity`, `held_out`, `paired`, `phones`, `samples` (.json), `logs/`.

    Returns:
        `task_average` by artifact, `held_out_loss` by checkpoint, `stopped_share` of the chat form by artifact.
    """
    checkpoints = {"teacher": teacher, "student_before": student_before, "base": base, CHAT: chat}
    with ExitStack() as stack:
        meter = _Meter(
            config=config,
            workspace=workspace,
            stack=stack,
            checkpoints={name: path for name, path in checkpoints.items() if path is not None},
            ggufs={path.name: path for path in sorted(gguf.glob("*.gguf"))} if gguf else {},
            packages={path.name: path for path in sorted(coreml.glob("*.mlpackage"))} if coreml else {},
            world=world,
            corpus=corpus,
        )
        measured = _run_parts(meter)
    sections: dict[str, Rows] = {
        "tasks": [row for rows in measured["tasks"].values() for row in rows],
        "fidelity": list(measured["fidelity"].values()),
        "samples": [row for rows in measured["samples"].values() for row in rows],
        "held_out": [{"artifact": name} | scores.mean_loss(rows) for name, rows in measured["held_out"].items()],
        "phones": [row for path in meter.files.values() for row in _phone_rows(path, config.context_tokens)],
        "paired": list(_paired(workspace.folder / "logs", measured["held_out"])),
    }
    for name, rows in sections.items():
        _write(workspace.folder / f"{name}.json", rows)
    averages = [row for row in sections["tasks"] if row["task"] == "average" and row["value"] is not None]
    return {
        "task_average": {row["artifact"]: row["value"] for row in averages},
        "held_out_loss": {row["artifact"]: row["loss"] for row in sections["held_out"]},
        "stopped_share": {row["artifact"]: row["stopped_share"] for row in averages if row["form"] == "chat"},
    }


def _run_parts(meter: "_Meter") -> Results:
    """Measures every part, or reads its result where an earlier start has measured it."""
    scratch = meter.workspace.folder / "scratch"
    scratch.mkdir(exist_ok=True)
    kinds: dict[str, tuple[Callable[[str], Any], Iterable[str]]] = {
        "tasks": (meter.tasks, meter.checkpoints | meter.files),
        "samples": (meter.samples, [CHAT, *filter(meter.config.is_main, meter.ggufs)]),
        "fidelity": (meter.fidelity, meter.files),
        "held_out": (meter.held_out, meter.checkpoints),
    }
    results: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    parts = [(kind, measure, name) for kind, (measure, names) in kinds.items() for name in names]
    for kind, measure, name in progress(parts, label="evaluation", unit="parts"):
        file = scratch / f"{kind}-{name}.json"
        if not file.is_file():
            _write(file, measure(name))
        results[kind][name] = json.loads(file.read_text(encoding="utf-8"))
    return results


@dataclass(frozen=True, kw_only=True)
class _Meter:
    """The four kinds of measurement. Each takes an artifact's name and returns what the file of its part holds."""

    config: EvaluationConfig
    workspace: Workspace
    stack: ExitStack
    checkpoints: dict[str, Path]
    ggufs: dict[str, Path]
    packages: dict[str, Path]
    world: Path | None
    corpus: Path

    @property
    def files(self) -> dict[str, Path]:
        return self.ggufs | self.packages

    @property
    def has_questions(self) -> bool:
        return self.world is not None and any(self.world.glob("questions.jsonl*"))

    def tasks(self, name: str) -> Rows:
        """The rows of `Harness.run`, or one without a value and with the reason."""
        form = "plain" if name in PLAIN else "chat"
        reason = NOT_RUN if name in self.packages else None if self.has_questions else "the build has no questions"
        if reason is None:
            full = name in self.checkpoints or self.config.is_main(name)
            limit = self.config.items_per_shape if full else self.config.items_per_shape_other
            log = self.workspace.folder / "logs" / name
            try:
                with closing(self._open(name)) as runtime:
                    return self._harness.run(runtime, artifact=name, form=form, limit=limit, log=log)
            except UserError as error:
                reason = self._reason(name, error)
        empty = dict.fromkeys(("value", "n", "interval", "chance", "extraction_failures", "stopped_share"))
        return [{"artifact": name, "task": "average", "form": form, "metric": "mean", **empty, "reason": reason}]

    def samples(self, name: str) -> Rows:
        """Greedy answers to the config's prompts, then to held-out questions in the words that the tasks use."""
        prompts = list(self.config.sample_prompts)
        if self.has_questions and self.config.sample_questions:
            prompts += self._harness.prompts(self.config.sample_questions)
        conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
        try:
            with closing(self._open(name)) as runtime:
                rendered = [runtime.render(messages) for messages in conversations]
                answers = runtime.generate(rendered, max_tokens=self.config.sample_max_tokens, stop=())
        except UserError as error:
            self._reason(name, error)
            return []
        return [
            {"artifact": name, "messages": messages, "text": answer.text, "stopped": answer.stopped}
            for messages, answer in zip(conversations, answers, strict=True)
        ]

    def fidelity(self, name: str) -> dict[str, Any]:
        """Distance of a file from the chat checkpoint, or nulls with the reason."""
        row: dict[str, Any] = {"artifact": name, "reference": CHAT, "kv": "f32"}
        reason = NOT_RUN if name in self.packages else None
        if reason is None:
            from eval.fidelity import fidelity

            limit = self.config.fidelity_tokens
            try:
                with closing(self._open(CHAT, exact=True)) as reference, closing(self._open(name, kv="f32")) as runtime:
                    return row | fidelity(runtime, reference, self._held_out_texts, limit_tokens=limit)
            except UserError as error:
                reason = str(error)
        return row | dict.fromkeys(("kl", "top1_agreement", "bits_per_character", "tokens")) | {"reason": reason}

    def held_out(self, name: str) -> list[tuple[float, float]]:
        """Loss of a checkpoint on each packed row of the test split: (sum in nats, tokens)."""
        from eval.runtimes.torch_runtime import held_out_losses

        return held_out_losses(self.checkpoints[name], self.corpus / "packed" / "test", self.workspace.machine)

    @cached_property
    def _harness(self) -> "Harness":
        """Loaded once for all artifacts: lm-eval and datasets take seconds."""
        from eval.tasks.harness import Harness

        assert self.world is not None
        return self.stack.enter_context(Harness(self.world))

    @cached_property
    def _held_out_texts(self) -> list[str]:
        files = sorted((self.corpus / "documents").glob("test-*.jsonl.gz"))
        return [row["text"] for row in read_rows(files, fields=("text",))]

    def _open(self, name: str, *, kv: str = "f16", exact: bool = False) -> Runtime:
        path = (self.checkpoints | self.files)[name]
        return open_runtime(path, machine=self.workspace.machine, kv=kv, exact=exact)

    def _reason(self, name: str, error: UserError) -> str:
        """Why a file has no numbers. The error of a checkpoint is raised: without it no other number has a meaning."""
        if name in self.checkpoints:
            raise error
        return str(error)


def _phone_rows(path: Path, context_tokens: int) -> Rows:
    try:
        return phone_rows([path], context_tokens=context_tokens)
    except UserError as error:
        return unread_rows(path, str(error))


def _paired(logs: Path, held_out: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Comparisons of two artifacts on the same items and on the same rows."""
    if (logs / "base").is_dir():
        for name, against in (("base", "student_before"), (CHAT, "base")):
            row = scores.paired_difference(logs / name, logs / against, with_ratio=name == CHAT)
            yield {"quantity": "task average", "artifact": name, "against": against} | row
    for name, against in HELD_OUT_PAIRS:
        if {name, against} <= held_out.keys() and scores.has_tokens(held_out[name]):
            difference = scores.loss_difference(held_out[name], held_out[against])
            yield {"quantity": "held-out loss", "artifact": name, "against": against} | difference


def _write(path: Path, content: Any) -> None:
    replace_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
