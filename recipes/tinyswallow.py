"""Qwen2.5-32B-Instruct distilled into Qwen2.5-1.5B-Instruct by TAID on Japanese text, then tuned on conversations.

It follows SakanaAI/TinySwallow-1.5B as far as that is published: teacher, student, method, the three instruction sets
and the two quantised files are on the publishers' cards. Corpus, tokens, learning rates, batch sizes and TAID's own
settings are not published and were chosen here, partly after the code of the TAID article, which trains other models.
`CHOICES` has each number with its reason. docs/reproduce.md describes a run.
"""

from dataclasses import replace
from pathlib import Path

from common.documents import Shares
from common.known_sets import terms_of
from common.optim import OptimConfig
from common.sources import HubDataset
from distill.corpus import CorpusConfig, TextSource
from distill.taid import TaidConfig
from distill.train import DistillConfig
from eval.evaluation import EvaluationConfig
from eval.report import Licence, ReportConfig, read_choices
from export.card import CardConfig, Sampling
from export.coreml import CoremlConfig
from export.gguf import GgufConfig
from export.release import DistConfig
from instruct.conversations import ConversationsConfig, hub_conversations
from instruct.train import InstructConfig
from recipes.recipe import Recipe
from recipes.stages.benchmarks import BenchmarkFilesConfig, BenchmarkQuestionsConfig
from recipes.stages.published import PublishedModelConfig, published

TEACHER, STUDENT = "Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"
STEM = "Llama-TinySwallow-Reproduction-1.5B-Instruct"
LICENCE = "Apache-2.0, Gemma Terms of Use, Llama 3.1 Community License"
"""Of the student; of the answers in all three sets, as far as stated; of the set that was made with Llama."""
SYSTEM_PROMPT = "あなたは、小型ながら、誠実で優秀なアシスタントです。"

SEQUENCE_TOKENS = 2048
STEPS, ROWS_PER_STEP = 8000, 64
CHAT_STEPS, CHAT_ROWS_PER_STEP = 1400, 128
OPTIM = OptimConfig(learning_rate=1e-4)
TEXT_FILES = 1
CONTEXT_TOKENS = 4096
ITEMS = 1000

_CHAT_UI = "https://github.com/SakanaAI/TinySwallow-ChatUI, docs/iphone.md"

CHOICES = read_choices(Path(__file__).with_name("tinyswallow_choices.toml"))


def hub_text(
    name: str, config: str, weight: float, *, japanese: bool = True, max_files: int | None = None
) -> TextSource:
    """A known data set of the hub as text, with its terms; for the other parameters see `TextSource`."""
    files = HubDataset(name=name, config=config)
    return TextSource(files=files, terms=terms_of(name), weight=weight, japanese=japanese, max_files=max_files)


TEXT = (
    hub_text("HuggingFaceFW/fineweb-2", "jpn_Jpan", 0.8, max_files=TEXT_FILES),
    hub_text("wikimedia/wikipedia", "20231101.ja", 0.2),
)
INSTRUCTIONS = (
    hub_conversations("tokyotech-llm/lmsys-chat-1m-synth"),
    hub_conversations("tokyotech-llm/swallow-magpie-ultra-v0.1", config="ja"),
    hub_conversations("tokyotech-llm/swallow-gemma-magpie-v0.1"),
)
SHARES = Shares(calibration=0.001, validation=0.001, test=0.001)
BASE = DistillConfig(
    method="taid",
    taid=TaidConfig(alpha=5e-4, beta=0.99, t_start=0.4),
    optim=OPTIM,
    corpus_tokens=STEPS * ROWS_PER_STEP * SEQUENCE_TOKENS,
    steps=STEPS,
    rows_per_step=ROWS_PER_STEP,
    micro_batch_rows=4,
    validate_every=500,
    checkpoint_every=250,
    save_dtype="bfloat16",
)
CHAT = InstructConfig(
    optim=replace(OPTIM, learning_rate=2.5e-5, weight_decay=0.1, warmup_share=0.1),
    steps=CHAT_STEPS,
    rows_per_step=CHAT_ROWS_PER_STEP,
    micro_batch_rows=4,
    validate_every=200,
    checkpoint_every=100,
    save_dtype="bfloat16",
)
EVALUATION = EvaluationConfig(
    items_per_shape=ITEMS,
    items_per_shape_other=200,
    main_encodings=("Q5_K_M",),
    fidelity_tokens=50_000,
    context_tokens=CONTEXT_TOKENS,
    sample_questions=0,  # a report that is published quotes no item of a benchmark
)
CARD = CardConfig(
    title=STEM,
    description_ja=(
        "Qwen2.5-32B-Instruct を教師、Qwen2.5-1.5B-Instruct を生徒として、日本語テキストで TAID 蒸留し、対話データで"
        "調整した、端末上で動く日本語の対話モデルです。TinySwallow-1.5B の、公開されている範囲の手順に沿って作成した"
        "非公式の再現で、Sakana AI・Swallow チームによるものではありません。"
    ),
    description_en=(
        "A Japanese chat model for phones: Qwen2.5-32B-Instruct distilled into Qwen2.5-1.5B-Instruct by TAID on "
        "Japanese text, then tuned on conversations. An unofficial reproduction of TinySwallow-1.5B along the steps "
        "that are published of it; it was not made by Sakana AI or the Swallow team."
    ),
    base_models=(STUDENT, TEACHER),
    licence=LICENCE,
    system_prompt=SYSTEM_PROMPT,
    sampling=Sampling(temperature=0.7, top_k=20, source=_CHAT_UI),
    choices=CHOICES,
)


def tinyswallow() -> Recipe:
    """The TinySwallow recipe."""
    return Recipe(
        name="tinyswallow",
        benchmarks=BenchmarkFilesConfig(),
        world=BenchmarkQuestionsConfig(items_per_benchmark=ITEMS),
        tokenizer=None,
        conversations=ConversationsConfig(sources=INSTRUCTIONS, sequence_tokens=SEQUENCE_TOKENS, shares=SHARES),
        corpus=CorpusConfig(sources=TEXT, sequence_tokens=SEQUENCE_TOKENS, shares=SHARES),
        teacher=_qwen(TEACHER),
        student_before=_qwen(STUDENT),
        base=BASE,
        chat=CHAT,
        gguf=GgufConfig(stem=STEM, encodings=("Q5_K_M", "Q8_0", "Q4_K_M"), licence=LICENCE),
        coreml=CoremlConfig(stem=STEM, context_tokens=CONTEXT_TOKENS, licence=LICENCE),
        evaluation=EVALUATION,
        report=ReportConfig(
            recipe="tinyswallow",
            licences=(
                Licence(what="teacher and student", licence="Apache-2.0"),
                Licence(what="text and conversations", licence="each set's own; see the table of sources"),
            ),
            choices=CHOICES,
        ),
        dist=DistConfig(card=CARD),
    )


def _qwen(name: str) -> PublishedModelConfig:
    return published(name, licence="Apache-2.0", attribution="Qwen2.5, Alibaba Cloud")
