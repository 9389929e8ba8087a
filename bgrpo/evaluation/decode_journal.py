"""Decoding that can be interrupted: what was judged is kept in a file, batch by batch, and not decoded again."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from bgrpo.errors import UserError, one_line
from bgrpo.evaluation.decoders import Decode, DecodeMode
from bgrpo.files import NOT_A_FILE, parse_object, seal, unseal
from bgrpo.groups import Completion, Verdict
from bgrpo.tasks.base import Problem

_VERDICT = ("outcome", "score", "detail", "parts", "failures", "cut")
_EMPTY: tuple[Any, ...] = (None, "", {}, ())


class Journal:
    """Calls of a :class:`bgrpo.evaluation.decoders.Decode` in a file, see :func:`journaled`.

    Args:
        file: at its first call, open for reading and appending.
        path: of it, for messages.

    Attributes:
        recalled: problems that were answered from the file.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._reading = True
        self.recalled = 0

    def over(self, decode: Decode) -> Decode:
        """A decoder whose calls are answered from the file, then by ``decode`` and added to the file.

        Calls must come in the same order each time. Completions of the file have verdicts, but no tokens and no text.
        """

        def call(
            problems: Sequence[Problem], mode: DecodeMode, group_size: int, seeds: Sequence[int] | None
        ) -> list[list[Completion]]:
            key = _key(problems, mode, group_size, seeds)
            if (found := self._next(key)) is not None:
                self.recalled += len(problems)
                return found
            groups = decode(problems, mode, group_size, seeds)
            self._file.write(_line(key, groups))
            self._file.flush()
            return groups

        return call

    def _next(self, key: str) -> list[list[Completion]] | None:
        """What the journal holds of this call; None once it has ended. A line that was cut off is written anew."""
        if not self._reading:
            return None
        start = self._file.tell()
        line = self._file.readline()
        if not line.endswith(b"\n"):
            self._reading = False
            self._file.seek(start)
            self._file.truncate()
            return None
        try:
            tree = parse_object(unseal(line))
            verdicts = [Verdict(**{**each, "cut": tuple(each.get("cut", ()))}) for each in tree["verdicts"]]
            groups = [[Completion([], [], True, "", verdicts[i]) for i in group] for group in tree["groups"]]
            same = tree["key"] == key
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{self._path}: is damaged ({one_line(str(error))}): remove it to begin anew") from error
        if not same:
            raise UserError(
                f"{self._path}: was made of other problems, or in another order: have the data files changed? Remove "
                f"it to begin anew"
            )
        return groups


@contextmanager
def journaled(path: Path, of: Mapping[str, Any]) -> Iterator[Journal]:
    """A journal, which is removed when the block ends well, and stays when it does not.

    Args:
        path: where it is; what it holds already is not decoded again.
        of: what the results depend on besides the calls, as JSON can hold it.

    Raises:
        UserError: the journal is of something else, damaged, in use, or cannot be written.
    """
    try:
        file = path.open("a+b") if not path.exists() or path.is_file() else None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): it keeps what was decoded") from error
    if file is None:
        raise UserError(f"{path}: {NOT_A_FILE}, or a folder: it would keep what was decoded; remove it")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{path}: another process is at this work: wait for it, or stop it") from None
        _check_head(file, path, json.loads(json.dumps(of)))
        yield Journal(file, path)
        path.unlink(missing_ok=True)


def _check_head(file: BinaryIO, path: Path, of: dict[str, Any]) -> None:
    file.seek(0)
    line = file.readline()
    if not line.endswith(b"\n"):
        file.seek(0)
        file.truncate()
        file.write(seal(json.dumps(of)).encode() + b"\n")
        file.flush()
        return
    try:
        there = parse_object(unseal(line))
    except ValueError:
        raise UserError(f"{path}: is no record of decoding, or damaged: it is in the way; remove it") from None
    if changed := sorted(key for key in of.keys() | there.keys() if there.get(key) != of.get(key)):
        name = changed[0]
        raise UserError(
            f"{path}: keeps what an interrupted command decoded with another {name} "
            f"({one_line(str(there.get(name)), 60)}, now {one_line(str(of.get(name)), 60)}): give that again to go on, "
            "or remove the file to begin anew"
        )


def _key(problems: Sequence[Problem], mode: str, group_size: int, seeds: Sequence[int] | None) -> str:
    told = [[[problem.prompt, problem.answer, problem.prompt_tokens] for problem in problems], mode, group_size, seeds]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=12).hexdigest()


def _line(key: str, groups: Sequence[Sequence[Completion]]) -> bytes:
    """One line of JSON: the different verdicts once, then for each completion the position of its own."""
    verdicts: dict[str, int] = {}
    rows = []
    for group in groups:
        texts = [
            json.dumps({k: v for k, v in asdict(each.judged).items() if k in _VERDICT and v not in _EMPTY})
            for each in group
        ]
        rows.append([verdicts.setdefault(text, len(verdicts)) for text in texts])
    listed = ", ".join(verdicts)
    return seal(f'{{"key": "{key}", "verdicts": [{listed}], "groups": {json.dumps(rows)}}}').encode() + b"\n"
