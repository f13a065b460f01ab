"""The prompt that a GGUF file asks for, the terms of a card, and what a recipe may say in it.

Ollama's template language is checked by translating the one template that is written into Jinja, whose trim markers
mean the same, and rendering conversations with both.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from export_tiny import DEFAULT_SYSTEM, HEADERS, SPEAKS_FIRST, TEMPLATE, write_gguf
from jinja2 import Environment

from common.errors import Code, UserError
from common.known_sets import known_sets, terms_of
from common.provenance import DataSource
from eval.report import Choice
from export.card import CardConfig, Sampling
from export.card.prompt import Prompt, chatml, modelfile, read_prompt, recommended
from export.licences import (
    ModelLicence,
    duties,
    hub_licence,
    needs_llama_name,
    owed_texts,
    text_folder,
    without_text,
)

ROOT = Path(__file__).parents[1]
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
QUESTION = [{"role": "user", "content": "元気？"}]
TALK = [*QUESTION, {"role": "assistant", "content": " はい。\n"}, {"role": "user", "content": "よかった"}]
BEGUN = [*QUESTION, {"role": "assistant", "content": "は"}]


def read(tmp_path: Path, template: str | None) -> Prompt:
    return read_prompt(write_gguf(tmp_path / "T-F16.gguf", template), QUESTION)


def test_the_prompt_is_the_files_own(tmp_path: Path) -> None:
    prompt = read(tmp_path, TEMPLATE)
    assert prompt.example == "<|im_start|>user\n元気？<|im_end|>\n<|im_start|>assistant\n" == chatml(QUESTION)
    assert prompt.is_chatml and prompt.default_system is None
    assert prompt.stop == ("<|im_end|>", "<|endoftext|>")


def test_a_system_prompt_that_the_template_inserts_is_found(tmp_path: Path) -> None:
    prompt = read(tmp_path, SPEAKS_FIRST)
    assert prompt.is_chatml and prompt.default_system == DEFAULT_SYSTEM
    assert prompt.example == chatml([{"role": "system", "content": DEFAULT_SYSTEM}, *QUESTION])


@pytest.mark.parametrize(
    ("template", "example"),
    [
        (HEADERS, "[user] 元気？\n[assistant] "),
        (NO_SYSTEM, chatml(QUESTION)),
        (None, None),
        ("{{ nothing.of.this }}", None),
        ("{% broken", None),
        # ChatML once, and something else in a longer conversation.
        (
            TEMPLATE.replace("{{ '<|im_start|>' +", "{{ ('' if loop.index < 3 else ' ') + '<|im_start|>' +"),
            chatml(QUESTION),
        ),
    ],
)
def test_what_is_not_chatml_is_not_taken_for_it(template: str | None, example: str | None, tmp_path: Path) -> None:
    prompt = read(tmp_path, template)
    assert not prompt.is_chatml and prompt.default_system is None
    assert prompt.example == example


def test_a_template_is_a_program_and_stays_in_its_box(tmp_path: Path) -> None:
    prompt = read(tmp_path, "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    assert prompt.example is None


def test_what_is_no_gguf_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "T.gguf").write_text("weights")
    with pytest.raises(UserError, match="a whole GGUF file"):
        read_prompt(tmp_path / "T.gguf", QUESTION)


@pytest.mark.parametrize(
    ("encodings", "chosen"),
    [
        (("F16", "Q8_0", "Q5_K_M", "Q4_K_M"), "Q5_K_M"),
        (("F16", "Q8_0", "Q4_K_M"), "Q4_K_M"),
        (("F16", "Q8_0", "Q4_0"), "Q8_0"),
        (("F16",), "F16"),
        ((), None),
    ],
)
def test_the_file_to_begin_with(encodings: tuple[str, ...], chosen: str | None) -> None:
    names = [f"A-Model-{encoding}.gguf" for encoding in encodings]
    assert recommended(names) == (None if chosen is None else f"A-Model-{chosen}.gguf")


def as_jinja(go: str) -> str:
    """The Go template of a Modelfile in Jinja; fails on an action that is not known here."""
    ends = iter(["endif", "endif", "endfor"])
    meaning = {
        "range $i, $_ := .Messages": "{%_ for m in messages _%}",
        "$last := eq (len (slice $.Messages $i)) 1": "{%_ set last = loop.last _%}",
        ".Role": "{{_ m.role _}}",
        ".Content": "{{_ m.content _}}",
        'if not (and $last (eq .Role "assistant"))': "{%_ if not (last and m.role == 'assistant') _%}",
        'if and $last (ne .Role "assistant")': "{%_ if last and m.role != 'assistant' _%}",
    }

    def translated(action: re.Match[str]) -> str:
        said = f"{{%_ {next(ends)} _%}}" if action[2] == "end" else meaning[action[2]]
        left, right = said.split("_", 1)
        middle, closing = right.rsplit("_", 1)
        return f"{left}{action[1]}{middle}{action[3]}{closing}"

    return re.sub(r"\{\{(-?) ?(.*?) ?(-?)\}\}", translated, go)


@pytest.mark.parametrize("template", [TEMPLATE, SPEAKS_FIRST])
@pytest.mark.parametrize("system", [None, "短く答えてください。"])
def test_ollama_is_told_the_same_prompts(template: str, system: str | None, tmp_path: Path) -> None:
    prompt = read(tmp_path, template)
    text = modelfile("T-Q4_K_M.gguf", prompt, system=system, parameters={"temperature": 0.7, "top_k": 20})
    assert text.startswith("FROM ./T-Q4_K_M.gguf\n")
    assert text.endswith(
        'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\nPARAMETER temperature 0.7\nPARAMETER top_k 20\n'
    )
    said = dict(re.findall(r'^(TEMPLATE|SYSTEM) """(.*?)"""$', text, re.MULTILINE | re.DOTALL))
    go = Environment(keep_trailing_newline=True).from_string(as_jinja(said["TEMPLATE"]))
    own = Environment(keep_trailing_newline=True).from_string(template)
    # Ollama puts SYSTEM before a conversation that has no system message.
    instruction = said.get("SYSTEM")
    assert instruction == (system or prompt.default_system)
    for talk in (QUESTION, TALK):
        meant = [{"role": "system", "content": system}, *talk] if system else talk
        given = [{"role": "system", "content": instruction}, *talk] if instruction else talk
        assert go.render(messages=given) == own.render(messages=meant, add_generation_prompt=True)
    assert go.render(messages=BEGUN) == chatml(QUESTION) + "は", "an answer that is begun goes on"


def test_a_system_prompt_that_a_modelfile_cannot_hold_is_refused_with_the_recipe() -> None:
    for text in ('a """ b', 'say "hello"'):
        with refuses("unsupported", wanted="Modelfile", got=repr(text)):
            CardConfig(system_prompt=text)


@pytest.mark.parametrize(
    ("make", "code", "wanted", "got"),
    [
        (lambda: Sampling(temperature=0.7), "empty", "sampling parameters, or the reason", "neither"),
        (lambda: Sampling(top_p=1.5, reason="tried"), "out-of-range", "top_p", "1.5"),
        (lambda: Sampling(top_p=0, reason="tried"), "out-of-range", "top_p", "0"),
        (lambda: Sampling(top_k=0, reason="tried"), "out-of-range", "top_k", "0"),
        (lambda: Sampling(temperature=-1, reason="tried"), "out-of-range", "temperature", "-1"),
        (lambda: CardConfig(base_models=("Qwen2.5",)), "wrong-format", "org/name", "'Qwen2.5'"),
    ],
)
def test_a_number_has_a_source_or_a_reason_and_is_in_its_range(make: Any, code: Code, wanted: str, got: str) -> None:
    with refuses(code, wanted=wanted, got=got):
        make()
    assert Sampling().parameters() == {} and Sampling(temperature=0, source="x").parameters() == {"temperature": 0}


def test_a_chosen_number_has_a_reason() -> None:
    with pytest.raises(UserError, match="learning rate"):
        Choice(what="learning rate", value="1e-4")


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        (None, {}),
        (ModelLicence(identifier="Apache-2.0"), {"license": "apache-2.0"}),
        (ModelLicence(identifier="ODC-By-1.0"), {"license": "odc-by"}),
        (
            ModelLicence(identifier="other", name="Llama 3.1 and Gemma Terms"),
            {"license": "other", "license_name": "llama-3.1-and-gemma-terms", "license_link": "LICENSE.md"},
        ),
        (
            ModelLicence(identifier="other", name="Apache-2.0, own terms, not stated", is_gathered=True),
            {"license": "other", "license_name": "terms-of-its-sources", "license_link": "LICENSE.md"},
        ),
        (
            ModelLicence(identifier="LicenseRef-own"),
            {"license": "other", "license_name": "licenseref-own", "license_link": "LICENSE.md"},
        ),
        (
            ModelLicence(identifier="other", name="独自の条件"),
            {"license": "other", "license_name": "own-terms", "license_link": "LICENSE.md"},
        ),
    ],
)
def test_licences_as_the_hub_writes_them(licence: ModelLicence | None, fields: dict[str, str]) -> None:
    assert hub_licence(licence) == fields


def test_the_duty_to_call_it_llama_is_found_in_the_sets_that_are_known_by_name() -> None:
    owing = [one.name for one in known_sets() if needs_llama_name([terms_of(one.name)])]
    assert owing == ["tokyotech-llm/swallow-magpie-ultra-v0.1"]
    licence = 'include "Llama" at the beginning of any such AI model name'
    assert needs_llama_name([DataSource(name="a", stage="corpus", obligations=(licence,))])
    assert not needs_llama_name([DataSource(name="a", stage="corpus", obligations=("Name Llama as a source.",))])


@pytest.mark.parametrize(
    ("licence", "asks"),
    [
        ("Llama 3.1 Community License and Gemma Terms of Use", True),
        ("llama3.1", True),
        ("Meta Llama 4 Community License", True),
        ("Llama 2 Community License", False),
        ("llama2", False),
        ("Apache-2.0", False),
        (None, False),
    ],
)
def test_the_duty_to_call_it_llama_follows_from_the_licences_name_too(licence: str | None, asks: bool) -> None:
    assert needs_llama_name([DataSource(name="org/a", licence=licence, stage="model")]) is asks


def test_a_duty_is_there_once_with_all_that_state_it_and_in_japanese_where_any_is_known() -> None:
    first, gemma = terms_of("tokyotech-llm/swallow-magpie-ultra-v0.1:ja"), terms_of("tokyotech-llm/lmsys-chat-1m-synth")
    own = DataSource(name="own", stage="corpus", obligations=(gemma.obligations[1], "An unheard-of duty."))
    found = {duty.english: duty for duty in duties([own, first, gemma, gemma])}
    assert len(found) == 5
    shared, unknown = found[gemma.obligations[1]], found["An unheard-of duty."]
    assert shared.names == ("own", first.name, gemma.name) and "Gemma 利用規約" in shared.japanese
    assert unknown.japanese == unknown.english and unknown.names == ("own",)


def test_texts_that_must_be_passed_on_are_told_from_those_that_are_only_missing(tmp_path: Path) -> None:
    copy = ("Gemma: pass on a copy of the Gemma Terms of Use and its notice.",)
    sources = [
        DataSource(name="org/gemma:ja", licence="Gemma", obligations=copy, stage="conversations"),
        DataSource(name="org/free", licence="MIT", obligations=("Name it.",), stage="corpus"),
    ]
    assert owed_texts(tmp_path, sources) == ["org/gemma"]
    (tmp_path / text_folder("org/gemma")).mkdir(parents=True)
    (tmp_path / text_folder("org/gemma") / "TERMS").write_text("Gemma")
    assert owed_texts(tmp_path, sources) == []


def test_texts_that_are_not_there_are_named(tmp_path: Path) -> None:
    sources = [
        DataSource(name="org/set", licence="MIT", stage="corpus"),
        DataSource(name="org/set:ja", licence="MIT", stage="conversations"),
        DataSource(name="org/unknown", stage="corpus"),
        DataSource(name="own.jsonl", licence="MIT", stage="corpus"),
    ]
    assert without_text(tmp_path, sources, ["Qwen/Qwen2"]) == ["Qwen/Qwen2", "org/set", "org/unknown"]
    sources.pop(2)
    (tmp_path / "licences" / "org--set").mkdir(parents=True)
    assert without_text(tmp_path, sources, []) == ["org/set"], "an empty folder is no text"
    (tmp_path / "licences" / "org--set" / "LICENSE").write_text("MIT")
    assert without_text(tmp_path, sources, []) == []
