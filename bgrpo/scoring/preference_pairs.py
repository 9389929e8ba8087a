"""Preference pairs from a JSONL file, checked line by line, and split so that no group is on both sides."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bgrpo.errors import UserError
from bgrpo.scoring.scored_text import Messages, is_text, shorten


class Pair(NamedTuple):
    """Two completions of a prompt, one better than the other.

    Attributes:
        prompt: text or messages; empty when both completions hold the whole conversation.
        chosen: the better one.
        rejected: the other.
        weight: of its loss, at least 0.
        margin: by how much the score of ``chosen`` should be above.
        group: pairs of one group stay on one side of a split.
        line: in the file.
    """

    prompt: str | Messages
    chosen: str | Messages
    rejected: str | Messages
    weight: float
    margin: float
    group: str
    line: int


def read_pairs(path: Path, group_by: str | None = None) -> list[Pair]:
    """Pairs of a JSONL file with ``chosen``, ``rejected`` and, where there are, ``prompt``, ``weight``, ``margin``.

    Args:
        path: the file.
        group_by: column that names the group; default: every line is its own.

    Raises:
        UserError: the file cannot be read, is empty, or a line is not such a pair (with its number).
    """
    try:
        with path.open(encoding="utf-8") as file:
            pairs = [_pair(path, number, line, group_by) for number, line in enumerate(file, 1) if line.strip()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not pairs:
        raise UserError(f"{path}: has no pairs; expected JSON lines with prompt, chosen and rejected")
    if not any(pair.weight for pair in pairs):
        raise UserError(f"{path}: every weight is 0: there is nothing to learn")
    return pairs


def split_pairs(pairs: Iterable[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs, each in the file's order; a group is on one side only.

    Groups are taken in an order drawn from the seed until the held-out pairs are nearest to their share.

    Args:
        pairs: at least two groups.
        share: of the pairs to hold out, above 0 and below 1.
        seed: of the draw.

    Raises:
        UserError: all pairs are of one group.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    if len(groups) < 2:
        raise UserError("all pairs are of one group: nothing can be held out; give --held-out FILE, or no --group-by")
    order = sorted(groups, key=lambda name: hashlib.blake2b(repr((seed, name)).encode(), digest_size=16).digest())
    wanted = share * sum(map(len, groups.values()))
    held: set[str] = set()
    size = 0
    for name in order[:-1]:
        if held and abs(size + len(groups[name]) - wanted) >= abs(size - wanted):
            continue
        held.add(name)
        size += len(groups[name])
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for name, members in groups.items():
        sides[name in held].extend(members)
    for side in sides:
        side.sort(key=lambda pair: pair.line)
    return sides


def check_disjoint(train: Iterable[Pair], held_out: Iterable[Pair], path: Path) -> None:
    """Refuse a held-out file that shares a group with the training pairs.

    Raises:
        UserError: it does, with the line.
    """
    seen = {pair.group: pair.line for pair in train}
    for pair in held_out:
        if pair.group in seen:
            raise UserError(
                f"{path}:{pair.line}: its group {shorten(pair.group, 60)!r} is also in the training pairs "
                f"(line {seen[pair.group]})"
            )


def accuracy_interval(right: list[bool], groups: list[str]) -> tuple[float, float, float]:
    """Share of right answers with a 95 % interval that allows for groups whose members are alike.

    Wilson's interval (1927) with the effective number of answers p(1-p) / variance, where the variance of the mean is
    taken over groups; with the number of groups where all answers are equal.

    Args:
        right: at least one answer.
        groups: the group of each.

    Returns:
        Share, lower and upper bound.
    """
    count = len(right)
    share = sum(right) / count
    sums: dict[str, float] = {}
    for answer, group in zip(right, groups, strict=True):
        sums[group] = sums.get(group, 0.0) + answer - share
    variance = sum(value * value for value in sums.values()) / count**2 * len(sums) / max(1, len(sums) - 1)
    number = share * (1 - share) / variance if variance > 0 else len(sums)
    number = max(1.0, min(float(count), number))
    z = 1.959963984540054
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * math.sqrt(share * (1 - share) / number + z * z / (4 * number**2))
    return share, max(0.0, middle - half), min(1.0, middle + half)


def _pair(path: Path, number: int, line: str, group_by: str | None) -> Pair:
    def refuse(problem: str) -> UserError:
        return UserError(f"{path}:{number}: {problem}")

    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise refuse(f"is not JSON ({shorten(error, 80)})") from None
    if not isinstance(row, dict):
        raise refuse(f"expected an object with prompt, chosen and rejected, found {shorten(line, 40)!r}")
    for name in ("prompt", "chosen", "rejected"):
        value = row.get(name, "" if name == "prompt" else None)
        if value is None or not is_text(value) or (name != "prompt" and not value):
            there = "is missing" if name not in row else f"is {shorten(json.dumps(value), 60)}"
            raise refuse(f"{name} {there}; expected a text, or messages with role and content")
    if row["chosen"] == row["rejected"]:
        raise refuse("chosen and rejected are the same: a pair needs a better and a worse one")
    weight, margin = _number(row, "weight", 1.0, 0.0, refuse), _number(row, "margin", 0.0, -1e300, refuse)
    if group_by is not None and not isinstance(row.get(group_by), str | int):
        raise refuse(f"has no {group_by!r} to group by; it has {shorten(', '.join(row), 100)}")
    group = f"line {number}" if group_by is None else str(row[group_by])
    return Pair(row.get("prompt", ""), row["chosen"], row["rejected"], weight, margin, group, number)


def _number(row: dict[str, Any], name: str, default: float, least: float, refuse: Any) -> float:
    value = row.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= 1e300:
        raise refuse(f"{name} is {shorten(json.dumps(value), 40)}; expected a number{' of at least 0' * (least == 0)}")
    return float(value)
