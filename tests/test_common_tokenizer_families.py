"""Tokenizers of many families, rebuilt in shape: ids as the file says, an end after each answer, the stops of a model.

The templates behave like those of the families that they are named after, and copy none of them.
"""

import json
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from export_tiny import LLAMA3_SPLIT, QWEN2_SPLIT, TEXTS, new_model, workspace
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from common.tokenizer import PROBE, Tokenizer
from distill.teacher import require_same_vocabulary
from eval.runtimes.llama_process import LlamaCppRuntime
from export.gguf import GgufConfig, gguf


def turns(before: str, after: str, opened: str, *, first: str = "", content: str = "m.content") -> str:
    """A template that writes `before`, the content and `after` for each message."""
    return (
        f"{first}{{% for m in messages %}}{{{{ {before} + {content} + {after} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {opened} }}}}{{% endif %}}"
    )


CHATML = turns("'<|im_start|>' + m.role + '\\n'", "'<|im_end|>\\n'", "'<|im_start|>assistant\\n'")
HEADER = "'<|start_header_id|>{}<|end_header_id|>\\n\\n'"
LLAMA3 = turns(
    "'<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n'",
    "'<|eot_id|>'",
    HEADER.format("assistant"),
    first="{{ bos_token }}",
    content="(m.content | trim)",
)
DATED = LLAMA3.replace("{{ bos_token }}", "{{ bos_token + 'Today: ' + strftime_now('%d %b %Y %H:%M:%S') }}")
GEMMA = turns(
    "'<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n'",
    "'<end_of_turn>\\n'",
    "'<start_of_turn>model\\n'",
    first="{{ bos_token }}",
)
PHI3 = turns("'<|' + m.role + '|>\\n'", "'<|end|>\\n'", "'<|assistant|>\\n'").replace(
    "{% endif %}", "{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = turns("'<|im_start|>' + m.role + '<|im_sep|>'", "'<|im_end|>'", "'<|im_start|>assistant<|im_sep|>'")
ZEPHYR = turns("'<|' + m.role + '|>\\n'", "eos_token + '\\n'", "'<|assistant|>\\n'")
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' }}"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}"
    "{{ m.content + '[/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}"
    "{% endfor %}"
)
OPENCHAT = turns(
    "'GPT4 Correct ' + m.role | title + ': '",
    "'<|end_of_turn|>'",
    "'GPT4 Correct Assistant:'",
    first="{{ bos_token }}",
)
VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}{% else %}"
    "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|end_of_sentence|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)
V3 = R1.replace("<think>\\n", "")
GRANITE = turns(
    "'<|start_of_role|>' + m.role + '<|end_of_role|>'",
    "'<|end_of_text|>\\n'",
    "'<|start_of_role|>assistant<|end_of_role|>'",
)
TULU = turns("'<|' + m.role + '|>\\n'", "('<|endoftext|>' if m.role == 'assistant' else '\\n')", "'<|assistant|>\\n'")
COMMAND = turns(
    "'<|START|><|' + ('CHATBOT' if m.role == 'assistant' else 'USER') + '|>'", "'<|END|>'", "'<|START|><|CHATBOT|>'"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a family's folder holds; the first special token that is no eos may be bos."""

    special: tuple[str, ...]
    template: str
    end: str
    eos: str
    bos: str | None = None
    split: str = "qwen2"
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    kind: str = "Qwen2Tokenizer"
    """A class that transformers would rebuild the tokenizer with."""


IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
L3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
DS = ("<|begin_of_sentence|>", "<|end_of_sentence|>", "<|User|>", "<|Assistant|>")
PHI = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
FAMILIES = {
    "qwen2.5": Family(special=IM, template=CHATML, end="<|im_end|>", eos="<|im_end|>"),
    "qwen2.5 base": Family(special=IM, template=CHATML, end="<|im_end|>", eos="<|endoftext|>"),
    "smollm": Family(
        special=IM, template=CHATML, end="<|im_end|>", eos="<|im_end|>", split="smollm", kind="GPT2Tokenizer"
    ),
    "llama 3": Family(special=L3, template=LLAMA3, end="<|eot_id|>", eos="<|end_of_text|>", bos=L3[0], split="llama3"),
    "llama 3.1": Family(special=L3, template=LLAMA3, end="<|eot_id|>", eos="<|eot_id|>", bos=L3[0], split="llama3"),
    "llama 3.2": Family(special=L3, template=DATED, end="<|eot_id|>", eos="<|eot_id|>", bos=L3[0], split="llama3"),
    "gemma": Family(
        special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        template=GEMMA,
        end="<end_of_turn>",
        eos="<eos>",
        bos="<bos>",
    ),
    "phi 3": Family(special=PHI, template=PHI3, end="<|end|>", eos="<|endoftext|>"),
    "phi 4": Family(special=(*IM, "<|im_sep|>"), template=PHI4, end="<|im_end|>", eos="<|im_end|>"),
    "zephyr": Family(special=("<s>", "</s>"), template=ZEPHYR, end="</s>", eos="</s>", bos="<s>"),
    "mistral": Family(
        special=("<s>", "</s>", "[INST]", "[/INST]"), template=MISTRAL, end="</s>", eos="</s>", bos="<s>"
    ),
    "openchat": Family(
        special=("<s>", "</s>", "<|end_of_turn|>"), template=OPENCHAT, end="<|end_of_turn|>", eos="</s>", bos="<s>"
    ),
    "vicuna": Family(special=("<s>", "</s>"), template=VICUNA, end="</s>", eos="</s>", bos="<s>"),
    "deepseek v3": Family(special=DS, template=V3, end=DS[1], eos=DS[1], bos=DS[0]),
    "granite": Family(
        special=("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        template=GRANITE,
        end="<|end_of_text|>",
        eos="<|end_of_text|>",
    ),
    "tulu": Family(special=("<|endoftext|>",), template=TULU, end="<|endoftext|>", eos="<|endoftext|>"),
    "command": Family(
        special=("<EOS>", "<|START|>", "<|END|>", "<|USER|>", "<|CHATBOT|>"),
        template=COMMAND,
        end="<|END|>",
        eos="<EOS>",
    ),
    "marked": Family(special=IM, template=MARKED, end="<|im_end|>", eos="<|im_end|>"),
}
ASKED, SAID = {"role": "user", "content": "川はどこですか。"}, {"role": "assistant", "content": "春の町です。 42"}
AGAIN, MORE = {"role": "user", "content": "名前は？"}, {"role": "assistant", "content": "まだ無い。"}
THOUGHT = {"role": "assistant", "content": "<think>\n町を思う。\n</think>\n\n春の町です。"}


def write(folder: Path, family: Family) -> Path:
    """The tokenizer folder of a family."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = Backend(models.BPE())
    raw.normalizer = normalizers.NFC()
    split = {"qwen2": QWEN2_SPLIT, "llama3": LLAMA3_SPLIT}.get(family.split)
    step = pre_tokenizers.Split(Regex(split), "isolated") if split else pre_tokenizers.Digits(individual_digits=True)
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    raw.pre_tokenizer = pre_tokenizers.Sequence([step, last])
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    raw.add_special_tokens(list(family.special))
    raw.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": family.kind, "eos_token": family.eos, "bos_token": family.bos} | family.settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(family.template)
    return folder


def supervised(tokenizer: Tokenizer, talk: list[dict[str, str]]) -> list[str]:
    """The text of each run of supervised tokens."""
    ids, mask = tokenizer.render(talk)
    runs: list[list[int]] = []
    for place, (token, one) in enumerate(zip(ids, mask, strict=True)):
        if one and (place == 0 or not mask[place - 1]):
            runs.append([])
        if one:
            runs[-1].append(token)
    return [tokenizer.decode(run, skip_special=False) for run in runs]


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_spans_and_stops(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    tokenizer = Tokenizer.load(write(tmp_path, family))
    raw = Backend.from_file(str(tmp_path / "tokenizer.json"))
    for text in (*TEXTS, PROBE):
        assert tokenizer.encode(text) == raw.encode(text, add_special_tokens=False).ids, text
    for talk in ([ASKED, SAID], [ASKED, SAID, AGAIN, MORE]):
        answers = [message["content"] + family.end for message in talk if message["role"] == "assistant"]
        assert [text.lstrip() for text in supervised(tokenizer, talk)] == answers
        ids, mask = tokenizer.render(talk)
        prompt = tokenizer.render_prompt(talk[:-1])
        assert ids[: len(prompt)] == prompt, "what is learnt follows the prompt that the template opens"
        assert [index for index, one in zip(ids, mask, strict=True) if one][-1] == tokenizer.turn_end_id
    ends = {raw.token_to_id(family.end), raw.token_to_id(family.eos)}
    assert ends <= set(tokenizer.stop_ids) and tokenizer.turn_end_id == raw.token_to_id(family.end)
    assert tokenizer.template_date == ("2024-07-26" if name == "llama 3.2" else None)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_file_stops_where_the_checkpoint_stops(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "chat", FAMILIES[name])
    rows = Tokenizer.load(folder).size + 5
    new_model("llama" if name.startswith("llama") else "qwen2", rows=rows, width=64, inner=64).save_pretrained(folder)
    tokenizer = Tokenizer.load(folder)
    space = workspace(tmp_path / "gguf")
    gguf(GgufConfig(stem="T", encodings=("F16",)), space, folder)
    with closing(LlamaCppRuntime(space.folder / "T-F16.gguf", repack=False)) as loaded:
        stops = [index for index in range(loaded.vocabulary) if loaded.call("is_end", index)]
        assert set(tokenizer.stop_ids) <= set(stops)
        assert set(stops) - set(tokenizer.stop_ids) <= {
            tokenizer._backend.token_to_id(end) for end in ("</s>", "<eos>")
        }
        assert loaded.render([ASKED, SAID, AGAIN]) == tokenizer.render_prompt([ASKED, SAID, AGAIN])


def test_thoughts_are_kept_where_the_prompt_opens_them(tmp_path: Path) -> None:
    family = Family(special=DS, template=R1, end=DS[1], eos=DS[1], bos=DS[0])
    tokenizer = Tokenizer.load(write(tmp_path, family))
    assert supervised(tokenizer, [ASKED, THOUGHT]) == [THOUGHT["content"].removeprefix("<think>\n") + DS[1]]
    reasoned = {"role": "assistant", "content": "春の町です。", "reasoning_content": "町を思う。"}
    assert tokenizer.render([ASKED, reasoned]) == tokenizer.render([ASKED, THOUGHT])
    assert tokenizer.render_counted([ASKED, THOUGHT])[2] == 0
    for talk in ([ASKED, SAID], [ASKED, SAID, AGAIN, MORE], [ASKED, THOUGHT, AGAIN, MORE]):
        with refuses("mismatch", got="<think>"):
            tokenizer.render(talk)


def test_a_part_that_the_template_leaves_out_is_counted(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(tmp_path, FAMILIES["deepseek v3"]))
    assert supervised(tokenizer, [ASKED, THOUGHT, AGAIN, MORE]) == ["\n\n春の町です。" + DS[1], "まだ無い。" + DS[1]]
    assert tokenizer.render_counted([ASKED, THOUGHT, AGAIN, MORE])[2] == 1
    reasoned = {"role": "assistant", "content": "春の町です。", "reasoning_content": "町を思う。"}
    assert tokenizer.render_counted([ASKED, reasoned])[2] == 1


def test_a_template_that_ends_no_answer_is_refused(tmp_path: Path) -> None:
    template = turns("m.role + ': '", "'\\n'", "'assistant: '")
    tokenizer = Tokenizer.load(write(tmp_path, Family(special=IM, template=template, end="", eos="<|im_end|>")))
    with refuses("unsupported", wanted="stop token after an answer"):
        tokenizer.render([ASKED, SAID])
    assert tokenizer.render_prompt([ASKED]), "it can still be asked"


def test_added_tokens_of_the_settings_are_in_the_file_that_ships(tmp_path: Path) -> None:
    added = {
        "content": "<tool>",
        "special": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "single_word": False,
    }
    family = FAMILIES["qwen2.5"]
    folder = write(tmp_path / "chat", family)
    first = Tokenizer.load(folder).size
    settings = {"added_tokens_decoder": {str(first): added}}
    write(folder, Family(special=IM, template=CHATML, end=family.end, eos=family.eos, settings=settings))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.size == first + 1 and tokenizer.encode("<tool>") == [first]
    new_model("qwen2", rows=first + 1, width=64, inner=64).save_pretrained(folder)
    space = workspace(tmp_path / "gguf")
    gguf(GgufConfig(stem="T", encodings=("F16",)), space, folder)
    with closing(LlamaCppRuntime(space.folder / "T-F16.gguf", repack=False)) as loaded:
        assert loaded.decode([first], skip_special=False) == "<tool>"


def test_stops_of_a_model_folder_are_taken(tmp_path: Path) -> None:
    write(tmp_path, FAMILIES["phi 3"])
    plain = Tokenizer.load(tmp_path)
    named = plain._backend.token_to_id("<|assistant|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [named, 5]}))
    assert set(Tokenizer.load(tmp_path).stop_ids) == {*plain.stop_ids, named}, "5 is plain text"
    (tmp_path / "config.json").write_text("[")
    with refuses("damaged", wanted="config.json"):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_with_holes_and_a_teacher_with_more_tokens(tmp_path: Path) -> None:
    folder = write(tmp_path / "holes", FAMILIES["qwen2.5"])
    whole = json.loads((folder / "tokenizer.json").read_text())
    lost = [token for token, index in whole["model"]["vocab"].items() if index in (390, 391)]
    for token in lost:
        del whole["model"]["vocab"][token]
    whole["model"]["merges"] = [pair for pair in whole["model"]["merges"] if "".join(pair) not in lost]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    with refuses("contradiction", got="<|endoftext|>"):  # the library would give its added tokens other ids
        Tokenizer.load(folder)
    whole["model"]["vocab"] |= {token["content"]: token["id"] for token in whole["added_tokens"]}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    holes = Tokenizer.load(folder)
    assert holes.size == max(token["id"] for token in whole["added_tokens"]) + 1
    assert [index for index, token in enumerate(holes.tokens()) if token is None] == [390, 391]
    student = Tokenizer.load(write(tmp_path / "student", FAMILIES["qwen2.5"]))
    more = Family(special=(*IM, "<think>", "</think>"), template=CHATML, end="<|im_end|>", eos="<|im_end|>")
    require_same_vocabulary(student, write(tmp_path / "teacher", more))
    with refuses("mismatch", got="no token"):
        require_same_vocabulary(Tokenizer.load(tmp_path / "teacher"), tmp_path / "student")


def test_named_templates_travel_and_count(tmp_path: Path) -> None:
    folder = write(tmp_path / "one", FAMILIES["qwen2.5"])
    before = Tokenizer.load(folder).sha256
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(CHATML)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.sha256 != before and set(tokenizer.chat_templates) == {"default", "tool_use"}
    tokenizer.save(tmp_path / "copy")
    assert Tokenizer.load(tmp_path / "copy").sha256 == tokenizer.sha256
    (folder / "chat_template.jinja").unlink()
    with refuses("not-found", got="tool_use"):
        Tokenizer.load(folder).render([ASKED, SAID])
