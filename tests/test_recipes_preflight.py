"""Before a build: RECIPE=auto on machines of every kind, everything missing in one answer, and who says yes."""

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from errors_tiny import refuses
from published_sources import write_benchmarks
from sources_tiny import MODEL, local

from common.store import Store
from recipes import preflight
from recipes.mini import mini
from recipes.plan import Plan, plan_of
from recipes.plan import machine as plan_machine
from recipes.plan.lines import short_lines
from recipes.plan.machine import Available, BuildState, build_state
from recipes.preflight import before_start, choose, missing
from recipes.recipe import Recipe, build, pipeline
from recipes.rehearsal import rehearsal
from recipes.resizing import resized
from recipes.resolve import attempt, resolve
from recipes.tinyswallow import INSTRUCTIONS, tinyswallow

GB = 10**9
SETS = {source.name.partition(":")[0] for source in INSTRUCTIONS}
LARGE = Available(gpus_bytes=(143_771 * 2**20,), ram_bytes=512 * GB, disk_bytes=2000 * GB)
"""One H200 as its driver counts it."""
NOTHING = Available(gpus_bytes=(), ram_bytes=0, disk_bytes=0)


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal, no answers and no keys in the environment; no test asks the hub."""
    for name in ("YES", "HF_TOKEN", "LMSYS_SYNTH_PASSPHRASE", "SOURCES", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(preflight, "attempt", lambda recipe, *arguments, **names: (recipe, []))
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    monkeypatch.setattr(preflight, "_sees_cuda", lambda: True)


def _on(monkeypatch: pytest.MonkeyPatch, here: Available) -> None:
    monkeypatch.setattr(preflight, "available_here", lambda folder, **done: here)


def _choose(here: Available, *finished: str) -> tuple[str, str]:
    state = BuildState(finished=frozenset(finished))
    return choose(tinyswallow(), here, state, build_folder=Path("nowhere"))


def _with_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setenv("LMSYS_SYNTH_PASSPHRASE", "planted words")
    monkeypatch.setattr("shutil.which", lambda program: f"/bin/{program}")


@pytest.mark.parametrize(
    ("here", "name", "says"),
    [
        (LARGE, "tinyswallow", "enough here"),
        (dataclasses.replace(LARGE, gpus_bytes=()), "mini", "too little GPU memory here"),
        (dataclasses.replace(LARGE, gpus_bytes=(81_559 * 2**20,)), "mini", "too little GPU memory here"),
        (dataclasses.replace(LARGE, gpus_bytes=(81_559 * 2**20,) * 2), "tinyswallow", "enough here"),
        (dataclasses.replace(LARGE, gpus_bytes=(24_564 * 2**20,) * 8), "mini", "too little GPU memory here"),
        (
            dataclasses.replace(LARGE, gpus_bytes=(24_564 * 2**20, 143_771 * 2**20)),
            "mini",
            "too little GPU memory here",
        ),
        (dataclasses.replace(LARGE, ram_bytes=8 * GB), "mini", "too little main memory here"),
        (dataclasses.replace(LARGE, disk_bytes=8 * GB), "mini", "too little disk here"),
        (
            Available(gpus_bytes=(), ram_bytes=0, disk_bytes=0),
            "mini",
            "too little GPU memory and main memory and disk here",
        ),
    ],
)
def test_auto_says_which_and_why_in_one_line(here: Available, name: str, says: str) -> None:
    chosen, line = _choose(here)
    assert chosen == name
    assert line.startswith(f"RECIPE=auto builds {name}: the release needs ")
    assert line.count("\n") == 0 and line.endswith(says)


def test_auto_asks_for_what_is_left_of_a_release() -> None:
    bare = Available(gpus_bytes=(), ram_bytes=64 * GB, disk_bytes=30 * GB)
    trained = [stage.name for stage in pipeline(tinyswallow())]
    trained = trained[: trained.index("gguf")]
    assert _choose(bare)[0] == _choose(bare, *trained)[0] == "mini", "the evaluation opens the teacher"
    name, line = _choose(bare, *trained, "evaluation")
    assert name == "tinyswallow" and "what is left of the release needs" in line and "GPU" not in line
    assert _choose(bare, *trained, "evaluation", "gguf", "coreml")[1].endswith("needs nothing more: enough here")


def test_the_line_puts_need_next_to_what_is_here() -> None:
    _, line = _choose(dataclasses.replace(LARGE, gpus_bytes=(79 * GB,)))
    needed = plan_of(tinyswallow(), build_folder=None, sources=None).needs.gpu_bytes / GB
    assert f"{needed:.0f} GB of GPU memory (here 79 GB)" in line


def test_auto_takes_mini_where_sources_lack_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCES", str(tmp_path))
    name, line = _choose(LARGE)
    assert name == "mini" and "Qwen/Qwen2.5" in line and "\n" not in line


def test_everything_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _on(monkeypatch, Available(gpus_bytes=(), ram_bytes=8 * GB, disk_bytes=5 * GB))
    monkeypatch.setattr("shutil.which", lambda program: None)
    said: list[str] = []
    with refuses("several") as caught:
        before_start(tinyswallow(), asked="tinyswallow", build_folder=tmp_path, say=said.append)
    lines = [line for line in said if line.startswith("missing: ")]
    assert len(lines) == 6 and all("\n" not in line for line in lines)
    for words in (
        "got no GPU; next: take a machine with 1 x 141 GB",
        "GB of main memory.*got 8.00 GB",
        "GB on the disk of .*got 5.00 GB free.*--build",
        "terms of lmsys/lmsys-chat-1m.*no HF_TOKEN in the environment.*accept the terms",
        "the program gpg",
        "no LMSYS_SYNTH_PASSPHRASE in the environment.*publisher's script",
    ):
        assert sum(bool(re.search(words, line)) for line in lines) == 1, words
    for what in ("GPU memory", "main memory", "disk", "HF_TOKEN", "gpg", "LMSYS_SYNTH_PASSPHRASE"):
        assert what in caught[0].got


def test_one_thing_missing_is_the_error_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _with_keys(monkeypatch)
    _on(monkeypatch, dataclasses.replace(LARGE, disk_bytes=50 * GB))
    with refuses("no-space", got="50 GB"):
        before_start(tinyswallow(), asked="tinyswallow", build_folder=tmp_path, say=lambda line: None)


def test_data_alone_needs_no_room_for_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _with_keys(monkeypatch)
    poor = Available(gpus_bytes=(), ram_bytes=8 * GB, disk_bytes=9 * GB)
    plans = {
        until: plan_of(tinyswallow(), build_folder=tmp_path, sources=None, until=until)
        for until in ("conversations", "corpus", "base")
    }
    lacks = {until: [one.what for one in missing(plan, poor, build_folder=tmp_path)] for until, plan in plans.items()}
    assert lacks == {"conversations": [], "corpus": ["disk"], "base": ["GPU memory", "main memory", "disk"]}


def test_what_is_told_beforehand_is_what_the_build_fetches(tmp_path: Path) -> None:
    whole = plan_of(tinyswallow(), build_folder=tmp_path, sources=None)
    until = {
        name: plan_of(tinyswallow(), build_folder=tmp_path, sources=None, until=name)
        for name in ("benchmarks", "conversations", "corpus", "base")
    }
    fetched = {name: {download.name for download in plan.downloads} for name, plan in until.items()}
    assert fetched["benchmarks"] < fetched["conversations"] < fetched["corpus"] < fetched["base"]
    assert fetched["benchmarks"] == {"the benchmark files"}
    assert fetched["corpus"] - fetched["conversations"] == {
        "HuggingFaceFW/fineweb-2:jpn_Jpan",
        "wikimedia/wikipedia:20231101.ja",
    }
    assert fetched["base"] - fetched["corpus"] == {"Qwen/Qwen2.5-32B-Instruct"}
    assert fetched["base"] == {download.name for download in whole.downloads} and len(fetched["base"]) == 9
    told = {name: "\n".join(short_lines(plan)) for name, plan in until.items()}
    assert "gated" not in told["benchmarks"] and "licence" not in told["benchmarks"]
    assert "the benchmark files, of sizes not known yet" in told["benchmarks"] and "more for" not in told["benchmarks"]
    assert "FLOPs" not in told["corpus"] and "FLOPs" in told["base"]
    assert until["base"].needs.ram_bytes < whole.needs.ram_bytes and until["base"].needs.ram_for == "base"


def test_what_is_finished_asks_for_nothing_again(tmp_path: Path) -> None:
    """Keys and GPUs that earlier stages took may be gone: another shell, another node."""

    def left(*done: str) -> tuple[Plan, list[str]]:
        plan = plan_of(tinyswallow(), build_folder=tmp_path, sources=None, done=frozenset(done))
        bare = Available(gpus_bytes=(), ram_bytes=64 * GB, disk_bytes=2000 * GB)
        return plan, [one.what for one in missing(plan, bare, build_folder=tmp_path)]

    data = ("benchmarks", "world", "student_before", "conversations", "corpus")
    whole, lacks = left()
    assert {"GPU memory", "HF_TOKEN", "LMSYS_SYNTH_PASSPHRASE"} <= set(lacks)
    plan, lacks = left(*data)
    assert lacks == ["GPU memory"] and [one.name for one in plan.downloads] == ["Qwen/Qwen2.5-32B-Instruct"]
    trained = (*data, "teacher", "licences", "base", "chat")
    plan, lacks = left(*trained)
    # The evaluation opens the teacher once more, where it was run; it trains nothing.
    assert (lacks, plan.downloads, plan.flops) == (["GPU memory"], (), 0.0)
    assert plan.needs.gpu_bytes == whole.needs.gpu_bytes
    plan, lacks = left(*trained, "gguf", "coreml", "evaluation")
    assert (lacks, plan.needs.gpu, plan.needs.disk_bytes, plan.needs.ram_bytes) == ([], False, 0, 0)
    plan = plan_of(tinyswallow(), build_folder=tmp_path, sources=None, until="coreml", done=frozenset(trained))
    assert not plan.needs.gpu and {stage.stage for stage in plan.stages} == {"gguf", "coreml"}
    assert 0 < plan.needs.disk_bytes < whole.needs.disk_bytes / 10


def test_a_torch_that_sees_no_gpu_is_told_before_weeks_on_the_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _with_keys(monkeypatch)
    plan = plan_of(tinyswallow(), build_folder=tmp_path, sources=None)
    assert list(missing(plan, LARGE, build_folder=tmp_path)) == []
    monkeypatch.setattr(preflight, "_sees_cuda", lambda: False)
    (lacks,) = missing(plan, LARGE, build_folder=tmp_path)
    assert lacks.what == "CUDA in torch" and lacks.error.code == "not-installed"


def test_an_unknown_artifact_is_named_before_anything_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _on(monkeypatch, Available(gpus_bytes=(), ram_bytes=GB, disk_bytes=GB))
    with refuses("unknown-name", wanted="tinyswallow", got="corpsu"):
        before_start(tinyswallow(), asked="tinyswallow", build_folder=tmp_path, say=print, until="corpsu")


def test_the_first_artifact_needs_no_key_of_later_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    for name in ("HF_TOKEN", "LMSYS_SYNTH_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setenv("SOURCES", str(tmp_path))
    _on(monkeypatch, Available(gpus_bytes=(), ram_bytes=8 * GB, disk_bytes=5 * GB))
    said: list[str] = []
    before_start(tinyswallow(), asked="tinyswallow", build_folder=tmp_path / "build", say=said.append, until="world")
    assert not any("missing" in line for line in said)
    for until, names in (("world", set[str]()), ("conversations", {"Qwen/Qwen2.5-1.5B-Instruct", *SETS})):
        _, unresolved = attempt(tinyswallow(), tmp_path / "build", sources=tmp_path, until=until)
        assert {one.what for one in unresolved} == names


def test_what_cannot_be_resolved_is_among_the_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(preflight, "_sees_cuda", lambda: True)
    monkeypatch.setenv("SOURCES", str(tmp_path))
    recipe = tinyswallow()
    plan = plan_of(recipe, build_folder=tmp_path / "build", sources=tmp_path)
    build_folder = tmp_path / "build"
    _, unresolved = attempt(recipe, build_folder, sources=tmp_path)
    lacks = missing(plan, LARGE, build_folder=build_folder, unresolved=unresolved)
    found = {one.what: str(one.error) for one in lacks}
    assert len(found) == 8 and "\n" not in "".join(found.values())
    for name in ("Qwen/Qwen2.5-32B-Instruct", "HuggingFaceFW/fineweb-2", "tokyotech-llm/swallow-gemma-magpie-v0.1"):
        assert name in found[name] and "no folder" in found[name]
    assert "docs/reproduce.md" in found["benchmarks"]
    build_folder.mkdir()
    (build_folder / "sources.lock.json").write_text('{"version": 1, "sources": {"model x": 1}}')
    (refusal,) = (one for one in attempt(recipe, build_folder, sources=tmp_path)[1] if one.what != "benchmarks")
    assert refusal.what == "sources.lock.json", "a broken lock is reported once, not for each name"


def _started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, asked: str, recipe: Recipe | None = None
) -> tuple[list[str], list[float]]:
    """What a machine that holds the release says and how long it waits."""
    _with_keys(monkeypatch)
    _on(monkeypatch, LARGE)
    said: list[str] = []
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    before_start(recipe or tinyswallow(), asked=asked, build_folder=tmp_path, say=said.append)
    return said, slept


def test_a_release_that_was_named_starts_without_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said, slept = _started(monkeypatch, tmp_path, asked="tinyswallow")
    text = "\n".join(said)
    assert slept == []
    assert "h on one H200" in text and "disk: " in text and "downloads: " in text and "licence: " in text
    assert "planted" not in text


def test_auto_never_starts_the_release_without_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with refuses("needs-consent", wanted="tinyswallow", next_step="YES=1"):
        _started(monkeypatch, tmp_path, asked="auto")


def test_auto_starts_it_with_a_yes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("YES", "1")
    said, slept = _started(monkeypatch, tmp_path, asked="auto")
    assert said and slept == []


@pytest.mark.parametrize("asked", ["auto", "tinyswallow"])
def test_on_a_terminal_it_waits_ten_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    said, slept = _started(monkeypatch, tmp_path, asked=asked)
    assert slept == [10] and "Ctrl-C" in said[-1]


def test_a_recipe_that_makes_its_own_models_is_never_asked_about(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert _started(monkeypatch, tmp_path, asked="auto", recipe=mini()) == ([], [])


@pytest.mark.parametrize("recipe", [rehearsal, mini])
def test_memory_and_disk_are_asked_of_every_recipe(
    recipe: Callable[[], Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _on(monkeypatch, Available(gpus_bytes=(), ram_bytes=GB // 2, disk_bytes=GB // 10))
    said: list[str] = []
    with refuses("several", got="main memory, disk"):
        before_start(recipe(), asked="mini", build_folder=tmp_path, say=said.append)
    assert len(said) == 2 and all(line.startswith("missing: ") for line in said)


def test_of_several_processes_one_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "3")
    assert _started(monkeypatch, tmp_path, asked="auto") == ([], [])


def test_a_toy_sized_release_of_sources_needs_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from published_sources import publish

    monkeypatch.undo()
    sources = publish(tmp_path / "sources", documents=20, conversations=10)
    monkeypatch.setenv("SOURCES", str(sources))
    monkeypatch.setenv("LMSYS_SYNTH_PASSPHRASE", "words")
    sizes = {"base.steps": 6, "base.rows_per_step": 2, "chat.steps": 6, "chat.rows_per_step": 2}
    recipe = resized(tinyswallow(), sizes)
    _on(monkeypatch, Available(gpus_bytes=(), ram_bytes=24 * GB, disk_bytes=20 * GB))
    said: list[str] = []
    before_start(recipe, asked="recipe.py", build_folder=tmp_path / "build", say=said.append)
    assert "downloads: none" in said
    assert not any("missing" in line for line in said)


def _fake_driver(folder: Path, answer: str, status: int) -> str:
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\nprintf '{answer}'\nexit {status}\n")
    script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("answer", "status", "mebibytes"),
    [
        ("GPU-a, 81559\\n", 0, [81559]),
        ("GPU-a, 81559\\nGPU-b, 24564\\n", 0, [81559, 24564]),
        ("GPU-a, [N/A]\\n", 0, []),
        ("no driver\\n", 9, []),
        ("", 0, []),
    ],
)
def test_gpu_memory_is_the_driver_s_and_a_broken_driver_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, status: int, mebibytes: list[int]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", _fake_driver(tmp_path, answer, status))
    assert plan_machine.gpus_bytes() == tuple(size * 2**20 for size in mebibytes)


@pytest.mark.parametrize(
    ("visible", "mebibytes"),
    [
        ("", []),
        ("1", [2]),
        ("2,0", [3, 1]),
        ("GPU-b", [2]),
        ("GPU-c,GPU-a1", [3, 1]),
        ("0,7,1", [1]),
        ("-1", []),
        ("GPU-", []),
        ("NoDevFiles", []),
    ],
)
def test_hidden_gpus_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, mebibytes: list[int]
) -> None:
    monkeypatch.setenv("PATH", _fake_driver(tmp_path, "GPU-a1, 1\\nGPU-b2, 2\\nGPU-c3, 3\\n", 0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert plan_machine.gpus_bytes() == tuple(size * 2**20 for size in mebibytes)


def test_no_driver_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert plan_machine.gpus_bytes() == ()


def test_room_here_agrees_with_the_system(tmp_path: Path) -> None:
    room = plan_machine.available_here(tmp_path / "not" / "there", partial_bytes=GB)
    block = os.statvfs(tmp_path)
    assert room.disk_bytes == pytest.approx(block.f_bavail * block.f_frsize + GB, rel=0.05)
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        total_kib = int(meminfo.read_text().split("MemTotal:")[1].split()[0])
        assert plan_machine.ram_bytes(tmp_path) == pytest.approx(total_kib * 1024, rel=0.05)
        assert 0 < room.ram_bytes <= total_kib * 1024 * 1.05


@pytest.mark.parametrize(
    ("group", "limits", "bytes_"),
    [
        ("0::/a/b\n", {"memory.max": "max", "a/memory.max": "1000000", "a/b/memory.max": "max"}, 1_000_000),
        ("0::/a/b\n", {"a/memory.max": "2000000", "a/b/memory.max": "1500000"}, 1_500_000),
        ("0::/outside/its/namespace\n", {"memory.max": "3000000"}, 3_000_000),
        ("5:cpu:/x\n4:cpuset,memory:/docker/1\n", {"memory/memory.limit_in_bytes": "4000000"}, 4_000_000),
        ("4:memory:/\n0::/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("nonsense\n", {}, None),
    ],
)
def test_a_container_s_memory_is_its_control_group_s(
    tmp_path: Path, group: str, limits: dict[str, str], bytes_: int | None
) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(group)
    for name, limit in limits.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(limit + "\n")
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert plan_machine.ram_bytes(tmp_path) == (bytes_ or whole)


def test_what_is_half_done_counts_as_room_and_what_is_finished_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model linked from SOURCES, an artifact of other numbers, second names: none of it is room."""
    sources = local(tmp_path / "sources", "Qwen/Qwen2.5-1.5B-Instruct", MODEL)
    write_benchmarks(sources / "benchmarks")
    monkeypatch.setenv("SOURCES", str(sources))
    store = Store(tmp_path / "build", report=lambda line: None)
    assert build_state(tinyswallow(), store.root, sources=sources) == BuildState()
    # The other names were never resolved.
    made = build(resolve(tinyswallow(), store.root, until="student_before"), store, until="student_before")
    finished = BuildState(finished=frozenset({"world", "student_before"}))
    assert build_state(tinyswallow(), store.root, sources=sources) == finished
    other = resized(tinyswallow(), {"world.items_per_benchmark": 1})
    assert build_state(other, store.root, sources=sources) == BuildState(finished=frozenset({"student_before"}))

    for one in made.values():
        (one.folder / "manifest.json").unlink()
        one.folder.rename(one.folder.with_name(one.folder.name + ".partial"))
    world, model = (Path(f"{made[name].folder}.partial") for name in ("world", "student_before"))
    (world / "second name").hardlink_to(world / "questions.jsonl")
    (store.root / "corpus-01234567.partial").mkdir()
    (store.root / "corpus-01234567.partial" / "rows").write_bytes(bytes(10**6))
    own = [path for path in (*world.iterdir(), *model.iterdir()) if path.name not in (*MODEL, "second name")]
    assert {path.name for path in own} == {"questions.jsonl", "data_sources.json"}
    expected = BuildState(partial_bytes=sum(path.stat().st_size for path in own))
    assert build_state(tinyswallow(), store.root, sources=sources) == expected
