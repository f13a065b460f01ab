"""A stronger Japanese teacher, Qwen3's tokenizer, and no Gemma or Llama terms: Qwen3-Swallow-32B into Qwen3-1.7B.

Instructions are the licence-clean `llm-jp/magpie-sft-v1.0`; English and mathematics are part of the text, because the
published TinySwallow scores lower on MGSM and JHumanEval than its student did before. Numbers that are not given here
are those of `recipes.tinyswallow`.
"""

from dataclasses import replace
from pathlib import Path

from eval.report import Licence, read_choices, revised
from export.card import CardConfig, Sampling
from export.release import DistConfig
from instruct.conversations import hub_conversations
from instruct.train import InstructConfig
from recipes.recipe import Recipe
from recipes.stages.published import published
from recipes.tinyswallow import CHOICES as RELEASE_CHOICES
from recipes.tinyswallow import hub_text, tinyswallow

TEACHER, STUDENT = "tokyotech-llm/Qwen3-Swallow-32B-SFT-v0.2", "Qwen/Qwen3-1.7B"
STEM = "Swallow-Student-1.7B-Instruct"
LICENCE = "Apache-2.0"
"""Of teacher, student and instructions; the text has each set's own terms."""
TEXT = (
    hub_text("HuggingFaceFW/fineweb-2", "jpn_Jpan", 0.6, max_files=2),
    hub_text("wikimedia/wikipedia", "20231101.ja", 0.15, max_files=2),
    hub_text("HuggingFaceFW/fineweb-edu", "sample-10BT", 0.15, japanese=False, max_files=2),
    hub_text("HuggingFaceTB/finemath", "finemath-4plus", 0.1, japanese=False, max_files=2),
)
CHAT_STEPS = 260
CHOICES = revised(
    RELEASE_CHOICES,
    *read_choices(Path(__file__).with_name("qwen3_choices.toml")),
    without=("system prompt",),
)
CARD = CardConfig(
    title=STEM,
    description_ja=(
        "Qwen3-Swallow-32B を教師、Qwen3-1.7B を生徒として TAID 蒸留し、対話データで調整した、端末上で動く"
        "日本語の対話モデルです。Swallow チームによるものではありません。"
    ),
    description_en=(
        "A Japanese chat model for phones: Qwen3-Swallow-32B distilled into Qwen3-1.7B by TAID, then tuned "
        "on conversations. It was not made by the Swallow team."
    ),
    base_models=(STUDENT, TEACHER),
    licence=LICENCE,
    sampling=Sampling(temperature=0.7, top_p=0.8, top_k=20, source=f"https://huggingface.co/{STUDENT}"),
    choices=CHOICES,
)


def qwen3() -> Recipe:
    """The recipe with Qwen3."""
    base = tinyswallow()
    assert base.conversations is not None and isinstance(base.chat, InstructConfig)
    return replace(
        base,
        name="qwen3",
        conversations=replace(base.conversations, sources=(hub_conversations("llm-jp/magpie-sft-v1.0"),)),
        corpus=replace(base.corpus, sources=TEXT),
        teacher=published(TEACHER, licence="Apache-2.0", attribution="Qwen3-Swallow, Science Tokyo and AIST"),
        student_before=published(STUDENT, licence="Apache-2.0", attribution="Qwen3, Alibaba Cloud"),
        chat=replace(base.chat, steps=CHAT_STEPS, validate_every=65, checkpoint_every=65),
        gguf=replace(base.gguf, stem=STEM, licence=LICENCE),
        coreml=replace(base.coreml, stem=STEM, licence=LICENCE),
        report=replace(
            base.report,
            recipe="qwen3",
            licences=(
                Licence(what="teacher, student and instructions", licence="Apache-2.0"),
                Licence(what="text", licence="each set's own; see the table of sources"),
            ),
            choices=CHOICES,
        ),
        dist=DistConfig(card=CARD),
    )
