"""The stage `evaluation`: every artifact of a build through tasks, fidelity, held-out loss, phones and sample answers.

It runs in parts, one for each artifact and kind of measurement. A part's result is written when it is done and found
again after a kill. A file that cannot be run (an abort in llama.cpp, a Core ML package here) is a row with the reason,
and the rest goes on. What it writes is read by `eval.report`; it knows no maker, only the folders that they leave.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.disk import replace_text
from common.errors import UserError
from common.metrics import progress
from common.rows import read_rows
from common.store import Workspace, stage
from eval.phones import phone_rows, unread_rows
from eval.runtimes import NOT_RUN, Runtime, open_runtime
from eval.tasks import scores

if TYPE_CHECKING:
    from eval.tasks.harness import Harness

PLAIN = ("teacher", "student_before", "base")
"""Checkpoints that get plain prompts, so that they are asked alike: a base is never taught to chat, others may be."""
CHAT = "chat"
HELD_OUT_PAIRS = (("base", "student_before"), ("base", "teacher"), ("chat", "base"))


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
            if getattr(self, name) < 1:
                raise UserError(
                    wanted=f"{name} of at least 1", got=str(getattr(self, name)), next_step="correct the recipe."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Inputs:
    """The artifacts by the names that the report gives them."""

    checkpoints: dict[str, Path]
    ggufs: dict[str, Path]
    packages: dict[str, Path]
    world: Path | None
    corpus: Path

    @property
    def files(self) -> dict[str, Path]:
        return self.ggufs | self.packages


@stage(version=3)
def evaluation(
    config: EvaluationConfig,
    workspace: Workspace,
    teacher: Path | None,
    student_before: Path | None,
    base: Path | None,
    chat: Path,
    gguf: Path | None,
    coreml: Path | None,
    world: Path | None,
    corpus: Path,
) -> dict[str, Any]:
    """Measures everything and writes `tasks`, `fidelity`, `held_out`, `paired`, `phones`, `samples` (.json), `logs/`.

    Returns:
        `task_average` by artifact, `held_out_loss` by checkpoint, `stopped_share` of the chat form by artifact.
    """
    checkpoints = {"teacher": teacher, "student_before": student_before, "base": base, CHAT: chat}
    inputs = _Inputs(
        checkpoints={name: path for name, path in checkpoints.items() if path is not None},
        ggufs={path.name: path for path in sorted(gguf.glob("*.gguf"))} if gguf else {},
        packages={path.name: path for path in sorted(coreml.glob("*.mlpackage"))} if coreml else {},
        world=world,
        corpus=corpus,
    )
    measured = _run_parts(config, workspace, inputs)
    results = {
        "tasks": [row for name in (*inputs.checkpoints, *inputs.files) for row in measured[f"tasks-{name}"]],
        "fidelity": [measured[f"fidelity-{name}"] for name in inputs.files],
        "samples": [row for name in _talkers(config, inputs) for row in measured[f"samples-{name}"]],
        "held_out": [
            {"artifact": name} | scores.mean_loss(measured[f"held_out-{name}"]) for name in inputs.checkpoints
        ],
        "phones": [row for path in inputs.files.values() for row in _phone_rows(path, config.context_tokens)],
    }
    results["paired"] = list(_paired(workspace.folder / "logs", measured))
    for name, rows in results.items():
        _write(workspace.folder / f"{name}.json", rows)
    averages = [row for row in results["tasks"] if row["task"] == "average" and row["value"] is not None]
    return {
        "task_average": {row["artifact"]: row["value"] for row in averages},
        "held_out_loss": {row["artifact"]: row["loss"] for row in results["held_out"]},
        "stopped_share": {row["artifact"]: row["stopped_share"] for row in averages if row["form"] == "chat"},
    }


def _run_parts(config: EvaluationConfig, workspace: Workspace, inputs: _Inputs) -> dict[str, Any]:
    """The result of every part by its name; those of an earlier start are read."""
    scratch = workspace.folder / "scratch"
    scratch.mkdir(exist_ok=True)
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        measure = _Measure(config, workspace, inputs, stack)
        for name, part in progress(list(measure.parts()), label="evaluation", unit="parts"):
            file = scratch / f"{name}.json"
            if not file.is_file():
                _write(file, part())
            results[name] = json.loads(file.read_text(encoding="utf-8"))
    return results


class _Measure:
    """The parts of one evaluation, in order."""

    def __init__(self, config: EvaluationConfig, workspace: Workspace, inputs: _Inputs, stack: ExitStack) -> None:
        self._config, self._workspace, self._inputs, self._stack = config, workspace, inputs, stack
        self._harness: Harness | None = None
        self._texts: list[str] | None = None

    def parts(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """(name, what computes it)."""
        inputs = self._inputs
        for name, path in (inputs.checkpoints | inputs.files).items():
            yield f"tasks-{name}", lambda name=name, path=path: self._tasks(name, path)
        for name in _talkers(self._config, inputs):
            path = (inputs.checkpoints | inputs.files)[name]
            yield f"samples-{name}", lambda name=name, path=path: self._samples(name, path)
        for name, path in inputs.files.items():
            yield f"fidelity-{name}", lambda name=name, path=path: self._fidelity(name, path)
        for name, path in inputs.checkpoints.items():
            yield f"held_out-{name}", lambda path=path: self._held_out(path)

    def _open(self, path: Path, *, kv: str = "f16", exact: bool = False) -> Runtime:
        return open_runtime(path, machine=self._workspace.machine, kv=kv, exact=exact)

    def _tasks(self, name: str, path: Path) -> list[dict[str, Any]]:
        config, form = self._config, "plain" if name in PLAIN else "chat"
        reason = _absence(path) or ("the build has no questions" if not self._has_questions() else None)
        if reason is None:
            full = name in self._inputs.checkpoints or _is_main(config, name)
            limit = config.items_per_shape if full else config.items_per_shape_other
            log = self._workspace.folder / "logs" / name
            try:
                with closing(self._open(path)) as runtime:
                    return self._tasks_over().run(runtime, artifact=name, form=form, limit=limit, log=log)
            except UserError as error:
                reason = _excuse(error, name, self._inputs)
        fields = dict.fromkeys(("value", "n", "interval", "chance", "extraction_failures", "stopped_share"))
        return [{"artifact": name, "task": "average", "form": form, "metric": "mean", **fields, "reason": reason}]

    def _has_questions(self) -> bool:
        world = self._inputs.world
        return world is not None and any(world.glob("questions.jsonl*"))

    def _tasks_over(self) -> "Harness":
        """Loaded once for all artifacts: lm-eval and datasets take seconds."""
        if self._harness is None:
            from eval.tasks.harness import Harness

            assert self._inputs.world is not None
            self._harness = self._stack.enter_context(Harness(self._inputs.world))
        return self._harness

    def _samples(self, name: str, path: Path) -> list[dict[str, Any]]:
        messages = [[{"role": "user", "content": prompt}] for prompt in self._sample_prompts()]
        try:
            with closing(self._open(path)) as runtime:
                prompts = [runtime.render(conversation) for conversation in messages]
                answers = runtime.generate(prompts, max_tokens=self._config.sample_max_tokens, stop=())
        except UserError as error:
            _excuse(error, name, self._inputs)
            return []
        return [
            {"artifact": name, "messages": conversation, "text": answer.text, "stopped": answer.stopped}
            for conversation, answer in zip(messages, answers, strict=True)
        ]

    def _sample_prompts(self) -> list[str]:
        """The config's, then held-out questions in the words that the tasks use."""
        prompts = list(self._config.sample_prompts)
        if self._has_questions() and self._config.sample_questions:
            prompts += self._tasks_over().prompts(self._config.sample_questions)
        return prompts

    def _fidelity(self, name: str, path: Path) -> dict[str, Any]:
        row: dict[str, Any] = {"artifact": name, "reference": CHAT, "kv": "f32"}
        reason = _absence(path)
        if reason is None:
            from eval.fidelity import fidelity

            try:
                with (
                    closing(self._open(self._inputs.checkpoints[CHAT], exact=True)) as reference,
                    closing(self._open(path, kv="f32")) as runtime,
                ):
                    return row | fidelity(
                        runtime, reference, self._held_out_texts(), limit_tokens=self._config.fidelity_tokens
                    )
            except UserError as error:
                reason = str(error)
        return row | dict.fromkeys(("kl", "top1_agreement", "bits_per_character", "tokens")) | {"reason": reason}

    def _held_out_texts(self) -> list[str]:
        if self._texts is None:
            files = sorted((self._inputs.corpus / "documents").glob("test-*.jsonl.gz"))
            self._texts = [row["text"] for row in read_rows(files, fields=("text",))]
        return self._texts

    def _held_out(self, path: Path) -> list[tuple[float, float]]:
        from eval.runtimes.torch_runtime import held_out_losses

        return held_out_losses(path, self._inputs.corpus / "packed" / "test", self._workspace.machine)


def _phone_rows(path: Path, context_tokens: int) -> list[dict[str, Any]]:
    try:
        return phone_rows([path], context_tokens=context_tokens)
    except UserError as error:
        return unread_rows(path, str(error))


def _absence(path: Path) -> str | None:
    return NOT_RUN if path.suffix == ".mlpackage" else None


def _excuse(error: UserError, name: str, inputs: _Inputs) -> str:
    """Why a file has no numbers. A checkpoint has no excuse: without it nothing else means anything."""
    if name not in inputs.files:
        raise error
    return str(error)


def _is_main(config: EvaluationConfig, name: str) -> bool:
    return any(name.endswith(f"-{encoding}.gguf") for encoding in config.main_encodings)


def _talkers(config: EvaluationConfig, inputs: _Inputs) -> list[str]:
    """Who gives sample answers."""
    return [CHAT, *(name for name in inputs.ggufs if _is_main(config, name))]


def _paired(logs: Path, measured: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Two artifacts on the same items and rows."""
    if (logs / "base").is_dir():
        names = {"quantity": "task average", "artifact": "base", "against": "student_before"}
        yield names | scores.paired_difference(logs / "base", logs / "student_before")
        ratio = scores.paired_ratio(logs / CHAT, logs / "base")
        names = {"quantity": "task average", "artifact": CHAT, "against": "base"}
        row = names | scores.paired_difference(logs / CHAT, logs / "base")
        yield row | {"ratio": ratio["ratio"], "ratio_interval": ratio["interval"]}
    for name, against in HELD_OUT_PAIRS:
        if not {f"held_out-{name}", f"held_out-{against}"} <= measured.keys():
            continue
        rows, other_rows = measured[f"held_out-{name}"], measured[f"held_out-{against}"]
        if scores.has_tokens(rows):
            difference = scores.loss_difference(rows, other_rows)
            yield {"quantity": "held-out loss", "artifact": name, "against": against} | difference


def _write(path: Path, content: Any) -> None:
    replace_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
