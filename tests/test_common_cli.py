"""How commands end: in processes of their own, since exit codes and streams are what is promised."""

import argparse
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from errors_tiny import refuses

from common.cli import Command, HelpWithDefaults, as_user_error, command, require_at_least_one
from common.errors import Code, UserError
from distill.__main__ import main as distill
from instruct.__main__ import main as instruct

VERBS = {
    distill: ["corpus", "tokenizer", "init", "train"],
    instruct: ["conversations", "train"],
}
ROOT = Path(__file__).parents[1]
IMPORTS = "import errno, os, sys, time; from common.cli import run; from common.errors import UserError\n"


def ended(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `def main(arguments): <body>` under `common.cli.run`."""
    return subprocess.run(
        [sys.executable, "-c", f"{IMPORTS}def main(arguments):\n  {body}\nrun(main)", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )


def test_the_result_is_the_exit_code() -> None:
    assert ended("return None").returncode == 0
    assert ended("return 3").returncode == 3


def test_arguments_are_those_after_the_program() -> None:
    done = ended("print(arguments)", "mini", "--until", "base")
    assert done.stdout == "['mini', '--until', 'base']\n" and done.stderr == ""


def test_a_user_error_is_one_line_and_2() -> None:
    done = ended("print('begun'); raise UserError('contradiction', wanted='a', got='b', next_step='c')")
    assert (done.returncode, done.stdout) == (2, "begun\n")
    assert done.stderr == "error: wanted a; got b; next: c\n"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("open('/no/such/file')", "/no/such/file; "),
        ("os.mkdir('/proc/x')", "/proc/x; "),
        ("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/tmp/x')", "/tmp/x; "),
        ("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))", "bytes free"),
        ("raise RuntimeError('I/O error: No space left on device (os error 28)')", "bytes free"),
    ],
)
def test_a_file_s_error_is_one_line_and_2(body: str, named: str) -> None:
    done = ended(body)
    assert done.returncode == 2
    assert named in done.stderr and done.stderr.startswith("error: wanted ") and done.stderr.count("\n") == 1


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    done = ended("raise KeyError('loss')")
    assert done.returncode == 1 and "Traceback" in done.stderr and "KeyError: 'loss'" in done.stderr


def test_ctrl_c_is_one_line_and_130() -> None:
    # A suite that runs in a shell's background inherits that SIGINT is ignored: put Python's own handler back.
    handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code = f"{handler}{IMPORTS}def main(arguments):\n  print('ready', flush=True); time.sleep(60)\nrun(main)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.startswith("interrupted") and said.count("\n") == 1


def test_a_reader_that_leaves_is_no_error() -> None:
    body = "[print('x' * 1000) for _ in range(10000)]"
    code = f"{IMPORTS}def main(arguments):\n  {body}\nrun(main)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141
    process.stderr.close()


def test_a_full_disk_is_found_behind_another_error() -> None:
    try:
        try:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/tmp/model.safetensors")
        except OSError as cause:
            raise RuntimeError("checkpoint failed") from cause
    except RuntimeError as error:
        explained = as_user_error(error)
    assert explained is not None and explained.code == "no-space"
    assert "/tmp/model.safetensors" in explained.wanted and "bytes free" in explained.got


def test_an_error_of_the_operating_system_without_a_file_is_ours() -> None:
    assert as_user_error(OSError(errno.EBADF, "bad handle")) is None
    assert as_user_error(ValueError("x")) is None
    error = UserError("contradiction", wanted="a", got="b", next_step="c")
    assert as_user_error(error) is error


@pytest.mark.parametrize(("error", "code"), [(FileNotFoundError, "not-found"), (PermissionError, "no-access")])
def test_a_path_that_cannot_be_used_is_named(error: type[OSError], code: Code) -> None:
    with refuses(code, wanted="/tmp/x"):
        explained = as_user_error(error(1, "why", "/tmp/x"))
        assert explained is not None
        raise explained


def test_a_count_below_1_is_refused_by_its_flag() -> None:
    require_at_least_one(steps=1, limit=None)
    with refuses("out-of-range", wanted="--micro-batch-rows", got="0"):
        require_at_least_one(steps=1, micro_batch_rows=0)


def verbs() -> Command:
    parser = command("toy", "A toy.")
    parser.add_argument("--verbose", action="store_true")
    verb = parser.add_subparsers(dest="verb", required=True).add_parser("train", help="train it")
    verb.add_argument("student")
    verb.add_argument("--steps", type=int, default=7, required=True, help="updates")
    return parser


@pytest.mark.parametrize(
    ("arguments", "prog", "named"),
    [
        (["train", "s", "--stps", "3"], "toy train", ("--stps;", "--steps")),
        (["train", "--stps=3"], "toy train", ("--stps;", "--steps")),
        (["train", "s", "--steps", "3", "more"], "toy train", ("argument more",)),
        (["train", "s", "--steps", "3", "-x"], "toy train", ("option -x",)),
        (["train", "s", "--verbose", "--steps", "3"], "toy train", ("option --verbose",)),
        (["--verbos3", "train"], "toy", ("--verbos3;", "--verbose")),
    ],
)
def test_an_unknown_option_gets_the_usage_of_its_verb_and_the_nearest_option(
    arguments: list[str], prog: str, named: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        verbs().parse_args(arguments)
    usage, *_, last = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and usage.startswith(f"usage: python -m {prog} [-h]")
    assert last.startswith(f"python -m {prog}: error: ") and all(name in last for name in named)


def test_known_options_are_read_as_argparse_reads_them() -> None:
    parsed = verbs().parse_args(["--verb", "train", "--step", "3", "--", "--student"])
    assert (parsed.verbose, parsed.steps, parsed.student) == (True, 3, "--student")


def test_verbs_have_the_same_help_style(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        verbs().parse_args(["train", "--help"])
    assert "updates (default: 7)" in capsys.readouterr().out
    shown = command("toy", "short\nlines", epilog="words " * 40).format_help()
    assert "\nshort\nlines\n" in shown and max(map(len, shown.splitlines())) < 120


def test_help_shows_a_default_where_it_says_something() -> None:
    parser = argparse.ArgumentParser(formatter_class=HelpWithDefaults)
    parser.add_argument("--steps", type=int, default=7, help="updates")
    parser.add_argument("--out", required=True, help="a folder")
    parser.add_argument("--near", action="store_true", help="look nearby (default: far)")
    parser.add_argument("--share", type=float, default=0.0, help="from 0")
    parser.add_argument("--only", default="all", help="a name (default: every one)")
    parser.add_argument("--untold")
    shown = parser.format_help()
    for line in ("updates (default: 7)\n", "a folder\n", "nearby (default: far)\n", "from 0 (default: 0.0)\n"):
        assert line in shown
    assert "a name (default: every one)\n" in shown and shown.count("(default") == 4


@pytest.mark.parametrize(("main", "verb"), [(main, verb) for main, verbs in VERBS.items() for verb in verbs])
def test_every_option_of_a_stage_says_what_happens_without_it(
    main: Callable[[list[str]], None], verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    shown = capsys.readouterr().out
    assert "default: None" not in shown and "default: False" not in shown
    usage = re.sub(r"\[[^]]*\]", "", shown.split("\n\n")[0])  # optional ones are in brackets
    required = set(re.findall(r"--[a-z-]+", usage))
    entries = re.findall(r"^  (--.*(?:\n   .*)*)", shown, re.MULTILINE)
    assert len(entries) > len(required) > 0
    assert {entry.split()[0] for entry in entries if "(default: " not in entry} == required
