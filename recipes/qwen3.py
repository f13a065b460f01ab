"""A release for today: a stronger Japanese teacher, Qwen3's tokenizer, and no Gemma or Llama terms anywhere.

Qwen3-Swallow-32B v0.2 into Qwen3-1.7B, with the licence-clean `llm-jp/magpie-sft-v1.0`, and English and mathematics
among the text: the published TinySwallow loses on MGSM and JHumanEval against the model that it began as. The code is
the release's, the numbers are `recipes.tinyswallow`'s but for what stands here.
"""

from dataclasses import replace
from pathlib import Path

from common.known_sets import terms_of
from common.sources import HubDataset
from distill.corpus import CorpusConfig, TextSource
from eval.report import Licence, ReportConfig, read_choices, revised
from export.card import CardConfig, Sampling
from export.coreml import CoremlConfig
from export.gguf import GgufConfig
from export.release import DistConfig
from instruct.conversations import ConversationsConfig, hub_conversations
from instruct.train import InstructConfig
from recipes.recipe import Recipe
from recipes.stages.published import published
from recipes.tinyswallow import CHOICES as RELEASE_CHOICES
from recipes.tinyswallow import CONTEXT_TOKENS, SEQUENCE_TOKENS, SHARES, tinyswallow

TEACHER, STUDENT = "tokyotech-llm/Qwen3-Swallow-32B-SFT-v0.2", "Qwen/Qwen3-1.7B"
STEM = "Swallow-Student-1.7B-Instruct"
LICENCE = "Apache-2.0"
"""Of teacher, student and instructions; the text has each set's own terms."""
WEIGHTS = {
    "HuggingFaceFW/fineweb-2:jpn_Jpan": 0.6,
    "wikimedia/wikipedia:20231101.ja": 0.15,
    "HuggingFaceFW/fineweb-edu:sample-10BT": 0.15,
    "HuggingFaceTB/finemath:finemath-4plus": 0.1,
}
"""Share of the text's characters by set."""
CHAT_STEPS = 260
TEMPERATURE, TOP_P, TOP_K = 0.7, 0.8, 20
_JAPANESE_SETS = 2
_FILES = 2
_RELEASE = "https://swallow-llm.github.io/qwen3-swallow.en.html"
_STUDENT_CARD = f"https://huggingface.co/{STUDENT}"

CHOICES = revised(
    RELEASE_CHOICES,
    *read_choices(Path(__file__).with_name("qwen3_choices.toml")),
    without=("system prompt",),
)


def qwen3() -> Recipe:
    """Every number of it."""
    base = tinyswallow()
    assert isinstance(base.chat, InstructConfig)
    return replace(
        base,
        name="qwen3",
        conversations=ConversationsConfig(
            sources=(hub_conversations("llm-jp/magpie-sft-v1.0"),), sequence_tokens=SEQUENCE_TOKENS, shares=SHARES
        ),
        corpus=CorpusConfig(
            sources=tuple(_text(place, name, weight) for place, (name, weight) in enumerate(WEIGHTS.items())),
            sequence_tokens=SEQUENCE_TOKENS,
            shares=SHARES,
        ),
        teacher=published(TEACHER, licence="Apache-2.0", attribution="Qwen3-Swallow, Science Tokyo and AIST"),
        student_before=published(STUDENT, licence="Apache-2.0", attribution="Qwen3, Alibaba Cloud"),
        chat=replace(base.chat, steps=CHAT_STEPS, validate_every=65, checkpoint_every=65),
        gguf=GgufConfig(stem=STEM, encodings=base.gguf.encodings, licence=LICENCE),
        coreml=CoremlConfig(stem=STEM, context_tokens=CONTEXT_TOKENS, licence=LICENCE),
        report=ReportConfig(
            recipe="qwen3",
            licences=(
                Licence(what="teacher, student and instructions", licence="Apache-2.0"),
                Licence(what="text", licence="each set's own; see the table of sources"),
            ),
            choices=CHOICES,
        ),
        dist=DistConfig(card=_card()),
    )


def _card() -> CardConfig:
    return CardConfig(
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
        sampling=Sampling(temperature=TEMPERATURE, top_p=TOP_P, top_k=TOP_K, source=_STUDENT_CARD),
        choices=CHOICES,
    )


def _text(place: int, name: str, weight: float) -> TextSource:
    dataset, _, config = name.partition(":")
    return TextSource(
        files=HubDataset(name=dataset, config=config),
        terms=terms_of(dataset),
        weight=weight,
        japanese=place < _JAPANESE_SETS,
        max_files=_FILES,
    )
