"""`report.json` as a page: `report.html`, self-contained and without scripts, and `report.md`.

Everything that a template prints is escaped: a model's output is text, never markup. Reads only the JSON and the
templates.
"""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from common.disk import replace_text
from common.known_benchmarks import asked_in
from eval.report import data, view, wording
from eval.report.plots import loss_plots

TEMPLATES = Path(__file__).parent / "templates"
HTML_TEMPLATE, MARKDOWN_TEMPLATE = "report.html.j2", "report.md.j2"


def render_html(report: view.Report) -> str:
    """The page as one file with its style and drawings, which loads nothing else."""
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    return _environment().get_template(HTML_TEMPLATE).render(**_context(report), style=style)


def render_markdown(report: view.Report) -> str:
    """The same content as Markdown tables, without the plots."""
    return _environment().get_template(MARKDOWN_TEMPLATE).render(**_context(report))


def write_pages(report: view.Report, folder: Path) -> None:
    """Writes report.html and report.md into a folder that exists."""
    replace_text(folder / "report.html", render_html(report))
    replace_text(folder / "report.md", render_markdown(report))


def _context(report: view.Report) -> dict[str, object]:
    return {
        "report": report,
        "label": view.label,
        "method_labels": view.METHOD_LABELS,
        "benchmarks": asked_in(report["tasks"]),
        "differing": view.differing,
        "lead": view.lead(report),
        "warnings": view.warnings(report),
        "drawn": view.drawn(report),
        "headlines": view.headlines(report),
        "scores": view.score_table(report),
        "plots": loss_plots(report),
        "phones": view.phone_table(report),
        "samples": view.samples(report),
        "comparisons": view.comparisons(report),
        "data_parts": data.data_parts(report),
        "notes": data.notes,
    }


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = ("number", "count", "short_count", "size", "duration", "percent", "percent_interval", "signed")
    environment.filters.update({name: getattr(wording, name) for name in (*numbers, "sentence", "markdown")})
    return environment
