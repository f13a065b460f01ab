"""The report on a build that is made up: what report.json holds, pages that are safe and whole, nothing private."""

import dataclasses
import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from report_tiny import (
    BUILT_FROM,
    CHECKPOINTS,
    GGUFS,
    HOSTILE,
    INPUTS,
    MACHINE,
    PACKAGE,
    Page,
    corpus_sources,
    gguf_name,
    write_build,
    write_manifest,
)

from common.store import Workspace
from common.store.artifacts import list_files
from eval.phones import unread_rows
from eval.report import Choice, Licence, ReportConfig, collect, render, report, view
from eval.report.__main__ import main as report_main
from eval.report.stage import assemble
from export.release import DistConfig, dist

CONFIG = ReportConfig(recipe="mini", licences=(Licence(what="Texts", licence="generated, Apache-2.0"),))
PAGES = ("report.json", "report.html", "report.md")
# Fields as DESIGN.md section 2 lists them; the report may tell more.
CONTRACT = {
    "artifacts": {"path", "format", "encoding", "bytes", "sha256"},
    "training": {"stage", "steps", "tokens", "tokens_per_s", "peak_bytes"},
    "fidelity": {"artifact", "reference", "kl", "top1_agreement", "bits_per_character", "tokens"},
    "tasks": {"artifact", "task", "form", "metric", "value", "n", "interval", "chance", "extraction_failures"},
    "phones": {"phone", "artifact", "context_tokens", "predicted_bytes", "measured_bytes", "limit_bytes", "fits"},
    "speed": {"artifact"},
}


@pytest.fixture
def build(tmp_path: Path) -> dict[str, Path]:
    """The report's input folders by name."""
    return write_build(tmp_path / "build")


def write_report(build: dict[str, Path], out: Path, config: ReportConfig = CONFIG) -> dict[str, Any]:
    """Runs the stage; returns report.json."""
    out.mkdir()
    facts = report(config, Workspace(folder=out, machine=MACHINE), *(build[name] for name in INPUTS))
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert facts == {"artifacts": len(content["artifacts"]), "not_measured": len(content["not_measured"])}
    return content


def pages(folder: Path) -> str:
    """Everything that the stage wrote."""
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in PAGES)


def test_report_json_holds_what_the_contract_names(build: dict[str, Path], tmp_path: Path) -> None:
    content = write_report(build, tmp_path / "out")
    assert content["recipe"] == "mini" and content["title"] == "Mini-7M-chat"
    assert content["machine"] == {
        field: getattr(MACHINE, field)
        for field in ("cpu", "gpu", "memory_bytes", "os", "device", "compute_dtype", "threads")
    }
    for section, fields in CONTRACT.items():
        assert content[section], section
        for row in content[section]:
            assert fields <= set(row), section
    assert {row["artifact"] for row in content["tasks"]} == {*CHECKPOINTS, *map(gguf_name, GGUFS), PACKAGE}
    assert [row["artifact"] for row in content["task_average"]] == [*CHECKPOINTS, *map(gguf_name, GGUFS), PACKAGE]
    assert [row["stage"] for row in content["built_from"]] == list(BUILT_FROM)
    assert [row["stage"] for row in content["training"]] == list(CHECKPOINTS)


def test_numbers_are_the_manifests_own(build: dict[str, Path], tmp_path: Path) -> None:
    content = write_report(build, tmp_path / "out")
    base = next(row for row in content["training"] if row["stage"] == "base")
    assert (base["method"], base["steps"], base["tokens"], base["t_final"]) == ("taid", 300, 300 * 2048, 1.0)
    q4 = next(row for row in content["artifacts"] if row["encoding"] == "Q4_K_M")
    assert q4["bytes"] == GGUFS["Q4_K_M"] and q4["sha256"] == hashlib.sha256(b"Q4_K_M").hexdigest()
    teacher = next(row for row in content["built_from"] if row["stage"] == "teacher")
    assert teacher["parameters"] == 12_345_678 and teacher["geometry"]["hidden"] == 640
    assert teacher["seconds"] == 160.0 and teacher["resumed"] is False
    for name in ("report.html", "report.md"):
        assert (tmp_path / "out" / name).read_text(encoding="utf-8").count("from a text of 50.1k") == 1


def test_curves_are_thinned_and_have_t_for_taid_only(build: dict[str, Path], tmp_path: Path) -> None:
    curves = {row["stage"]: row for row in write_report(build, tmp_path / "out")["curves"]}
    assert [name for name, row in curves.items() if row["t"]] == ["base"]
    assert all(len(row["loss"]) <= collect.CURVE_POINTS for row in curves.values())
    lines = [json.loads(line) for line in (build["teacher"] / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    kept = [loss for _, loss in curves["teacher"]["loss"]]
    assert sum(kept) / len(kept) == pytest.approx(sum(losses) / len(losses), rel=0.01)
    assert curves["teacher"]["validation_loss"] == [
        [line["step"], round(line["validation_loss"], 6)] for line in lines if "validation_loss" in line
    ]


def test_what_is_null_has_a_reason(build: dict[str, Path], tmp_path: Path) -> None:
    content = write_report(build, tmp_path / "out")
    for section, field in (("tasks", "value"), ("fidelity", "kl"), ("speed", "decode_tok_per_s")):
        for row in content[section]:
            assert row[field] is not None or row["reason"], (section, row)
    assert all(row["measured_bytes"] is not None or row["measured_reason"] for row in content["phones"])
    files = [*map(gguf_name, GGUFS), PACKAGE]
    assert content["not_measured"] == [
        {"what": "scores", "of": [PACKAGE], "reason": "not run on this platform"},
        {"what": "fidelity", "of": [PACKAGE], "reason": "not run on this platform"},
        {"what": "speed", "of": files, "reason": "this build measures no speed"},
        {"what": "memory on a phone, measured", "of": files, "reason": "needs the phone"},
        {"what": "whether it fits", "of": ["iPhone 17"], "reason": "no default limit has been reported"},
    ]


def test_a_file_whose_memory_cannot_be_read_is_a_gap_with_its_reason(build: dict[str, Path], tmp_path: Path) -> None:
    file = build["evaluation"] / "phones.json"
    rows = [row for row in json.loads(file.read_text(encoding="utf-8")) if row["artifact"] != PACKAGE]
    rows = [*unread_rows(Path(PACKAGE), "no config.json beside it"), *rows]
    file.write_text(json.dumps(rows), encoding="utf-8")
    content = write_report(build, tmp_path / "out")
    gap = {"what": "memory on a phone, measured", "of": [PACKAGE], "reason": "no config.json beside it"}
    assert gap in content["not_measured"]
    assert "no config.json beside it" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_packages_checksum_is_that_of_its_lines_in_the_sums_file(build: dict[str, Path], tmp_path: Path) -> None:
    package = build["coreml"] / PACKAGE
    for name, text in {"Manifest.json": "{}", "Data/weights/weight.bin": "w", "Data/model.mlmodel": "m"}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    facts = {"file": PACKAGE, "weights": "float16", "parameters": 100}
    (build["coreml"] / "manifest.json").unlink()
    write_manifest(build["coreml"], facts, files=list_files(build["coreml"]))
    content = write_report(build, tmp_path / "out")
    (row,) = [row for row in content["artifacts"] if row["format"] == "Core ML"]
    assert row["bytes"] == 4 and row["bits_per_weight"] == pytest.approx(0.32)
    (tmp_path / "dist").mkdir()
    dist(DistConfig(), Workspace(folder=tmp_path / "dist", machine=MACHINE), None, build["coreml"], None)
    shell = f"grep '{PACKAGE}/' SHA256SUMS | sha256sum"
    told = subprocess.run(["sh", "-c", shell], cwd=tmp_path / "dist", capture_output=True, text=True, check=True)
    assert row["sha256"] == told.stdout.split()[0]


def test_no_host_user_or_path_is_told(tmp_path: Path) -> None:
    private = {"host": "alices-laptop", "user": "alice", "path": "/home/alice/build"}
    build = write_build(tmp_path / "build", machine=MACHINE.to_json() | private)
    fidelity = json.loads((build["evaluation"] / "fidelity.json").read_text())
    fidelity[-1]["reason"] = "wanted a model; got /home/alice/build/gguf-1/Broken.gguf: SIGABRT; next: export 1/2 again"
    (build["evaluation"] / "fidelity.json").write_text(json.dumps(fidelity))
    content = write_report(build, tmp_path / "out")
    everything = pages(tmp_path / "out")
    for secret in (*private.values(), "/home", "secret", str(tmp_path)):
        assert secret not in everything
    assert content["fidelity"][-1]["reason"] == "wanted a model; got Broken.gguf: SIGABRT; next: export 1/2 again"
    assert content["other_machines"] == []


def test_other_machines_are_named_with_their_stages(tmp_path: Path) -> None:
    other = dataclasses.replace(MACHINE, gpu="NVIDIA H100", device="cuda").to_json()
    content = write_report(write_build(tmp_path / "build", machine=other), tmp_path / "out")
    assert [(row["gpu"], row["stages"]) for row in content["other_machines"]] == [("NVIDIA H100", ["evaluation"])]


@pytest.fixture
def page(build: dict[str, Path], tmp_path: Path) -> Page:
    """report.html, parsed."""
    write_report(build, tmp_path / "out")
    return Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))


def test_the_page_asks_nothing_of_anyone(page: Page, tmp_path: Path) -> None:
    tags = {tag for tag, _, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    for _, attributes, _ in page.elements:
        assert "src" not in attributes and not any(name.startswith("on") for name in attributes)
    style = next(text for text, place in page.texts if place and place[-1] == "style")
    assert "url(" not in style and "@import" not in style
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count("http") == html.count('<a href="https://huggingface.co/datasets/HuggingFaceFW/fineweb-2"') == 2


def test_links_lead_to_sections_and_to_sources_pages(page: Page) -> None:
    ids = {attributes["id"] for _, attributes, _ in page.elements if "id" in attributes}
    links = {attributes["href"] or "" for attributes in page.all("a")}
    assert {link for link in links if link.startswith("#")} == {f"#{name}" for name in ids}
    assert {link for link in links if not link.startswith("#")} == {corpus_sources()[0]["url"]}


def test_model_output_is_text_and_japanese(page: Page, tmp_path: Path) -> None:
    assert any(HOSTILE in text for text, _ in page.texts)
    answers = [attributes for tag, attributes, place in page.elements if tag == "dd" and "article" in place]
    assert len(answers) == 8 and all(attributes["lang"] == "ja" for attributes in answers)
    assert "<script" not in (tmp_path / "out" / "report.md").read_text()
    assert next(page.all("html"))["lang"] == "en"


def test_plots_have_words_and_tables_have_heads(page: Page) -> None:
    drawn = [attributes for _, attributes, _ in page.elements if attributes.get("role") == "img"]
    assert len(drawn) == 5 and all("steps" in (attributes["aria-label"] or "") for attributes in drawn)
    assert any("t goes from 0.40 to 1.00" in (attributes["aria-label"] or "") for attributes in drawn)
    assert len(list(page.all("caption"))) == len(list(page.all("table"))) >= 6
    boxes = [attributes for attributes in page.all("div") if attributes.get("class") == "scroll"]
    assert len(boxes) == len(list(page.all("table"))), "a table outside its own scroll box would widen a phone's page"
    assert all(attributes.get("tabindex") == "0" and attributes.get("aria-label") for attributes in boxes)
    viewport = next(attributes for attributes in page.all("meta") if attributes.get("name") == "viewport")
    assert viewport["content"] == "width=device-width, initial-scale=1"


def test_scores_stand_beside_each_other(build: dict[str, Path], tmp_path: Path) -> None:
    table = view.score_table(write_report(build, tmp_path / "out"))
    assert table.columns == (*CHECKPOINTS, *map(gguf_name, GGUFS))
    labels = [(row["label"], row["is_group"], row["chance"]) for row in table.rows]
    assert labels[:4] == [
        ("Multiple choice", False, 0.2),
        ("Short answer", False, None),
        ("Phrasing", True, None),
        ("Entity", True, None),
    ]
    assert ("ja-en", True, None) in labels
    assert table.rows[0]["cells"]["teacher"]["value"] == pytest.approx(0.97)
    assert table.average["base"]["value"] == 0.68 and table.stopped
    assert table.unmeasured == (("Core ML", "not run on this platform"),)
    assert table.fewer is None


def test_scores_of_fewer_questions_say_so(build: dict[str, Path], tmp_path: Path) -> None:
    content = write_report(build, tmp_path / "out")
    file = gguf_name(next(iter(GGUFS)))
    next(row for row in content["task_average"] if row["artifact"] == file)["n"] = 500
    told = f"Asked fewer questions than the 1,500 of the others: {view.label(content, file)} (500)."
    assert (view.score_table(content).fewer or "").startswith(told)
    for draw in (render.render_html, render.render_markdown):
        assert told.replace("_", "\\_") in draw(content) or told in draw(content)


def test_files_stand_in_one_order_whatever_the_evaluations(build: dict[str, Path], tmp_path: Path) -> None:
    for name in ("tasks", "phones", "fidelity"):
        file = build["evaluation"] / f"{name}.json"
        file.write_text(json.dumps(sorted(json.loads(file.read_text()), key=lambda row: row["artifact"])))
    content = write_report(build, tmp_path / "out")
    files = [row["path"] for row in content["artifacts"]]
    assert [row["artifact"] for row in content["fidelity"]] == files
    assert list(view.phone_table(content).columns) == files
    assert [row["artifact"] for row in content["task_average"]] == [*CHECKPOINTS, *files]


def test_a_source_names_its_format_where_formats_differ(build: dict[str, Path], tmp_path: Path) -> None:
    assert view.phone_table(write_report(build, tmp_path / "out")).sources == (
        ("kv cache", "from the artifact's header"),
        ("weights in GGUF", "mapped: not charged"),
        ("weights in Core ML", "charged in full"),
    )


def test_headlines_are_the_numbers_of_the_sections(build: dict[str, Path], tmp_path: Path) -> None:
    found = {line.label: line for line in view.headlines(write_report(build, tmp_path / "out"))}
    assert found["Task average of the base"].value == "68.0"
    assert found["Held-out loss of the base"].note.startswith("1.42 nats")
    assert found["Kept by the chat model"].value == "90"
    assert (found["Smallest file"].value, found["Smallest file"].unit) == ("4.69", "MB")
    assert found["Same next token as the checkpoint"].value == "93.1"
    assert found["Time to build"].value == "7 min 17 s"
    assert found["Time to build"].note.endswith("2.26 GB")


def test_every_markdown_table_is_rectangular(build: dict[str, Path], tmp_path: Path) -> None:
    write_report(build, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) >= 7
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_a_build_without_questions_or_package_says_so(build: dict[str, Path], tmp_path: Path) -> None:
    skipped = "coremltools has no wheel for Linux on aarch64"
    write_manifest(build["coreml"], {"skipped": skipped})
    absent = dict.fromkeys(("value", "n", "interval", "chance", "extraction_failures", "stopped_share"))
    rows = [
        {"artifact": name, "task": "average", "form": "plain", "metric": "mean", **absent, "reason": "no questions"}
        for name in CHECKPOINTS
    ]
    (build["evaluation"] / "tasks.json").write_text(json.dumps(rows))
    for name in ("paired", "samples", "phones", "fidelity"):
        (build["evaluation"] / f"{name}.json").write_text("[]")
    content = write_report(build, tmp_path / "out")
    assert {"what": "Core ML package", "of": [], "reason": skipped} in content["not_measured"]
    assert len(content["artifacts"]) == len(GGUFS)
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    Page(html)
    assert "Teacher, Student before, Base, Chat: no questions." in html
    assert {line.note for line in view.headlines(content)} >= {"not measured"}


def test_a_benchmark_that_could_not_be_asked_is_named(build: dict[str, Path], tmp_path: Path) -> None:
    reason = "wanted a file with test in its name, got NIILC<b>_dev"
    write_manifest(build["world"], {"left_out": {"niilc": reason}})
    content = write_report(build, tmp_path / "out")
    assert content["not_measured"][0] == {"what": "scores in NIILC", "of": [], "reason": reason}
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert any(reason in text for text, _ in page.texts)
    assert "scores in NIILC: wanted" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_a_held_out_loss_without_text_says_why(build: dict[str, Path], tmp_path: Path) -> None:
    rows = [
        {"artifact": name, "loss": None, "interval": None, "tokens": 0, "rows": 0, "reason": "no token"}
        for name in CHECKPOINTS
    ]
    (build["evaluation"] / "held_out.json").write_text(json.dumps(rows))
    content = write_report(build, tmp_path / "out")
    assert {"what": "held-out loss", "of": list(CHECKPOINTS), "reason": "no token"} in content["not_measured"]
    Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert next(line for line in view.headlines(content) if line.label.startswith("Held-out")).note == "not measured"


def test_a_resumed_stage_does_not_claim_its_whole_time(build: dict[str, Path], tmp_path: Path) -> None:
    facts = json.loads((build["teacher"] / "manifest.json").read_text())["facts"]
    write_manifest(build["teacher"], facts, seconds=3.0, resumed=True)
    content = write_report(build, tmp_path / "out")
    assert next(line for line in view.headlines(content) if line.label == "Time to build").value.startswith("at least ")


def test_pages_can_be_drawn_again_from_the_json(build: dict[str, Path], tmp_path: Path) -> None:
    write_report(build, tmp_path / "out")
    report_main([str(tmp_path / "out" / "report.json"), str(tmp_path / "again")])
    for name in ("report.html", "report.md"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "out" / name).read_text()


def test_a_missing_measurement_is_a_clear_error(build: dict[str, Path], tmp_path: Path) -> None:
    (build["evaluation"] / "held_out.json").unlink()
    with refuses("not-found", wanted="held_out.json"):
        assemble(CONFIG, build, machine=MACHINE.to_json())


def test_a_stage_of_a_recipes_own_is_listed(build: dict[str, Path], tmp_path: Path) -> None:
    own = tmp_path / "build" / "extra_stage"
    write_manifest(own, {"parameters": 7}, seconds=9000.0)
    (tmp_path / "out").mkdir()
    *inputs, evaluation = (build[name] for name in INPUTS)
    report(CONFIG, Workspace(folder=tmp_path / "out", machine=MACHINE), *inputs, None, own, evaluation)
    content = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [row["stage"] for row in content["built_from"]] == [*BUILT_FROM[:-1], "extra_stage", "evaluation"]
    assert content["built_from"][-2]["parameters"] == 7
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert any(text == "extra_stage" for text, _ in page.texts)
    assert "| extra_stage | 7 |" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8").replace("\\", "")


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_has_contrast_in_light_and_dark() -> None:
    style = (render.TEMPLATES / "report.css").read_text(encoding="utf-8")
    themes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in style.split("@media (prefers-color", 1)
    ]
    assert len(themes) == 2 and all(len(theme) >= 10 for theme in themes)
    for theme in themes:
        for text in ("ink", "soft", "accent", "good", "bad", "second"):
            for ground in ("paper", "card"):
                light, dark = sorted((luminance(theme[text]), luminance(theme[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


CHOICES = (
    Choice(what="teacher", value="Qwen2.5-32B-Instruct", published=True, source="its card"),
    Choice(what="steps", value="8,000", source="another script", reason="two days", fields=(("base.steps", 8000),)),
    Choice(what="rows", value="64", reason="it fits", fields=(("base.rows_per_step", 64),)),
)


def test_chosen_numbers_are_not_called_published_and_those_that_no_longer_agree_are_marked(
    build: dict[str, Path], tmp_path: Path
) -> None:
    manifest = json.loads((build["base"] / "manifest.json").read_text())
    (build["base"] / "manifest.json").write_text(json.dumps(manifest | {"config": {"steps": 2, "rows_per_step": 64}}))
    content = write_report(build, tmp_path / "out", dataclasses.replace(CONFIG, choices=CHOICES))
    assert [(row["published"], row["differs"]) for row in content["choices"]] == [
        (True, []),
        (False, [{"field": "base.steps", "says": 8000, "built": 2}]),
        (False, []),
    ]
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    numbers = "".join(text for text, _ in page.texts)
    assert "published: its card" in numbers and "chosen: two daystaken from another script" in numbers
    assert numbers.count("Different in this build: base.steps 2") == numbers.count("Different in this build") == 1
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    row = r"| steps | 8,000 (different in this build: base.steps 2) | chosen: two days (taken from another script) |"
    assert row in text and "| published: its card |" in text
    old = [{name: row[name] for name in ("what", "value", "source", "reason")} for row in content["choices"]]
    assert "two days" in render.render_html(content | {"choices": old}), "a report of an older build"


def test_benchmarks_that_were_asked_are_named_with_their_terms(build: dict[str, Path], tmp_path: Path) -> None:
    content = write_report(build, tmp_path / "out")
    for draw in (render.render_html, render.render_markdown):
        assert "CC BY-SA 4.0" not in draw(content) and "Benchmarks" not in draw(content)
    rows = [content["tasks"][0] | {"task": task} for task in ("jmmlu", "jmmlu/history", "mgsm_ja")]
    asked = content | {"tasks": rows}
    for draw in (render.render_html, render.render_markdown):
        page = draw(asked)
        assert "nlp-waseda/JMMLU" in page and "STEP Corp." in page and "CC BY 4.0" in page
        assert "niilc-qa" not in page and page.count("STEP Corp.") == 1
    Page(render.render_html(asked))
