"""Has the code of a stage changed since its version was set? `tests/fingerprints.json` has the code's last fingerprint.

A fingerprint is the sha256 of the bytes of a stage's module and of every product module that it imports, directly or
not. Modules are found by reading lines, without running or parsing them: an import in a function counts, and so does a
module named in a string (child processes are started by name), or a data file in the module's folder that it names.
A change of a stage's output needs a new version in `@stage(version=..)`; any other is recorded with `--same-output`,
and the reason belongs in the commit message.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.disk import replace_text
from common.errors import UserError, unknown_name

ROOT = Path(__file__).parents[1]
RECORD = Path("tests/fingerprints.json")
PACKAGES = ("recipes", "distill", "instruct", "export", "eval", "common")
ALL = "all"

Entries = dict[str, dict[str, Any]]

_STAGE = re.compile(r"^@stage\(version=(\d+)(?:, .*)?\)\s*\ndef (\w+)\(", re.MULTILINE)
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)|import[ \t]+([^\n]+))", re.MULTILINE
)
_QUOTED = re.compile(rf"""["']((?:{"|".join(PACKAGES)})(?:\.\w+)+)["']""")


@dataclass(frozen=True, slots=True)
class Rewritten:
    """One line that `rewrite` changed."""

    stage: str
    version: int
    why: str


def recorded(root: Path = ROOT) -> Entries:
    """The recorded fingerprints: stage ("module:function") to `{version, sha256}`; empty where there is no file yet."""
    path = root / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def current(root: Path = ROOT) -> Entries:
    """The fingerprints of the present code, in the same form."""
    entries: Entries = {}
    for path in (file for package in PACKAGES for file in (root / package).rglob("*.py")):
        for version, function in _STAGE.findall(_text(path)):
            module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            entries[f"{module}:{function}"] = {"version": int(version), "sha256": fingerprint(module, root)}
    return dict(sorted(entries.items()))


def fingerprint(module: str, root: Path = ROOT) -> str:
    """sha256 over path, size and bytes of `files_of(module)`."""
    digest = hashlib.sha256()
    for path in files_of(module, root):
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def files_of(module: str, root: Path = ROOT) -> list[Path]:
    """The module's own file and the product's files that it imports or reads, directly or not, sorted."""
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        for path in _module_files(waiting.pop(), root):
            if path not in found:
                found.add(path)
                waiting += _mentioned_modules(_text(path))
    return sorted(found | {data for path in found for data in _data_files(path)})


def rewrite(stages: Sequence[str], *, same_output: bool, root: Path = ROOT) -> list[Rewritten]:
    """Record the present fingerprints of `stages`: "module:function", a function's name alone, or "all".

    Raises:
        UserError: an unknown stage, or changed code with an unchanged version, without `same_output`.
    """
    now, before = current(root), recorded(root)
    wanted = list(now) if ALL in stages else [_full_name(stage, now) for stage in stages]
    after = {stage: entry for stage, entry in before.items() if stage in now}
    changes: list[Rewritten] = []
    for stage in wanted:
        if before.get(stage) != now[stage]:
            why = _reason(stage, before.get(stage), now[stage], same_output)
            changes.append(Rewritten(stage, now[stage]["version"], why))
            after[stage] = now[stage]
    replace_text(root / RECORD, json.dumps(dict(sorted(after.items())), indent=2) + "\n")
    return changes


def _reason(stage: str, before: dict[str, Any] | None, now: dict[str, Any], same_output: bool) -> str:
    if before is None:
        return "new"
    if before["version"] != now["version"]:
        return f"version {before['version']} to {now['version']}"
    if same_output:
        return "same output"
    wanted, got = f"a new version of {stage}, or --same-output --reason TEXT", f"changed code, version {now['version']}"
    next_step = "raise version in its @stage(version=..) where the output changes"
    raise UserError("contradiction", wanted=wanted, got=got, next_step=next_step)


def _full_name(stage: str, known: Entries) -> str:
    matches = [name for name in known if stage in (name, name.partition(":")[2])]
    if len(matches) != 1:
        raise unknown_name("a stage, in full where several have the name", repr(stage), (*known, ALL))
    return matches[0]


def _module_files(module: str, root: Path) -> Iterator[Path]:
    """The files that run when `module` is imported: its own and its packages'; none for a module from elsewhere."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return
    own = [root.joinpath(*parts).with_suffix(".py"), root.joinpath(*parts, "__init__.py")]
    if not any(path.is_file() for path in own):
        return
    parents = [root.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts))]
    yield from (path for path in (*parents, *own) if path.is_file())


def _mentioned_modules(text: str) -> Iterator[str]:
    for origin, names, plain in _IMPORT.findall(text):
        if origin:
            yield origin
            words = re.findall(r"^\s*(\w+)", re.sub(r"#[^\n]*", "", names.strip("()")).replace(",", "\n"), re.MULTILINE)
            yield from (f"{origin}.{word}" for word in words)
        else:
            yield from (part.split()[0] for part in plain.split(",") if part.strip())
    yield from _QUOTED.findall(text)


def _data_files(module: Path) -> Iterator[Path]:
    """Files that are not Python, in or below the folder of a module, where its text names them or their folder."""
    if module.parent.parent == module.parent:
        return
    text = _text(module)
    for path in sorted(module.parent.rglob("*")):
        hidden = any(part.startswith((".", "__pycache__")) for part in path.relative_to(module.parent).parts)
        if path.is_file() and path.suffix not in (".py", ".pyc") and not hidden:
            names = {path.name, *path.relative_to(module.parent).parent.parts}
            if any(re.search(rf"\b{re.escape(name)}\b", text) for name in names):
                yield path


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
