"""README.md of a release, in Japanese and English, with the front matter that model hubs read.

What it claims is copied from the report, the files and the list of data sources. `CardConfig` adds words and the
recipe's own numbers, each published or chosen, with its source or its reason.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.errors import UserError, require_at_least
from common.known_benchmarks import asked_in
from common.provenance import DataSource
from eval.report import Choice, wording
from export import licences
from export.card import tables
from export.card.prompt import check_system, encoding_of, modelfile, read_prompt, recommended
from export.licences import LICENCE_PAGE, LICENCE_TEXTS, ModelLicence

CARD, MODELFILE, LICENCE_TEXT = "README.md", "Modelfile", "LICENSE"
CARD_FILES = (CARD, MODELFILE, LICENCE_TEXT, LICENCE_PAGE)
"""Names of all that `write_card` may write."""
MODEL = "model"
"""The kind of a source that is a published model, and no data."""
APACHE = "Apache-2.0"
QUESTION = "こんにちは。"
_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """The recommended sampling of answers. A field that is None is left to the app."""

    temperature: float | None = None
    """0 takes the likeliest token."""
    top_p: float | None = None
    """Share of the probability to draw from, above 0 and at most 1."""
    top_k: int | None = None
    """Number of the likeliest tokens to draw from."""
    source: str | None = None
    """Where these numbers are published; None = chosen."""
    reason: str | None = None
    """Why they were chosen; required for numbers without a source."""

    def __post_init__(self) -> None:
        next_step = "correct card.sampling in the recipe"
        if self.parameters() and not (self.source or self.reason):
            raise UserError(
                "empty",
                wanted="a source of the sampling parameters, or the reason why they were chosen",
                got="neither",
                next_step="set card.sampling.source or card.sampling.reason in the recipe",
            )
        require_at_least(0, temperature=self.temperature, next_step=next_step)
        require_at_least(1, top_k=self.top_k, next_step=next_step)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            wanted = "top_p above 0 and at most 1"
            raise UserError("out-of-range", wanted=wanted, got=f"{self.top_p:g}", next_step=next_step)

    def parameters(self) -> dict[str, float]:
        """The values that are set, by Ollama's names."""
        named = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class CardConfig:
    """What a model card says that no manifest knows."""

    title: str | None = None
    """The model's name; None takes the report's title, else the stem of the files' names."""
    description_ja: str | None = None
    """What the model is, one sentence in Japanese; None says only that it is a language model."""
    description_en: str | None = None
    """The same in English."""
    base_models: tuple[str, ...] = ()
    """Models that it was started or taught from, `org/name` on the hub each; those among its sources follow anyway."""
    licence: str | None = None
    """The model's licence, an SPDX expression or a name; None lists the terms of what it was made from."""
    system_prompt: str | None = None
    """The recommended system prompt; None leaves it to the model's template."""
    sampling: Sampling = Sampling()
    choices: tuple[Choice, ...] = ()
    """The recipe's numbers that a reader may ask about."""

    def __post_init__(self) -> None:
        for name in self.base_models:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
                raise UserError(
                    "wrong-format",
                    wanted="names of models on the hub, org/name",
                    got=repr(name),
                    next_step="correct card.base_models in the recipe",
                )
        if self.system_prompt is not None:
            check_system(self.system_prompt)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What is in a release when its card is written."""

    folder: Path
    models: Mapping[str, int]
    """GGUF files and Core ML packages by name, with their bytes."""
    sources: Sequence[DataSource]
    report: Mapping[str, Any] | None
    """Content of report.json; None where nothing was measured."""
    has_page: bool
    """Whether report.html is there."""


def write_card(config: CardConfig, contents: Contents) -> list[str]:
    """Write README.md, and the licence and the `Modelfile` where there can be one, into a release.

    Returns:
        The names of the files that were written.

    Raises:
        UserError: a GGUF file that cannot be read.
    """
    first = recommended([name for name in contents.models if name.endswith(".gguf")])
    turns = [{"role": "user", "content": QUESTION}]
    if config.system_prompt is not None:
        turns.insert(0, {"role": "system", "content": config.system_prompt})
    prompt = None if first is None else read_prompt(contents.folder / first, turns)
    licence = licences.licence_of(contents.sources, config.licence)
    written = _licence_files(contents.folder, licence)
    if first is not None and prompt is not None and prompt.is_chatml:
        parameters = config.sampling.parameters()
        written[MODELFILE] = modelfile(first, prompt, system=config.system_prompt, parameters=parameters)
    written[CARD] = rendered(
        CARD,
        **_words(config, contents, licence),
        **_numbers(contents),
        **tables.choices(config.choices, contents.report),
        first=first,
        prompt=prompt,
        has_modelfile=MODELFILE in written,
        llama_arguments=None if first is None else _llama_arguments(config, first),
    )
    for name, text in written.items():
        (contents.folder / name).write_text(text, encoding="utf-8")
    return list(written)


def _words(config: CardConfig, contents: Contents, licence: ModelLicence | None) -> dict[str, Any]:
    """Names, terms and duties."""
    sources = contents.sources
    models = (source.name for source in sources if source.stage == MODEL and "/" in source.name)
    base_models = list(dict.fromkeys([*config.base_models, *models]))
    title = config.title or (contents.report or {}).get("title") or _stem(contents.models) or "A model"
    return {
        "front_matter": _front_matter(contents, licence, title, base_models),
        "title": title,
        "config": config,
        "licence": None if licence is None else licence.name or licence.identifier,
        "is_gathered": licence is not None and licence.is_gathered,
        "base_models": base_models,
        "data": list(dict.fromkeys((source.name, source.licence) for source in sources if source.stage != MODEL)),
        "unstated": licences.unstated(sources),
        "attributions": licences.attributions(sources),
        "duties": licences.duties(sources),
        "must_be_renamed": licences.needs_llama_name(sources) and not title.startswith(licences.LLAMA),
        "without_text": licences.without_text(contents.folder, sources, base_models),
        "has_texts": (contents.folder / LICENCE_TEXTS).is_dir(),
    }


def _numbers(contents: Contents) -> dict[str, Any]:
    """The tables."""
    report = contents.report
    encodings = {name: encoding_of(name) for name in contents.models if name.endswith(".gguf")}
    phone_columns, phone_rows = tables.phones(report)
    return {
        "has_report": report is not None,
        "has_page": contents.has_page,
        "making": tables.making(report),
        "files": tables.files(contents.models, encodings, report),
        "scores": tables.scores(report),
        "benchmarks": asked_in(report["tasks"]) if report is not None else [],
        "is_scored_as_chat": tables.is_scored_as_chat(report),
        "fidelity": tables.fidelity(report),
        "phone_columns": phone_columns,
        "phone_rows": phone_rows,
        "speeds": tables.speeds(report),
        "gaps": tables.gaps(report),
    }


def _front_matter(contents: Contents, licence: ModelLicence | None, title: str, base_models: list[str]) -> str:
    """The fields that model hubs read, as YAML whose values are JSON, so that no name can become markup."""
    endings = {"gguf": ".gguf", "coreml": ".mlpackage"}
    kinds = [kind for kind, ending in endings.items() if any(name.endswith(ending) for name in contents.models)]
    fields: dict[str, str | list[str]] = {
        **licences.hub_licence(licence),
        "model_name": title,
        "language": ["ja", "en"],
        "pipeline_tag": "text-generation",
        "tags": [*kinds, "japanese", "on-device"],
        "base_model": base_models,
        "base_model_relation": "finetune" if base_models else [],
        "datasets": licences.datasets(contents.sources),
    }
    return "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in fields.items() if value)


def _licence_files(folder: Path, licence: ModelLicence | None) -> dict[str, str]:
    """The model's own licence by file name: the text of Apache-2.0, else a page that names the places of the texts."""
    if licence is None:
        return {}
    if licence.identifier == APACHE:
        return {LICENCE_TEXT: (_TEMPLATES / f"{APACHE}.txt").read_text(encoding="utf-8")}
    texts = folder / LICENCE_TEXTS
    page = rendered(
        LICENCE_PAGE,
        licence=licence.name or licence.identifier,
        is_gathered=licence.is_gathered,
        texts=sorted(path.name for path in texts.iterdir() if path.is_dir()) if texts.is_dir() else [],
    )
    return {LICENCE_PAGE: page}


def _stem(names: Iterable[str]) -> str | None:
    """The stem of the first GGUF file's name."""
    return next((name.removesuffix(f"-{encoding_of(name)}.gguf") for name in names if name.endswith(".gguf")), None)


def _llama_arguments(config: CardConfig, name: str) -> str:
    """Arguments of `llama-cli` for a chat with the recommended settings."""
    flags = {"temperature": "--temp", "top_p": "--top-p", "top_k": "--top-k"}
    words = ["-m", name, "-cnv"]
    for parameter, value in config.sampling.parameters().items():
        words += [flags[parameter], f"{value:g}"]
    return shlex.join([*words, *(["-sys", config.system_prompt] if config.system_prompt else [])])


def rendered(name: str, **context: object) -> str:
    """The page `name`, rendered from `templates/<name>.j2`.

    Whatever a template prints is text: `markdown` for words, `link` for addresses, `fenced` for blocks of code.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (wording.count, wording.number, wording.percent, wording.short_count, wording.size, wording.markdown)
    environment.filters |= {function.__name__: function for function in (*filters, fenced, link)}
    return environment.get_template(f"{name}.j2").render(context)


def fenced(text: str) -> str:
    """Text as a block of code, whatever runs of backticks it holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip(chr(10))}\n{fence}"


def link(text: str) -> str:
    """An address as a link in Markdown; anything else as plain text."""
    return f"<{text}>" if re.fullmatch(r"https?://[^\s<>]+", text) else wording.markdown(text)
