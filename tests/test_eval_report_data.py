"""The report's section on data: numbers of the cards in the JSON and on the pages, old cards, nothing private."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_tiny import HOSTILE, INPUTS, MACHINE, PRIVATE, Page, corpus_details, corpus_sources, write_build

from common.provenance import DataSource, write_sources
from common.store import Workspace
from eval.report import ReportConfig, report
from eval.report.data import data_cards

WEB, OWN = corpus_sources()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report's folder."""
    folder = tmp_path_factory.mktemp("report")
    build = write_build(folder / "build")
    (folder / "out").mkdir()
    report(ReportConfig(), Workspace(folder=folder / "out", machine=MACHINE), *(build[name] for name in INPUTS))
    return folder / "out"


@pytest.fixture(scope="module")
def page(out: Path) -> Page:
    return Page((out / "report.html").read_text(encoding="utf-8"))


def markdown(out: Path) -> str:
    """The section in report.md."""
    text = (out / "report.md").read_text(encoding="utf-8")
    return text[text.index("## Data\n") : text.index("## Licences and machine")]


def texts(page: Page, tag: str) -> list[str]:
    """What every element of a kind says, in order, without its children's text."""
    return [" ".join(text.split()) for text, place in page.texts if place and place[-1] == tag and text.strip()]


def card_of(folder: Path, **card: Any) -> dict[str, Any]:
    """A corpus card as the report's JSON holds it."""
    (folder / "data_card.json").write_text(json.dumps(card), encoding="utf-8")
    return data_cards({"corpus": folder})["corpus"]


def test_the_json_holds_the_cards_numbers_and_each_sources_share(out: Path) -> None:
    card = json.loads((out / "report.json").read_text(encoding="utf-8"))["data"]["corpus"]
    for found, source in zip(card["sources"], (WEB, OWN), strict=True):
        counts = {name: value for name, value in source.items() if name != "first_bad_rows"}
        assert {name: found[name] for name in counts} == counts
    tokens = WEB["tokens_out"] + OWN["tokens_out"]
    assert [source["share"] for source in card["sources"]] == [WEB["tokens_out"] / tokens, OWN["tokens_out"] / tokens]
    assert card["removed"] == corpus_details()["removed"] and card["contamination"] == {"jglue": 3, "niilc": 0}
    assert card["steps"][2] == corpus_details()["steps"][2]
    assert card["samples"]["too little Japanese"][0]["text"] == HOSTILE


def test_shares_are_of_what_is_counted_everywhere(tmp_path: Path) -> None:
    def shares(*sources: dict[str, Any]) -> list[float | None]:
        named = [{"name": "a"} | source for source in sources]
        return [source["share"] for source in card_of(tmp_path, sources=named)["sources"]]

    assert shares({"tokens_out": 3, "rows_out": 1}, {"tokens_out": 1, "rows_out": 1}) == [0.75, 0.25]
    assert shares({"tokens_out": 3, "rows_out": 1}, {"rows_out": 4}) == [0.2, 0.8]
    assert shares({"tokens_out": 0}, {"tokens_out": 0}) == [None, None]


def test_the_page_tells_of_every_source(page: Page) -> None:
    cells = texts(page, "td")
    for said in ("15,978", "24,000,000", "12,000,000", "75.0", "ODC-By-1.0", "not stated", "1,723", "4,000,000"):
        assert said in cells, said
    small = texts(page, "span")
    for said in ("of 20,000", "of 30,000,000", "of about 15M", "weight 0.75, revision af9c13333eb9"):
        assert said in small, said
    sums = [text for text, place in page.texts if "tfoot" in place]
    assert {"17,701", "32,000,000", "16,000,000"} <= set(sums)
    assert WEB["attribution"] in texts(page, "dd")
    assert {*WEB["obligations"]} <= set(texts(page, "li"))
    named = [attributes["href"] for attributes in page.all("a") if attributes.get("rel") == "noopener noreferrer"]
    assert named == [WEB["url"]] * 2


def test_the_page_tells_what_was_removed_and_what_was_not_tried(page: Page) -> None:
    heads, terms, said = texts(page, "th"), texts(page, "dt"), texts(page, "dd")
    assert {"Too little Japanese", "Exact duplicate", "Longer than a row", "Normalisation"} <= set(heads)
    states = said[said.index("Off: its sentences recur by design") :][:3]
    assert states == ["Off: its sentences recur by design", "On", "On: ngram words 13"]
    assert terms[terms.index("Near duplicates") :][:3] == ["Near duplicates", "Normalisation", "Decontamination"]
    assert said[said.index("3") - 1 :][:3] == ["On: ngram words 13", "3", "0"]
    assert terms[terms.index("jglue") + 1] == "niilc"


def test_samples_fold_away_and_are_text(page: Page) -> None:
    shown = [text for text, place in page.texts if "details" in place and place[-1] == "dd"]
    assert HOSTILE in shown and "春になると、桜が咲きます。" in shown
    folded = [attributes for tag, attributes, place in page.elements if tag == "dd" and place.count("details") == 1]
    assert [attributes["lang"] for attributes in folded if "lang" in attributes] == ["ja", "ja"]
    assert shown.count("not quoted") == 1  # its card gives no text
    assert {"Kept", "Removed: too little Japanese"} <= set(texts(page, "p"))
    assert not list(page.all("script")) and not list(page.all("b"))


def test_markdown_tells_the_same(out: Path) -> None:
    section = markdown(out)
    tables = [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)]
    cells = [[[cell.strip() for cell in line.strip("|").split("|")] for line in table] for table in tables]
    assert [len(table) for table in tables] == [5, 5, 4, 4]  # sources, removed, changed; the conversations' removed
    counts = ["20,000", "15,978", "30,000,000", "24,000,000", "15,000,000", "12,000,000", "75.0"]
    assert cells[0][2][1:] == ["ODC-By-1.0", *counts]
    assert cells[1][3] == ["exact duplicate", "31", "20", "11"]
    assert "- Near duplicates: off: its sentences recur by design" in section
    assert "- Removed because they held an item of jglue: 3 rows" in section
    assert "  - Name FineWeb2 as a source.\n" in section
    assert "<script" not in section and "<details><summary>" in section


def test_no_path_and_no_other_field_of_a_card_is_told(out: Path) -> None:
    everything = "".join(path.read_text(encoding="utf-8") for path in out.iterdir())
    for secret in ("/home", "secret", "first_bad_rows"):
        assert secret not in everything
    assert "web.jsonl:3" in everything


def test_rows_are_quoted_only_of_sources_whose_terms_say_so(out: Path, page: Page) -> None:
    for path in out.iterdir():
        assert PRIVATE not in path.read_text(encoding="utf-8"), path.name
    card = json.loads((out / "report.json").read_text(encoding="utf-8"))["data"]["corpus"]
    assert card["not_quoted"] == ["own.jsonl"] and "exact duplicate" not in card["samples"]
    assert any("may quote own.jsonl" in text for text in texts(page, "p"))
    assert "may quote own.jsonl" in markdown(out)


@pytest.mark.parametrize("quotable", [None, False, "yes", 1])
def test_a_card_that_does_not_say_true_is_not_quoted(tmp_path: Path, quotable: Any) -> None:
    samples = {"kept": [{"source": "own", "id": "1", "text": PRIVATE}]}
    card = card_of(tmp_path, sources=[{"name": "own", "quotable": quotable}], samples=samples)
    assert PRIVATE not in json.dumps(card, ensure_ascii=False) and card["not_quoted"] == ["own"]


LEARNT = DataSource(name="own.jsonl", stage="corpus")


@pytest.mark.parametrize(
    ("learnt", "questions", "says"),
    [
        ([], None, None),
        ([replace(LEARNT, quotable=True)], None, None),
        ([DataSource(name="tokyotech-llm/lmsys-chat-1m-synth", stage="conversations")], None, None),
        ([DataSource(name="org/a-model", stage="model")], None, None),
        ([LEARNT, replace(LEARNT, stage="conversations")], None, "own.jsonl"),
        ([], {}, "the questions"),
        ([], {"name": "mine", "licence": "MIT"}, "the questions"),
        ([], {"name": "mine", "quotable": True}, None),
    ],
)
def test_answers_are_shown_where_all_that_was_learnt_is_public(
    tmp_path: Path, learnt: list[DataSource], questions: dict[str, Any] | None, says: str | None
) -> None:
    build = write_build(tmp_path / "build")
    write_sources(build["chat"], learnt)
    if questions is not None:
        (build["world"] / "questions.jsonl").write_text("{}\n")
    if questions:
        (build["world"] / "terms.json").write_text(json.dumps(questions))
    (tmp_path / "out").mkdir()
    report(ReportConfig(), Workspace(folder=tmp_path / "out", machine=MACHINE), *(build[name] for name in INPUTS))
    written = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert (written["samples_reason"] is None) == (says is None) == bool(written["samples"])
    assert says is None or written["samples_reason"].endswith(f"may quote {says}")
    for path in (tmp_path / "out").iterdir():
        text = path.read_text(encoding="utf-8")
        assert ("カレーライス" in text) == (says is None), path.name
        assert path.suffix == ".json" or ("Not shown: a model can repeat" in text) == (says is not None), path.name


def test_paths_anywhere_in_a_card_lose_their_folders(tmp_path: Path) -> None:
    card = card_of(
        tmp_path,
        rows_in=1,
        removed={"in /srv/data/own.jsonl": 1},
        sources=[
            {"name": "a", "url": "file:///srv/data/a", "revision": "/srv/data/a", "removed": {"/srv/data/b": 1}},
            {"name": "/srv/data/f", "quotable": True},
        ],
        steps=[{"step": "s", "on": False, "reason": "no /srv/data/c", "settings": {"folder": "/srv/data/d", "n": [3]}}],
        contamination={"/srv/data/e": 2},
        samples={"kept": [{"source": "/srv/data/f", "id": 4, "text": "道は /srv/data/g です"}]},
    )
    assert card["samples"]["kept"] == [{"source": "f", "id": 4, "text": "道は /srv/data/g です"}]
    assert "/srv" not in json.dumps({**card, "samples": {}})
    assert card["removed"] == {"in own.jsonl": 1} and card["contamination"] == {"e": 2}
    assert card["steps"][0]["settings"] == {"folder": "d", "n": [3]}
    assert card["sources"][0]["url"] is None


def test_an_old_card_without_sources_still_shows_its_counts(out: Path, page: Page) -> None:
    card = json.loads((out / "report.json").read_text(encoding="utf-8"))["data"]["conversations"]
    assert card["sources"] == card["steps"] == [] and card["contamination"] == card["samples"] == {}
    assert card["removed"] == {"empty text": 2, "exact duplicate": 31}
    said = texts(page, "dd")
    assert "2,967" in said and "8,640 rows, 86,400 tokens" in said
    assert "3,000 rows read, 2,967 kept; train: 8,640 rows, 86,400 tokens" in markdown(out)
    assert "Conversations: rows removed, by rule" in texts(page, "caption")
    assert "Conversations: sources" not in texts(page, "caption")


def test_without_cards_the_pages_are_whole(tmp_path: Path) -> None:
    build = write_build(tmp_path / "build")
    for name in ("corpus", "conversations"):
        (build[name] / "data_card.json").unlink()
    (tmp_path / "out").mkdir()
    report(ReportConfig(), Workspace(folder=tmp_path / "out", machine=MACHINE), *(build[name] for name in INPUTS))
    assert json.loads((tmp_path / "out" / "report.json").read_text())["data"] == {"corpus": None, "conversations": None}
    assert "The build has no data cards." in texts(Page((tmp_path / "out" / "report.html").read_text()), "p")
    assert "The build has no data cards." in (tmp_path / "out" / "report.md").read_text()
