"""How the pages of a release are drawn: the templates beside this module, with the filters that all of them share.

Whatever a template prints is text: `markdown` for words, `link` for addresses, `fenced` for blocks of code. It knows no
page.
"""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.report import wording
from export.card_duties import in_japanese

TEMPLATES = Path(__file__).parent / "templates"


def rendered(name: str, **context: object) -> str:
    """The page `name`, drawn from the template `<name>.j2`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for function in (wording.count, wording.number, wording.percent, wording.short_count, wording.size):
        environment.filters[function.__name__] = function
    environment.filters |= {"markdown": wording.markdown, "fenced": fenced, "link": link, "in_japanese": in_japanese}
    return environment.get_template(f"{name}.j2").render(context)


def fenced(text: str) -> str:
    """Text as a block of code, whatever runs of backticks it holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip(chr(10))}\n{fence}"


def link(text: str) -> str:
    """An address that Markdown makes a link of; anything else as plain text."""
    return f"<{text}>" if re.fullmatch(r"https?://[^\s<>]+", text) else wording.markdown(text)
