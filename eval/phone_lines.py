"""The rows of `eval.phones` for a terminal: a line for each file, and on request a table of all phones.

Everything that is printed of a phone's memory is predicted, and says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def phone_lines(rows: Sequence[Row], *, asked: int, table: bool) -> Iterator[str]:
    """A summary of each artifact, a line for each phone that it does not fit, or with `table` for all phones.

    `asked` is the context that the user asked for; a lower one is said.
    """
    by_artifact: dict[str, dict[str, Row]] = {}
    for row in rows:
        # The first row of a phone is at the context that was asked for; another is at the largest that fits.
        by_artifact.setdefault(row["artifact"], {}).setdefault(row["phone"], row)
    for artifact, by_phone in by_artifact.items():
        mine = list(by_phone.values())
        yield _summary(artifact, mine, asked)
        width = max(len(row["phone"]) for row in mine)
        for row in mine:
            if table or row["fits"] is False:
                yield f"  {row['phone']:<{width}}  {_verdict(row)}"


def _summary(artifact: str, rows: Sequence[Row], asked: int) -> str:
    context, predicted = rows[0]["context_tokens"], rows[0]["predicted_bytes"]
    lowered = f", the model's own instead of {asked}" if context is not None and context < asked else ""
    known = [row for row in rows if row["limit_bytes"] is not None]
    if predicted is None or not known:
        return f"{artifact}: {rows[0]['measured_reason']}"
    tightest = min(known, key=lambda row: row["limit_bytes"])
    fitting = sum(row["fits"] for row in known)
    return (
        f"{artifact}: {_megabytes(predicted)} predicted at {context} tokens{lowered}; fits {fitting} of {len(known)} "
        f"phones whose limit is known; tightest {tightest['phone']}, {_megabytes(tightest['limit_bytes'])}"
    )


def _verdict(row: Row) -> str:
    if row["fits"] is None:
        return f"not known: {row['limit_source']}"
    largest = row["largest_context_tokens"]
    limit = _megabytes(row["limit_bytes"])
    if row["fits"]:
        return f"fits below {limit}; largest context {largest} tokens"
    parts = sorted(row["parts"].items(), key=lambda part: -part[1])
    most = ", ".join(f"{name.replace('_', ' ')} {_megabytes(size)}" for name, size in parts[:2])
    way = f"fits at {largest} tokens" if largest else "fits at no context"
    return f"too large for {limit}: {most}; {way}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
