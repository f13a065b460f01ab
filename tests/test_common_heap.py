"""Freed memory that is kept costs no page faults when it is taken again, and goes when it is given back."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")

TAKE_AND_FREE = """
import resource, sys
import numpy as np
from bench.measure import resident_bytes
from common.heap import trim_freed_memory, retain_freed_memory

def rounds(number):
    for _ in range(number):
        blocks = [np.ones(3 * 2**20, np.uint8) for _ in range(20)]
        del blocks

if sys.argv[1] == "keep":
    retain_freed_memory()
rounds(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
rounds(20)
faults, kept = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, resident_bytes()
trim_freed_memory()
print(faults, kept, resident_bytes())
"""


def told(how: str) -> tuple[int, int, int]:
    """Page faults of twenty rounds that take and free 60 MiB, and resident bytes before and after giving back."""
    finished = subprocess.run(
        [sys.executable, "-c", TAKE_AND_FREE, how],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    faults, kept, left = map(int, finished.stdout.split())
    return faults, kept, left


def test_what_is_kept_costs_no_faults_and_can_be_given_back() -> None:
    usual, _, _ = told("usual")
    faults, kept, left = told("keep")
    pages = 20 * 60 * 2**20 // resource.getpagesize()
    assert faults < 0.01 * pages < usual
    assert kept - left > 50 * 2**20
