"""From the report's JSON to the tables of the model card: files, scores, fidelity, phones, gaps, the recipe's numbers.

Pure functions that compute nothing: a number is the report's own, with its interval and its items, or it is absent and
its reason is listed. Without a report every table is empty. Independent of folders and markup.
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
class FormScores:
    """The scores of one form of asking: tasks down, artifacts across."""

    form: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """(task and metric, a cell for each column)."""


def making(report: Row | None) -> dict[str, Any] | None:
    """How the model was made: `parameters`, `teacher_parameters` and `method`, None where unknown, and the rows of
    `training` of this build's distillation (`base`) and tuning (`chat`), None where it had none. None without a report.
    """
    if report is None:
        return None
    trained = {row["stage"]: row for row in report["training"]}
    method = trained.get("base", {}).get("method")
    return {
        "parameters": view.stage(report, "chat").get("parameters"),
        "teacher_parameters": view.stage(report, "teacher").get("parameters"),
        "method": view.METHOD_LABELS.get(method, method),
        "base": trained.get("base"),
        "chat": trained.get("chat"),
    }


def choices(stated: Sequence[Choice], report: Row | None) -> dict[str, list[tuple[Choice, str]]]:
    """The recipe's numbers, `published` and `chosen`, each with the other values in this build in words, "" if none."""
    found = {row["what"]: row for row in report.get("choices", ())} if report else {}
    rows = [(choice, view.differing(found.get(choice.what, {}))) for choice in stated]
    return {
        "published": [row for row in rows if row[0].published],
        "chosen": [row for row in rows if not row[0].published],
    }


def is_scored_as_chat(report: Row | None) -> bool:
    """Whether any score came through a chat template."""
    return report is not None and any(row["form"] == "chat" and row["value"] is not None for row in report["tasks"])


def files(sizes: Mapping[str, int], encodings: Mapping[str, str], report: Row | None) -> list[Row]:
    """`{name, bytes, encoding, bits_per_weight}` of each model file; the last is None where the report lacks it.

    Args:
        sizes: bytes by name, of the files in the release.
        encodings: by name, for files that the report lacks.
        report: None leaves the rest open.
    """
    known: dict[str, Row] = {row["path"]: row for row in report["artifacts"]} if report else {}
    return [
        {
            "name": name,
            "bytes": size,
            "encoding": known.get(name, {}).get("encoding") or encodings.get(name) or wording.NOT_MEASURED,
            "bits_per_weight": known.get(name, {}).get("bits_per_weight"),
        }
        for name, size in sizes.items()
    ]


def scores(report: Row | None) -> list[FormScores]:
    """A table for each form of asking; the parts of a task stay in the report."""
    rows = [row for row in report["tasks"] if "/" not in row["task"] and row["value"] is not None] if report else []
    by_form: dict[str, list[Row]] = {}
    for row in rows:
        by_form.setdefault(row["form"] or wording.NOT_MEASURED, []).append(row)
    return [_form_scores(report or {}, form, asked) for form, asked in by_form.items()]


def _form_scores(report: Row, form: str, rows: Sequence[Row]) -> FormScores:
    columns = list(dict.fromkeys(row["artifact"] for row in rows))
    cells = {(row["task"], row["metric"], row["artifact"]): _score(row) for row in rows}
    labels = {(row["task"], row["metric"]): _task_label(row) for row in rows}
    tasks = sorted(labels, key=lambda task: task[0] == view.AVERAGE)  # the average comes last
    return FormScores(
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
    """(file, reference, row) where it was measured."""
    measured = (row for row in report["fidelity"] if row["kl"] is not None) if report else ()
    return [(row["artifact"], view.label(report or {}, row["reference"]), row) for row in measured]


def phones(report: Row | None) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """(files, (phone, its limit, a cell for each file)); a cell says whether its number is predicted or measured."""
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
    how = "predicted" if cell["measured_bytes"] is None else "measured"
    context = f"at {wording.count(cell['context_tokens'])} tokens"
    return f"{'fits' if cell['fits'] else 'too large'}: {wording.size(cell[f'{how}_bytes'])} {how} {context}"


def gaps(report: Row | None) -> list[tuple[str, str, str]]:
    """(what was not measured, of which files, why); without a report, everything."""
    if report is None:
        return [("scores, fidelity, memory, speed", "", "this release was made without a report")]
    return [
        (row["what"], ", ".join(view.label(report, name) for name in row["of"]), row["reason"])
        for row in report["not_measured"]
    ]


def speeds(report: Row | None) -> list[Row]:
    """Rows of `speed` that hold a number."""
    return [row for row in report["speed"] if row.get("decode_tok_per_s") is not None] if report else []
