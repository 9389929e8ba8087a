"""The documentation builds without a warning, misses nothing that it is made from, and links to what is there."""

from __future__ import annotations

import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bgrpo.cli.app import app
from bgrpo.config import PretrainConfig, TrainConfig
from bgrpo.settings.key_table import known_keys
from bgrpo.sweep.sweep_config import SweepConfig

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
NOT_BUILT = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]

sys.path.insert(0, str(DOCS / "_extensions"))
from repository_pages import key_tables, lengths, moved_links, runs_in, with_runs_in  # noqa: E402


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """As ``make docs`` does."""
    (flags,) = re.findall(r"python -m sphinx (.*) docs docs/_build", (REPOSITORY / "Makefile").read_text("utf-8"))
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *flags.split(), "-d", str(out / "doctrees"), str(source), str(out / "html")],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs")
    done = build(DOCS, out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out / "html"


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text("utf-8")))


def test_every_configuration_key_is_on_its_page(built: Path) -> None:
    text = text_of(built / "reference" / "configuration.html")
    keys = [key for model in (TrainConfig, PretrainConfig, SweepConfig) for key in known_keys(model)]
    assert len(keys) > 120
    assert [key for key in keys if not re.search(rf"(?<![\w.]){re.escape(key)}\b", text)] == []
    assert "fp32" in text
    assert "weight of the KL to the reference policy" in text


def test_an_unset_key_is_null_as_it_would_be_typed() -> None:
    (row,) = (row for row in key_tables(TrainConfig).splitlines() if row.startswith("| `advantage.kind` |"))
    _, values, default, _ = row.split(" | ")
    assert "none" in values
    assert values.endswith("or null")
    assert default == "`null`"


def test_every_command_and_option_is_on_its_page(built: Path) -> None:
    text = text_of(built / "reference" / "commands.html")
    commands = [([name], command) for name, command in typer.main.get_command(app).commands.items()]  # type: ignore[attr-defined]
    for path, command in commands:
        commands += [([*path, name], part) for name, part in getattr(command, "commands", {}).items()]
    leaves = [(path, command) for path, command in commands if not hasattr(command, "commands")]
    assert len(leaves) > 15
    for path, command in leaves:
        assert "bgrpo " + " ".join(path) in text
        assert [
            option for part in command.params for option in part.opts if part.opts[0][0] == "-" and option not in text
        ] == []


def test_files_of_the_repository_are_pages(built: Path) -> None:
    assert "Who can reach" not in text_of(built / "index.html")
    assert "What the files in cluster/ close" in text_of(built / "security.html")
    assert "Lose a node" in text_of(built / "runbook.html")
    assert 'href="security.html"' in (built / "runbook.html").read_text("utf-8")


def test_the_promises_say_which_command_runs_their_tests(built: Path) -> None:
    rows = re.findall(r"<tr.*?</tr>", (built / "what_survives.html").read_text("utf-8"), re.DOTALL)
    promises = [row for row in rows if "tests/" in row]
    assert len(promises) > 30
    cells = [re.sub(r"<[^>]+>", "", "<td" + row.rpartition("<td")[2]).strip() for row in promises]
    assert set(cells) <= {"make test", "make test, more in make test-all"}, "each promise keeps a short test"


def test_a_broken_reference_fails_the_build(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_text("extensions = ['myst_parser']\nmyst_heading_anchors = 3\n")
    (source / "index.md").write_text("# A\n\n[here](#a), [there](index.md#nowhere), [away](absent.md)\n")
    done = build(source, tmp_path)
    assert done.returncode != 0
    assert "nowhere" in done.stderr
    assert "absent" in done.stderr


def test_a_promise_whose_test_is_missing_fails() -> None:
    with pytest.raises(Exception, match="test_that_was_never_written"):
        runs_in("| a | `tests/test_that_was_never_written.py` |")
    with pytest.raises(Exception, match="no test is named"):
        with_runs_in("| promise | kept by |\n|---|---|\n| a | somebody |\n")


def test_marks_say_how_long_the_tests_of_a_file_are(tmp_path: Path) -> None:
    def marked(text: str) -> set[str]:
        (tmp_path / "test_it.py").write_text(text)
        return lengths(tmp_path / "test_it.py")

    short, long = "def test_a(): ...\n", "@pytest.mark.long\ndef test_b(): ...\n"
    assert marked(short) == {"short"}
    assert marked(long) == {"long"}
    assert marked(short + long) == {"short", "long"}
    assert marked("pytestmark = [pytest.mark.ray, pytest.mark.long]\n" + short) == {"long"}
    some = "@pytest.mark.parametrize('n', [1, pytest.param(2, marks=pytest.mark.long)])\ndef test_c(n): ...\n"
    assert marked(some) == {"short", "long"}


def test_links_of_an_included_file_follow_it() -> None:
    moved = moved_links(
        "[a](../SECURITY.md#x) [b](#y) [c](https://a.b/c) [d](compose.yaml)", "cluster/README.md", "docs/runbook.md"
    )
    assert moved == "[a](security.md#x) [b](#y) [c](https://a.b/c) [d](../cluster/compose.yaml)"


@pytest.mark.parametrize("page", NOT_BUILT, ids=lambda page: page.name)
def test_links_of_pages_that_sphinx_does_not_follow_lead_somewhere(page: Path) -> None:
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text("utf-8")):
        target = page.parent / file if file else page
        assert target.exists(), file
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            assert anchor in [slug(title) for title in titles], f"{file}#{anchor}"


def test_every_path_of_the_repository_that_a_page_names_is_there() -> None:
    pages = [*NOT_BUILT, REPOSITORY / "SECURITY.md", *DOCS.rglob("*.md")]
    named = {
        (page.name, path)
        for page in pages
        for path in re.findall(r"`((?:bgrpo|cluster|ray_jobs|tests|docs)/[\w/.]+)`", page.read_text("utf-8"))
        if "_build" not in path
    }
    assert len(named) > 60
    assert [(page, path) for page, path in sorted(named) if not (REPOSITORY / path).exists()] == []


def test_the_modules_that_the_changelog_sends_to_are_there() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text("utf-8").split("### Layout")[1].split("###")[0]
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("| `")]
    modules = {module for row in rows for module in re.findall(r"`(bgrpo[\w.]+)`", row)}
    assert len(modules) > 15
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []


def slug(title: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_the_readme_is_read_in_three_minutes() -> None:
    assert len((REPOSITORY / "README.md").read_text("utf-8").split()) <= 1000
