"""A data file drawn from several, in given shares, with a seed; memory does not grow with the files."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from bgrpo.errors import UserError
from bgrpo.tasks.base import Record, Task
from bgrpo.tasks.data_streams import key_of, stream


@dataclass(frozen=True, slots=True)
class Source:
    """A file, and its share of the mixture: any number above 0, as they are divided by their sum."""

    path: Path
    share: Fraction


@dataclass(frozen=True, slots=True)
class Ingredient:
    """What a mixture takes of a file.

    Attributes:
        path: the file.
        there: problems in it that no file before it has.
        taken: how many are drawn.
        own: for every problem of the file, in order, 1 where it is one of ``there``, else 0.
    """

    path: Path
    there: int
    taken: int
    own: bytearray


def plan_mixture(
    task: Task, sources: Sequence[Source], count: int | None, progress: Callable[[int], None]
) -> list[Ingredient]:
    """How many problems to take of each file.

    Args:
        task: whose problems.
        sources: the files; a problem counts for the first that has it, and once.
        count: of the mixture; None: the largest for which every file has enough.
        progress: called with the number of problems read.

    Raises:
        UserError: a file has too few problems.
    """
    key, seen, read = key_of(task), set[int](), 0
    own: list[bytearray] = []
    for source in sources:
        own.append(bytearray())
        for record in stream(task, source.path):
            number = key(record.problem)
            own[-1].append(number not in seen)
            seen.add(number)
            read += 1
            if read % 1000 == 0:
                progress(read)
    total = sum(source.share for source in sources)
    shares = [source.share / total for source in sources]
    there = [sum(flags) for flags in own]
    if count is None:
        count = int(min(number / share for number, share in zip(there, shares, strict=True)))
    taken = _apportioned(count, shares)
    for source, flags, number, wanted in zip(sources, own, there, taken, strict=True):
        if wanted > number:
            known = f" that no file before it has ({len(flags) - number:,} are repeated)" if len(flags) > number else ""
            raise UserError(
                f"{source.path}: has {number:,} problems{known}, {wanted:,} are wanted: ask for fewer (--count), or "
                "for another share"
            )
    if not all(taken):
        raise UserError(f"--count {count}: too few for these shares: every file needs at least one problem")
    return [
        Ingredient(source.path, number, wanted, flags)
        for source, number, wanted, flags in zip(sources, there, taken, own, strict=True)
    ]


def mixture(task: Task, ingredients: Sequence[Ingredient], seed: int) -> Iterator[Record]:
    """Problems drawn without replacement, those of the files interleaved at random, each file's in its own order.

    Args:
        task: whose problems.
        ingredients: of :func:`plan_mixture`, of files that have not changed since.
        seed: of draw and order.
    """
    order = random.Random(f"{seed} order")
    streams = [_drawn(task, part, random.Random(f"{seed} {place}")) for place, part in enumerate(ingredients)]
    left = [part.taken for part in ingredients]
    while remaining := sum(left):
        position = order.randrange(remaining)
        place = 0
        while position >= left[place]:
            position -= left[place]
            place += 1
        left[place] -= 1
        yield next(streams[place])


def _drawn(task: Task, part: Ingredient, generator: random.Random) -> Iterator[Record]:
    """So many of a file's own problems, each set of them as likely (selection sampling, Knuth 3.4.2, algorithm S)."""
    wanted, left = part.taken, part.there
    for record, is_own in zip(stream(task, part.path), part.own, strict=False):
        if not wanted:
            return
        if is_own:
            if generator.randrange(left) < wanted:
                wanted -= 1
                yield record
            left -= 1


def _apportioned(count: int, shares: Sequence[Fraction]) -> list[int]:
    """Whole numbers that sum to ``count``, by largest remainders; the first of equal ones gets more."""
    exact = [count * share for share in shares]
    found = [int(part) for part in exact]
    order = sorted(range(len(exact)), key=lambda i: found[i] - exact[i])
    for i in order[: count - sum(found)]:
        found[i] += 1
    return found
