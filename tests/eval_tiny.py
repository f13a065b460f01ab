"""What the tests of `eval` share: a tiny byte-level tokenizer, a random Qwen2 checkpoint, and the same as a GGUF file.

The GGUF is written here by gguf-py alone, so that the runtimes are tested without the product's own exporter.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gguf
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from eval.runtimes.protocol import Generation, LogProbs, Message, Pair

END = 256

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
TEXTS = [
    "春の町に川がある。",
    "リンゴは3個で120円です。",
    "山の村の人は米を食べる。",
    "質問：川はどこですか。\n答え：春の町\n",
    "The river runs through the town.",
]


def write_tokenizer(folder: Path, *, merges: int = 40) -> PreTrainedTokenizerFast:
    """A byte-level BPE with Qwen2's pre-tokenizer, special tokens and a ChatML template, trained on `TEXTS`."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merges, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator(TEXTS * 3, trainer)
    raw.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    width: int = 64,
    layers: int = 2,
    inner: int = 128,
    merges: int = 40,
    spare: int = 13,
) -> Path:
    """A random Qwen2 with `spare` padded logit rows beyond the tokenizer; returns the folder."""
    tokenizer = write_tokenizer(folder, merges=merges)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + spare,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=max(width // 32, 2),
        num_key_value_heads=max(width // 64, 1),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,
        use_sliding_window=False,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        # Random biases too: zero ones would hide an exporter or a runtime that drops them.
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
        # Float16 values, so that a GGUF in F16 holds the very same model.
        parameter.data = parameter.data.half().float()
    model.save_pretrained(folder)
    return folder


TENSORS = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def write_gguf(checkpoint: Path, path: Path) -> Path:
    """The checkpoint as an F16 GGUF (norms and biases float32), padded logit rows cropped; returns the path."""
    model = Qwen2ForCausalLM.from_pretrained(checkpoint)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    config = model.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads or 1)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_vocabulary(writer, tokenizer, checkpoint)
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        target = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(name)
        if target is None:
            _, _, layer, rest = name.split(".", 3)
            target = f"blk.{layer}.{TENSORS[rest]}"
        data = parameter.float()
        if target == "token_embd.weight":
            data = data[: len(tokenizer)]
        writer.add_tensor(target, (data.half() if data.ndim == 2 else data).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, checkpoint: Path) -> None:
    merges = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["merges"]
    tokens = [str(tokenizer.convert_ids_to_tokens(i)) for i in range(len(tokenizer))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def sentences(count: int, *, seed: int = 0) -> list[str]:
    """Texts of mixed length from the tokenizer's own characters."""
    generator = random.Random(seed)
    return ["".join(generator.choices(TEXTS, k=generator.randint(1, 4))) for _ in range(count)]


class KnowItAll:
    """A runtime over UTF-8 bytes that answers by `answer(prompt)` and prefers the continuations that it would give."""

    context_tokens, vocabulary, document_end_id = 4096, 257, END

    def __init__(self, answer: Callable[[str], str | None]) -> None:
        self.answer = answer
        self.seen: list[tuple[str, str]] = []

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def render(self, messages: Sequence[Message]) -> list[int]:
        return self.encode("".join(f"[{m['role']}]{m['content']}" for m in messages) + "[assistant]")

    def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        self.seen += [(self.decode(context), self.decode(continuation)) for context, continuation in pairs]
        return [(-1.0 if self.answer(c) == text else -9.0, False) for c, text in self.seen[-len(pairs) :]]

    def generate(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop: Sequence[str]) -> list[Generation]:
        self.seen += [(self.decode(prompt), "|".join(stop)) for prompt in prompts]
        texts = [self.answer(self.decode(prompt)) for prompt in prompts]
        return [Generation(text=text or "", ids=[1], stopped=text is not None and not stop) for text in texts]

    def logprobs(self, ids: Sequence[int]) -> Iterator[LogProbs]:
        raise AssertionError("tasks need no rows")

    def close(self) -> None: ...
