"""What the tests of `export` share: a tiny byte-level tokenizer and tiny random checkpoints of each architecture.

Weights are random but scaled so that logits spread over several units: with transformers' own initialisation they are
so flat that top-1 agreement would measure rounding.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from common.device import Machine
from common.provenance import DataSource, write_sources
from common.store import Workspace
from export.card import CardConfig
from export.release import DistConfig, dist

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = _LETTERS + r"\p{N}" + _REST
LLAMA3_SPLIT = _LETTERS + r"\p{N}{1,3}" + _REST
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM = "You are a swallow.\nBe brief."
SPEAKS_FIRST = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a swallow.\nBe brief.<|im_end|>\n' }}{% endif %}" + TEMPLATE
)
HEADERS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{{ '[assistant] ' }}"
TEXTS = [
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "春の町に川がある。川の水は冷たく、山の村の人は米と魚を食べる。",
    "リンゴは3個で120円です。ミカンは12個で1,350円、合わせて1470円になります。",
    "質問：川はどこですか。\n答え：春の町です。\n\n",
    "The river runs through the town. I'm sure we'll see 3.14 of them!\n",
    "「東京」へ行く…ＦＵＬＬ　ｗｉｄｔｈ、ﾊﾝｶｸ。  二つの空白\tタブ\r\n改行",
    "👩‍👩‍👧🚀 がぎぐげご ヴ 々〆ヶ é ñ 안녕하세요 สวัสดี नमस्ते",
]
CPU = Machine(device="cpu", compute_dtype="float32", cpu="test", gpu=None, memory_bytes=2**33, os="test", threads=1)
SOURCES = (
    DataSource(
        name="wikimedia/wikipedia",
        licence="CC-BY-SA-3.0",
        url="https://huggingface.co/datasets/wikimedia/wikipedia",
        attribution="Wikipedia の執筆者",
        obligations=("Name Wikipedia as a source.", "Pass text on under CC BY-SA only."),
        stage="corpus",
        revision="b04c8d1ceb2f5cd4588862100d08de323dccfbaa",
        rows_out=1234,
        tokens_out=9000,
    ),
    DataSource(name="own.jsonl", stage="corpus", rows_out=10, tokens_out=1000),
    DataSource(
        name="wikimedia/wikipedia",
        licence="CC-BY-SA-3.0",
        url="https://huggingface.co/datasets/wikimedia/wikipedia",
        attribution="Wikipedia の執筆者",
        obligations=("Name Wikipedia as a source.", "Pass text on under CC BY-SA only."),
        stage="conversations",
        revision="b04c8d1ceb2f5cd4588862100d08de323dccfbaa",
        rows_out=5,
    ),
    DataSource(name="some/talks_ja", licence="Own terms | v2", stage="conversations", rows_out=77),
)
"""Two kinds of data, one source in both, one without terms, one under its publisher's own."""

LLAMA = DataSource(
    name="org/talks",
    licence="Llama 3.1 Community License",
    attribution="Built with Llama",
    obligations=('A model trained on this has a name that begins with "Llama".',),
    stage="conversations",
)
OWN = DataSource(name="own.jsonl", licence="Apache-2.0", stage="corpus")

_TOOL_TOKEN = "<tool_call>"


def workspace(folder: Path) -> Workspace:
    """A stage's workspace in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return Workspace(folder=folder, machine=CPU)


def write_tokenizer(folder: Path, *, split: str = QWEN2_SPLIT, merges: int = 320, bos: bool = False) -> int:
    """A byte-level BPE trained on `TEXTS`, with `<|im_start|>` and the like; returns the number of its ids.

    `bos` makes it like Llama 3's: a beginning token that the post-processor adds, whole words before merges.
    """
    raw = Tokenizer(models.BPE(ignore_merges=bos))
    raw.normalizer = None if bos else normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(TEXTS * 3, trainer)
    special = ["<|begin_of_text|>"] * bos + ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    raw.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    raw.add_tokens([AddedToken(_TOOL_TOKEN, special=False, normalized=False)])
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", raw.token_to_id("<|begin_of_text|>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|begin_of_text|>" if bos else None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def new_model(architecture: str, *, rows: int, width: int = 256, inner: int = 512, seed: int = 0, **options: Any) -> (
    PreTrainedModel
):  # fmt: skip
    """A random model of 2 layers, 4 heads and 2 key-value heads, biases and norms random too."""
    classes: dict[str, tuple[Any, Any]] = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }
    config_class, model_class = classes[architecture]
    settings: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    model: PreTrainedModel = model_class(config_class(**(settings | options))).float().eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("norm.weight"):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1:
                value.normal_(std=0.3)
            else:
                value.normal_(std=0.25 if "embed" in name or "lm_head" in name else value.shape[1] ** -0.5)
    return model


def write_checkpoint(
    folder: Path,
    architecture: str = "qwen2",
    *,
    spare: int = 61,
    split: str = QWEN2_SPLIT,
    merges: int = 320,
    bos: bool = False,
    dtype: torch.dtype = torch.float32,
    shard: str | None = None,
    **options: Any,
) -> Path:
    """A model folder with its tokenizer, `spare` rows more than ids, in shards of at most `shard` where given."""
    rows = write_tokenizer(folder, split=split, merges=merges, bos=bos) + spare
    model: Any = new_model(architecture, rows=rows, **options)
    model = model.to(dtype)
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return folder


def token_ids(count: int, *, below: int, seed: int = 0) -> list[int]:
    """Random ids, none of them a padded row."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, below, (count,), generator=generator).tolist()


def reference_logits(folder: Path, ids: list[int]) -> Tensor:
    """Logits [T, rows] by transformers, float32, whole sequence at once."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0]


def llama_logits(path: Path, ids: list[int]) -> Tensor:
    """Logits [T, rows] by llama.cpp, KV cache float32 and flash attention off."""
    import llama_cpp

    model: Any = llama_cpp.Llama(
        str(path),
        n_ctx=512,
        n_threads=1,
        n_threads_batch=1,  # its threads wait by spinning, which starves them on a busy machine
        logits_all=True,
        flash_attn=False,
        type_k=0,
        type_v=0,
        verbose=False,
    )
    model.eval(ids)
    logits = torch.tensor(model.scores[: len(ids)])
    model.close()
    return logits


def divergence(reference: Tensor, other: Tensor) -> tuple[float, float]:
    """Mean KL(reference || other) in nats and the share of rows with the same most likely token."""
    log_p, log_q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return float(kl), float((log_p.argmax(-1) == log_q.argmax(-1)).double().mean())


def write_gguf(path: Path, template: str | None = TEMPLATE) -> Path:
    """A GGUF file with a vocabulary of four tokens, one tensor and a chat template."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, "qwen2")
    writer.add_token_list(["a", "<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    writer.add_eos_token_id(3)
    writer.add_eot_token_id(3)
    if template is not None:
        writer.add_chat_template(template)
    writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def release(root: Path, *sources: DataSource, title: str | None = None) -> Path:
    """A folder as `dist` leaves it."""
    for encoding in ("Q4_K_M", "Q8_0"):
        path = write_gguf(root / "gguf" / f"T-{encoding}.gguf")
        path.write_bytes(path.read_bytes() + encoding.encode())
    write_sources(root / "gguf", sources)
    space = workspace(root / "dist")
    dist(DistConfig(card=CardConfig(title=title)), space, root / "gguf", None, None)
    return space.folder
