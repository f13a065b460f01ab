"""Qwen3's own chat template: training supervises what its prompts ask for, without a block of thoughts in between.

`QWEN3` is the template as Qwen publishes it with Qwen3 (tokenizer_config.json of Qwen/Qwen3-1.7B, Apache-2.0), but for
the text that describes tools and the calls of tools, which no conversation here has.
"""

from pathlib import Path

import pytest
from export_tiny import TEMPLATE, write_gguf, write_tokenizer
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from common.tokenizer import Tokenizer
from export.card.prompt import read_prompt

QWEN3 = r"""
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""  # noqa: E501 - as published
SYSTEM = {"role": "system", "content": "短く答えてください。"}
ASKED, SAID = {"role": "user", "content": "春の町に川はありますか。"}, {"role": "assistant", "content": "あります。"}
AGAIN, MORE = {"role": "user", "content": "名前は？"}, {"role": "assistant", "content": "まだ無い。\n1, 2"}
TALKS = ([ASKED, SAID], [SYSTEM, ASKED, SAID], [ASKED, SAID, AGAIN, MORE], [SYSTEM, ASKED, SAID, AGAIN, MORE])


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("qwen3")
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(QWEN3)
    return Tokenizer.load(folder)


@pytest.mark.parametrize("talk", TALKS)
def test_what_is_supervised_follows_the_prompt_that_the_template_opens(
    qwen3: Tokenizer, talk: list[dict[str, str]]
) -> None:
    ids, mask = qwen3.render(talk)
    text = qwen3.decode(ids, skip_special=False)
    assert "<think>" not in text and text.endswith(f"{talk[-1]['content']}<|im_end|>\n")
    supervised = qwen3.decode([token for token, one in zip(ids, mask, strict=True) if one], skip_special=False)
    assert supervised == "".join(f"{each['content']}<|im_end|>" for each in talk if each["role"] == "assistant")
    for place, message in enumerate(talk):
        if message["role"] == "assistant":
            prompt = qwen3.render_prompt(talk[:place])
            assert ids[: len(prompt)] == prompt and mask[len(prompt) - 1 : len(prompt) + 1] == [0, 1]


CALL = {"role": "assistant", "content": '<tool_call>{"name": "river"}</tool_call>', "reasoning_content": "調べよう。"}
RESULT = {"role": "user", "content": "<tool_response>ある</tool_response>"}


@pytest.mark.parametrize("before", [[], [ASKED, SAID], [SYSTEM, ASKED, SAID | {"reasoning_content": "たぶん。"}]])
def test_thoughts_before_a_call_stay_where_the_prompt_for_the_answer_has_them(
    qwen3: Tokenizer, before: list[dict[str, str]]
) -> None:
    talk = [*before, AGAIN, CALL, RESULT, MORE]
    ids, mask, num_shortened = qwen3.render_counted(talk)
    supervised = qwen3.decode([token for token, one in zip(ids, mask, strict=True) if one], skip_special=False)
    earlier = "あります。<|im_end|>" if before else ""
    thought = f"<think>\n調べよう。\n</think>\n\n{CALL['content']}<|im_end|>"
    assert supervised == f"{earlier}{thought}{MORE['content']}<|im_end|>"
    assert num_shortened == ("reasoning_content" in (before or [{}])[-1])
    for place in (len(talk) - 3, len(talk) - 1):
        prompt = qwen3.render_prompt(talk[:place])
        assert ids[: len(prompt)] == prompt and mask[len(prompt)] == 1


@pytest.mark.parametrize("talk", TALKS)
def test_llama_cpp_and_a_modelfile_open_the_same_prompt(
    qwen3: Tokenizer, talk: list[dict[str, str]], tmp_path: Path
) -> None:
    asked = talk[:-1]
    formatter = Jinja2ChatFormatter(template=QWEN3, eos_token="<|im_end|>", bos_token="")
    opened = formatter(messages=asked).prompt  # pyright: ignore[reportArgumentType]
    assert opened == qwen3.decode(qwen3.render_prompt(asked), skip_special=False)
    prompt = read_prompt(write_gguf(tmp_path / "T-F16.gguf", QWEN3), asked)
    assert prompt.is_chatml and prompt.example == opened


def test_the_template_itself_writes_a_block_that_its_prompts_lack(qwen3: Tokenizer) -> None:
    hf = qwen3._hf
    whole = str(hf.apply_chat_template([ASKED, SAID], tokenize=False))
    assert "<think>\n\n</think>\n\nあります。" in whole, "else this file would test nothing"


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        "{% for m in messages %}{% if loop.index0 % 2 != (m.role == 'assistant') %}{{ raise_exception('turns') }}"
        "{% endif %}[{{ m.role }}] {{ m.content }}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}",
    ],
)
def test_a_template_that_writes_all_answers_alike_is_taken_as_it_is(template: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer.load(tmp_path)
    talk = [ASKED, SAID, AGAIN, MORE]
    hf = tokenizer._hf
    assert tokenizer.render(talk)[0] == hf.apply_chat_template(talk, tokenize=True, return_dict=False)
