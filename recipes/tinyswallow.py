"""The release: Qwen2.5-32B-Instruct distilled into Qwen2.5-1.5B-Instruct by TAID on Japanese text, then tuned to chat.

It follows SakanaAI/TinySwallow-1.5B as far as its publishers tell: teacher, student, method, the three instruction sets
and the two quantised files stand on their cards. Corpus, tokens, learning rates and batch sizes are not published;
those were chosen here, and `CHOICES` says so, number by number, with the reason. docs/reproduce.md tells how to run it.
"""

from common.choices import Choice
from common.optim import OptimConfig
from common.provenance import Terms
from common.sources import HubDataset, HubModel
from common.splits import Shares
from distill.corpus import CorpusConfig
from distill.corpus.published import terms_of
from distill.taid import TaidConfig
from distill.train import DistillConfig
from eval.evaluation import EvaluationConfig
from eval.report import Licence, ReportConfig
from export.card import CardConfig, Sampling
from export.coreml import CoremlConfig
from export.gguf import GgufConfig
from export.release import DistConfig
from instruct.conversations import ConversationsConfig
from instruct.train import InstructConfig
from recipes.benchmark_questions import BenchmarkQuestionsConfig
from recipes.hub_names import HubConversations, HubText, PublishedModel
from recipes.recipe import Recipe

TEACHER, STUDENT = "Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"
STEM = "Llama-TinySwallow-Reproduction-1.5B-Instruct"
SYSTEM_PROMPT = "あなたは、小型ながら、誠実で優秀なアシスタントです。"

SEQUENCE_TOKENS = 2048
STEPS, ROWS_PER_STEP = 8000, 64
CHAT_STEPS, CHAT_ROWS_PER_STEP = 1400, 128
ALPHA, T_START = 5e-4, 0.4
LEARNING_RATE, CHAT_LEARNING_RATE = 1e-4, 2.5e-5
TEXT_FILES = 3
WEB_WEIGHT, WIKIPEDIA_WEIGHT = 0.8, 0.2
CONTEXT_TOKENS = 4096
ITEMS = 1000

_CARD = "https://huggingface.co/SakanaAI/TinySwallow-1.5B-Instruct"
_TAID = "https://github.com/SakanaAI/TAID"
_SWALLOW_SCRIPT = "the Swallow team's script for Llama-3.1-Swallow-8B on the first of these sets"

CHOICES = (
    Choice(what="teacher", value=TEACHER, source=_CARD),
    Choice(what="student", value=STUDENT, source=_CARD),
    Choice(what="method", value="TAID, adaptive", source=_CARD),
    Choice(what="t at the start", value=f"{T_START:g}", source=f"{_TAID}, src/arguments.py and scripts/phi-3"),
    Choice(what="alpha, beta", value=f"{ALPHA:g}, 0.99", source=f"{_TAID}, src/arguments.py"),
    Choice(
        what="peak learning rate of the distillation", value=f"{LEARNING_RATE:g}, cosine", source=f"{_TAID}, train.py"
    ),
    Choice(
        what="rows of a distillation step", value=f"{ROWS_PER_STEP}", source=f"{_TAID}, README: 8 on each of 8 GPUs"
    ),
    Choice(
        what="text",
        value=f"FineWeb-2 Japanese, first {TEXT_FILES} files, and Wikipedia, {WEB_WEIGHT:g} to {WIKIPEDIA_WEIGHT:g}",
        reason="the publishers name no corpus; these are open, large enough and under terms that allow it",
    ),
    Choice(
        what="length of a row",
        value=f"{SEQUENCE_TOKENS:,} tokens, packed",
        source=f"{_TAID}, src/data.py cuts at this length",
    ),
    Choice(
        what="tokens of the distillation",
        value=f"{STEPS * ROWS_PER_STEP * SEQUENCE_TOKENS / 1e9:.2f} billion in {STEPS:,} steps",
        reason="not published; about two days on one GPU of 141 GB, and twice as many steps as alpha needs to matter",
    ),
    Choice(
        what="warm-up of the distillation",
        value="2 % of the steps, floor 0.1 of the peak",
        reason="the released code has none; a student that already works loses less at the start with one",
    ),
    Choice(what="instruction sets", value="the three that the card names", source=_CARD),
    Choice(
        what="peak learning rate of the tuning",
        value=f"{CHAT_LEARNING_RATE:g}, cosine to a tenth, warm-up 10 %, weight decay 0.1",
        source=_SWALLOW_SCRIPT,
    ),
    Choice(
        what="rows and steps of the tuning",
        value=f"{CHAT_ROWS_PER_STEP} rows of {SEQUENCE_TOKENS:,} tokens, {CHAT_STEPS:,} steps",
        reason="not published; the script's batch, and about one epoch of all three sets as estimated from their sizes",
    ),
    Choice(what="quantised files", value="Q5_K_M and Q8_0", source=f"{_CARD}-GGUF"),
    Choice(what="a further file", value="Q4_K_M", reason="the smallest that this product checks; for phones of 4 GB"),
    Choice(
        what="context of the Core ML package",
        value=f"{CONTEXT_TOKENS:,} tokens",
        reason="what the publishers' page for browsers uses",
    ),
    Choice(
        what="name",
        value=STEM,
        reason="the terms of swallow-magpie-ultra-v0.1 ask for a name that begins with Llama",
    ),
    Choice(
        what="system prompt",
        value=SYSTEM_PROMPT,
        reason="the published one names a company and a model that this build is not",
    ),
)


TEXT = (
    HubText(
        dataset=HubDataset(name="HuggingFaceFW/fineweb-2", config="jpn_Jpan"),
        terms=terms_of("HuggingFaceFW/fineweb-2"),
        weight=WEB_WEIGHT,
        max_files=TEXT_FILES,
    ),
    HubText(
        dataset=HubDataset(name="wikimedia/wikipedia", config="20231101.ja"),
        terms=terms_of("wikimedia/wikipedia"),
        weight=WIKIPEDIA_WEIGHT,
    ),
)
INSTRUCTIONS = (
    HubConversations(dataset=HubDataset(name="tokyotech-llm/lmsys-chat-1m-synth")),
    HubConversations(dataset=HubDataset(name="tokyotech-llm/swallow-magpie-ultra-v0.1", config="ja")),
    HubConversations(dataset=HubDataset(name="tokyotech-llm/swallow-gemma-magpie-v0.1")),
)
SHARES = Shares(calibration=0.001, validation=0.001, test=0.001)
BASE = DistillConfig(
    method="taid",
    taid=TaidConfig(alpha=ALPHA, t_start=T_START),
    optim=OptimConfig(learning_rate=LEARNING_RATE),
    steps=STEPS,
    rows_per_step=ROWS_PER_STEP,
    micro_batch_rows=4,
    validate_every=500,
    checkpoint_every=250,
    save_dtype="bfloat16",
)
CHAT = InstructConfig(
    optim=OptimConfig(learning_rate=CHAT_LEARNING_RATE, weight_decay=0.1, warmup_share=0.1),
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
)
CARD = CardConfig(
    title=STEM,
    description_ja=(
        "Qwen2.5-32B-Instruct を教師、Qwen2.5-1.5B-Instruct を生徒として、日本語テキストで TAID 蒸留し、対話データで"
        "調整した、端末上で動く日本語の対話モデルです。TinySwallow-1.5B の公開された手順を再現したものです。"
    ),
    description_en=(
        "A Japanese chat model for phones: Qwen2.5-32B-Instruct distilled into Qwen2.5-1.5B-Instruct by TAID on "
        "Japanese text, then tuned on conversations. It follows what is published of TinySwallow-1.5B."
    ),
    base_models=(STUDENT, TEACHER),
    system_prompt=SYSTEM_PROMPT,
    sampling=Sampling(
        temperature=0.7, top_k=20, source="https://github.com/SakanaAI/TinySwallow-ChatUI, docs/iphone.md"
    ),
    choices=CHOICES,
)


def tinyswallow() -> Recipe:
    """Every number of the release."""
    return Recipe(
        name="tinyswallow",
        world=BenchmarkQuestionsConfig(items_per_benchmark=ITEMS),
        text=TEXT,
        instructions=INSTRUCTIONS,
        decontaminate=True,
        tokenizer=None,
        corpus=CorpusConfig(sequence_tokens=SEQUENCE_TOKENS, shares=SHARES),
        teacher=_qwen(TEACHER),
        student_before=_qwen(STUDENT),
        base=BASE,
        conversations=ConversationsConfig(sequence_tokens=SEQUENCE_TOKENS, shares=SHARES),
        chat=CHAT,
        gguf=GgufConfig(stem=STEM, encodings=("Q5_K_M", "Q8_0", "Q4_K_M")),
        coreml=CoremlConfig(stem=STEM, context_tokens=CONTEXT_TOKENS),
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


def _qwen(name: str) -> PublishedModel:
    terms = Terms(
        name=name, licence="Apache-2.0", url=f"https://huggingface.co/{name}", attribution="Qwen2.5, Alibaba Cloud"
    )
    return PublishedModel(model=HubModel(name=name), terms=terms)
