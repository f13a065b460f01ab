"""The files of a release that tell of its data: `data_sources.json`, `DATA.md` and `LICENSES.md`.

`DATA.md` is the data card in Japanese and English, `LICENSES.md` has what each source's licence asks for, models
included. Both are drawn from the list that the model carries and say nothing else. It reads no card and judges no
licence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.provenance import SOURCES_FILE, DataSource, Terms, write_sources
from export.card_templates import rendered
from export.card_terms import LICENCE_TEXTS
from export.licences import spdx_expression

CARD, LICENCES = "DATA.md", "LICENSES.md"
DATA_FILES = (SOURCES_FILE, CARD, LICENCES)
MODEL = "model"
"""The kind of a source that is a published model, and no data."""
KINDS = {MODEL: "モデル / model", "corpus": "テキスト / text", "conversations": "会話 / conversations"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """One source in `LICENSES.md`."""

    terms: Terms
    text_url: str | None
    """Where the licence's text is, known for a single SPDX identifier."""
    stages: list[str] = field(default_factory=list[str])


def write_data_files(folder: Path, sources: Sequence[DataSource], *, has_report: bool) -> None:
    """Writes `DATA_FILES` into a folder.

    Args:
        folder: the release; `LICENSES.md` names its publishers' licence texts where it has them.
        sources: what the model learnt from, at least one; `LICENSES.md` has models as well, the data card data alone.
        has_report: whether `report.html` lies beside them.
    """
    write_sources(folder, sources)
    data = [source for source in sources if source.stage != MODEL]
    told = {"has_report": has_report, "has_models": len(data) < len(sources)}
    texts = {"has_texts": (folder / LICENCE_TEXTS).is_dir()}
    contexts = {CARD: {**_card(data), **told}, LICENCES: {"entries": _entries(sources), **texts}}
    for name, context in contexts.items():
        (folder / name).write_text(rendered(name, kinds=KINDS, **context), encoding="utf-8")


def _card(sources: Sequence[DataSource]) -> dict[str, Any]:
    """Rows with each source's share of all tokens of its kind, which is null where any is not counted."""
    rows: list[dict[str, Any]] = []
    for source in sources:
        tokens = [other.tokens_out for other in sources if other.stage == source.stage]
        known = [count for count in tokens if count is not None]
        total = sum(known) if len(known) == len(tokens) else 0
        share = source.tokens_out / total if total and source.tokens_out is not None else None
        rows.append({"source": source, "share": share})
    counted = [source.tokens_out for source in sources if source.tokens_out is not None]
    return {
        "rows": rows,
        "tokens": sum(counted) if len(counted) == len(sources) else None,
        "unstated": list(dict.fromkeys(source.name for source in sources if source.licence is None)),
    }


def _entries(sources: Sequence[DataSource]) -> list[_Entry]:
    """A source under the same terms once, whatever it was used as and at which revisions."""
    found: dict[Terms, _Entry] = {}
    for source in sources:
        terms = Terms(
            name=source.name,
            licence=source.licence,
            url=source.url,
            attribution=source.attribution,
            obligations=source.obligations,
        )
        entry = found.setdefault(terms, _Entry(terms=terms, text_url=_text_url(source.licence)))
        if source.stage not in entry.stages:
            entry.stages.append(source.stage)
    return list(found.values())


def _text_url(licence: str | None) -> str | None:
    expression = None if licence is None else spdx_expression(licence)
    single = expression is not None and " " not in expression and not expression.startswith("LicenseRef-")
    return f"https://spdx.org/licenses/{expression}.html" if single else None
