"""What tests of Gemma-2-LMSYS-Chat-1M-Synth share: its names, a row of answers, a file as its publisher encrypts it."""

import shutil
import subprocess
import tempfile
from functools import cache
from typing import Any

import pytest

GPG = shutil.which("gpg")
needs_gpg = pytest.mark.skipif(GPG is None, reason="needs the program gpg")
SECRET = "3f9a1c77e0-the-key-of-the-test"
VARIABLE = "LMSYS_SYNTH_PASSPHRASE"
SET = "tokyotech-llm/lmsys-chat-1m-synth"
ORIGINAL = "lmsys/lmsys-chat-1m"
ANSWERS = "gemma2-lmsys-chat-1m-synth-ja+en.jsonl.gz"
INSTRUCTIONS = "lmsys-chat-1m-first-turn-user-instructions-ja.jsonl.gz"


def turn(role: str, content: str | None) -> dict[str, Any]:
    return {"role": role, "content": content}


def answer_row(number: int, **fields: Any) -> dict[str, Any]:
    """A row of the file of answers: the user's words are not in it."""
    return {
        "conversation_id": f"{number:032x}",
        "duplicate_user_instruction_ja": None,
        "empty_user_instruction_ja": False,
        "translated_conversation": [turn("user", None), turn("assistant", None)],
        "is_template_instruction": None,
        "synthesized_assistant_responses": [turn("assistant", f"答え{number}-{place}") for place in range(6)],
        "synthesized_multiturn_conversation": None,
        "quality_scores": [1, 5, 9.5, 9.5, None, 2],
    } | fields


@cache
def encrypted(data: bytes) -> bytes:
    """As the publisher did it: symmetric, the whole file."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as home:  # its agent needs a short path
        done = subprocess.run(
            [
                *("gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback"),
                *("--s2k-count", "1024", "--passphrase", SECRET, "--output", "-", "--symmetric", "-"),
            ],
            input=data,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], check=True)
    return done.stdout
