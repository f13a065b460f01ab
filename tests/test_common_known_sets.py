"""The registry of known sets: what it says of each, in both languages, and what it does not make up."""

import json
import re
from dataclasses import asdict

import pytest

from common.known_sets import in_japanese, known_set, known_sets, known_size, terms_of
from instruct.conversations.published import set_names

MAGPIE_ULTRA = "tokyotech-llm/swallow-magpie-ultra-v0.1"
GEMMA_MAGPIE = "tokyotech-llm/swallow-gemma-magpie-v0.1"
LLM_JP = "llm-jp/magpie-sft-v1.0"
LMSYS = "tokyotech-llm/lmsys-chat-1m-synth"


def test_terms_say_what_the_publishers_say_and_no_more() -> None:
    assert sorted(set_names()) == sorted([f"{MAGPIE_ULTRA}:ja", f"{MAGPIE_ULTRA}:en", GEMMA_MAGPIE, LLM_JP, LMSYS])
    words = {name: json.dumps(asdict(terms_of(name))) for name in set_names()}
    for name in (f"{MAGPIE_ULTRA}:ja", LMSYS):
        assert "Gemma Terms of Use" in words[name] and "Prohibited Use Policy" in words[name]
    assert 'begins with \\"Llama\\"' in words[f"{MAGPIE_ULTRA}:ja"]
    assert "may not be passed on" in words[LMSYS] and "not transferable" in words[LMSYS]
    assert terms_of(LLM_JP).licence == "Apache-2.0" and "Gemma" not in words[LLM_JP] and "Llama" not in words[LLM_JP]
    assert terms_of(GEMMA_MAGPIE).licence is None and "not stated by the publisher" in words[GEMMA_MAGPIE]
    assert terms_of("HuggingFaceFW/fineweb-2").licence == "ODC-By-1.0"


@pytest.mark.parametrize("name", ["someone/something", "someone/something:part", "lmsys/lmsys-chat-1m"])
def test_terms_of_an_unknown_set_are_not_made_up(name: str) -> None:
    terms = terms_of(name)
    assert (terms.licence, terms.obligations, terms.attribution) == (None, (), None)
    assert (terms.name, terms.url) == (name, f"https://huggingface.co/datasets/{name.removesuffix(':part')}")


def test_a_part_has_the_terms_of_its_set_under_its_own_name() -> None:
    part, whole = terms_of(f"{MAGPIE_ULTRA}:ja"), terms_of(MAGPIE_ULTRA)
    assert part.name == f"{MAGPIE_ULTRA}:ja" and asdict(part) == asdict(whole) | {"name": part.name}


def test_every_duty_can_be_read_in_japanese_and_unknown_ones_keep_their_words() -> None:
    duties = [(one.name, duty) for one in known_sets() for duty in terms_of(one.name).obligations]
    assert len(duties) > 10
    for name, duty in duties:
        assert re.search(r"[ぁ-ん]", in_japanese(name, duty)), duty
        assert in_japanese(f"{name}:part", duty) == in_japanese(name, duty)
        assert in_japanese("under another name", duty) == in_japanese(name, duty)
    assert in_japanese(LLM_JP, "An unheard-of duty.") == "An unheard-of duty."


def test_the_registry_is_consistent() -> None:
    names = [one.name for one in known_sets()]
    assert len(set(names)) == len(names) == 10
    for one in known_sets():
        assert (one.default_part in one.parts) == bool(one.parts)
        assert all((size.bytes is None) != (size.file_bytes is None) for size in one.sizes.values())
        original = None if one.original is None else known_set(one.original)
        assert (original is not None) == (one.layout == "lmsys") and (original is None or original.layout == "original")


def test_sizes_belong_to_a_set_or_to_its_part() -> None:
    size = known_size(f"{MAGPIE_ULTRA}:ja")
    assert size is not None and (size.bytes, size.ending) == (111_000_000, ".jsonl")
    web = known_size("HuggingFaceFW/fineweb-2:jpn_Jpan")
    assert web is not None and web.bytes is None and web.file_bytes == 5 * 2**30
    whole = known_size(LLM_JP)
    assert whole is not None and whole.bytes == 284_000_000
    assert known_size(MAGPIE_ULTRA) is None and known_size("someone/else") is None


def test_only_sets_under_a_stated_open_licence_may_be_quoted() -> None:
    open_licences = ("Apache-2.0", "CC-BY-4.0", "CC-BY-SA-3.0", "ODC-By-1.0")
    for known in known_sets():
        assert known.quotable == (known.licence in open_licences), known.name
        assert terms_of(known.name).quotable == known.quotable
    assert not terms_of("someone/unheard-of").quotable
