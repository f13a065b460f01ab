"""The embedded recipe, shrunken until a whole run takes seconds: same stages, same code, other numbers."""

from dataclasses import replace
from typing import Any

from distill.initial import InitConfig, qwen2_config
from recipes.mini import mini
from recipes.recipe import Recipe
from recipes.toy_world import WorldConfig

VOCABULARY = 512


def _init(hidden: int, rows: int) -> InitConfig:
    config = qwen2_config(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=rows,
        max_position_embeddings=512,
    )
    return InitConfig(config_json=config, previous_token_heads=1)


def recipe() -> Recipe:
    """What `python -m recipes FILE.py` takes."""
    full: Any = mini()
    short = {"steps": 6, "rows_per_step": 2, "micro_batch_rows": 2, "validate_every": 3, "checkpoint_every": 2}
    student = replace(full.student_before, **short, corpus_tokens=4000, init=_init(256, VOCABULARY + 64))
    return replace(
        full,
        name="tiny",
        world=WorldConfig(text_characters=60_000, num_conversations=150, questions_per_shape=20),
        tokenizer=replace(full.tokenizer, vocabulary=VOCABULARY),
        teacher=replace(full.teacher, **short, init=_init(128, VOCABULARY + 128)),
        student_before=student,
        base=replace(full.base, **short, corpus_tokens=4000),
        chat=replace(full.chat, **short, replay_rows_per_step=1, replay_tokens=4000),
        coreml=replace(full.coreml, context_tokens=128),
        report=replace(full.report, recipe="tiny"),
        evaluation=replace(full.evaluation, items_per_shape=4, items_per_shape_other=2, fidelity_tokens=300),
    )
