"""The TinySwallow recipe with a teacher that was trained further on Japanese; refused if its tokenizer differs.

Two facts about rinna's model, its licence and that it was trained from Qwen2.5-32B, were not verified at its publisher:
read its page before you use it.
"""

from dataclasses import replace

from eval.report import Choice, revised
from recipes.recipe import Recipe
from recipes.stages.published import published
from recipes.tinyswallow import CHOICES as RELEASE_CHOICES
from recipes.tinyswallow import STUDENT, tinyswallow

TEACHER = "rinna/qwen2.5-bakeneko-32b-instruct"
STEM = "Llama-TinySwallow-Japanese-Teacher-1.5B-Instruct"
CHOICES = revised(
    RELEASE_CHOICES,
    Choice(
        what="teacher",
        value=TEACHER,
        source=f"https://huggingface.co/{TEACHER} (not verified at the publisher)",
        reason="the release's teacher, trained further on Japanese",
    ),
    Choice(
        what="name",
        value=STEM,
        reason="the terms of swallow-magpie-ultra-v0.1 ask for a name that begins with Llama",
        fields=(("gguf.stem", STEM),),
    ),
)


def japanese_teacher() -> Recipe:
    """The TinySwallow recipe with another teacher and other names."""
    base = tinyswallow()
    assert base.dist.card is not None
    card = replace(
        base.dist.card,
        title=STEM,
        description_ja=(
            "日本語で追加学習された教師から TAID 蒸留し、対話データで調整した日本語の対話モデルです。"
            "Sakana AI・Swallow チームによるものではありません。"
        ),
        description_en=(
            "A Japanese chat model for phones, distilled from a teacher trained further on Japanese. It was not made "
            "by Sakana AI or the Swallow team."
        ),
        base_models=(STUDENT, TEACHER),
        choices=CHOICES,
    )
    return replace(
        base,
        name="japanese_teacher",
        teacher=published(TEACHER, licence="Apache-2.0", attribution="rinna"),
        gguf=replace(base.gguf, stem=STEM),
        coreml=replace(base.coreml, stem=STEM),
        report=replace(base.report, recipe="japanese_teacher", choices=CHOICES),
        dist=replace(base.dist, card=card),
    )
