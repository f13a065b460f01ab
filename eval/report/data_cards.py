"""The data cards of a build as the report's JSON holds them: what came in, what was removed and why, under which terms.

Only what a card is known to tell is taken over, and absolute paths are cut to their last part; terms and the texts of
samples are quoted as they are. A card of an older build, without sources, has empty lists. It draws and judges nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from eval.report.collect import cut_paths, read_json

_COUNTS = (
    *("rows_in", "characters_in", "removed", "changed", "truncated", "rows_out", "characters_out"),
    *("tokens_out", "tokens_in_estimate"),
)
_TERMS = ("licence", "attribution", "obligations")
_SHARED_BY = ("tokens_out", "characters_out", "rows_out")
"""What a source's share is a share of: the first of these that is counted for every source."""


def data_cards(folders: Mapping[str, Path | None]) -> dict[str, Any]:
    """The cards of the corpus and the conversations, null where one is absent."""
    return {name: _card(folders.get(name)) for name in ("corpus", "conversations")}


def _card(folder: Path | None) -> dict[str, Any] | None:
    """{rows_in, removed, rows_out, splits, tokens, sources, steps, contamination, samples}; the last four may be empty.

    A source has its terms, its counts and `share`, its part of the tokens that were kept (of the characters or the rows
    where tokens are not counted), 0 to 1.
    """
    path = None if folder is None else folder / "data_card.json"
    if path is None or not path.is_file():
        return None
    card = read_json(path)
    sources: Sequence[Mapping[str, Any]] = card.get("sources") or []
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = card.get("samples") or {}
    told: dict[str, Any] = {
        **_cut({field: card.get(field) for field in ("rows_in", "removed", "rows_out", "splits", "tokens")}),
        "sources": [
            _cut({field: source.get(field) for field in ("name", "revision", "weight", *_COUNTS)})
            | {field: source.get(field) for field in _TERMS}
            | {"url": _web_address(source.get("url")), "share": share}
            for source, share in zip(sources, _shares(sources), strict=True)
        ],
        "steps": [
            _cut({field: step.get(field) for field in ("step", "on", "reason", "settings")})
            for step in card.get("steps") or []
        ],
        "contamination": _cut(card.get("contamination") or {}),
    }
    told["samples"] = {
        cut_paths(rule): [
            _cut({field: sample.get(field) for field in ("source", "id")}) | {"text": sample.get("text")}
            for sample in rows
        ]
        for rule, rows in samples.items()
    }
    return told


def _shares(sources: Sequence[Mapping[str, Any]]) -> list[float | None]:
    for field in _SHARED_BY:
        counts = [source.get(field) for source in sources]
        known = [count for count in counts if count is not None]
        if len(known) == len(counts) and sum(known) > 0:
            return [round(count / sum(known), 6) for count in known]
    return [None] * len(sources)


def _web_address(url: Any) -> str | None:
    return url if isinstance(url, str) and url.startswith(("https://", "http://")) else None


def _cut(content: Any) -> Any:
    """The same JSON with the absolute paths of all texts cut, those of an object's keys too."""
    if isinstance(content, Mapping):
        fields = cast(Mapping[str, Any], content)
        return {cut_paths(name): _cut(value) for name, value in fields.items()}
    if isinstance(content, list):
        return [_cut(item) for item in cast(list[Any], content)]
    return cut_paths(content)
