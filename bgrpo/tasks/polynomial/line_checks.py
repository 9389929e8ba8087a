"""Checking every line of a data file when it is loaded: a large file by several processes, the result always the same.

The processes are plain children that read blocks of lines from their standard input, so nothing of the calling program
is imported or run again in them. They end with their input, hence with the program, however it ends. Started as
``python -m bgrpo.tasks.polynomial.line_checks``.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from bgrpo.errors import RunError, UserError
from bgrpo.tasks.base import Outcome, Progress
from bgrpo.tasks.polynomial.composition import Target
from bgrpo.tasks.polynomial.data_files import Block, Line, lines_of, read_blocks
from bgrpo.tasks.polynomial.generator import category
from bgrpo.tasks.polynomial.notation import NotationError, parse
from bgrpo.tasks.polynomial.verifier import Ring, check_answer, read_inner, split_answer

PARALLEL_BYTES = 8 << 20
"""Files of this size take one process about two seconds; larger ones are checked by several."""

MAX_PROCESSES = 8  # this process keeps no more of them busy
BLOCK_LIMIT_S = 120.0  # a block takes a tenth of a second


class CheckedBlock(NamedTuple):
    """What became of a block's lines.

    Attributes:
        problems: polynomial, answer, category and number of each line that stays.
        outcomes: outcome of its own answer -> lines, over all lines that have one.
    """

    problems: list[tuple[str, str, str, int]]
    outcomes: dict[str, int]


def checked_blocks(path: Path, ring: Ring, for_training: bool, progress: Progress | None) -> Iterator[CheckedBlock]:
    """All lines of a file, checked, block by block in order.

    Raises:
        UserError: of the first line that is refused, see :func:`check_block`; the file cannot be read.
        RunError: a process that checks was lost.
    """
    size = path.stat().st_size if path.is_file() else 0
    blocks = read_blocks(path)
    processes = min(len(os.sched_getaffinity(0)), MAX_PROCESSES) if size >= PARALLEL_BYTES else 1
    one = partial(check_block, path, ring=ring, for_training=for_training)
    if processes == 1:
        checked = ((block, one(block)) for block in blocks)
    else:
        checked = _by_processes(processes, path, ring, for_training, blocks)
    lines = done = 0
    with contextlib.closing(checked):
        for block, result in checked:
            yield result
            lines += block.text.count(b"\n")
            done += len(block.text)
            if progress is not None:
                progress(lines, round(lines * size / max(done, 1)))


def check_block(path: Path, block: Block, ring: Ring, for_training: bool) -> CheckedBlock:
    """Check the own answer of each line; lines whose own answer is trivial go.

    Raises:
        UserError: a line that has another form, whose polynomial cannot be read, or, for training, without an answer.
    """
    problems: list[tuple[str, str, str, int]] = []
    outcomes: list[Outcome] = []
    for line in lines_of(path, block):
        target = _target(path, line)
        if not line.answer:
            if for_training:
                raise UserError(f"{path}:{line.number}: no answer after the separator")
        else:
            outcome = check_answer(target, line.answer, ring)
            outcomes.append(outcome)
            if outcome == Outcome.TRIVIAL:
                continue
        problems.append((line.expanded, line.answer, _category(target, line.answer), line.number))
    return CheckedBlock(problems, dict(Counter(map(str, outcomes))))


def _target(path: Path, line: Line) -> Target:
    try:
        return Target(parse(line.expanded))
    except NotationError as error:
        raise UserError(
            f"{path}:{line.number}: the polynomial {line.expanded[:40]!r}… cannot be read: {error}"
        ) from None


def _category(target: Target, answer: str) -> str:
    """Label by degrees, see :func:`bgrpo.tasks.polynomial.generator.category`."""
    inner_degree = 0
    if len(target.names) <= 1:
        try:
            parts = split_answer(answer)
            inner_degree = read_inner(parts[-1], target.names).degree if len(parts) <= 2 else 0
        except NotationError:
            pass  # it is counted as such, and its inner degree is not known
    return category(len(target.names), target.degree, inner_degree)


def _by_processes(
    count: int, path: Path, ring: Ring, for_training: bool, blocks: Iterator[Block]
) -> Generator[tuple[Block, CheckedBlock]]:
    """Blocks and their results in order, by ``count`` children a little ahead of the reader."""
    with contextlib.ExitStack() as stack:
        children: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        own = threading.local()  # each thread talks to a child of its own
        threads = ThreadPoolExecutor(count, initializer=lambda: setattr(own, "child", children.get_nowait()))
        stack.callback(threads.shutdown, cancel_futures=True)  # after the children's end, which wakes the threads
        for _ in range(count):
            children.put(stack.enter_context(_child()))

        def ask(block: Block) -> CheckedBlock:
            return _ask(own.child, path, ring, for_training, block)

        waiting: deque[tuple[Block, Future[CheckedBlock]]] = deque()
        for block in blocks:
            waiting.append((block, threads.submit(ask, block)))
            if len(waiting) > 2 * count:
                first, future = waiting.popleft()
                yield first, future.result()
        for block, future in waiting:
            yield block, future.result()


@contextlib.contextmanager
def _child() -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-m", "bgrpo.tasks.polynomial.line_checks"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C is for this process, which then ends them
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):  # bytes that were not yet written to a child that is lost
                cast("IO[bytes]", pipe).close()


def _ask(child: subprocess.Popen[bytes], path: Path, ring: Ring, for_training: bool, block: Block) -> CheckedBlock:
    """One block's result from a child; past :data:`BLOCK_LIMIT_S` it is killed, which ends the wait."""
    head = {"path": str(path), "ring": ring, "for_training": for_training, "number": block.number}
    assert child.stdin is not None and child.stdout is not None
    limit = threading.Timer(BLOCK_LIMIT_S, child.kill)
    limit.start()
    try:
        child.stdin.write(json.dumps(head | {"bytes": len(block.text)}).encode() + b"\n" + block.text)
        child.stdin.flush()
        reply: dict[str, Any] = json.loads(child.stdout.readline())
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: the process that checked its lines from {block.number} on was lost: out of memory? Try again"
        ) from error
    finally:
        limit.cancel()
    if "refused" in reply:
        raise UserError(reply["refused"])
    return CheckedBlock(**reply)


def _serve() -> None:
    """The child: a line of JSON and a block after the other, each answered by one line of JSON."""
    gc.freeze()  # what is loaded stays, and hardly anything that comes is in a cycle
    gc.set_threshold(100_000)
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while line := requests.readline():
        head = json.loads(line)
        block = Block(head["number"], requests.read(head["bytes"]))
        try:
            reply = check_block(Path(head["path"]), block, head["ring"], head["for_training"])._asdict()
        except UserError as error:
            reply = {"refused": str(error)}
        replies.write(json.dumps(reply, ensure_ascii=False).encode() + b"\n")
        replies.flush()


if __name__ == "__main__":
    try:
        _serve()
    except BrokenPipeError:  # the parent has gone
        os._exit(0)
