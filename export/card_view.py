"""From the report's JSON to the tables of the model card: files, scores, fidelity, phones, gaps, the recipe's numbers.

Pure functions. Nothing is computed here: a number is the report's own, with its interval and its items, or it is absent
and its reason is listed. Without a report every table is empty. It knows no folder and no markup.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.report import Choice, view, wording

Row = Mapping[str, Any]

FORMS = {
    "plain": "素のプロンプト / plain prompt",
    "chat": "チャットテンプレート / chat template",
    "swallow": "Swallow LLM Leaderboard の形式 / as the Swallow LLM Leaderboard asks",
    "clean": "本製品の形式 / this product's own form",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRow:
    """One file, or one package, of the release."""

    name: str
    bytes: int
    encoding: str
    bits_per_weight: float | None
    """None where the report does not tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreTable:
    """Scores of all that were asked in one form: tasks down, artifacts across."""

    form: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """(task and metric, a cell for each column)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """A kind of number that was not measured."""

    what: str
    of: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """What the report says of the training; every field may be None."""

    teacher_parameters: int | None
    parameters: int | None
    """Of the model itself."""
    is_distilled: bool
    """Whether it was distilled in this build; if not, the next three are None."""
    method: str | None
    steps: int | None
    """Optimizer steps of the distillation."""
    tokens: int | None
    """Tokens that these steps read."""
    is_tuned: bool
    """Whether it was tuned on conversations in this build; if not, the next one is None."""
    chat_steps: int | None
    """Optimizer steps of the tuning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceRow:
    """One number of the recipe."""

    choice: Choice
    differing: str
    """What the build has otherwise than the choice says, in words; empty where they agree."""


def making(report: Row | None) -> Making | None:
    """How the model was made; None without a report."""
    if report is None:
        return None
    trained = {row["stage"]: row for row in report["training"]}
    base = trained.get("base", {})
    method = base.get("method")
    return Making(
        teacher_parameters=view.stage(report, "teacher").get("parameters"),
        parameters=view.stage(report, "chat").get("parameters"),
        is_distilled=bool(base),
        method=None if method is None else view.METHOD_LABELS.get(method, method),
        steps=base.get("steps"),
        tokens=base.get("tokens"),
        is_tuned="chat" in trained,
        chat_steps=trained.get("chat", {}).get("steps"),
    )


def choice_rows(choices: Sequence[Choice], report: Row | None) -> list[ChoiceRow]:
    """The recipe's numbers, each with what the report found otherwise in the build."""
    told = {row["what"]: row for row in report.get("choices", ())} if report else {}
    return [ChoiceRow(choice=each, differing=view.differing(told.get(each.what, {}))) for each in choices]


def is_scored_as_chat(report: Row | None) -> bool:
    """Whether any score came through a chat template."""
    return report is not None and any(row["form"] == "chat" and row["value"] is not None for row in report["tasks"])


def file_rows(sizes: Mapping[str, int], encodings: Mapping[str, str], report: Row | None) -> list[FileRow]:
    """The model files with what the report knows of them.

    Args:
        sizes: bytes by name, as they lie in the release.
        encodings: by name, where the name tells.
        report: None leaves the rest open.
    """
    told = {row["path"]: row for row in report["artifacts"]} if report else {}
    return [
        FileRow(
            name=name,
            bytes=size,
            encoding=told.get(name, {}).get("encoding") or encodings.get(name) or wording.NOT_MEASURED,
            bits_per_weight=told.get(name, {}).get("bits_per_weight"),
        )
        for name, size in sizes.items()
    ]


def score_tables(report: Row | None) -> list[ScoreTable]:
    """A table a form of asking; parts of a task are left to the report."""
    rows = [row for row in report["tasks"] if "/" not in row["task"] and row["value"] is not None] if report else []
    by_form: dict[str, list[Row]] = {}
    for row in rows:
        by_form.setdefault(row["form"] or wording.NOT_MEASURED, []).append(row)
    return [_score_table(report or {}, form, asked) for form, asked in by_form.items()]


def _score_table(report: Row, form: str, rows: Sequence[Row]) -> ScoreTable:
    columns = list(dict.fromkeys(row["artifact"] for row in rows))
    cells = {(row["task"], row["metric"], row["artifact"]): _score(row) for row in rows}
    labels = {(row["task"], row["metric"]): _task_label(row) for row in rows}
    tasks = sorted(labels, key=lambda task: task[0] == view.AVERAGE)  # the average comes last
    return ScoreTable(
        form=FORMS.get(form, form),
        columns=tuple(view.label(report, column) for column in columns),
        rows=tuple(
            (labels[task], tuple(cells.get((*task, column), wording.NOT_MEASURED) for column in columns))
            for task in tasks
        ),
    )


def _task_label(row: Row) -> str:
    """`JSQuAD (exact match; chance 31.0)`."""
    task = view.TASK_LABELS.get(row["task"], row["task"].replace("_", " "))
    chance = "" if row["chance"] is None else f"; chance {wording.percent(row['chance'])}"
    return f"{task} ({view.METRIC_LABELS.get(row['metric'], row['metric'])}{chance})"


def _score(row: Row) -> str:
    """`61.0 (56.0 to 66.0), n 300`; a score without an interval has none."""
    interval = f" ({wording.percent_interval(row['interval'])})" if row["interval"] else ""
    return f"{wording.percent(row['value'])}{interval}, n {wording.count(row['n'])}"


def fidelity(report: Row | None) -> list[tuple[str, str, Row]]:
    """(file, what it is compared with, row) where it was measured."""
    rows: Sequence[Row] = report["fidelity"] if report else []
    measured = (row for row in rows if row["kl"] is not None)
    return [(row["artifact"], view.label(report or {}, row["reference"]), row) for row in measured]


def phones(report: Row | None) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """(files, (phone, its limit, a cell a file)); a cell says whether its number is predicted or measured."""
    if not report or not report["phones"]:
        return [], []
    table = view.phone_table(report)
    rows: list[tuple[str, str, list[str]]] = []
    for row in table.rows:
        limit = wording.size(row["limit_bytes"])
        assumed = " (assumed)" if row["limit_bytes"] and not row["limit_measured"] else ""
        rows.append((row["phone"], limit + assumed, [_phone(row["cells"].get(column)) for column in table.columns]))
    return [view.label(report, column) for column in table.columns], rows


def _phone(cell: Row | None) -> str:
    if not cell or cell["fits"] is None:
        return wording.NOT_MEASURED
    measured = cell["measured_bytes"] is not None
    needed = wording.size(cell["measured_bytes"] if measured else cell["predicted_bytes"])
    how = "measured" if measured else "predicted"
    context = f"at {wording.count(cell['context_tokens'])} tokens"
    return f"{'fits' if cell['fits'] else 'too large'}: {needed} {how} {context}"


def gaps(report: Row | None) -> list[Gap]:
    """What was not measured and why; without a report, everything."""
    if report is None:
        return [Gap(what="scores, fidelity, memory, speed", of="", reason="this release was made without a report")]
    return [
        Gap(what=row["what"], of=", ".join(view.label(report, name) for name in row["of"]), reason=row["reason"])
        for row in report["not_measured"]
    ]


def speeds(report: Row | None) -> list[Row]:
    """Rows of `speed` that hold a number."""
    return [row for row in report["speed"] if row.get("decode_tok_per_s") is not None] if report else []
