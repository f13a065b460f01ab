"""The release: Qwen2.5-32B-Instruct distilled into Qwen2.5-1.5B-Instruct by TAID on Japanese text, then tuned to chat.

It follows SakanaAI/TinySwallow-1.5B as far as its publishers tell: teacher, student, method, the three instruction sets
and the two quantised files stand on their cards. Corpus, tokens, learning rates, batch sizes and TAID's own settings
are not published; those were chosen here, partly after the code of the TAID article, which trains other models, and
`CHOICES` says so, number by number, with the reason. docs/reproduce.md tells how to run it.
"""

from dataclasses import replace

from common.documents import Shares
from common.known_sets import terms_of
from common.optim import OptimConfig
from common.sources import HubDataset
from distill.corpus import CorpusConfig, TextSource
from distill.taid import TaidConfig
from distill.train import DistillConfig
from eval.evaluation import EvaluationConfig
from eval.report import Choice, Licence, ReportConfig
from export.card import CardConfig, Sampling
from export.coreml import CoremlConfig
from export.gguf import GgufConfig
from export.release import DistConfig
from instruct.conversations import ConversationsConfig, hub_conversations
from instruct.train import InstructConfig
from recipes.recipe import Recipe
from recipes.stages.benchmark_files import BenchmarkFilesConfig
from recipes.stages.benchmark_questions import BenchmarkQuestionsConfig
from recipes.stages.published_model import PublishedModelConfig, published

TEACHER, STUDENT = "Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"
STEM = "Llama-TinySwallow-Reproduction-1.5B-Instruct"
LICENCE = "Apache-2.0, Gemma Terms of Use, Llama 3.1 Community License"
"""Of the student, of the answers in all three sets as far as stated, and of the set that was made with Llama."""
SYSTEM_PROMPT = "あなたは、小型ながら、誠実で優秀なアシスタントです。"

SEQUENCE_TOKENS = 2048
STEPS, ROWS_PER_STEP = 8000, 64
CHAT_STEPS, CHAT_ROWS_PER_STEP = 1400, 128
ALPHA, BETA, T_START = 5e-4, 0.99, 0.4
LEARNING_RATE, CHAT_LEARNING_RATE = 1e-4, 2.5e-5
OPTIM = OptimConfig(learning_rate=LEARNING_RATE)
HELD_OUT = 0.001
TEMPERATURE, TOP_K = 0.7, 20
TEXT_FILES = 1
WEB_WEIGHT, WIKIPEDIA_WEIGHT = 0.8, 0.2
CONTEXT_TOKENS = 4096
ITEMS = 1000

_CARD = "https://huggingface.co/SakanaAI/TinySwallow-1.5B-Instruct"
_TAID = "https://github.com/SakanaAI/TAID"
_CHAT_UI = "https://github.com/SakanaAI/TinySwallow-ChatUI, docs/iphone.md"
_SWALLOW_SCRIPT = (
    "a script of the Swallow team that tunes Llama-3.1-Swallow-8B on lmsys-chat-1m-synth, read in a secondary copy "
    "that has no public address"
)

CHOICES = (
    Choice(what="teacher", value=TEACHER, published=True, source=_CARD),
    Choice(what="student", value=STUDENT, published=True, source=_CARD),
    Choice(what="method", value="TAID, adaptive", published=True, source=_CARD, fields=(("base.method", "taid"),)),
    Choice(what="instruction sets", value="the three that the card names", published=True, source=_CARD),
    Choice(what="quantised files", value="Q5_K_M and Q8_0", published=True, source=f"{_CARD}-GGUF"),
    Choice(what="sampling", value=f"temperature {TEMPERATURE:g}, top_k {TOP_K}", published=True, source=_CHAT_UI),
    Choice(
        what="t at the start",
        value=f"{T_START:g}",
        source=f"{_TAID}, src/arguments.py",
        reason="the default of the TAID article's code, which was made for other models",
        fields=(("base.taid.t_start", T_START),),
    ),
    Choice(
        what="alpha, beta",
        value=f"{ALPHA:g}, {BETA:g}",
        source=f"{_TAID}, src/arguments.py",
        reason="likewise the defaults of the article's code",
        fields=(("base.taid.alpha", ALPHA), ("base.taid.beta", BETA)),
    ),
    Choice(
        what="peak learning rate of the distillation",
        value=f"{LEARNING_RATE:g}, cosine",
        source=f"{_TAID}, train.py",
        reason="that of the article's code for other models",
        fields=(("base.optim.learning_rate", LEARNING_RATE),),
    ),
    Choice(
        what="warm-up of the distillation",
        value="2 % of the steps, floor 0.1 of the peak",
        reason="the article's code has none; a student that already works loses less at the start with one",
        fields=(("base.optim.warmup_share", 0.02), ("base.optim.floor_share", 0.1)),
    ),
    Choice(
        what="gradient clip",
        value=f"{OPTIM.gradient_clip:g}, in both trainings",
        source=f"{_TAID}, train.py",
        reason="that of the article's code",
        fields=(("base.optim.gradient_clip", 1.0), ("chat.optim.gradient_clip", 1.0)),
    ),
    Choice(
        what="AdamW's betas",
        value=f"{OPTIM.betas[0]:g}, {OPTIM.betas[1]:g}, in both trainings",
        reason="not published; usual for language models",
        fields=(("base.optim.betas[0]", OPTIM.betas[0]), ("base.optim.betas[1]", OPTIM.betas[1])),
    ),
    Choice(
        what="weight decay of the distillation",
        value=f"{OPTIM.weight_decay:g}",
        reason="not published; the teacher's distribution holds the student, which reads its text once",
        fields=(("base.optim.weight_decay", OPTIM.weight_decay),),
    ),
    Choice(
        what="rows of a distillation step",
        value=f"{ROWS_PER_STEP}",
        source=f"{_TAID}, train.py",
        reason="as many rows as the article's code takes for other models, 8 on each of 8 GPUs",
        fields=(("base.rows_per_step", ROWS_PER_STEP),),
    ),
    Choice(
        what="length of a row",
        value=f"{SEQUENCE_TOKENS:,} tokens, packed",
        source=f"{_TAID}, src/data.py",
        reason="the article's length; there longer rows are dropped and shorter ones padded, here documents are packed",
        fields=(("corpus.sequence_tokens", SEQUENCE_TOKENS), ("conversations.sequence_tokens", SEQUENCE_TOKENS)),
    ),
    Choice(
        what="text",
        value=f"FineWeb-2 Japanese and Wikipedia, {WEB_WEIGHT:g} to {WIKIPEDIA_WEIGHT:g} of the characters",
        reason="the publishers name no corpus; these are open, large enough and under terms that allow it",
    ),
    Choice(
        what="files of FineWeb-2",
        value=f"the first {TEXT_FILES}",
        reason="expected to hold more than the distillation reads",
        fields=(("corpus.sources[0].max_files", TEXT_FILES),),
    ),
    Choice(
        what="tokens of the distillation",
        value=f"{STEPS * ROWS_PER_STEP * SEQUENCE_TOKENS / 1e9:.2f} billion in {STEPS:,} steps",
        reason="not published; an estimated two to three days on one GPU of 141 GB, and twice as many steps as alpha "
        "needs to matter",
        fields=(
            ("base.steps", STEPS),
            ("base.rows_per_step", ROWS_PER_STEP),
            ("corpus.sequence_tokens", SEQUENCE_TOKENS),
        ),
    ),
    Choice(
        what="documents held out",
        value="0.1 % each for calibration, validation and test, of text and of conversations",
        reason="not published; enough for all that is measured on them",
        fields=tuple(
            (f"{part}.shares.{split}", HELD_OUT)
            for part in ("corpus", "conversations")
            for split in ("calibration", "validation", "test")
        ),
    ),
    Choice(
        what="peak learning rate of the tuning",
        value=f"{CHAT_LEARNING_RATE:g}, cosine to a tenth, warm-up 10 %, weight decay 0.1",
        source=_SWALLOW_SCRIPT,
        reason="the same team's for a larger model and conversations of this kind",
        fields=(
            ("chat.optim.learning_rate", CHAT_LEARNING_RATE),
            ("chat.optim.warmup_share", 0.1),
            ("chat.optim.weight_decay", 0.1),
        ),
    ),
    Choice(
        what="rows and steps of the tuning",
        value=f"{CHAT_ROWS_PER_STEP} rows of {SEQUENCE_TOKENS:,} tokens, {CHAT_STEPS:,} steps",
        source=f"{_SWALLOW_SCRIPT} (the rows)",
        reason="not published; the script's batch, and about one epoch of all three sets as estimated from their sizes",
        fields=(
            ("chat.rows_per_step", CHAT_ROWS_PER_STEP),
            ("chat.steps", CHAT_STEPS),
            ("conversations.sequence_tokens", SEQUENCE_TOKENS),
        ),
    ),
    Choice(what="a further file", value="Q4_K_M", reason="the smallest that this product checks; for phones of 4 GB"),
    Choice(
        what="context of the Core ML package",
        value=f"{CONTEXT_TOKENS:,} tokens",
        source="https://github.com/SakanaAI/TinySwallow-ChatUI, index.js",
        reason="what TinySwallow's page for browsers uses; no Core ML package of it is published",
        fields=(("coreml.context_tokens", CONTEXT_TOKENS),),
    ),
    Choice(
        what="name",
        value=STEM,
        reason="the terms of swallow-magpie-ultra-v0.1 ask for a name that begins with Llama",
        fields=(("gguf.stem", STEM),),
    ),
    Choice(
        what="system prompt",
        value=SYSTEM_PROMPT,
        reason="the published one names a company and a model that this build is not",
    ),
)

TEXT = (
    TextSource(
        files=HubDataset(name="HuggingFaceFW/fineweb-2", config="jpn_Jpan"),
        terms=terms_of("HuggingFaceFW/fineweb-2"),
        weight=WEB_WEIGHT,
        max_files=TEXT_FILES,
    ),
    TextSource(
        files=HubDataset(name="wikimedia/wikipedia", config="20231101.ja"),
        terms=terms_of("wikimedia/wikipedia"),
        weight=WIKIPEDIA_WEIGHT,
    ),
)
INSTRUCTIONS = (
    hub_conversations("tokyotech-llm/lmsys-chat-1m-synth"),
    hub_conversations("tokyotech-llm/swallow-magpie-ultra-v0.1", config="ja"),
    hub_conversations("tokyotech-llm/swallow-gemma-magpie-v0.1"),
)
SHARES = Shares(calibration=HELD_OUT, validation=HELD_OUT, test=HELD_OUT)
BASE = DistillConfig(
    method="taid",
    taid=TaidConfig(alpha=ALPHA, beta=BETA, t_start=T_START),
    optim=OPTIM,
    steps=STEPS,
    rows_per_step=ROWS_PER_STEP,
    micro_batch_rows=4,
    validate_every=500,
    checkpoint_every=250,
    save_dtype="bfloat16",
)
CHAT = InstructConfig(
    optim=replace(OPTIM, learning_rate=CHAT_LEARNING_RATE, weight_decay=0.1, warmup_share=0.1),
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
    sample_questions=0,  # a report that is passed on quotes no item of a benchmark
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
    sampling=Sampling(temperature=TEMPERATURE, top_k=TOP_K, source=_CHAT_UI),
    choices=CHOICES,
)


def tinyswallow() -> Recipe:
    """Every number of the release."""
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
