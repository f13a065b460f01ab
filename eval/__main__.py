"""`python -m eval tasks | fidelity | phones`: measures any artifact, built here or elsewhere.

An artifact is a Hugging Face folder, a `.gguf` file or a `.mlpackage`. Each verb writes one JSON file and prints a line
for each of its rows. Independent of recipes and stages.
"""

import argparse
import json
from contextlib import closing
from pathlib import Path
from typing import Any

from common.cli import command, run
from common.disk import replace_text, require_no_folder
from common.errors import UserError, require_at_least
from common.rows import read_rows

Rows = list[dict[str, Any]]


def main(arguments: list[str]) -> None:
    """Parses `arguments` and runs one verb."""
    parser = command("eval", "Artifacts to numbers.")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs = {
        "tasks": ("Answer questions with one artifact and score the answers.", _tasks_options, _tasks),
        "fidelity": ("Compare files with their checkpoint on held-out text.", _fidelity_options, _fidelity),
        "phones": ("Predict the memory that iOS charges to an app.", _phones_options, _phones),
    }
    for name, (summary, add_options, function) in verbs.items():
        verb = subparsers.add_parser(name, help=summary, description=summary)
        add_options(verb)
        verb.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the numbers go")
        verb.set_defaults(function=function)
    parsed = parser.parse_args(arguments)
    require_no_folder(parsed.out)  # before anything is computed
    parsed.function(parsed)


def _tasks_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("artifact", type=Path, metavar="ARTIFACT", help="a model folder or a .gguf file")
    verb.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder that holds questions.jsonl")
    verb.add_argument("--tasks", metavar="A,B", help="names of tasks (default: all that DIR has questions for)")
    verb.add_argument(
        "--form",
        choices=("plain", "chat"),
        help="the question as a plain prompt, or as a user's message in the artifact's own chat template"
        " (default: chat for a .gguf file, plain for a folder)",
    )
    verb.add_argument("--limit", type=int, metavar="N", help="only N items of each task (default: all)")
    verb.add_argument("--log", type=Path, metavar="DIR", help="write DIR/<task>.jsonl, a line an item")


def _tasks(parsed: argparse.Namespace) -> None:
    require_at_least(1, **{"--limit": parsed.limit})
    from eval.runtimes import open_runtime
    from eval.tasks.harness import Harness

    artifact: Path = parsed.artifact
    names = parsed.tasks.split(",") if parsed.tasks else None
    form = parsed.form or ("chat" if artifact.suffix == ".gguf" else "plain")
    with Harness(parsed.data, tasks=names) as harness, closing(open_runtime(artifact)) as runtime:
        rows = harness.run(runtime, artifact=_name(artifact), form=form, limit=parsed.limit, log=parsed.log)
    _write(parsed.out, rows)
    for row in rows:
        low, high = row["interval"]
        chance = "" if row["chance"] is None else f", chance {row['chance']:.3f}"
        print(f"{row['task']}: {row['value']:.3f} ({low:.3f} to {high:.3f}, {row['n']} items{chance})")


def _fidelity_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("artifacts", type=Path, nargs="+", metavar="ARTIFACT", help=".gguf files or model folders")
    needed: dict[str, Any] = {"type": Path, "required": True}
    verb.add_argument("--reference", metavar="CHECKPOINT", help="the model folder, computed in float32", **needed)
    verb.add_argument("--text", metavar="FILE.jsonl", help="lines with a `text`; .gz is accepted", **needed)
    verb.add_argument("--kv", choices=("f16", "f32"), default="f32", help="type of llama.cpp's KV cache")
    verb.add_argument("--limit-tokens", type=int, metavar="N", help="stop after N tokens (default: the whole file)")


def _fidelity(parsed: argparse.Namespace) -> None:
    require_at_least(1, **{"--limit-tokens": parsed.limit_tokens})
    from eval.fidelity import fidelity
    from eval.runtimes import open_runtime

    texts = [row["text"] for row in read_rows(parsed.text, fields=("text",))]
    rows: Rows = []
    failure: UserError | None = None
    with closing(open_runtime(parsed.reference, exact=True)) as reference:
        for artifact in parsed.artifacts:
            row: dict[str, Any] = {"artifact": _name(artifact), "reference": _name(parsed.reference), "kv": parsed.kv}
            try:
                with closing(open_runtime(artifact, kv=parsed.kv, exact=True)) as runtime:
                    row |= fidelity(runtime, reference, texts, limit_tokens=parsed.limit_tokens)
                print(f"{row['artifact']}: KL {row['kl']:.3g} nats, same top token {row['top1_agreement']:.2%}")
            except UserError as error:  # of this artifact; the others are measured
                failure = error
                row |= dict.fromkeys(("kl", "top1_agreement", "bits_per_character", "tokens"))
                row["reason"] = str(error)
            rows.append(row)
    _write(parsed.out, rows)
    if failure is not None:
        raise failure


def _phones_options(verb: argparse.ArgumentParser) -> None:
    from eval.phones import DEFAULT_CONTEXT_TOKENS

    verb.add_argument("artifacts", type=Path, nargs="+", metavar="ARTIFACT", help=".gguf files or .mlpackage folders")
    verb.add_argument(
        "--context",
        type=int,
        default=DEFAULT_CONTEXT_TOKENS,
        metavar="N",
        help="tokens; a model made for less gets its own",
    )
    verb.add_argument("--table", action="store_true", help="print every phone (default: a line for each file)")


def _phones(parsed: argparse.Namespace) -> None:
    require_at_least(1, **{"--context": parsed.context})
    from eval.phone_lines import phone_lines
    from eval.phones import phone_rows

    rows = phone_rows(parsed.artifacts, context_tokens=parsed.context)
    _write(parsed.out, rows)
    print(*phone_lines(rows, asked=parsed.context, table=parsed.table), sep="\n")


def _name(artifact: Path) -> str:
    return artifact.absolute().name


def _write(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
