"""The model card of a release: README.md in Japanese and English with the front matter that model hubs read.

What it claims is copied from the report, the files and the list of data sources; only `CardConfig` adds words and the
recipe's own numbers, each published or chosen, with its source and its reason. It writes cards and copies no model.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.provenance import DataSource
from eval.report import Choice, view
from eval.report.choices import asked_in
from export import card_terms, card_view
from export.card_prompt import check_system, encoding_of, modelfile, read_prompt, recommended
from export.card_templates import TEMPLATES, rendered
from export.card_terms import LICENCE_PAGE
from export.data_files import MODEL
from export.licences import Licence, licence_of

CARD, MODELFILE, LICENCE_TEXT = "README.md", "Modelfile", "LICENSE"
CARD_FILES = (CARD, MODELFILE, LICENCE_TEXT, LICENCE_PAGE)
"""Names of all that `write_card` may write."""
APACHE = "Apache-2.0"
QUESTION = "こんにちは。"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How answers are best drawn. A field that is None is left to the app."""

    temperature: float | None = None
    """0 takes the likeliest token."""
    top_p: float | None = None
    """Share of the probability to draw from, above 0 and at most 1."""
    top_k: int | None = None
    """Number of the likeliest tokens to draw from."""
    source: str | None = None
    """Where these numbers are published; None = chosen."""
    reason: str | None = None
    """Why they were chosen; asked for where there are numbers and no source."""

    def __post_init__(self) -> None:
        if self.parameters() and not (self.source or self.reason):
            raise UserError(
                wanted="a source of the sampling parameters, or the reason why they were chosen",
                got="neither",
                next_step="Set card.sampling.source or card.sampling.reason in the recipe.",
            )
        temperature, top_p, top_k = self.temperature, self.top_p, self.top_k
        wrong = (temperature is not None and temperature < 0) or (top_p is not None and not 0 < top_p <= 1)
        if wrong or (top_k is not None and top_k < 1):
            raise UserError(
                wanted="temperature of 0 or more, top_p above 0 and at most 1, top_k of 1 or more",
                got=", ".join(f"{name} {value:g}" for name, value in self.parameters().items()),
                next_step="Correct card.sampling in the recipe.",
            )

    def parameters(self) -> dict[str, float]:
        """What is set, by the names that Ollama uses."""
        named = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class CardConfig:
    """What a model card says that no manifest knows."""

    title: str | None = None
    """The model's name; None takes the report's title, else what the files' names begin with."""
    description_ja: str | None = None
    """What the model is, one sentence in Japanese; None says no more than that it is a language model."""
    description_en: str | None = None
    """The same in English."""
    base_models: tuple[str, ...] = ()
    """Models that it was started or taught from, `org/name` on the hub each; those among its sources need no name."""
    licence: str | None = None
    """The model's licence, an SPDX expression or a name; None lists the terms of what it was made from."""
    system_prompt: str | None = None
    """The system prompt that is recommended; None leaves it to the model's template."""
    sampling: Sampling = Sampling()
    choices: tuple[Choice, ...] = ()
    """The recipe's numbers that a reader may ask about."""

    def __post_init__(self) -> None:
        for name in self.base_models:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
                raise UserError(
                    wanted="names of models on the hub, org/name",
                    got=repr(name),
                    next_step="Correct card.base_models in the recipe.",
                )
        if self.system_prompt is not None:
            check_system(self.system_prompt)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What lies in a release when its card is written."""

    folder: Path
    models: Mapping[str, int]
    """GGUF files and Core ML packages by name, with their bytes."""
    sources: Sequence[DataSource]
    report: Mapping[str, Any] | None
    """Content of report.json; None where nothing was measured."""
    has_page: bool
    """Whether report.html lies there."""


def write_card(config: CardConfig, contents: Contents) -> list[str]:
    """Writes README.md, and the licence and the `Modelfile` where there can be one, into a release.

    Returns:
        The names of the files that were written.

    Raises:
        UserError: a GGUF file that cannot be read.
    """
    ggufs = [name for name in contents.models if name.endswith(".gguf")]
    first = recommended(ggufs)
    turns = [{"role": "user", "content": QUESTION}]
    if config.system_prompt is not None:
        turns.insert(0, {"role": "system", "content": config.system_prompt})
    prompt = None if first is None else read_prompt(contents.folder / first, turns)
    licence = licence_of(contents.sources, config.licence)
    written = _licence_files(contents.folder, licence)
    if first is not None and prompt is not None and prompt.is_chatml:
        parameters = config.sampling.parameters()
        text = modelfile(first, prompt, system=config.system_prompt, parameters=parameters)
        written[MODELFILE] = text
    context = {
        **_words(config, contents, licence),
        **_numbers(contents),
        "first": first,
        "prompt": prompt,
        "has_modelfile": MODELFILE in written,
        "llama_arguments": None if first is None else _llama_arguments(config, first),
        "sampling": config.sampling,
        "system_prompt": config.system_prompt,
        **_choices(config, contents),
    }
    written[CARD] = rendered(CARD, **context)
    for name, text in written.items():
        (contents.folder / name).write_text(text, encoding="utf-8")
    return list(written)


def _choices(config: CardConfig, contents: Contents) -> dict[str, Any]:
    """The recipe's numbers: those of the publishers, and those that were chosen."""
    rows = card_view.choice_rows(config.choices, contents.report)
    return {
        "published": [row for row in rows if row.choice.published],
        "chosen": [row for row in rows if not row.choice.published],
    }


def _words(config: CardConfig, contents: Contents, licence: Licence | None) -> dict[str, Any]:
    """Names, terms and what is owed."""
    sources, base_models = contents.sources, _base_models(config, contents)
    title = config.title or (contents.report or {}).get("title") or _stem(contents.models) or "A model"
    return {
        "front_matter": _front_matter(config, contents, licence, title),
        "title": title,
        "config": config,
        "licence": None if licence is None else licence.name or licence.identifier,
        "is_gathered": licence is not None and licence.is_gathered,
        "base_models": base_models,
        "data": list(dict.fromkeys((source.name, source.licence) for source in sources if source.stage != MODEL)),
        "unstated": card_terms.unstated(sources),
        "attributions": card_terms.attributions(sources),
        "obligations": card_terms.obligations(sources),
        "must_be_renamed": card_terms.needs_llama_name(sources) and not title.startswith(card_terms.LLAMA),
        "without_text": card_terms.without_text(contents.folder, sources, base_models),
        "has_texts": (contents.folder / card_terms.LICENCE_TEXTS).is_dir(),
    }


def _numbers(contents: Contents) -> dict[str, Any]:
    """The tables."""
    report = contents.report
    encodings = {name: encoding_of(name) for name in contents.models if name.endswith(".gguf")}
    phone_columns, phone_rows = card_view.phones(report)
    return {
        "has_report": report is not None,
        "has_page": contents.has_page,
        "making": card_view.making(report),
        "files": card_view.file_rows(contents.models, encodings, report),
        "scores": card_view.score_tables(report),
        "has_benchmarks": report is not None and view.has_benchmarks(report),
        "benchmarks": asked_in(report["tasks"]) if report is not None else [],
        "is_scored_as_chat": card_view.is_scored_as_chat(report),
        "fidelity": card_view.fidelity(report),
        "phone_columns": phone_columns,
        "phone_rows": phone_rows,
        "speeds": card_view.speeds(report),
        "gaps": card_view.gaps(report),
    }


def _front_matter(config: CardConfig, contents: Contents, licence: Licence | None, title: str) -> str:
    """The fields that model hubs read, as YAML whose values are JSON, so that no name can become markup."""
    names, base_models = list(contents.models), _base_models(config, contents)
    kinds = {
        "gguf": any(name.endswith(".gguf") for name in names),
        "coreml": any("mlpackage" in name for name in names),
    }
    fields: dict[str, str | list[str]] = {
        **card_terms.hub_licence(licence),
        "model_name": title,
        "language": ["ja", "en"],
        "pipeline_tag": "text-generation",
        "tags": [*(kind for kind, there in kinds.items() if there), "japanese", "on-device"],
        "base_model": base_models,
        "base_model_relation": "finetune" if base_models else [],
        "datasets": card_terms.datasets(contents.sources),
    }
    return "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in fields.items() if value)


def _base_models(config: CardConfig, contents: Contents) -> list[str]:
    """What the recipe names, then the models among the sources."""
    models = (source.name for source in contents.sources if source.stage == MODEL and "/" in source.name)
    return list(dict.fromkeys([*config.base_models, *models]))


def _licence_files(folder: Path, licence: Licence | None) -> dict[str, str]:
    """The model's own licence by file name: the text where it is Apache-2.0, else a page that says where to read on."""
    if licence is None:
        return {}
    if licence.identifier == APACHE:
        return {LICENCE_TEXT: (TEMPLATES / f"{APACHE}.txt").read_text(encoding="utf-8")}
    texts = folder / card_terms.LICENCE_TEXTS
    context = {
        "licence": licence.name or licence.identifier,
        "is_gathered": licence.is_gathered,
        "texts": sorted(path.name for path in texts.iterdir() if path.is_dir()) if texts.is_dir() else [],
    }
    return {LICENCE_PAGE: rendered(LICENCE_PAGE, **context)}


def _stem(names: Iterable[str]) -> str | None:
    """What the first GGUF file's name begins with."""
    return next((name.removesuffix(f"-{encoding_of(name)}.gguf") for name in names if name.endswith(".gguf")), None)


def _llama_arguments(config: CardConfig, name: str) -> str:
    """Arguments of `llama-cli` for a chat with the recommended settings."""
    flags = {"temperature": "--temp", "top_p": "--top-p", "top_k": "--top-k"}
    words = ["-m", name, "-cnv"]
    for parameter, value in config.sampling.parameters().items():
        words += [flags[parameter], f"{value:g}"]
    return shlex.join([*words, *(["-sys", config.system_prompt] if config.system_prompt else [])])
