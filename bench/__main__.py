"""`python -m bench loss | step | corpus`: benchmarks, paired in one run; the last line on stdout is one JSON document.

All sides compute in the same precision and in turns; the results are medians.
"""

import json

from common.cli import command, run
from common.heap import retain_freed_memory


def main(arguments: list[str]) -> None:
    """Parse `arguments` and run one benchmark."""
    from bench import corpus, loss, step
    from bench.measure import device_here

    parser = command("bench", "Benchmarks, paired in one run.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="BENCHMARK")
    for module in (loss, step, corpus):
        module.add_verb(verbs)
    parsed = parser.parse_args(arguments)
    if device_here().type == "cpu":
        retain_freed_memory()  # as a stage does
    print(json.dumps(parsed.function(parsed), allow_nan=False))


if __name__ == "__main__":
    run(main)
