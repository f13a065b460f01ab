"""Distil one Hugging Face folder into another on a file of text.

    .venv/bin/python examples/distill_two_folders.py TEACHER STUDENT TEXT.jsonl OUT --steps 1000

TEACHER and STUDENT share a tokenizer; TEXT.jsonl has a field `text` in each line. The result is the folder OUT/model.
The same command finds what is built, and goes on after a stop.
"""

import argparse
from pathlib import Path

from common.cli import HelpWithDefaults, run
from common.documents import Shares
from common.store import run_alone
from distill.corpus import CorpusConfig, corpus
from distill.taid import TaidConfig, alpha_for
from distill.train import DistillConfig, distill


def main(arguments: list[str]) -> None:
    """Builds a corpus, then trains the student on it."""
    parser = argparse.ArgumentParser(
        description="Distil TEACHER into STUDENT on TEXT.", formatter_class=HelpWithDefaults
    )
    for name in ("teacher", "student", "text", "out"):
        parser.add_argument(name, type=Path, metavar=name.upper())
    parser.add_argument("--row-tokens", type=int, default=512, metavar="N", help="of a packed row")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="optimizer steps")
    parsed = parser.parse_args(arguments)

    data = CorpusConfig(sequence_tokens=parsed.row_tokens, shares=Shares(calibration=0.01, validation=0.05, test=0.05))
    packed = run_alone(corpus, data, parsed.out / "corpus", parsed.text, parsed.student)

    training = DistillConfig(method="taid", taid=TaidConfig(alpha=alpha_for(steps=parsed.steps)), steps=parsed.steps)
    made = run_alone(distill, training, parsed.out / "model", packed.folder, parsed.student, parsed.teacher)
    print(f"{made.folder}: {made.manifest['facts']['tokens']:,} tokens in {made.manifest['facts']['steps']:,} steps")


if __name__ == "__main__":
    run(main)
