"""Data files of the polynomial task: one problem a line, ``expanded ⁇ answer``; ``?`` may stand for ``⁇``."""

from __future__ import annotations

import codecs
import multiprocessing
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count as count_from
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from bgrpo.errors import UserError
from bgrpo.files import atomic_file, readable_file
from bgrpo.tasks.base import Outcome, listed
from bgrpo.tasks.polynomial.generator import Generated, draw_chunk, select
from bgrpo.tasks.polynomial.notation import SEPARATOR, SEPARATORS
from bgrpo.tasks.polynomial.options import GeneratorOptions
from bgrpo.tasks.polynomial.verifier import Ring, check

_SEPARATOR = re.compile("[" + "".join(SEPARATORS) + "]")
_SEPARATOR_BYTES = SEPARATOR.encode()
MAX_BAD_LISTED = 10
PROGRESS_EVERY = 1000  # lines
BLOCK_BYTES = 1 << 18
MAX_LINE_BYTES = 1 << 20
MAX_BYTES = 1 << 34


class Line(NamedTuple):
    """One line of a data file: its 1-based number, prompt text without separator, and answer ("" if there is none)."""

    number: int
    expanded: str
    answer: str


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines of a data file, as they stand in it, and the 1-based number of the first."""

    number: int
    text: bytes


def read_lines(path: Path) -> Iterator[Line]:
    """Lines of a data file, in order.

    Blank lines are skipped; a byte order mark, Windows line ends, a last line without line end, and a separator after
    the answer (some writers end the answer with it) are accepted.

    Raises:
        UserError: the file is missing, a pipe or a device, unreadable or empty, or a line (which is named) is not
            UTF-8, is longer than 1 MiB, or does not have the form ``expanded ⁇ answer``.
    """
    for block in read_blocks(path):
        yield from lines_of(path, block)


def read_blocks(path: Path) -> Iterator[Block]:
    """A data file's whole lines in blocks of about :data:`BLOCK_BYTES`, in order.

    Raises:
        UserError: as :func:`read_lines`, except for what is wrong with a line.
    """
    number, rest, found = 1, b"", False
    try:
        with readable_file(path, MAX_BYTES).open("rb") as file:
            while piece := file.read(BLOCK_BYTES):
                rest = rest + piece if rest or number > 1 else piece.removeprefix(codecs.BOM_UTF8)
                end = rest.rfind(b"\n") + 1 or (len(rest) if len(rest) > MAX_LINE_BYTES else 0)
                if end:
                    block, rest = Block(number, rest[:end]), rest[end:]
                    found = found or not block.text.isspace()
                    yield block
                    number += block.text.count(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if rest:
        yield Block(number, rest)
    if not found and not rest.strip():
        raise UserError(f"{path}: is empty: expected lines of the form 'expanded ⁇ answer'")


def lines_of(path: Path, block: Block) -> Iterator[Line]:
    """Lines of a block that are not blank; raises UserError as :func:`read_lines`."""
    for number, raw in enumerate(block.text.split(b"\n"), start=block.number):
        expanded, separator, answer = raw.partition(_SEPARATOR_BYTES)
        if separator and expanded.isascii() and answer.isascii() and b"?" not in raw and len(raw) <= MAX_LINE_BYTES:
            line = Line(number, expanded.decode().strip(), answer.decode().strip())
            if line.expanded:  # nearly every line
                yield line
                continue
        if len(raw) > MAX_LINE_BYTES:
            raise UserError(f"{path}:{number}: more than {MAX_LINE_BYTES:,} bytes: expected 'expanded ⁇ answer'")
        try:
            text = raw.decode().strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: not UTF-8 text at byte {error.start + 1} of the line") from None
        if text:
            yield _split(path, number, text)


def verify_file(path: Path, ring: Ring = "ZZ", progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Check every line's own answer.

    Returns:
        ``outcomes``: lines per outcome, all outcomes present; ``lines``: how many; ``microseconds_per_check``: CPU
        time; ``first_bad``: line number and outcome of the first :data:`MAX_BAD_LISTED` lines that are not correct.

    Raises:
        UserError: as :func:`read_lines`. A line in that form whose polynomial or answer cannot be read is counted as
            unparseable.
    """
    outcomes = Counter(listed({}))
    first_bad: list[dict[str, Any]] = []
    seconds = 0.0
    for done, line in enumerate(read_lines(path), start=1):
        started = time.thread_time()
        outcome = check(line.expanded, line.answer, ring)
        seconds += time.thread_time() - started
        outcomes[outcome] += 1
        if outcome != Outcome.CORRECT and len(first_bad) < MAX_BAD_LISTED:
            first_bad.append({"line": line.number, "outcome": str(outcome)})
        if progress is not None and done % PROGRESS_EVERY == 0:
            progress(done)
    lines = outcomes.total()
    return {
        "outcomes": dict(outcomes),
        "lines": lines,
        "microseconds_per_check": 1e6 * seconds / lines,
        "first_bad": first_bad,
    }


def generate_file(
    options: GeneratorOptions,
    count: int,
    seed: int,
    out: Path,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
    exclude: Iterable[str] = (),
) -> None:
    """Write ``count`` generated problems; the file appears complete or not at all.

    Args:
        options: what to draw.
        count: lines to write.
        seed: the same seed gives the same file, whatever ``workers``.
        out: the file; its folder is made if needed, an existing file is replaced.
        workers: processes that draw.
        progress: called with the number of lines written so far, every thousand lines and at the end.
        exclude: prompts that must not occur.

    Raises:
        UserError: too few distinct problems, or the file cannot be written (no space, no permission, …).
    """
    if count < 1 or workers < 1:
        raise UserError(f"count={count}, workers={workers}: both must be 1 or more")
    with _replacing(out) as file, _chunks(options, seed, workers) as chunks:
        problems = select(chunks, options, count, exclude)
        for done, problem in enumerate(problems, start=1):
            file.write(f"{problem.line}\n")
            if progress is not None and (done % PROGRESS_EVERY == 0 or done == count):
                progress(done)


def _split(path: Path, number: int, text: str) -> Line:
    parts = [part.strip() for part in _SEPARATOR.split(text, maxsplit=3)]
    if len(parts) == 3 and not parts[2]:
        parts.pop()
    if len(parts) != 2 or not parts[0]:
        separators = len(_SEPARATOR.findall(text))
        raise UserError(
            f"{path}:{number}: {separators} separators in {text[:40]!r}…: expected 'expanded ⁇ answer', "
            f"a polynomial, ⁇ or ?, and its answer"
        )
    return Line(number, parts[0], parts[1])


@contextmanager
def _replacing(out: Path) -> Iterator[TextIO]:
    """A text file that takes the place of ``out`` when the block ends well, and vanishes when it does not."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out) as file:
            yield file
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error


@contextmanager
def _chunks(options: GeneratorOptions, seed: int, workers: int) -> Iterator[Iterator[list[Generated | None]]]:
    """Chunks of candidates in order, by several processes a little ahead of the reader, or by this one."""
    if workers == 1:
        yield (draw_chunk(options, seed, chunk) for chunk in count_from())
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield _in_order(pool, options, seed, ahead=2 * workers)
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, options: GeneratorOptions, seed: int, ahead: int
) -> Iterator[list[Generated | None]]:
    waiting: deque[Future[list[Generated | None]]] = deque()
    for chunk in count_from():
        waiting.append(pool.submit(draw_chunk, options, seed, chunk))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
