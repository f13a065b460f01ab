"""README.md of a release, in Japanese and English, with the front matter that model hubs read.

What it claims is copied from the report, the files and the list of data sources. `CardConfig` adds words and the
recipe's own numbers, each published or chosen, with its source or its reason.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.errors import UserError, require_above, require_at_least, require_between
from common.provenance import MODEL, DataSource
from eval.report import Choice, wording
from export import licences
from export.card import tables
from export.card.prompt import check_system, encoding_of, modelfile, read_prompt, recommended
from export.licences import LICENCE_PAGE, LICENCE_TEXTS, ModelLicence

CARD, MODELFILE, LICENCE_TEXT = "README.md", "Modelfile", "LICENSE"
CARD_FILES = (CARD, MODELFILE, LICENCE_TEXT, LICENCE_PAGE)
"""Names of all that `write_card` may write."""
PAGE, REPORT = "report.html", "report.json"
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
        if self.parameters() and not (self.source or self.reason):
            wanted = "a source of the sampling parameters, or the reason why they were chosen"
            next_step = "set card.sampling.source or card.sampling.reason in the recipe"
            raise UserError("empty", wanted=wanted, got="neither", next_step=next_step)
        next_step = "correct card.sampling in the recipe"
        require_between(0, 1, top_p=self.top_p, next_step=next_step)
        require_above(0, top_p=self.top_p, next_step=next_step)
        require_at_least(0, temperature=self.temperature, next_step=next_step)
        require_at_least(1, top_k=self.top_k, next_step=next_step)

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
                wanted, next_step = "names of models on the hub, org/name", "correct card.base_models in the recipe"
                raise UserError("wrong-format", wanted=wanted, got=repr(name), next_step=next_step)
        if self.system_prompt is not None:
            check_system(self.system_prompt)


def write_card(config: CardConfig, folder: Path, models: Mapping[str, int], sources: Sequence[DataSource]) -> list[str]:
    """Write README.md, and the licence and the `Modelfile` where there can be one, into a release; return their names.

    Everything else is in the `folder` already, also the report where there is one. `models` are the GGUF files and the
    Core ML packages by name, with their bytes.

    Raises:
        UserError: a GGUF file that cannot be read.
    """
    report = json.loads((folder / REPORT).read_text(encoding="utf-8")) if (folder / REPORT).is_file() else None
    first = recommended([name for name in models if name.endswith(".gguf")])
    turns = [{"role": "user", "content": QUESTION}]
    if config.system_prompt is not None:
        turns.insert(0, {"role": "system", "content": config.system_prompt})
    prompt = None if first is None else read_prompt(folder / first, turns)
    licence = licences.licence_of(sources, config.licence)
    written = _licence_files(folder, licence)
    if first is not None and prompt is not None and prompt.is_chatml:
        parameters = config.sampling.parameters()
        written[MODELFILE] = modelfile(first, prompt, system=config.system_prompt, parameters=parameters)
    title = config.title or (report or {}).get("title") or _stem(models) or "A model"
    named = (source.name for source in sources if source.stage == MODEL and "/" in source.name)
    base_models = list(dict.fromkeys([*config.base_models, *named]))
    written[CARD] = rendered(
        CARD,
        front_matter=_front_matter(models, sources, licence, title, base_models),
        title=title,
        config=config,
        base_models=base_models,
        **_terms(folder, sources, licence),
        must_be_renamed=licences.needs_llama_name(sources) and not title.startswith(licences.LLAMA),
        without_text=licences.without_text(folder, sources, base_models),
        **tables.numbers(report, models, config.choices),
        has_page=(folder / PAGE).is_file(),
        first=first,
        prompt=prompt,
        has_modelfile=MODELFILE in written,
        llama_arguments=None if first is None else _llama_arguments(config, first),
    )
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    return list(written)


def _terms(folder: Path, sources: Sequence[DataSource], licence: ModelLicence | None) -> dict[str, Any]:
    """What the page says of licences and duties."""
    return {
        "licence": licence and licence.words,
        "is_gathered": licence is not None and licence.is_gathered,
        "data": list(dict.fromkeys((source.name, source.licence) for source in sources if source.stage != MODEL)),
        "unstated": licences.unstated(sources),
        "attributions": licences.attributions(sources),
        "duties": licences.duties(sources),
        "has_texts": (folder / LICENCE_TEXTS).is_dir(),
    }


def _front_matter(
    models: Iterable[str],
    sources: Sequence[DataSource],
    licence: ModelLicence | None,
    title: str,
    base_models: list[str],
) -> str:
    """The fields that model hubs read, as YAML whose values are JSON, so that no name can become markup."""
    endings = {"gguf": ".gguf", "coreml": ".mlpackage"}
    kinds = [kind for kind, ending in endings.items() if any(name.endswith(ending) for name in models)]
    fields: dict[str, str | list[str]] = {
        **licences.hub_licence(licence),
        "model_name": title,
        "language": ["ja", "en"],
        "pipeline_tag": "text-generation",
        "tags": [*kinds, "japanese", "on-device"],
        "base_model": base_models,
        "base_model_relation": "finetune" if base_models else [],
        "datasets": licences.datasets(sources),
    }
    return "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in fields.items() if value)


def _licence_files(folder: Path, licence: ModelLicence | None) -> dict[str, str]:
    """The model's own licence by file name: the text of Apache-2.0, else a page that names the places of the texts."""
    if licence is None:
        return {}
    if licence.identifier == APACHE:
        return {LICENCE_TEXT: (_TEMPLATES / f"{APACHE}.txt").read_text(encoding="utf-8")}
    folders = (path for path in (folder / LICENCE_TEXTS).glob("*") if path.is_dir())
    texts, gathered = sorted(path.name for path in folders), licence.is_gathered
    return {LICENCE_PAGE: rendered(LICENCE_PAGE, licence=licence.words, is_gathered=gathered, texts=texts)}


def _stem(names: Iterable[str]) -> str | None:
    """The stem of the first GGUF file's name."""
    return next((name.removesuffix(f"-{encoding_of(name)}.gguf") for name in names if name.endswith(".gguf")), None)


def _llama_arguments(config: CardConfig, name: str) -> str:
    """Arguments of `llama-cli` for a chat with the recommended settings."""
    flags = {"temperature": "--temp", "top_p": "--top-p", "top_k": "--top-k"}
    chosen = ((flags[parameter], f"{value:g}") for parameter, value in config.sampling.parameters().items())
    system = ("-sys", config.system_prompt) if config.system_prompt else ()
    return shlex.join(["-m", name, "-cnv", *chain.from_iterable(chosen), *system])


def rendered(name: str, **context: object) -> str:
    """The page `name`, rendered from `templates/<name>.j2`.

    Whatever a template prints is text: `markdown` for words, `link` for addresses, `fenced` for blocks of code.
    """
    loader = FileSystemLoader(_TEMPLATES)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters = (wording.count, wording.number, wording.percent, wording.short_count, wording.size, wording.markdown)
    environment.filters |= {function.__name__: function for function in (*filters, fenced, link)}
    return environment.get_template(f"{name}.j2").render(context)


def fenced(text: str) -> str:
    """Text as a block of code, whatever runs of backticks it holds."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}text\n{text.rstrip(chr(10))}\n{fence}"


def link(text: str) -> str:
    """An address as a link in Markdown; anything else as plain text."""
    return f"<{text}>" if re.fullmatch(r"https?://[^\s<>]+", text) else wording.markdown(text)
