"""The commands of README and documentation: found in the text, and held against the real command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer

from bgrpo.cli.app import app
from bgrpo.cli.task_options import generator_options
from bgrpo.config import PretrainConfig, TrainConfig, load_config
from bgrpo.errors import UserError
from bgrpo.settings.values import Section
from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.trial_configs import TrialConfigs
from bgrpo.tasks.chat.__main__ import app as chat_app
from bgrpo.tasks.polynomial.options import GeneratorOptions

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted((REPOSITORY / "docs").rglob("*.md"))

CONFIGURED: dict[str, type[Section]] = {
    "train": TrainConfig,
    "chaos": TrainConfig,
    "evaluate": TrainConfig,
    "pretrain": PretrainConfig,
    "sweep": SweepConfig,
}
USAGE_ERRORS: Any = (click.UsageError, typer.BadParameter.__bases__[0])
"""Of click, and of typer, which may have its own copy."""

_BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
_INLINE = re.compile(r"`((?:bgrpo|make|ray job submit|python -m ray_jobs\.\w+) [^`]*)`")


def commands_of(text: str) -> Iterator[tuple[str, str]]:
    """(command, mark) of every line of the shell blocks and every command within a sentence; ``# mark`` may follow."""
    for block in _BLOCK.findall(text):
        for line in block.splitlines():
            command, _, mark = line.partition("  # ")
            yield command.strip(), mark.strip()
    yield from ((command, "") for command in _INLINE.findall(_BLOCK.sub("", text)))


def check(command: str, mark: str = "") -> str | None:
    """What is wrong with a command; it is not run. One that the project does not have must be marked ``needs …``."""
    words = shlex.split(command.replace("…", ""))
    if mark == "needs a finished run":
        words = [word.replace("runs/RUN/config.yaml", "quickstart") for word in words]
    if words[:3] == ["ray", "job", "submit"]:
        words = words[words.index("--") + 1 :] if "--" in words else ["bgrpo", "train"]
    if words[:3] == ["python", "-m", "bgrpo.tasks.chat"]:
        return _check_command(words[3:], chat_app, "python -m bgrpo.tasks.chat")
    if words[:2] == ["python", "-m"]:
        words = ["bgrpo", words[2].removeprefix("ray_jobs."), *words[3:]]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE)
        return None if set(words[1:]) <= set(targets) else f"{command}: no such target in the Makefile"
    if words[0] == "bgrpo":
        return _check_bgrpo(words[1:])
    return None if mark.startswith("needs ") else f"{command}: cannot be checked, and is not marked '# needs …'"


def _check_bgrpo(words: list[str]) -> str | None:
    if words[0].isupper():  # COMMAND
        return None
    return _check_command(words, app, "bgrpo")


def _check_command(words: list[str], group: typer.Typer, program: str) -> str | None:
    command: Any = typer.main.get_command(group)
    name = words[0]
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            return f"{program}: no command {words[:1]}"
        command, words = command.commands[words[0]], words[1:]
    try:
        context = command.make_context(name, [word for word in words if word != "--help"])
        if name == "generate-data":
            GeneratorOptions.from_dict(generator_options(context.args))
    except (*USAGE_ERRORS, UserError) as error:
        # A sentence may name a command without all that it needs.
        return None if not words and "Missing" in str(error) else f"{program} {name} {shlex.join(words)}: {error}"
    given = context.params
    if name in CONFIGURED and given.get("resume") is None:
        return _check_config(name, given["config"], given.get("overrides") or [])
    return None


def _check_config(command: str, config: str | None, overrides: list[str]) -> str | None:
    try:
        loaded = load_config(CONFIGURED[command], config, overrides)
        if isinstance(loaded, SweepConfig):
            TrialConfigs(loaded, Path("runs")).check()
    except UserError as error:
        return f"bgrpo {command}: {error}"
    return None
