"""Pages that come from the repository while Sphinx reads: whole files, configuration keys, and where a test runs.

- A page listed in :data:`FILES` is a file of the repository. Links to these files lead to their pages, everywhere.
- A line ``<!-- configuration: module:Class -->`` becomes tables of every key of that class.
- A line ``<!-- commands: module:app -->`` becomes the usage and the options of every command of that typer application.
- A table whose last column is ``kept by`` gets a column that says whether ``make test`` or ``make test-all`` runs the
  tests named in it.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
from pathlib import Path
from typing import Any

import typer
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from bgrpo.settings.key_table import Key, keys_of, sections
from bgrpo.settings.values import Section

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = {
    "security": "SECURITY.md",
    "overview": "README.md",
    "runbook": "cluster/README.md",
    "contributing": "CONTRIBUTING.md",
    "changes": "CHANGELOG.md",
    "shipped_policy": "bgrpo/assets/policy/README.md",
}
PAGE_OF = {file: f"docs/{page}.md" for page, file in FILES.items()}

_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")
_MARK = re.compile(r"^<!-- (configuration|commands): ([\w.]+):(\w+) -->$", re.MULTILINE)
_TEST = re.compile(r"tests/[\w/]+\.py")


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Sphinx's ``source-read``: replace the text of a page."""
    page = f"docs/{docname}.md"
    file = FILES.get(docname, page)
    if file != page:
        app.env.note_dependency(str(REPOSITORY / file))
        source[0] = (REPOSITORY / file).read_text("utf-8")
    source[0] = moved_links(source[0], file, page)
    for _, module, _ in _MARK.findall(source[0]):
        app.env.note_dependency(str(Path(importlib.import_module(module).__file__ or "")))
    source[0] = with_runs_in(_MARK.sub(_table, source[0]))


def moved_links(text: str, file: str, page: str) -> str:
    """The relative links of ``file``, as they must be in ``page``; a file that is a page becomes that page."""

    def moved(found: re.Match[str]) -> str:
        target = (REPOSITORY / file).parent.joinpath(found[1]).resolve().relative_to(REPOSITORY).as_posix()
        target = PAGE_OF.get(target, target)
        return f"]({os.path.relpath(target, Path(page).parent)}{found[2] or ''})"

    return _LINK.sub(moved, text)


def _table(mark: re.Match[str]) -> str:
    what = getattr(importlib.import_module(mark[2]), mark[3])
    return key_tables(what) if mark[1] == "configuration" else command_tables(typer.main.get_command(what), "bgrpo")


def key_tables(model: type[Section]) -> str:
    """Markdown: a table of the model's own keys, then one under a heading for each section."""
    parts = []
    for prefix, part, values in sections(model):
        doc = (part.__doc__ or "").strip()
        table = ["| key | takes | default | what it is |", "|---|---|---|---|"]
        table += [_row(key) for key in keys_of(part, prefix, values)]
        heading = (
            [f"### `{prefix.rstrip('.')}`", "", *(line.strip() for line in doc.splitlines()), ""] if prefix else []
        )
        parts.append("\n".join([*heading, *table]))
    return "\n\n".join(parts)


def _row(key: Key) -> str:
    if not key.description:
        raise ExtensionError(f"configuration key {key.name} has no description")
    cells = [f"`{key.name}`", key.takes, f"`{key.default}`", key.description]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def command_tables(command: Any, path: str) -> str:
    """Markdown: every command below ``command`` under a heading of its own, with its arguments and options."""
    if hasattr(command, "commands"):
        return "\n\n".join(command_tables(part, f"{path} {name}") for name, part in command.commands.items())
    rows = [f"| `{_spelled(option)}` | {option.help} | {_given(option.default)} |" for option in command.params]
    head = [f"## `{path}`", "", command.help, "", "| argument or option | what it is | default |", "|---|---|---|"]
    return "\n".join([*head, *rows, "| `--help` | Show this. | |"])


def _spelled(option: Any) -> str:
    is_argument = option.param_type_name == "argument"
    return str(option.metavar) if is_argument else ", ".join([*option.opts, *option.secondary_opts])


def _given(default: Any) -> str:
    return "" if default is None or default is False else f"`{default}`"


def with_runs_in(text: str) -> str:
    """Add the column ``runs in`` to every table whose last column is ``kept by``."""
    lines, inside = text.splitlines(), False
    for i, line in enumerate(lines):
        if line.startswith("|") and line.rstrip().endswith("| kept by |"):
            inside = True
            lines[i] = f"{line.rstrip()} runs in |"
        elif not line.startswith("|"):
            inside = False
        elif inside:
            lines[i] = f"{line.rstrip()} " + ("--- |" if set(line) <= set("|-: ") else f"{runs_in(line)} |")
    return "\n".join(lines) + "\n"


def runs_in(row: str) -> str:
    """Which command runs the tests that a row names."""
    kinds = {kind for file in _TEST.findall(row) for kind in lengths(REPOSITORY / file)}
    if not kinds:
        raise ExtensionError(f"no test is named in the row {row!r}")
    return {
        "short": "`make test`",
        "long": "`make test-all`",
        "longshort": "`make test`, more in `make test-all`",
    }["".join(sorted(kinds))]


def lengths(file: Path) -> set[str]:
    """``short``, ``long`` or both: what the tests of a file are, by their marks."""
    if not file.is_file():
        raise ExtensionError(f"{file.relative_to(REPOSITORY)} is named as keeping a promise, and does not exist")
    tree = ast.parse(file.read_text("utf-8"))
    whole = [node.value for node in tree.body if isinstance(node, ast.Assign) and _targets(node) == ["pytestmark"]]
    if any(_mentions_long(mark) for mark in whole):
        return {"long"}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = [mark for mark in node.decorator_list if _mentions_long(mark)]
            found |= {"long"} if marks else {"short"}
            found |= {"short"} if marks and all(isinstance(mark, ast.Call) for mark in marks) else set()  # some cases
    return found


def _targets(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def _mentions_long(mark: ast.expr) -> bool:
    return any(isinstance(part, ast.Attribute) and part.attr == "long" for part in ast.walk(mark))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", read_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
