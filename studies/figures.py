"""`make figures`, `python -m studies.figures`: the figures of the TAID article, from code.

Four figures, each as PNG and SVG, in English and in Japanese, into `dist/figures/`: how t rises, its closed form, mode
averaging and mode collapse, and the measured runs of `make compare`. This module chooses words and fonts and saves;
`studies.figure_panels` draws. No other module loads matplotlib.
"""

import importlib.util
import json
import tomllib
import warnings
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure

from common.cli import command, run
from common.errors import UserError
from studies.figure_panels import STYLE, Words, draw_closed_form, draw_measured, draw_modes, draw_t_simulation
from studies.run_curves import Measured, measured

NAMES = ("t-simulation", "t-closed-form", "modes", "measured")
FONT_PACKAGE = "matplotlib-fontja"


def words_of(language: str) -> Words:
    """The labels of one language."""
    labels = tomllib.loads(Path(__file__).with_name("figure_labels.toml").read_text(encoding="utf-8"))
    return labels[language]


def japanese_font() -> Path | None:
    """The font file of matplotlib-fontja; None if it is not installed. (Importing it would change every plot.)"""
    package = importlib.util.find_spec("matplotlib_fontja")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "fonts" / "ipaexg.ttf"
    return path if path.is_file() else None


def font_families() -> dict[str, list[str]]:
    """Font families by language, Japanese only if its font is installed."""
    families = {"en": ["DejaVu Sans"]}
    path = japanese_font()
    if path is not None:
        font_manager.fontManager.addfont(str(path))
        families["ja"] = [font_manager.FontProperties(fname=str(path)).get_name()]
    return families


def save(figure: Figure, stem: Path) -> None:
    """PNG and SVG. A character that the font lacks raises an error: a box in its place would be overlooked."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph .* missing")
        figure.savefig(stem.with_name(stem.name + ".png"))
        figure.savefig(stem.with_name(stem.name + ".svg"), metadata={"Date": None})


def draw(name: str, words: Words, study: Measured | None) -> Figure:
    """One figure of NAMES, in the present style."""
    if name == "measured":
        return draw_measured(words, study)
    return {"t-simulation": draw_t_simulation, "t-closed-form": draw_closed_form, "modes": draw_modes}[name](words)


def draw_all(out: Path, study: Measured | None) -> list[str]:
    """Every figure in every language with a font; returns the stems of the files."""
    out.mkdir(parents=True, exist_ok=True)
    stems: list[str] = []
    for language, family in font_families().items():
        words = words_of(language)
        with matplotlib.rc_context({**STYLE, "font.family": family}):
            for name in NAMES:
                stems.append(f"{name}-{language}")
                save(draw(name, words, study), out / stems[-1])
    return stems


def read_study(path: Path) -> Measured | None:
    """The TAID runs of a `compare.json`; None if it does not exist or has no curves."""
    if not path.exists():
        return None
    try:
        return measured(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wanted, next_step = f"the JSON of make compare in {path}", "remove it and run make compare"
        raise UserError("wrong-format", wanted=wanted, got=repr(error), next_step=next_step) from error


def main(arguments: list[str]) -> None:
    """Parse the command line and draw."""
    parser = command("studies.figures", "Draw the figures of the article.")
    study = Path("build/compare/compare.json")
    parser.add_argument("--study", type=Path, default=study, metavar="FILE", help="compare.json of make compare")
    parser.add_argument("--out", type=Path, default=Path("dist/figures"), metavar="DIR", help="a folder")
    options = parser.parse_args(arguments)
    found = read_study(options.study)
    stems = draw_all(options.out, found)
    print(f"{options.out}: {', '.join(stems)}, each as .png and .svg")
    if found is None:
        print(f"no measured curves in {options.study}: that figure says so; next: make compare")
    if japanese_font() is None:
        print(f"no Japanese figures: no font; next: .venv/bin/python -m pip install {FONT_PACKAGE}")


if __name__ == "__main__":
    run(main)
