"""The plan of the release against figures worked out by hand, and what the other recipes' plans say.

The hand calculation stands here in plain numbers, matrix by matrix; it uses nothing of the plan's own functions.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors_tiny import refuses
from hub_stand_in import Hub, Repo
from sources_tiny import MODEL

from common.fused_linear_loss import default_chunk_tokens
from common.model_shape import KNOWN, ModelShape, shape_of
from common.sources import HubDataset, HubFiles, HubModel, SourcesLock
from common.sources.lockfile import _entry_name
from instruct.conversations.published import published_source
from recipes.loading import KNOWN as RECIPES
from recipes.loading import load
from recipes.mini import mini
from recipes.plan import Plan, peak_disk_bytes, plan_of
from recipes.plan.cost import Run, fits, flops, gpu_bytes, gpu_parts, gpus, largest_micro_batch
from recipes.plan.gguf_bytes import BASE_TYPES
from recipes.plan.lines import plan_lines, short_lines
from recipes.plan.needs import StageNeeds
from recipes.qwen3 import qwen3
from recipes.recipe import Recipe, pipeline
from recipes.rehearsal import rehearsal
from recipes.resizing import resized
from recipes.stages.published import published
from recipes.stages.user_files import UserFilesConfig
from recipes.tinyswallow import tinyswallow

# Weights of one block's matrices: q and o, k and v, gate, up and down.
TEACHER_BLOCK = 2 * 5120 * 5120 + 2 * 5120 * 1024 + 3 * 5120 * 27_648
STUDENT_BLOCK = 2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960
TEACHER = 32_763_876_352
STUDENT = 1_543_714_304
TOKENS = 8000 * 64 * 2048
CHAT_TOKENS = 1400 * 128 * 2048


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan_of(tinyswallow(), build_folder=tmp_path_factory.mktemp("build"), sources=None)


@pytest.fixture(scope="module")
def base(release: Plan) -> Run:
    return release.runs[0]


def _stage(plan: Plan, name: str) -> StageNeeds:
    (found,) = (stage for stage in plan.stages if stage.stage == name)
    return found


def _forward(layers: int, block: int, width: int, attention: int) -> float:
    """Operations a token: two for each weight, and 1,024 keys on average, each twice (scores and values)."""
    return 2 * layers * block + 2 * 151_665 * width + layers * 4 * 1024 * attention


def test_weights_equal_those_that_the_publishers_state() -> None:
    assert ModelShape.of(KNOWN["Qwen/Qwen2.5-32B-Instruct"]).parameters() == TEACHER
    assert ModelShape.of(KNOWN["Qwen/Qwen2.5-1.5B-Instruct"]).parameters() == STUDENT
    # "1.7B", and "32.8B" with "31.2B" outside embedding and head, on the cards of Qwen3.
    assert ModelShape.of(KNOWN["Qwen/Qwen3-1.7B"]).parameters() == pytest.approx(1.72e9, rel=0.005)
    swallow = ModelShape.of(KNOWN["tokyotech-llm/Qwen3-Swallow-32B-SFT-v0.2"])
    assert swallow.parameters() == pytest.approx(32.8e9, rel=0.002)
    assert swallow.block_matrices() == pytest.approx(31.2e9, rel=0.002)


def test_operations_equal_a_calculation_by_hand(release: Plan) -> None:
    base, chat = map(flops, release.runs)
    student = _forward(28, STUDENT_BLOCK, 1536, 1536)
    assert base.teacher_forward == pytest.approx(TOKENS * _forward(64, TEACHER_BLOCK, 5120, 5120), rel=1e-12)
    assert base.student_forward == pytest.approx(TOKENS * student, rel=1e-12)
    assert base.student_backward == pytest.approx(2 * TOKENS * student, rel=1e-12)
    assert base.recomputation == 0
    assert chat.teacher_forward == 0
    assert chat.total == pytest.approx(3 * CHAT_TOKENS * student, rel=1e-12)
    # 62.4e9 matrix operations, 1.3e9 of attention and 1.6e9 of the head a token, times 1.05e9 tokens: 6.8e19.
    assert base.teacher_forward == pytest.approx(6.85e19, rel=0.005)


def test_hours_are_operations_over_rate(release: Plan) -> None:
    rates = {gpu.name: gpu for gpu in gpus()}
    assert release.hours(rates["H200"]) == pytest.approx((7.874e19 + 3.592e18) / (989.4e12 * 0.4) / 3600, rel=1e-3)
    assert all(gpu.basis == "assumed" or "measured" in gpu.basis for gpu in gpus())
    assert all(gpu.source for gpu in gpus())


def test_gpu_memory_equals_a_sum_by_hand(base: Run) -> None:
    tokens, chunk = 4 * 2048, 512
    kept = 2 * 8 * 1536 + 5 * 2 * 1536 + 5 * 2 * 1536 + 4 * 2 * 8960  # a token, a block: norms, inputs, attention, MLP
    by_hand = (
        2 * TEACHER
        + 16 * STUDENT
        + 2 * (28 * STUDENT_BLOCK + 151_665 * 1536)
        + 2 * 4 * 151_936 * 1536
        + tokens * (28 * kept + 3 * 4 * 1536)
        + chunk * 151_665 * (2 * 2 + 7 * 4)
        + tokens * 2 * (3 * 27_648 + 5 * 5120)
        + 2 * 2**30
    )
    assert gpu_bytes(base) == by_hand
    assert gpu_bytes(base) == pytest.approx(131e9, rel=0.01)


def test_what_fits(release: Plan) -> None:
    verdicts = {(fit.devices, fit.memory_bytes // 10**9): fit.fits for fit in release.fits()}
    assert verdicts == {
        (1, 24): False,  # the student's state alone takes 24.7 GB
        (1, 80): False,
        (1, 141): True,
        (2, 80): True,
        (8, 24): False,
        (8, 80): True,
        (8, 141): True,
    }


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_largest_micro_batch_fits_and_one_row_more_does_not(base: Run, devices: int) -> None:
    memories = (141 * 10**9,) * devices
    rows = largest_micro_batch(base, memories)
    assert 1 <= rows < base.rows_per_step
    assert fits(replace(base, micro_batch_rows=rows), memories)
    assert not fits(replace(base, micro_batch_rows=rows + 1), memories)


def test_several_gpus_never_hold_less_than_fewer(base: Run) -> None:
    held = [largest_micro_batch(base, (80 * 10**9,) * devices) for devices in (1, 2, 4, 8)]
    assert held == sorted(held)


def test_of_unlike_gpus_the_first_holds_the_student(base: Run) -> None:
    small, large = 24 * 10**9, 141 * 10**9
    assert fits(base, (large, small))
    assert not fits(base, (small, large)), "the student's state alone takes 24.7 GB"
    assert not fits(base, ())


def test_disk_equals_a_sum_by_hand(release: Plan) -> None:
    model, teacher = 2 * STUDENT + 11_500_000, 2 * TEACHER + 11_500_000
    # A file of FineWeb-2 of at most 5 GiB, 2.7 bytes of text in each of its; Wikipedia's text. All is packed.
    text_bytes = 2.7 * 5 * 2**30 + 6.68e9
    # Of two sets of conversations nobody knows the size: at least what training reads.
    data = (text_bytes / 4.2 + CHAT_TOKENS) * (9 + 1.4)
    # The most lies there while the chat model trains: all before it, two training states with their best weights, and
    # a third that is being written.
    by_hand = data + teacher + 3 * model + 3 * (12 + 4) * STUDENT
    assert release.needs.disk_bytes == pytest.approx(by_hand, rel=1e-6)
    unknown = ("tokyotech-llm/lmsys-chat-1m-synth", "tokyotech-llm/swallow-gemma-magpie-v0.1")
    assert release.needs.disk_unknown == unknown


def test_what_a_lock_lists_is_packed_whole(tmp_path: Path) -> None:
    files = {
        "HuggingFaceFW/fineweb-2": ["0.parquet"],
        "wikimedia/wikipedia": ["0.parquet"],
        "tokyotech-llm/lmsys-chat-1m-synth": ["a.jsonl.gz", "b.jsonl.gz.gpg"],
        "lmsys/lmsys-chat-1m": ["a.parquet"],
        "tokyotech-llm/swallow-magpie-ultra-v0.1": ["train_ja.jsonl"],
        "tokyotech-llm/swallow-gemma-magpie-v0.1": ["train.jsonl"],
    }
    _lock(tmp_path, {name: (len(names) * 10**9, names) for name, names in files.items()})
    plan = plan_of(tinyswallow(), build_folder=tmp_path, sources=None)
    corpus, conversations = _stage(plan, "corpus"), _stage(plan, "conversations")
    text, spoken = 2.7 * 2e9, 3 * 2e9 + 2e9
    assert corpus.kept_bytes == pytest.approx(text * (9 + 1.4) / 4.2, rel=1e-6)
    assert corpus.disk_basis.startswith("at most: all of 5 GB of text")
    assert corpus.seconds == pytest.approx(text / 6.5e6)
    assert conversations.kept_bytes == pytest.approx(spoken * (9 + 1.4) / 4.2, rel=1e-6)
    assert plan.needs.disk_unknown == () and "disk: at most" in "\n".join(short_lines(plan))


def _lock(folder: Path, sets: Mapping[str, tuple[int, list[str]]]) -> None:
    """The lock of a build that has asked the hub for the release's sets: their bytes and files, by name."""
    entries: dict[str, Any] = {}

    def found(dataset: HubDataset, *, max_files: int | None = None) -> HubFiles:
        size, names = sets[dataset.name]
        files = HubFiles(name=dataset.name, config=dataset.config, revision="0" * 40, bytes=size, files=tuple(names))
        entries[_entry_name(dataset, max_files)] = {"from": "hub", "files": asdict(files)}
        return files

    recipe: Any = tinyswallow()
    for source in recipe.corpus.sources:
        if source.files.name in sets:
            found(source.files, max_files=source.max_files)
    for source in recipe.conversations.sources:
        if source.files.name in sets:
            published_source(source.files, sources=None, find=found)
    (folder / "sources.lock.json").write_text(json.dumps({"version": 1, "sources": entries}))


def test_texts_of_sources_are_measured(tmp_path: Path) -> None:
    sources = _sources(tmp_path / "sources", TINY)
    web = sources / "HuggingFaceFW" / "fineweb-2" / "data" / "jpn_Jpan" / "train"
    web.mkdir(parents=True)
    for number in range(5):
        (web / f"{number}.parquet").write_bytes(bytes(1000))
    size = _stage(plan_of(tinyswallow(), sources=sources, build_folder=tmp_path), "corpus").reads[0]
    assert (size.bytes, size.text_bytes, size.file_bytes) == (1000, 2700, 0)


def test_exports_of_the_true_size(tmp_path: Path) -> None:
    plan = plan_of(rehearsal(), build_folder=tmp_path, sources=None)
    gguf, coreml = _stage(plan, "gguf"), _stage(plan, "coreml")
    sizes = gguf.kept
    # https://huggingface.co/SakanaAI/TinySwallow-1.5B-Instruct-GGUF/tree/main: 1.65 and 1.13 GB, of this shape.
    assert sizes["Q8_0.gguf"] == pytest.approx(1.65e9, rel=0.01)
    assert sizes["Q5_K_M.gguf"] == pytest.approx(1.13e9, rel=0.01)
    assert sizes["F16.gguf"] == pytest.approx(2 * STUDENT, rel=0.01)
    assert gguf.scratch_bytes == 0
    assert coreml.ram_bytes == 16_900_000_000 and coreml.seconds == 200
    assert coreml.kept_bytes == pytest.approx(2 * STUDENT, rel=0.01)


def test_an_encoding_without_rules_counts_as_much_as_float16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(BASE_TYPES, "Q8_0")
    plan = plan_of(rehearsal(), build_folder=tmp_path, sources=None)
    sizes = _stage(plan, "gguf").kept
    assert sizes["Q8_0.gguf (at most)"] == sizes["F16.gguf"]


def test_a_plan_counts_the_chunks_that_the_loss_takes_on_a_gpu(release: Plan) -> None:
    taken = default_chunk_tokens(torch.device("cuda"), torch.bfloat16)
    assert [run.chunk_tokens for run in release.runs] == [taken, taken]


def test_downloads_gates_and_terms(release: Plan) -> None:
    known = {download.name: download.bytes for download in release.downloads}
    assert known["Qwen/Qwen2.5-32B-Instruct"] == pytest.approx(65.5e9, rel=0.01)
    assert known["HuggingFaceFW/fineweb-2:jpn_Jpan"] == 5 * 2**30  # at most
    assert known["tokyotech-llm/swallow-gemma-magpie-v0.1"] is None  # nobody has been asked
    assert known["lmsys/lmsys-chat-1m"] == 1_490_000_000
    assert [gate.name for gate in release.gates] == ["lmsys/lmsys-chat-1m", "tokyotech-llm/lmsys-chat-1m-synth"]
    licences = {terms.name: terms.licence for terms in release.terms}
    assert licences["wikimedia/wikipedia"] == "CC-BY-SA-3.0"
    assert licences["tokyotech-llm/swallow-gemma-magpie-v0.1"] is None
    assert len(licences) == 7


def test_sizes_of_sets_come_from_the_lock(tmp_path: Path) -> None:
    sets = {
        "HuggingFaceFW/fineweb-2": (9 * 10**9, ["0.parquet"]),
        "tokyotech-llm/lmsys-chat-1m-synth": (10**9, ["a.jsonl.gz"]),
        "lmsys/lmsys-chat-1m": (1_480_000_000, ["a.parquet"]),
    }
    _lock(tmp_path, sets)
    plan = plan_of(tinyswallow(), build_folder=tmp_path, sources=None)
    known = {download.name: download.bytes for download in plan.downloads}
    assert known["HuggingFaceFW/fineweb-2:jpn_Jpan"] == 9 * 10**9
    assert known["lmsys/lmsys-chat-1m"] == 1_480_000_000
    (tmp_path / "sources.lock.json").write_text('{"version": 1, "sources": {"dataset x/y": 1}}')
    assert plan_of(tinyswallow(), build_folder=tmp_path, sources=None).needs.disk_unknown, "a plan needs no whole lock"


def test_the_text_says_what_the_plan_knows(release: Plan) -> None:
    text = "\n".join(plan_lines(release))
    for said in (
        "teacher forward",
        "recomputation",
        "assumed",
        "H200",
        "1 x 141 GB  yes",
        "measured once at 1.5B",
        "(estimate)",
        "asked when the build starts",
        "cleaning by one core",
        "Not planned",
        "evaluation (it grows",
        "assumed: at most 5 GiB each",
        "gated: lmsys/lmsys-chat-1m",
        "Gemma Terms of Use",
    ):
        assert said in text
    short = "\n".join(short_lines(release))
    assert "h on one H200" in short and "disk: " in short and "downloads: 79 GB" in short and "licence: " in short


def test_a_part_that_trains_nothing_tells_no_main_memory(tmp_path: Path) -> None:
    part = plan_of(mini(), build_folder=tmp_path, sources=None, until="corpus")
    assert part.needs.ram_bytes == 0 and "main memory of" not in "\n".join(plan_lines(part))
    assert "main memory of" in "\n".join(plan_lines(plan_of(mini(), build_folder=tmp_path, sources=None)))


def test_mini_costs_minutes_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    plan = plan_of(mini(), build_folder=tmp_path, sources=None)
    assert [run.stage for run in plan.runs] == ["teacher", "student_before", "base", "chat"]
    # 560 steps of 8 rows of 256 tokens; blocks of 384 x 384 (2), 384 x 128 (2), 384 x 1024 (3); 2,048 ids; 128 keys.
    block = 2 * 384 * 384 + 2 * 384 * 128 + 3 * 384 * 1024
    forward = 2 * 2 * block + 2 * 2048 * 384 + 2 * 4 * 128 * 384
    assert flops(plan.runs[0]).total == pytest.approx(3 * 560 * 8 * 256 * forward, rel=1e-12)
    assert not plan.needs.gpu and plan.needs.gpu_bytes == 0
    assert plan.needs.disk_bytes < 2e9 and plan.needs.ram_bytes < 2e9
    assert (plan.downloads, plan.gates, plan.terms) == ((), (), ())
    assert "Downloads: none" in "\n".join(plan_lines(plan))


def test_a_rehearsal_is_exports_alone(tmp_path: Path) -> None:
    plan = plan_of(rehearsal(), build_folder=tmp_path, sources=None)
    assert {"chat", "gguf", "coreml", "gpu_steps", "evaluation"} < {stage.stage for stage in plan.stages}
    assert [stage.stage for stage in plan.stages if stage.kept] == ["chat", "gguf", "coreml"]
    assert plan.runs == () and not plan.needs.gpu
    assert plan.needs.ram_for == "coreml"
    assert _stage(plan, "evaluation").ram_bytes == 12_800_000_000
    assert plan.needs.disk_bytes == peak_disk_bytes(plan.stages)
    assert "coreml" in "\n".join(plan_lines(plan))


def test_qwen3_is_planned_too(tmp_path: Path) -> None:
    plan = plan_of(qwen3(), build_folder=tmp_path, sources=None)
    assert plan.gates == () and plan.needs.gpu
    teacher = ModelShape.of(KNOWN["tokyotech-llm/Qwen3-Swallow-32B-SFT-v0.2"])
    assert next(iter(gpu_parts(plan.runs[0]).values())) == 2 * teacher.parameters()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_planned_without_a_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    plan = plan_of(load(name, say=print), build_folder=tmp_path, sources=None)
    assert plan.stages and list(plan_lines(plan)) and list(short_lines(plan))


def test_the_teacher_of_the_docs_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    teacher = published("Qwen/Qwen2.5-72B-Instruct", licence="Qwen", attribution="Qwen2.5, Alibaba Cloud")
    plan = plan_of(replace(tinyswallow(), teacher=teacher), build_folder=tmp_path, sources=None)
    # "72.7B" and "70.0B" outside embedding and head, on its card.
    shape = plan.runs[0].teacher
    assert shape is not None and shape.parameters() == pytest.approx(72.7e9, rel=0.001)
    assert shape.block_matrices() == pytest.approx(70.2e9, rel=0.005)


def test_a_model_of_another_name_is_asked_for_and_then_known(hub: Hub, tmp_path: Path) -> None:
    from common.sources import HubFiles, kept_file

    hub.repos["org/other"] = Repo(files=MODEL | {"config.json": json.dumps(TINY).encode()})
    model = HubModel(name="org/other")
    assert shape_of(model, sources=None, build_folder=tmp_path) == ModelShape.of(TINY)
    found = SourcesLock(tmp_path / "sources.lock.json", sources=None).find(model)
    assert isinstance(found, HubFiles)
    kept_file(found, "config.json", build_folder=tmp_path)
    hub.asked.clear()
    assert shape_of(model, sources=None, build_folder=tmp_path) == ModelShape.of(TINY)
    assert hub.asked == []


def _sources(root: Path, config: Mapping[str, object]) -> Path:
    for name in ("Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"):
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps(config))
    return root


TINY = {
    "model_type": "qwen2",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}


def test_models_of_sources_are_what_their_config_says(tmp_path: Path) -> None:
    def planned(recipe: Recipe) -> Plan:
        return plan_of(recipe, build_folder=tmp_path, sources=sources)

    sources = _sources(tmp_path, TINY)
    shape = planned(tinyswallow()).runs[0].student
    assert shape == ModelShape.of(TINY)
    assert shape.parameters() == 151_936 * 128 + 128 + 2 * (
        2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256 + 128 + 2 * 64 + 2 * 128
    )
    assert planned(resized(tinyswallow(), {"base.steps": 6, "chat.steps": 6})).needs.gpu is False
    # A billion tokens through even such a head are weeks on a processor.
    assert planned(tinyswallow()).needs.gpu is True


def test_a_model_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    other, student = HubModel(name="org/other"), HubModel(name="Qwen/Qwen2.5-1.5B-Instruct")
    with refuses("not-found", wanted="org/other", next_step="SOURCES=DIR"):
        shape_of(other, sources=None)
    with refuses("not-found", wanted="org/other", got="config.json"):
        shape_of(other, sources=tmp_path)
    assert shape_of(HubModel(name="Qwen/Qwen3-1.7B"), sources=tmp_path) == ModelShape.of(KNOWN["Qwen/Qwen3-1.7B"])
    _sources(tmp_path, TINY | {"model_type": "bert"})
    with refuses("unsupported", got="bert"):
        shape_of(student, sources=tmp_path)
    (tmp_path / student.name / "config.json").write_text("{")
    with refuses("wrong-format", wanted=student.name):
        shape_of(student, sources=tmp_path)


def test_own_files_are_packed_whole(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl.gz"
    path.write_bytes(bytes(10**6))
    talks = tmp_path / "talks.jsonl"
    talks.touch()
    world = UserFilesConfig(text=(path,), conversations=(talks,))
    plan = plan_of(replace(mini(), world=world), build_folder=tmp_path, sources=None)
    assert _stage(plan, "corpus").kept_bytes == pytest.approx(3e6 / 4.2 * (9 + 1.4), rel=1e-4)
    assert plan.downloads == ()


def test_models_on_another_disk_are_copied(tmp_path: Path) -> None:
    sources = _sources(tmp_path / "sources", TINY)
    for name in ("Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"):
        (sources / name / "model.safetensors").write_bytes(b"1")

    def copied() -> dict[str, bool]:
        plan = plan_of(tinyswallow(), sources=sources, build_folder=tmp_path / "build")
        return {name: _stage(plan, name).kept_bytes > 0 for name in ("teacher", "student_before")}

    assert copied() == {"teacher": False, "student_before": False}
    other = Path("/proc/version")  # as a link into a cache on another disk
    assert other.stat().st_dev != tmp_path.stat().st_dev
    teacher = sources / "Qwen/Qwen2.5-32B-Instruct" / "model.safetensors"
    teacher.unlink()
    teacher.symlink_to(other)
    assert copied() == {"teacher": True, "student_before": False}


def test_a_set_that_lies_there_decrypted_has_no_gate(tmp_path: Path) -> None:
    folder = _sources(tmp_path, TINY) / "tokyotech-llm" / "lmsys-chat-1m-synth" / "dataset"
    folder.mkdir(parents=True)
    encrypted = folder / "lmsys-chat-1m-first-turn-user-instructions-ja.jsonl.gz.gpg"
    encrypted.touch()
    (gate,) = plan_of(tinyswallow(), build_folder=tmp_path, sources=tmp_path).gates
    assert gate.variable == "LMSYS_SYNTH_PASSPHRASE"
    (folder / "lmsys-chat-1m-synth-sft.jsonl.gz").touch()
    plan = plan_of(tinyswallow(), build_folder=tmp_path, sources=tmp_path)
    assert plan.gates == () and plan.downloads == ()


def test_every_stage_of_a_recipe_is_in_its_plan(tmp_path: Path) -> None:
    for name in RECIPES:
        recipe = load(name, say=print)
        plan = plan_of(recipe, build_folder=tmp_path, sources=None)
        assert [stage.stage for stage in plan.stages] == [stage.name for stage in pipeline(recipe)]
        assert all(stage.stage in "\n".join(plan_lines(plan)) for stage in plan.stages)
