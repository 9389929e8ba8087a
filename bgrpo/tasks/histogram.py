"""What is in data files: problems by category, by what their task tells, by length; and what two files share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bgrpo.tasks.base import Record, Task
from bgrpo.tasks.data_streams import grid_of, key_of, quantities_of, stream

PROGRESS_EVERY = 1000


def count_problems(task: Task, paths: Iterable[Path], progress: Callable[[int], None]) -> dict[str, Any]:
    """Count the problems of some files.

    Returns:
        ``problems``; ``by``: ``category``, each quantity of the task, and ``prompt_words`` and ``answer_words``, each
        a mapping of values to problems; ``grid``: for a task with one, ``rows``, ``columns`` and ``cells``, a list of
        (row, column, problems).
    """
    names, quantify = quantities_of(task)
    axes = grid_of(task)
    counts: dict[str, Counter[Any]] = {name: Counter() for name in ("category", *names, "prompt_words", "answer_words")}
    cells: Counter[tuple[int, int]] = Counter()
    problems = 0
    for record in counted(stream_all(task, paths), progress):
        problem = record.problem
        problems += 1
        counts["category"][problem.category] += 1
        counts["prompt_words"][len(problem.prompt.split())] += 1
        counts["answer_words"][len(problem.answer.split())] += 1
        found = quantify(problem)
        for name, value in found.items():
            counts[name][value] += 1
        if axes is not None and axes[0] in found and axes[1] in found:
            cells[found[axes[0]], found[axes[1]]] += 1
    result: dict[str, Any] = {"problems": problems, "by": {name: _sorted(each) for name, each in counts.items()}}
    if axes is not None:
        listed = [[*cell, number] for cell, number in sorted(cells.items())]
        result["grid"] = {"rows": axes[0], "columns": axes[1], "cells": listed}
    return result


def compare_files(task: Task, first: Path, second: Path, progress: Callable[[int], None]) -> dict[str, int]:
    """How many problems two files have, how many different ones, and how many of each are in the other too."""
    key = key_of(task)
    found: list[Counter[int]] = []
    read = 0
    for path in (first, second):
        keys: Counter[int] = Counter()
        for record in counted(stream(task, path), lambda done, before=read: progress(before + done)):  # type: ignore[misc]
            keys[key(record.problem)] += 1
        read += keys.total()
        found.append(keys)
    one, two = found
    return {
        "first": one.total(),
        "first_distinct": len(one),
        "second": two.total(),
        "second_distinct": len(two),
        "common_distinct": sum(number in two for number in one),
        "first_in_second": sum(count for number, count in one.items() if number in two),
        "second_in_first": sum(count for number, count in two.items() if number in one),
    }


def stream_all(task: Task, paths: Iterable[Path]) -> Iterator[Record]:
    """The problems of some files, one file after the other."""
    for path in paths:
        yield from stream(task, path)


def counted(records: Iterable[Record], progress: Callable[[int], None]) -> Iterator[Record]:
    """The same records; ``progress`` is called with their number every :data:`PROGRESS_EVERY`."""
    for done, record in enumerate(records, start=1):
        yield record
        if done % PROGRESS_EVERY == 0:
            progress(done)


def _sorted(counts: Counter[Any]) -> dict[str, int]:
    return {str(value): counts[value] for value in sorted(counts)}
