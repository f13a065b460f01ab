"""The rehearsal at toy sizes: random checkpoints, their export against computed sizes, and steps with a teacher."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors_tiny import refuses
from export_tiny import CPU, workspace
from safetensors import safe_open

from bench.loss import released_taid_loss
from common.checkpoint import load_model, new_model
from common.model_shape import KNOWN, ModelShape, step_flops
from common.store import Artifact, Store
from distill.initial import InitConfig, qwen2_config
from export.gguf import GgufConfig, gguf
from recipes import rehearsal
from recipes.plan.gguf_bytes import computed_tensor_bytes
from recipes.rehearsal import rehearsal_figures
from recipes.stages.gpu_steps import GpuStepsConfig, gpu_steps, measure, missing_memory, random_teacher, spread_model
from recipes.stages.random_model import RandomModelConfig, random_model
from recipes.stages.synthetic_tokenizer import SyntheticTokenizerConfig, synthetic_tokenizer

TOKENIZER = SyntheticTokenizerConfig(merges=300)


def init(*, rows: int = 640, hidden: int = 256, layers: int = 3, tied: bool = True, seed: int = 0) -> InitConfig:
    """A toy geometry; rows of a length that K-quants fit."""
    text = qwen2_config(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=rows,
        max_position_embeddings=512,
        rope_theta=1e6,
        tie_word_embeddings=tied,
    )
    return InitConfig(config_json=text, seed=seed)


STUDENT, TEACHER = init(), init(rows=704, hidden=128, layers=2, tied=False, seed=1)
STEPS = GpuStepsConfig(
    teacher=TEACHER, steps=4, warm_up_steps=1, micro_batches=2, documents=2, least_tokens=5, most_tokens=9
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal") / "tokenizer"
    synthetic_tokenizer(TOKENIZER, workspace(folder))
    return folder


@pytest.fixture(scope="module")
def student(tokenizer: Path) -> Path:
    folder = tokenizer.with_name("student")
    facts = random_model(RandomModelConfig(init=STUDENT), workspace(folder), tokenizer)
    assert facts == {"parameters": ModelShape.of(STUDENT.fields()).parameters()}
    return folder


def test_the_configs_are_the_releases() -> None:
    student, teacher = (ModelShape.of(json.loads(text)) for text in (rehearsal.STUDENT, rehearsal.TEACHER))
    # As published on the models' cards: 1.54B, of which 1.31B beside the embedding, and 32.5B with the teacher's.
    assert student.parameters() == 1_543_714_304
    assert teacher.parameters() == 32_763_876_352
    assert rehearsal.TOKENIZER.vocabulary == 151_665 <= min(student.padded_vocab_size, teacher.padded_vocab_size)
    assert rehearsal.COREML.context_tokens == rehearsal.EVALUATION.context_tokens == 4096
    assert set(rehearsal.EVALUATION.main_encodings) <= set(rehearsal.GGUF.encodings)


@pytest.mark.parametrize("tied", [True, False])
def test_random_model_is_what_transformers_loads(tmp_path: Path, tokenizer: Path, tied: bool) -> None:
    config = RandomModelConfig(init=init(tied=tied), standard_deviation=0.05)
    random_model(config, workspace(tmp_path / "model"), tokenizer)
    model = load_model(tmp_path / "model", CPU)  # refuses a folder in which a weight is missing
    described = json.loads((tmp_path / "model/config.json").read_text())
    assert (described["architectures"], described["dtype"]) == (["Qwen2ForCausalLM"], "bfloat16")
    for name, weights in model.state_dict().items():
        if name.endswith("norm.weight"):
            assert bool((weights == 1).all())
        elif weights.numel() > 10_000:
            assert abs(float(weights.std()) / 0.05 - 1) < 0.02 and abs(float(weights.mean())) < 0.002, name
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied  # pyright: ignore
    stored = json.loads((tmp_path / "model/generation_config.json").read_text())
    assert stored["eos_token_id"] == [556 + 2, 556] and stored["pad_token_id"] == 556


def test_a_block_a_shard_and_the_same_bytes_again(tmp_path: Path, tokenizer: Path, student: Path) -> None:
    shards = sorted(student.glob("*.safetensors"))
    assert len(shards) == 1 + 3 + 1  # embedding, blocks, norm
    with safe_open(str(shards[1]), framework="pt") as shard:
        assert all(name.startswith("model.layers.0.") for name in shard.keys())  # noqa: SIM118
        assert {shard.get_tensor(name).dtype for name in shard.keys()} == {torch.bfloat16}  # noqa: SIM118
    for seed, same in ((0, True), (1, False)):
        again = tmp_path / str(seed)
        random_model(RandomModelConfig(init=replace(STUDENT, seed=seed)), workspace(again), tokenizer)
        assert [(again / path.name).read_bytes() == path.read_bytes() for path in shards[:4]] == [same] * 4


def test_random_model_refuses_what_it_cannot_be(tmp_path: Path, tokenizer: Path) -> None:
    with refuses("mismatch", wanted="578", got="500"):
        random_model(RandomModelConfig(init=init(rows=500)), workspace(tmp_path / "small"), tokenizer)
    with refuses("contradiction", next_step="previous_token_heads"):
        RandomModelConfig(init=replace(STUDENT, previous_token_heads=1))
    for deviation in (0.0, float("inf")):
        with refuses("out-of-range", wanted="standard_deviation", got=f"{deviation:g}"):
            RandomModelConfig(init=STUDENT, standard_deviation=deviation)


def test_a_rehearsal_gives_its_figures(tmp_path: Path) -> None:
    store, told = Store(tmp_path / "build", report=lambda line: None), ModelShape.of(STUDENT.fields())
    done: dict[str, Artifact] = {"tokenizer": store.build("tokenizer", synthetic_tokenizer, TOKENIZER)}
    done["chat"] = store.build("chat", random_model, RandomModelConfig(init=STUDENT), done["tokenizer"])
    encodings = rehearsal.GGUF.encodings
    done["gguf"] = store.build("gguf", gguf, GgufConfig(stem="Toy", encodings=encodings), done["chat"])
    figures = list(rehearsal_figures(done, told))
    assert [figure["stage"] for figure in figures[:3]] == ["tokenizer", "chat", "gguf"]
    assert all(figure["peak_bytes"] > 2**20 and figure["seconds"] > 0 for figure in figures[:3])
    assert [figure["encoding"] for figure in figures[3:]] == list(encodings)
    for figure in figures[3:]:
        assert figure["tensor_bytes"] == computed_tensor_bytes(told, figure["encoding"])
        assert figure["tensor_bytes_ratio"] == 1.0
        assert figure["bytes"] == figure["tensor_bytes"] + figure["metadata_bytes"]
        assert figure["bytes"] == (done["gguf"].folder / figure["file"]).stat().st_size


def made(name: str, facts: dict[str, Any]) -> Artifact:
    """An artifact of which only the manifest matters."""
    return Artifact(name=name, key=name, folder=Path(), manifest={"facts": facts, "seconds": 1.0, "peak_bytes": 5})


def test_figures_of_package_and_gpu() -> None:
    told = ModelShape.of(STUDENT.fields())
    done = {
        "coreml": made("coreml", {"file": "a.mlpackage", "bytes": 4 * told.parameters()}),
        "gpu_steps": made("gpu_steps", {"tokens_per_s": 7.0}),
    }
    stages = [{"stage": name, "seconds": 1.0, "peak_bytes": 5} for name in done]
    package = {"bytes": 4 * told.parameters(), "computed_bytes": 2 * told.parameters(), "bytes_ratio": 2.0}
    assert list(rehearsal_figures(done, told)) == [
        *stages,
        {"file": "a.mlpackage", **package},
        {"stage": "gpu_steps", "tokens_per_s": 7.0},
    ]
    skipped = {"coreml": made("coreml", {"skipped": "no wheel"})}
    assert list(rehearsal_figures(skipped, told)) == [{"stage": "coreml", "seconds": 1.0, "peak_bytes": 5}]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_are_timed_part_by_part(student: Path, precision: str) -> None:
    machine = replace(CPU, compute_dtype=precision)
    facts = measure(STEPS, machine, student)
    assert set(facts["seconds"]) == {"teacher", "student", "backward", "optimizer"}
    assert min(facts["seconds"].values()) > 0
    assert facts["tokens_per_s"] > 0 and facts["matmul_share"] > 0
    assert 4 * 4 * 5 <= facts["tokens"] <= 4 * 4 * 9
    assert facts["student_parameters"] == ModelShape.of(STUDENT.fields()).parameters()
    assert facts["teacher_parameters"] == ModelShape.of(TEACHER.fields()).parameters()
    assert facts["peak_gpu_bytes"] == []
    again = measure(STEPS, machine, student)
    assert (facts["first_loss"], facts["last_loss"]) == (again["first_loss"], again["last_loss"])
    assert facts["last_loss"] != facts["first_loss"]
    json.dumps(facts, allow_nan=False)


def test_the_loss_is_that_of_the_released_code(student: Path) -> None:
    config = replace(STEPS, micro_batches=1, documents=1, steps=1, warm_up_steps=0)
    first = measure(config, CPU, student)["first_loss"]
    ids = torch.tensor([_rows_of_first_step(config)])
    with torch.no_grad():
        ours, theirs = [
            model(input_ids=ids).logits[0, :, :578].float()
            for model in (load_model(student, CPU), random_teacher(TEACHER, CPU))
        ]
        predicts = torch.tensor([1] * (ids.size(1) - 1) + [0])
        assert first == pytest.approx(
            float(released_taid_loss(ours, theirs, predicts, t=config.taid.t_start)), rel=1e-4
        )


def test_a_spread_teacher_is_drawn_as_one_on_a_single_device(capfd: pytest.CaptureFixture[str]) -> None:
    spread: Any = spread_model(TEACHER, replace(CPU, compute_dtype="bfloat16"), "cpu")
    whole: Any = new_model(TEACHER.fields(), dtype=torch.bfloat16)
    assert "MISSING" not in capfd.readouterr().err
    for (name, mine), other in zip(spread.named_parameters(), whole.parameters(), strict=True):
        assert mine.dtype is other.dtype is torch.bfloat16 and mine.device.type == "cpu"
        assert float(mine.std(correction=0)) == pytest.approx(float(other.std(correction=0)), rel=0.05), name
        assert float(mine.float().mean()) == pytest.approx(float(other.float().mean()), abs=0.003), name
    assert torch.equal(spread.model.rotary_emb.inv_freq, whole.model.rotary_emb.inv_freq)
    assert not spread.training


def _rows_of_first_step(config: GpuStepsConfig) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    length = int(torch.randint(config.least_tokens, config.most_tokens + 1, (1,), generator=generator))
    return torch.randint(0, 578, (length,), generator=generator).tolist()


def test_flops_of_a_step_are_those_of_the_models_own_matrices() -> None:
    """Counted from torch's modules: each weight of a linear layer multiplies each token once, the head's but the last
    of a document; attention has two products over half of all pairs of tokens."""
    lengths = (7, 12, 3)
    pairs = sum(length**2 / 2 for length in lengths)
    for config, passes in ((STUDENT, 3), (TEACHER, 1)):
        model: Any = new_model(config.fields())
        linear = sum(one.weight.numel() for one in model.model.modules() if isinstance(one, torch.nn.Linear))
        head = 578 * model.config.hidden_size * (sum(lengths) - len(lengths))
        attention = 2 * pairs * model.config.num_hidden_layers * model.config.hidden_size
        expected = 2 * passes * (linear * sum(lengths) + head + attention)
        shape = ModelShape.of(config.fields())
        assert step_flops(shape, lengths, vocab_size=578, passes=passes) == expected


GB = 10**9


@pytest.mark.parametrize(
    ("memory", "has_room"),
    [
        ([141 * GB], True),
        ([48 * GB] * 4, True),  # the teacher's layers are spread
        ([85 * GB] * 8, True),
        ([], False),
        ([85 * GB], False),
        ([24 * GB, 141 * GB], False),  # the student is on the first
        ([48 * GB, 40 * GB], False),
    ],
)
def test_models_need_room_for_their_weights(memory: list[int], has_room: bool) -> None:
    """The true size: 32.8 billion weights of 2 bytes, and 1.54 billion of 16 on the first GPU."""
    reason = missing_memory(rehearsal.GPU, ModelShape.of(KNOWN["Qwen/Qwen2.5-1.5B-Instruct"]), memory)
    assert (reason is None) == has_room
    assert not reason or not memory or ("90 GB" in reason and "25 GB on the first" in reason)
    assert missing_memory(rehearsal.GPU, None, [66 * GB]) is None
    assert missing_memory(rehearsal.GPU, None, [65 * GB]) is not None


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({"model_type": "qwen3", "head_dim": 64}, 2 * (2 * 256 * 256 + 2 * 256 * 128 + 2 * 64)),
        ({"model_type": "llama"}, 2 * (2 * 256 * 256 + 2 * 256 * 128)),
    ],
)
def test_other_families_are_rehearsed_too(
    tmp_path: Path, tokenizer: Path, fields: dict[str, Any], parameters: int
) -> None:
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": 640, "max_position_embeddings": 512, "tie_word_embeddings": True}
    config = RandomModelConfig(init=InitConfig(config_json=json.dumps(shape | fields)))
    store = Store(tmp_path / "build", report=lambda line: None)
    names = store.build("tokenizer", synthetic_tokenizer, TOKENIZER)
    done = {"chat": store.build("chat", random_model, config, names)}
    told = ModelShape.of(config.init.fields())
    mlp_and_norms = 2 * (3 * 256 * 512 + 2 * 256)
    assert told.parameters() == 640 * 256 + 256 + parameters + mlp_and_norms
    assert done["chat"].manifest["facts"]["parameters"] == told.parameters()
    done["gguf"] = store.build("gguf", gguf, GgufConfig(stem="Toy", encodings=("Q4_K_M",)), done["chat"])
    figures = list(rehearsal_figures(done, told))
    assert figures[-1]["tensor_bytes_ratio"] == 1.0
    facts = measure(replace(STEPS, teacher=config.init), CPU, done["chat"].folder)
    assert facts["matmul_share"] > 0


def test_a_machine_without_a_gpu_gives_the_reason(tmp_path: Path, student: Path) -> None:
    assert gpu_steps(STEPS, workspace(tmp_path / "gpu"), student) == {"not_here": "no CUDA device"}


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 1, "warm_up_steps": 1}, {"documents": 0}, {"least_tokens": 1}, {"least_tokens": 9, "most_tokens": 8}],
)
def test_numbers_that_make_no_run_are_refused(wrong: dict[str, int]) -> None:
    with refuses("out-of-range", next_step="correct the recipe"):
        replace(STEPS, **wrong)


def test_a_teacher_with_too_few_logits_is_refused(student: Path) -> None:
    with refuses("mismatch", wanted="578", got="500"):
        measure(replace(STEPS, teacher=init(rows=500)), CPU, student)
