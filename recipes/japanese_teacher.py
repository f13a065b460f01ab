"""The release with a teacher that was trained further on Japanese; refused where its tokenizer is another."""

from dataclasses import replace

from common.choices import Choice
from recipes.qwen3 import published
from recipes.recipe import Recipe
from recipes.tinyswallow import CHOICES, STUDENT, tinyswallow

TEACHER = "rinna/qwen2.5-bakeneko-32b-instruct"


def japanese_teacher() -> Recipe:
    """Every number of it: the release's, but for the teacher."""
    base = tinyswallow()
    choices = (
        Choice(what="teacher", value=TEACHER, reason="the release's teacher, trained further on Japanese"),
        *(choice for choice in CHOICES if choice.what != "teacher"),
    )
    assert base.dist.card is not None
    card = replace(
        base.dist.card,
        title="Llama-TinySwallow-Japanese-Teacher-1.5B-Instruct",
        description_ja="日本語で追加学習された教師から TAID 蒸留し、対話データで調整した日本語の対話モデルです。",
        description_en="A Japanese chat model for phones, distilled from a teacher trained further on Japanese.",
        base_models=(STUDENT, TEACHER),
        choices=choices,
    )
    return replace(
        base,
        name="japanese_teacher",
        teacher=published(TEACHER, licence="Apache-2.0", attribution="rinna"),
        report=replace(base.report, recipe="japanese_teacher", choices=choices),
        dist=replace(base.dist, card=card),
    )
