"""From the report's JSON to the numbers of the model card: files, scores, fidelity, phones, gaps, the recipe's numbers.

Computes nothing: a number is the report's own, with its interval and its items, or it is absent and its reason is
listed. Independent of folders and markup.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from common.known_benchmarks import asked_in
from eval.report import Choice, view, wording
from export.card.prompt import encoding_of

Row = Mapping[str, Any]

FORMS = {
    "plain": "素のプロンプト / plain prompt",
    "chat": "チャットテンプレート / chat template",
    "swallow": "Swallow LLM Leaderboard の形式 / as the Swallow LLM Leaderboard asks",
    "clean": "本製品の形式 / this product's own form",
}
_LISTS = ("artifacts", "built_from", "tasks", "fidelity", "phones", "speed", "training", "not_measured", "choices")
_NO_REPORT = {"what": "scores, fidelity, memory, speed", "of": (), "reason": "this release was made without a report"}
_EMPTY: Row = {**dict.fromkeys(_LISTS, ()), "not_measured": (_NO_REPORT,)}


def numbers(report: Row | None, sizes: Mapping[str, int], stated: Sequence[Choice]) -> dict[str, Any]:
    """All that the page takes from a report, by the names in its template; without a report every table is empty.

    `sizes` are the bytes of the model files in the release, by name; `stated` are the recipe's numbers.
    """
    known = _EMPTY if report is None else report
    table = view.phone_table(known)
    return {
        "has_report": report is not None,
        "making": None if report is None else _making(report),
        "files": _files(known, sizes),
        "scores": _scores(known),
        "benchmarks": asked_in(known["tasks"]),
        "is_scored_as_chat": any(row["form"] == "chat" and row["value"] is not None for row in known["tasks"]),
        # (file, reference, row)
        "fidelity": [
            (row["artifact"], view.label(known, row["reference"]), row)
            for row in known["fidelity"]
            if row["kl"] is not None
        ],
        "phone_columns": [view.label(known, column) for column in table.columns],
        "phone_rows": [
            (row["phone"], _limit(row), [_phone(row["cells"].get(column)) for column in table.columns])
            for row in table.rows
        ],
        "speeds": [row for row in known["speed"] if row.get("decode_tok_per_s") is not None],
        # (what was not measured, of which files, why)
        "gaps": [
            (row["what"], ", ".join(view.label(known, name) for name in row["of"]), row["reason"])
            for row in known["not_measured"]
        ],
        **_choices(known, stated),
    }


def _making(report: Row) -> dict[str, Any]:
    """How the model was made, None where unknown: `base` and `chat` are rows of `training` of this build."""
    trained = {row["stage"]: row for row in report["training"]}
    method = trained.get("base", {}).get("method")
    return {
        "parameters": view.stage(report, "chat").get("parameters"),
        "teacher_parameters": view.stage(report, "teacher").get("parameters"),
        "method": view.METHOD_LABELS.get(method, method),
        "base": trained.get("base"),
        "chat": trained.get("chat"),
    }


def _choices(report: Row, stated: Sequence[Choice]) -> dict[str, list[tuple[Choice, str]]]:
    """The recipe's numbers, each with the other values in this build in words, "" if none."""
    found = {row["what"]: row for row in report.get("choices", ())}
    rows = [(choice, view.differing(found.get(choice.what, {}))) for choice in stated]
    return {
        "published": [row for row in rows if row[0].published],
        "chosen": [row for row in rows if not row[0].published],
    }


def _files(report: Row, sizes: Mapping[str, int]) -> list[Row]:
    """`{name, bytes, encoding, bits_per_weight}` of each model file; the last is None where the report lacks it."""
    known: dict[str, Row] = {row["path"]: row for row in report["artifacts"]}
    rows: list[Row] = []
    for name, size in sizes.items():
        row, named = known.get(name, {}), encoding_of(name) if name.endswith(".gguf") else ""
        encoding = row.get("encoding") or named or wording.NOT_MEASURED
        rows.append({"name": name, "bytes": size, "encoding": encoding, "bits_per_weight": row.get("bits_per_weight")})
    return rows


def _scores(report: Row) -> list[dict[str, Any]]:
    """A table for each form of asking, tasks down, artifacts across; the parts of a task stay in the report.

    `rows` are (task and metric, a cell for each of `columns`).
    """
    by_form: dict[str, list[Row]] = {}
    for row in report["tasks"]:
        if "/" not in row["task"] and row["value"] is not None:
            by_form.setdefault(row["form"] or wording.NOT_MEASURED, []).append(row)
    tables: list[dict[str, Any]] = []
    for form, rows in by_form.items():
        columns = list(dict.fromkeys(row["artifact"] for row in rows))
        cells = {(row["task"], row["metric"], row["artifact"]): _score(row) for row in rows}
        labels = {(row["task"], row["metric"]): _task_label(row) for row in rows}
        lines = [
            (labels[task], [cells.get((*task, column), wording.NOT_MEASURED) for column in columns])
            for task in sorted(labels, key=lambda task: task[0] == view.AVERAGE)  # the average comes last
        ]
        named = [view.label(report, column) for column in columns]
        tables.append({"form": FORMS.get(form, form), "columns": named, "rows": lines})
    return tables


def _task_label(row: Row) -> str:
    """`JSQuAD (exact match; chance 31.0)`."""
    task = view.TASK_LABELS.get(row["task"], row["task"].replace("_", " "))
    chance = "" if row["chance"] is None else f"; chance {wording.percent(row['chance'])}"
    return f"{task} ({view.METRIC_LABELS.get(row['metric'], row['metric'])}{chance})"


def _score(row: Row) -> str:
    """`61.0 (56.0 to 66.0), n 300`; a score without an interval has none."""
    interval = f" ({wording.percent_interval(row['interval'])})" if row["interval"] else ""
    return f"{wording.percent(row['value'])}{interval}, n {wording.count(row['n'])}"


def _limit(row: Row) -> str:
    """What a phone lets an app use, and whether that is assumed."""
    return wording.size(row["limit_bytes"]) + (" (assumed)" if row["limit_bytes"] and not row["limit_measured"] else "")


def _phone(cell: Row | None) -> str:
    """Whether a file fits, and whether its number is predicted or measured."""
    if not cell or cell["fits"] is None:
        return wording.NOT_MEASURED
    how = "predicted" if cell["measured_bytes"] is None else "measured"
    context = f"at {wording.count(cell['context_tokens'])} tokens"
    return f"{'fits' if cell['fits'] else 'too large'}: {wording.size(cell[f'{how}_bytes'])} {how} {context}"
