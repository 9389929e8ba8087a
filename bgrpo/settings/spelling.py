"""Which name was probably meant. No guess is better than a wrong one."""

from __future__ import annotations

from collections.abc import Iterable

MAX_COMPARED = 60  # characters of a name that is compared with others
MAX_GUESSES = 3
SHORT = 5


def nearest_keys(key: str, known: Iterable[str]) -> list[str]:
    """The known dotted keys that were probably meant: a typing error in one part, or the right name elsewhere."""
    if len(key) > MAX_COMPARED:
        return []
    section, _, name = key.rpartition(".")
    known = list(known)
    beside = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    meant = nearest(name, beside)
    if meant is not None:
        return [f"{section}.{meant}" if section else meant]
    if section and len(name) <= SHORT:  # names as path and kind mean something else in each section
        return []
    elsewhere = [other for other in known if _plain(other.rpartition(".")[2]) == _plain(name)]
    if not elsewhere and not section and len(name) > SHORT:
        elsewhere = [other for other in known if _distance(other.rpartition(".")[2], name, 1) <= 1]
    return elsewhere if len(elsewhere) <= MAX_GUESSES else []


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one known name that differs by a typing error, or begins so; None is better than a wrong guess."""
    if len(name) > MAX_COMPARED:
        return None
    known = list(dict.fromkeys(known))
    limit = 0 if len(name) < 3 else 1 if len(name) < 8 else 2
    near = sorted(
        (distance, other) for other in known if (distance := _distance(_plain(name), _plain(other), limit)) <= limit
    )
    if near:
        return near[0][1] if len(near) == 1 or near[0][0] < near[1][0] else None
    begun = [other for other in known if len(name) > 4 and _plain(other).startswith(f"{_plain(name)}_")]
    return begun[0] if len(begun) == 1 else None


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _distance(name: str, other: str, limit: int) -> int:
    """Fewest insertions, deletions, substitutions and swaps of neighbours; more than ``limit`` when it is more."""
    if abs(len(name) - len(other)) > limit:
        return limit + 1
    before, row = [], list(range(len(other) + 1))
    for i, letter in enumerate(name, start=1):
        before, above, row = row, before, [i]
        for j, its in enumerate(other, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != its)))
            if above and j > 1 and letter == other[j - 2] and name[i - 2] == its:
                row[j] = min(row[j], above[j - 2] + 1)
    return row[-1]
