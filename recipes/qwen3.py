"""A release for today: a stronger Japanese teacher, Qwen3's tokenizer, and no Gemma or Llama terms anywhere.

Qwen3-Swallow-32B v0.2 into Qwen3-1.7B, with the licence-clean `llm-jp/magpie-sft-v1.0`, and English and mathematics
among the text: the published TinySwallow loses on MGSM and JHumanEval against the model that it began as. The code is
the release's, the numbers are `recipes.tinyswallow`'s but for what stands here.
"""

from dataclasses import replace

from common.choices import Choice
from common.provenance import Terms
from common.sources import HubDataset, HubModel
from distill.corpus import CorpusConfig
from distill.corpus.published import terms_of
from eval.report import Licence, ReportConfig
from export.card import CardConfig, Sampling
from export.coreml import CoremlConfig
from export.gguf import GgufConfig
from export.release import DistConfig
from recipes.hub_names import HubConversations, HubText, PublishedModel
from recipes.recipe import Recipe
from recipes.tinyswallow import CHOICES, CONTEXT_TOKENS, SEQUENCE_TOKENS, SHARES, tinyswallow

TEACHER, STUDENT = "tokyotech-llm/Qwen3-Swallow-32B-SFT-v0.2", "Qwen/Qwen3-1.7B"
STEM = "Swallow-Student-1.7B-Instruct"
WEIGHTS = {
    "HuggingFaceFW/fineweb-2:jpn_Jpan": 0.6,
    "wikimedia/wikipedia:20231101.ja": 0.15,
    "HuggingFaceFW/fineweb-edu:sample-10BT": 0.15,
    "HuggingFaceTB/finemath:finemath-4plus": 0.1,
}
"""Share of the text's characters by set."""
_JAPANESE_SETS = 2
_FILES = 2
_RELEASE = "https://swallow-llm.github.io/qwen3-swallow.en.html"

_KEPT = ("method", "t at the start", "alpha, beta", "learning rate of the distillation", "rows of a distillation step")
_CHOICES = (
    Choice(what="teacher", value=TEACHER, reason=f"the strongest open Japanese model of its size ({_RELEASE})"),
    Choice(what="student", value=STUDENT, reason="the smallest Qwen3 near the release's size, with the same tokenizer"),
    Choice(
        what="text",
        value=", ".join(f"{name} {weight:g}" for name, weight in WEIGHTS.items()),
        reason="a quarter English and mathematics, which the published release lost; code is left out: no set of it "
        "was found that is whole, ungated and under terms that are stated",
    ),
    Choice(
        what="instruction set", value="llm-jp/magpie-sft-v1.0", reason="Apache-2.0, answers by Qwen2.5-32B-Instruct"
    ),
)


def qwen3() -> Recipe:
    """Every number of it."""
    base = tinyswallow()
    choices = (*_CHOICES, *(choice for choice in CHOICES if choice.what in _KEPT))
    return replace(
        base,
        name="qwen3",
        text=tuple(_text(place, name, weight) for place, (name, weight) in enumerate(WEIGHTS.items())),
        instructions=(HubConversations(dataset=HubDataset(name="llm-jp/magpie-sft-v1.0")),),
        corpus=CorpusConfig(sequence_tokens=SEQUENCE_TOKENS, shares=SHARES),
        teacher=published(TEACHER, licence="Apache-2.0", attribution="Qwen3-Swallow, Science Tokyo and AIST"),
        student_before=published(STUDENT, licence="Apache-2.0", attribution="Qwen3, Alibaba Cloud"),
        gguf=GgufConfig(stem=STEM, encodings=base.gguf.encodings),
        coreml=CoremlConfig(stem=STEM, context_tokens=CONTEXT_TOKENS),
        report=ReportConfig(
            recipe="qwen3",
            licences=(
                Licence(what="teacher, student and instructions", licence="Apache-2.0"),
                Licence(what="text", licence="each set's own; see the table of sources"),
            ),
            choices=choices,
        ),
        dist=DistConfig(
            card=CardConfig(
                title=STEM,
                description_ja=(
                    "Qwen3-Swallow-32B を教師、Qwen3-1.7B を生徒として TAID 蒸留し、対話データで調整した、端末上で動く"
                    "日本語の対話モデルです。"
                ),
                description_en=(
                    "A Japanese chat model for phones: Qwen3-Swallow-32B distilled into Qwen3-1.7B by TAID, then tuned "
                    "on conversations."
                ),
                base_models=(STUDENT, TEACHER),
                sampling=Sampling(temperature=0.7, top_p=0.8, top_k=20, source=f"https://huggingface.co/{STUDENT}"),
                choices=choices,
            )
        ),
    )


def published(name: str, *, licence: str, attribution: str) -> PublishedModel:
    """A model of the hub with its terms."""
    terms = Terms(name=name, licence=licence, url=f"https://huggingface.co/{name}", attribution=attribution)
    return PublishedModel(model=HubModel(name=name), terms=terms)


def _text(place: int, name: str, weight: float) -> HubText:
    dataset, _, config = name.partition(":")
    return HubText(
        dataset=HubDataset(name=dataset, config=config),
        terms=terms_of(dataset),
        weight=weight,
        japanese=place < _JAPANESE_SETS,
        max_files=_FILES,
    )
