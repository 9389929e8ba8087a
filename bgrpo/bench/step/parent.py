"""The whole benchmark: a process per part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bgrpo.bench.machine import measuring_environment
from bgrpo.errors import UserError

CHILD = "bgrpo.bench.step.child"
TURNS = {"learner": 2, "sharing": 2, "run": 8}
"""Parts, in the order they are measured, and how many pieces each has."""


def check_parts(parts: Sequence[str]) -> list[str]:
    """The parts asked for, in order; all when none is.

    Raises:
        UserError: an unknown name.
    """
    for part in parts:
        if part not in TURNS:
            raise UserError(f"--part {part}: expected one of {', '.join(TURNS)}")
    return [part for part in TURNS if part in parts or not parts]


def measure(parts: Sequence[str], on_turn: Callable[[], None], size: str = "all") -> Iterator[dict[str, Any]]:
    """Lines ``{"row": …}`` and ``{"machine": …}`` of every part.

    Args:
        parts: of :data:`TURNS`.
        on_turn: called after each piece.
        size: ``all``, or ``tiny`` for a look at how it works.

    Raises:
        RuntimeError: a measuring process failed; its own traceback went to standard error.
    """
    for part in parts:
        # a real run sets its own threads and allocator; the others are measured on one thread
        environment = dict(os.environ) if part == "run" else measuring_environment(threads=1)
        process = subprocess.Popen(
            [sys.executable, "-m", CHILD, part, size], stdout=subprocess.PIPE, text=True, env=environment
        )
        try:
            for line in process.stdout or ():
                answer = json.loads(line)
                if "turn" in answer:
                    on_turn()
                else:
                    yield answer
            status = process.wait()
        finally:
            process.terminate()
            process.wait()
        if status:
            raise RuntimeError(f"the process that measures {part} ended with status {status}, see above")
