"""How every command names its task: ``--task NAME --task-option KEY=VALUE``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from bgrpo.config import TaskSection, load_config
from bgrpo.display.terminal import progress_bar
from bgrpo.errors import UserError, one_line
from bgrpo.settings.strict_yaml import parse_yaml
from bgrpo.settings.typed import settle
from bgrpo.tasks.base import Outcome, Problem, Task, ability, load_file, load_task

T = TypeVar("T")


def task_overrides(name: str | None, options: Iterable[str]) -> list[str]:
    """What the options mean for a configuration: overrides of its section ``task``.

    Raises:
        UserError: an option that is not ``KEY=VALUE``.
    """
    overrides = [] if name is None else [f"task.name={name}"]
    for option in options:
        key, equals, _ = option.partition("=")
        if not key or not equals:
            raise UserError(f"--task-option {option}: expected KEY=VALUE")
        overrides.append(f"task.options.{option}")
    return overrides


def named_task(name: str | None, options: Iterable[str]) -> Task:
    """The task of a command that reads no configuration; the default is the configuration's default."""
    overrides = [override.removeprefix("task.") for override in task_overrides(name, options)]
    section = load_config(TaskSection, None, overrides)
    return load_task(section.name, section.options)


def load_problems(task: Task, path: Path) -> list[Problem]:
    """Problems of a file; says on standard error how many lines' own answers are not correct."""
    with progress_bar("reading problems") as show:
        loaded = load_file(task, path, progress=show)
    bad = {name: count for name, count in loaded.outcomes.items() if count and name != Outcome.CORRECT}
    if bad:
        found = ", ".join(f"{count} {name}" for name, count in bad.items())
        total = sum(loaded.outcomes.values())
        print(f"note: {path}: own answers of {total} lines: {found}; trivial problems are left out", file=sys.stderr)
    return loaded.problems


def checked_ability(task: Task, method: str, purpose: str, shape: type[T]) -> Callable[..., T]:
    """A method that a task may have, see :func:`bgrpo.tasks.base.ability`, whose result is of the shape asked for.

    Raises:
        UserError: the task has no such method; when it is called, it fails or returns something else.
    """
    call, adapter = ability(task, method, purpose), TypeAdapter(shape)

    def checked(*arguments: Any) -> T:
        try:
            return adapter.validate_python(call(*arguments))
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"[{part!r}]" for part in first["loc"])
            raise UserError(f"task {task.name!r}: {method}(){where} is no good for {purpose}: {first['msg']}") from None

    return checked


def split_words(words: Sequence[str]) -> tuple[dict[str, Any], list[str], list[Path]]:
    """What is left of a command line: options of the task with their values, ``KEY=VALUE`` overrides, and files.

    Raises:
        UserError: a word that is none of these.
    """
    options: list[str] = []
    overrides: list[str] = []
    files: list[Path] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            options += [word] if "=" in word or not rest else [word, rest.pop(0)]
        elif "=" in word and not Path(word).exists():
            overrides.append(word)
        else:
            files.append(Path(word))
    return generator_options(options), overrides, files


def generator_options(words: list[str]) -> dict[str, Any]:
    """``--key value`` or ``--key=value`` pairs as a dictionary; a key that comes again gives a list.

    Raises:
        UserError: a word that is neither a key nor its value.
    """
    options: dict[str, list[Any]] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise UserError(f"{word!r}: expected an option of the task's generator, --key value")
        if not equals:
            if not rest:
                raise UserError(f"{word}: a value is missing")
            text = rest.pop(0)
        value = settle(parse_yaml(text, one_line(f"{word} {text}", 100)), Any, "generator option", key)
        options.setdefault(key.replace("-", "_"), []).append(value)
    return {key: values[0] if len(values) == 1 else values for key, values in options.items()}
