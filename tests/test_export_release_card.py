"""The model card of a whole release: front matter, both languages, every number the report's own, every gap named."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from errors_tiny import refuses
from export_tiny import DEFAULT_SYSTEM, HEADERS, LLAMA, SOURCES, SPEAKS_FIRST, TEMPLATE, workspace, write_gguf
from report_tiny import GGUFS, HOSTILE, PACKAGE, gguf_name, write_build

from common.provenance import DataSource, write_sources
from eval.report import Choice, ReportConfig, report
from export.card import CardConfig, Sampling
from export.release import DistConfig, dist

CARD = CardConfig(
    title="TinySwallow mini",
    description_ja="小さな日本語の対話モデルです。",
    description_en="A small Japanese chat model.",
    base_models=("Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"),
    system_prompt="あなたは誠実な案内係です。",
    sampling=Sampling(temperature=0.7, top_k=20, source="https://huggingface.co/SakanaAI/TinySwallow-1.5B-Instruct"),
    choices=(
        Choice(what="teacher", value="Qwen2.5-32B-Instruct", published=True, source="https://arxiv.org/abs/2501.16937"),
        Choice(what="learning rate", value="1e-4", reason="the best of three | tried"),
    ),
)


class Parts:
    """The artifacts that a release is made of, and releases made of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        build = write_build(root / "build")
        self.gguf, self.coreml, self.report = root / "gguf", build["coreml"], root / "report"
        for encoding in GGUFS:
            write_gguf(self.gguf / gguf_name(encoding))
        write_sources(self.gguf, SOURCES)
        (self.coreml / PACKAGE).mkdir()
        (self.coreml / PACKAGE / "Manifest.json").write_text("{}")
        report(ReportConfig(recipe="mini"), workspace(self.report), *build.values())

    def release(self, name: str, card: CardConfig = CARD, **parts: Any) -> Path:
        """A folder as `dist` leaves it."""
        given = {"gguf": self.gguf, "coreml": self.coreml, "report": self.report} | parts
        space = workspace(self.root / name)
        dist(DistConfig(card=card), space, **given)
        return space.folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("release"))


def report_folder(folder: Path, content: dict[str, Any]) -> Path:
    """The report's folder with another report.json."""
    folder.mkdir()
    for name in ("report.html", "report.md"):
        (folder / name).write_text("-")
    (folder / "report.json").write_text(json.dumps(content))
    return folder


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def front_matter(folder: Path) -> dict[str, Any]:
    _, fields, _ = card_of(folder).split("---\n", 2)
    return yaml.safe_load(fields)


def section(card: str, heading: str) -> str:
    """What stands below a heading, up to the next one of any depth."""
    (found,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", card, re.MULTILINE | re.DOTALL)
    return found


def tables(text: str) -> list[list[list[str]]]:
    """Cells of each table, the line of dashes left out; fails on rows of different lengths."""
    found: list[list[list[str]]] = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
        assert len({len(row) for row in rows}) == 1, table
        assert set("".join(rows[1])) <= set("-:")
        found.append([rows[0], *rows[2:]])
    return found


def test_the_sums_of_the_whole_release_verify(parts: Parts) -> None:
    texts = parts.root / "texts" / "Qwen--Qwen2.5-32B-Instruct"
    texts.mkdir(parents=True)
    (texts / "LICENSE").write_text("Apache")
    folder = parts.release("sums", licences=texts.parent)
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=True)
    listed = {line.removesuffix(": OK") for line in checked.stdout.splitlines()}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == listed | {"SHA256SUMS"}
    assert {"README.md", "Modelfile", "LICENSE.md", "licences/Qwen--Qwen2.5-32B-Instruct/LICENSE"} <= listed
    card = card_of(folder)
    assert "licence texts are in `licences/`" in card
    assert "not in this folder: Qwen/Qwen2.5-1.5B-Instruct, wikimedia/wikipedia, some/talks\\_ja" in card
    assert "- `licences/Qwen--Qwen2.5-32B-Instruct/`" in (folder / "LICENSE.md").read_text(encoding="utf-8")


def test_the_front_matter_is_what_hubs_read(parts: Parts) -> None:
    assert front_matter(parts.release("front")) == {
        "license": "other",
        "license_name": "terms-of-its-sources",
        "license_link": "LICENSE.md",
        "model_name": "TinySwallow mini",
        "language": ["ja", "en"],
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "coreml", "japanese", "on-device"],
        "base_model": list(CARD.base_models),
        "base_model_relation": "finetune",
        "datasets": ["wikimedia/wikipedia"],
    }


def test_japanese_comes_first_and_both_say_the_same(parts: Parts) -> None:
    card = card_of(parts.release("both"))
    japanese, english = card.split("\n## English\n")
    english, numbers = english.split("\n## 数値 / Numbers\n")
    own_words = re.sub(r"```.*?```|\]\(#.*?\)", "", english, flags=re.DOTALL)
    assert re.search(r"[ぁ-ん]", japanese) and not re.search(r"[ぁ-ん]", own_words)
    assert "小さな日本語の対話モデルです。" in japanese and "A small Japanese chat model." in english
    for shared in (
        "llama-cli -m Mini-7M-chat-Q4_K_M.gguf -cnv --temp 0.7 --top-k 20 -sys 'あなたは誠実な案内係です。'",
        "ollama create my-model -f Modelfile",
        "<|im_start|>system\nあなたは誠実な案内係です。<|im_end|>\n<|im_start|>user\nこんにちは。<|im_end|>\n",
        "- temperature: 0.7\n- top_k: 20\n",
        "<https://huggingface.co/SakanaAI/TinySwallow-1.5B-Instruct>",
        "own.jsonl",
        "Name Wikipedia as a source.",
    ):
        assert shared in japanese and shared in english, shared
    assert japanese.count("\n### ") == english.count("\n### ") == 7
    assert numbers.count("\n### ") == 6
    assert "None" not in card and "{{" not in card and "\n\n\n\n" not in card


def test_every_number_is_the_reports_own(parts: Parts) -> None:
    folder = parts.release("numbers")
    card, content = card_of(folder), json.loads((folder / "report.json").read_text())
    plain, chat = tables(section(card, "スコア / Scores"))
    labels = {"Teacher": "teacher", "Student before": "student_before", "Base": "base", "Chat": "chat"}
    labels |= {encoding.replace("_", r"\_"): gguf_name(encoding) for encoding in GGUFS}
    seen = 0
    for form, table in (("plain", plain), ("chat", chat)):
        for task, *cells in table[1:]:
            for column, cell in zip(table[0][1:], cells, strict=True):
                (row,) = [
                    row
                    for row in content["tasks"]
                    if (row["artifact"], row["form"]) == (labels[column], form)
                    and row["task"].replace("_", " ") == task.partition(" (")[0]
                ]
                low, high = (f"{100 * end:.1f}" for end in row["interval"])
                assert cell == f"{100 * row['value']:.1f} ({low} to {high}), n {row['n']:,}"
                seen += 1
    assert seen == sum("/" not in row["task"] and row["value"] is not None for row in content["tasks"])
    assert plain[-1][0] == "average (mean)" and plain[1][0] == "multiple choice (likeliest option; chance 20.0)"
    ((_, *fidelity),) = tables(section(card, "元のチェックポイントへの忠実度 / Fidelity to the checkpoint"))
    assert [(row[1], row[3], row[5]) for row in fidelity] == [
        ("Chat", f"{100 * row['top1_agreement']:.2f}", f"{row['tokens']:,}")
        for row in content["fidelity"]
        if row["kl"] is not None
    ]
    ((_, *files),) = tables(section(card, "ファイル / Files"))
    assert [(row[0].replace("\\", ""), row[1].replace("\\", "")) for row in files] == [
        *((gguf_name(encoding), encoding) for encoding in sorted(GGUFS)),
        (PACKAGE, "float16"),
    ]
    assert {row[3] for row in files[:3]} == {f"{(folder / gguf_name('F16')).stat().st_size} B"}, "as they lie there"


def test_predicted_memory_is_called_predicted_and_what_is_missing_is_listed(parts: Parts) -> None:
    card = card_of(parts.release("gaps"))
    ((head, *phones),) = tables(section(card, "iPhone のメモリ / Memory on iPhones"))
    assert head[2:] == ["F16", r"Q8\_0", r"Q4\_K\_M", "Core ML"]
    cells = [cell for row in phones for cell in row[2:]]
    assert all(cell == "–" or "predicted at" in cell for cell in cells)
    assert [row[0] for row in phones if row[2] == "–"] == ["iPhone 17"]
    assert [row[1] for row in phones][1] == "2.19 GB (assumed)"
    assert section(card, "測っていないもの / Not measured").strip().splitlines() == [
        "- scores (Core ML): not run on this platform",
        "- fidelity (Core ML): not run on this platform",
        r"- speed (F16, Q8\_0, Q4\_K\_M, Core ML): this build measures no speed",
        r"- memory on a phone, measured (F16, Q8\_0, Q4\_K\_M, Core ML): needs the phone",
        "- whether it fits (iPhone 17): no default limit has been reported",
    ]


def test_published_and_chosen_numbers_stand_apart(parts: Parts) -> None:
    taken = Choice(what="rows", value="64", source="https://example.org/train.py", reason="it fits")
    card = card_of(parts.release("choices", replace(CARD, choices=(*CARD.choices, taken))))
    published, chosen = tables(section(card, "レシピの値 / The recipe's numbers"))
    assert published[1:] == [["teacher", "Qwen2.5-32B-Instruct", "<https://arxiv.org/abs/2501.16937>"]]
    assert chosen[0][2:] == ["理由 / reason", "参考にしたもの / taken from"]
    assert chosen[1:] == [
        ["learning rate", "1e-4", r"the best of three \| tried", "–"],
        ["rows", "64", "it fits", "<https://example.org/train.py>"],
    ]


def test_numbers_that_the_build_has_otherwise_are_marked(parts: Parts) -> None:
    content = json.loads((parts.report / "report.json").read_text())
    rows = [{"what": choice.what, "differs": []} for choice in CARD.choices]
    rows[1]["differs"] = [{"field": "base.optim.learning_rate", "says": 1e-4, "built": 0.003}]
    folder = report_folder(parts.root / "differing", content | {"choices": rows})
    published, chosen = tables(
        section(card_of(parts.release("differing-release", report=folder)), "レシピの値 / The recipe's numbers")
    )
    assert published[1][1] == "Qwen2.5-32B-Instruct"
    assert chosen[1][1] == r"1e-4 (**この構築では / in this build: base.optim.learning\_rate 0.003**)"


def test_only_what_was_trained_here_is_said_to_have_been(parts: Parts) -> None:
    card = card_of(parts.release("trained"))
    assert "- Parameters: 6.79M (teacher: 12.3M)\n- Distillation: TAID, 300 steps, 614k tokens\n" in card
    assert "- Tuning on conversations: 200 steps\n" in card and "not trained here" not in card
    content = json.loads((parts.report / "report.json").read_text())
    tuned = content | {"training": [row for row in content["training"] if row["stage"] == "chat"]}
    card = card_of(parts.release("tuned", report=report_folder(parts.root / "only-tuned", tuned)))
    assert "- Distillation: not trained here\n- Tuning on conversations: 200 steps\n" in card


def test_the_card_says_which_system_prompt_the_scores_were_measured_with(parts: Parts) -> None:
    gguf = parts.root / "speaks-first"
    write_gguf(gguf / "T-Q4_K_M.gguf", SPEAKS_FIRST)
    card = card_of(parts.release("speaks-first-release", gguf=gguf))
    japanese, english = card.split("\n## English\n")
    for part in (japanese, english):
        assert "```text\nあなたは誠実な案内係です。\n```" in part and f"```text\n{DEFAULT_SYSTEM}\n```" in part
    assert "so that the template's own prompt above was used; the recommended one was not used." in english
    assert "上のテンプレートの文が入った状態です。推奨するシステムプロンプトは使っていません。" in japanese
    plain = card_of(parts.release("no-default", replace(CARD, system_prompt=None)))
    assert "measured without a system prompt." in plain and "Recommended system prompt" not in plain
    assert "measured without a system prompt" not in card_of(parts.release("no-scores", gguf=gguf, report=None))


def test_duties_are_called_summaries_and_stand_in_japanese_where_they_are_known(parts: Parts) -> None:
    duty = "Pass on text of it, changed or not, under CC BY-SA only."
    gguf = parts.root / "duties"
    write_gguf(gguf / "T-Q4_K_M.gguf")
    write_sources(gguf, [replace(SOURCES[0], obligations=(duty, "An unheard-of duty."))])
    folder = parts.release("duties-release", gguf=gguf)
    japanese, english = card_of(folder).split("\n## English\n")
    assert duty in english and duty not in japanese and "CC BY-SA の下でのみ配布すること。" in japanese
    assert "An unheard-of duty." in japanese and "An unheard-of duty." in english
    assert "本製品による要約です。正文は" in japanese and "publishers' texts" in english
    text = (folder / "LICENSES.md").read_text(encoding="utf-8")
    assert duty in text and "CC BY-SA の下でのみ配布すること。" in text
    for page in (card_of(folder), text):
        assert "publishers' wording" not in page and "publishers' own.\n" not in page and "公開元の文言" not in page


def test_no_page_sends_to_texts_that_are_not_there(parts: Parts) -> None:
    gguf = parts.root / "bare"
    write_gguf(gguf / "T-Q4_K_M.gguf")
    write_sources(gguf, [replace(SOURCES[0], obligations=("A duty.",))])
    folder = parts.release("bare-release", gguf=gguf)
    for name in ("README.md", "LICENSE.md", "LICENSES.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "at their own places" in text and "正文は公開元で" in text and "licences/" not in text


def test_terms_of_the_sources_are_not_called_the_models_licence(parts: Parts) -> None:
    folder = parts.release("gathered")
    page = (folder / "LICENSE.md").read_text(encoding="utf-8")
    assert "Terms of what this model was made from" in page and "Licence of this model" not in page
    assert "summarised by this product" in page and "Licence of the model" not in card_of(folder)
    stated = parts.release("stated", replace(CARD, licence="Apache-2.0, Gemma Terms of Use"))
    assert "Licence of the model: Apache-2.0, Gemma Terms of Use" in card_of(stated)
    assert "Licence of this model" in (stated / "LICENSE.md").read_text(encoding="utf-8")
    assert front_matter(stated)["license_name"] == "apache-2.0-gemma-terms-of-use"


def test_without_a_report_nothing_is_claimed(parts: Parts) -> None:
    folder = parts.release("bare", CardConfig(), report=None, coreml=None)
    card = card_of(folder)
    assert section(card, "スコア / Scores").strip() == "測っていません。 / Not measured."
    assert (
        section(card, "元のチェックポイントへの忠実度 / Fidelity to the checkpoint").strip().endswith("Not measured.")
    )
    assert "Neither predicted nor measured." in card and "no record of an evaluation" in card
    assert "- scores, fidelity, memory, speed: this release was made without a report" in card
    assert "no record of the training" in card and "report.html" not in card
    assert "No values are recommended." in card and "The recipe lists none." in card
    assert "# Mini-7M-chat\n" in card
    assert [row[2] for row in tables(section(card, "ファイル / Files"))[0][1:]] == ["–"] * 3
    assert "base_model" not in front_matter(folder)
    assert "PARAMETER temperature" not in (folder / "Modelfile").read_text()


def test_a_report_in_which_nothing_was_measured(parts: Parts) -> None:
    content = json.loads((parts.report / "report.json").read_text())
    empty: dict[str, Any] = {"tasks": [], "task_average": [], "fidelity": [], "phones": [], "speed": [], "training": []}
    empty |= {
        "built_from": [],
        "artifacts": [],
        "not_measured": [{"what": "scores", "of": ["chat"], "reason": HOSTILE}],
    }
    for row in content["tasks"][:3]:
        empty["tasks"].append(row | {"value": None, "interval": None, "n": None, "form": None, "reason": "no time"})
    folder = report_folder(parts.root / "empty-report", content | empty)
    card = card_of(parts.release("empty", report=folder))
    assert card.count("測っていません。 / Not measured.") == 2 and "Neither predicted nor measured." in card
    assert "- Distillation: not trained here\n- Tuning on conversations: not trained here\n" in card
    assert (
        "- 蒸留: ここでは行っていません\n- 会話による調整: ここでは行っていません\n" in card
        and "Parameters" not in card
    )
    assert "- scores (Chat): " in card and "<script>" not in card


def test_scores_without_interval_and_of_two_forms_do_not_mix(parts: Parts) -> None:
    content = json.loads((parts.report / "report.json").read_text())
    row = content["tasks"][0] | {"task": "niilc", "metric": "char_f1", "chance": None, "interval": None, "n": 198}
    content["tasks"] = [row | {"form": form, "value": value} for form, value in (("swallow", 0.474), ("clean", 0.5))]
    folder = report_folder(parts.root / "forms", content)
    scores = section(card_of(parts.release("two-forms", report=folder)), "スコア / Scores")
    swallow, clean = tables(scores)
    assert swallow[1] == [r"NIILC (char\_f1)", "47.4, n 198"] and clean[1][1] == "50.0, n 198"
    assert "Swallow LLM Leaderboard" in scores and "do not compare with published scores" in scores
    assert "- NIILC: <https://github.com/mynlp/niilc-qa>, CC BY-SA 4.0\n" in scores and "JMMLU" not in scores


def test_llama_data_asks_for_llamas_name(parts: Parts) -> None:
    gguf = parts.root / "with-llama"
    write_gguf(gguf / "T-Q4_K_M.gguf")
    write_sources(gguf, [LLAMA])
    card = card_of(parts.release("llama", gguf=gguf))
    assert card.split("---\n", 2)[2].startswith("\n# TinySwallow mini\n\n**Built with Llama**\n")
    assert 'its name must begin with "Llama". Its name here does not' in card
    assert "名前を「Llama」で始める必要があります" in card
    named = card_of(parts.release("llama-named", replace(CARD, title="Llama-TinySwallow mini"), gguf=gguf))
    assert "Its name here does not" not in named and LLAMA.obligations[0] in named


def test_published_models_among_the_sources_are_base_models_and_no_data(parts: Parts) -> None:
    gguf = parts.root / "published"
    write_gguf(gguf / "T-Q4_K_M.gguf")
    models = [
        DataSource(name=name, licence="Apache-2.0", stage="model")
        for name in (*CARD.base_models[1:], "org/other", "own")
    ]
    write_sources(gguf, models)
    folder = parts.release("from-models", replace(CARD, base_models=CARD.base_models[1:]), gguf=gguf)
    assert front_matter(folder)["base_model"] == ["Qwen/Qwen2.5-1.5B-Instruct", "org/other"]
    card = card_of(folder)
    assert "Derived from: <https://huggingface.co/org/other>" in card and "no record of the data" in card
    assert "datasets" not in front_matter(folder) and front_matter(folder)["license"] == "apache-2.0"


def test_an_apache_release_carries_the_licence_itself(parts: Parts) -> None:
    gguf = parts.root / "apache"
    write_gguf(gguf / "T-Q4_K_M.gguf")
    write_sources(gguf, [DataSource(name="the embedded world", licence="Apache-2.0", stage="corpus")])
    folder = parts.release("apache-release", CardConfig(), gguf=gguf, coreml=None)
    assert "END OF TERMS AND CONDITIONS" in (folder / "LICENSE").read_text() and not (folder / "LICENSE.md").exists()
    assert front_matter(folder)["license"] == "apache-2.0"
    assert "Read their publishers' terms" not in card_of(folder)


def test_no_modelfile_where_the_template_is_not_chatml(parts: Parts) -> None:
    for place, template in enumerate((HEADERS, None)):
        gguf = parts.root / f"no-chatml-{place}"
        write_gguf(gguf / "T-Q4_K_M.gguf", template)
        folder = parts.release(f"other-template-{place}", CardConfig(), gguf=gguf, coreml=None, report=None)
        assert not (folder / "Modelfile").exists()
        assert "There is no `Modelfile`" in card_of(folder) and "Modelfile はありません" in card_of(folder).replace(
            "`", ""
        )
        assert ("[user] こんにちは。" in card_of(folder)) == (template is not None)
        assert "licence" not in front_matter(folder)


def test_a_release_without_gguf_says_so(parts: Parts) -> None:
    folder = parts.release("coreml-only", gguf=None)
    assert "There is no GGUF file." in card_of(folder) and not (folder / "Modelfile").exists()
    assert front_matter(folder)["tags"] == ["coreml", "japanese", "on-device"]
    assert "no record of the data" in card_of(folder) and "license" not in front_matter(folder)


def test_nothing_hostile_becomes_markup(parts: Parts) -> None:
    hostile = "</p><script>alert(1)</script> ](javascript:x)\n---\n# big\n```"
    source = DataSource(
        name=hostile, licence=hostile, url=hostile, attribution=hostile, obligations=(hostile,), stage="corpus"
    )
    gguf = parts.root / "hostile"
    write_gguf(gguf / "T-Q4_K_M.gguf", TEMPLATE + "````\n# big")
    write_sources(gguf, [source])
    card = CardConfig(
        title=hostile, description_en=hostile, choices=(Choice(what=hostile, value=hostile, reason=hostile),)
    )
    folder = parts.release("hostile-release", card, gguf=gguf, coreml=None)
    text = card_of(folder)
    outside = re.sub(r"^(`{3,})text\n.*?^\1\n", "", text.split("---\n", 2)[2], flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in outside and "\n# big" not in outside and "](javascript" not in outside.replace(r"\](", "")
    assert front_matter(folder)["model_name"] == hostile


def test_a_model_file_of_the_cards_name_is_refused_and_left_alone(parts: Parts) -> None:
    gguf = parts.root / "taken"
    write_gguf(gguf / "T-Q4_K_M.gguf")
    (gguf / "LICENSE").write_text("theirs")
    with refuses("exists", got="LICENSE"):
        parts.release("taken-release", gguf=gguf)
    assert (gguf / "LICENSE").read_text() == "theirs"


def test_started_again_it_is_the_same_to_the_byte(parts: Parts) -> None:
    folder = parts.release("again")
    first = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    parts.release("again")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == first


def test_no_token_and_no_path_is_in_any_file(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_neverToBeSeen")
    folder = parts.release("secrets")
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"hf_neverToBeSeen" not in content and str(parts.root).encode() not in content, path
