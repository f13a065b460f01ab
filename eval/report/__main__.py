"""`python -m eval.report REPORT.json DIR`: draw a report's pages again from its JSON."""

from pathlib import Path

from common.cli import command, run
from common.errors import UserError
from eval.report.collect import read_json
from eval.report.render import write_pages

_FIELDS = {"recipe", "artifacts", "tasks", "training"}
_NEXT_STEP = "name the report.json of a build or a release"


def main(arguments: list[str]) -> None:
    """Parses the command line and draws the pages."""
    parser = command("eval.report", "Draw a report's pages again.")
    parser.add_argument("report", type=Path, metavar="REPORT.json", help="the report's content")
    parser.add_argument("out", type=Path, metavar="DIR", help="folder for report.html and report.md")
    options = parser.parse_args(arguments)
    content = read_json(options.report, next_step=_NEXT_STEP)
    if not isinstance(content, dict) or not content.keys() >= _FIELDS:
        wanted, got = f"a report with {', '.join(sorted(_FIELDS))}", f"other JSON in {options.report}"
        raise UserError("wrong-format", wanted=wanted, got=got, next_step=_NEXT_STEP)
    options.out.mkdir(parents=True, exist_ok=True)
    write_pages(content, options.out)


if __name__ == "__main__":
    run(main)
