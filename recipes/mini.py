"""The embedded default: the pipeline of the TinySwallow recipe with toy numbers and no download.

Teacher and student are trained on the text of `recipes.toy_world`. As in the TinySwallow recipe the student reads a
small part of the teacher's corpus: otherwise a teacher is not worth its cost. The numbers are chosen for two processor
cores; docs/measured.md has the results.
"""

from dataclasses import replace

from common.documents import Shares
from common.optim import OptimConfig
from distill.corpus import CorpusConfig
from distill.initial import InitConfig, qwen2_config
from distill.taid import TaidConfig
from distill.train import DistillConfig
from distill.train_tokenizer import TokenizerConfig
from eval.evaluation import EvaluationConfig
from eval.report import Licence, ReportConfig
from export.coreml import CoremlConfig
from export.gguf import GgufConfig
from export.release import DistConfig
from instruct.conversations import ConversationsConfig
from instruct.train import InstructConfig
from recipes.recipe import Recipe
from recipes.toy_world import WorldConfig

STEM = "TinySwallow-mini-2M-Chat"
SEQUENCE_TOKENS = 256
VOCABULARY = 2048
STUDENT_TOKENS = 50_000
"""Tokens that the student reads: a thirtieth of the teacher's corpus."""

WORLD = WorldConfig(
    share_prose=0.22,
    share_short_answer=0.16,
    share_multiple_choice=0.14,
    share_reading=0.12,
    share_arithmetic=0.12,
    share_translation=0.24,
)
"""Most of it is questions with answers, so that a small teacher learns the facts in a few minutes."""
REPORT = ReportConfig(
    recipe="mini",
    licences=(
        Licence(what="the generated texts, conversations and questions", licence="Apache-2.0"),
        Licence(what="the weights, made from nothing else", licence="Apache-2.0"),
    ),
)
OPTIM = OptimConfig(
    matrices="muon",
    learning_rate=3e-3,
    muon_learning_rate=0.02,
    warmup_share=0.03,
    stable_share=0.4,
    decay="linear",
    floor_share=0.05,
)


def _init(hidden_size: int, intermediate_size: int, num_attention_heads: int, vocab_size: int) -> InitConfig:
    config = qwen2_config(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=2,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=2,
        vocab_size=vocab_size,
        max_position_embeddings=1024,
    )
    return InitConfig(config_json=config, previous_token_heads=2)


TEACHER = DistillConfig(
    optim=OPTIM,
    init=_init(hidden_size=384, intermediate_size=1024, num_attention_heads=6, vocab_size=2176),
    rows_per_step=8,
    micro_batch_rows=8,
    steps=560,
    validate_every=140,
    checkpoint_every=140,
)
STUDENT_BEFORE = replace(
    TEACHER,
    init=_init(hidden_size=256, intermediate_size=768, num_attention_heads=4, vocab_size=2112),
    corpus_tokens=STUDENT_TOKENS,
    steps=100,
    validate_every=50,
    checkpoint_every=50,
)
BASE = replace(STUDENT_BEFORE, init=None, method="taid", taid=TaidConfig(alpha=0.02, ramp_share=0.5), steps=300)
CHAT = InstructConfig(
    optim=replace(OPTIM, learning_rate=1.5e-3, muon_learning_rate=0.01),
    steps=150,
    rows_per_step=12,
    replay_rows_per_step=4,
    replay_tokens=STUDENT_TOKENS,
    validate_every=50,
    checkpoint_every=50,
)
SHARES = Shares(calibration=0.01, validation=0.02, test=0.04)


def mini() -> Recipe:
    """The embedded recipe."""
    return Recipe(
        name="mini",
        world=WORLD,
        tokenizer=TokenizerConfig(vocabulary=VOCABULARY),
        conversations=ConversationsConfig(sequence_tokens=SEQUENCE_TOKENS, shares=SHARES),
        corpus=CorpusConfig(
            sequence_tokens=SEQUENCE_TOKENS,
            shares=SHARES,
            near_duplicates=None,
            reason_off="synthetic: repetition is intended, no personal data, and questions were held out at once",
        ),
        teacher=TEACHER,
        student_before=STUDENT_BEFORE,
        base=BASE,
        chat=CHAT,
        gguf=GgufConfig(stem=STEM),
        coreml=CoremlConfig(stem=STEM, context_tokens=512),
        evaluation=EvaluationConfig(),
        report=REPORT,
        dist=DistConfig(),
    )
