"""The whole benchmark: a process per part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bgrpo.bench.processes import measure_in_process
from bgrpo.errors import UserError

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


def measure_parts(parts: Sequence[str], on_turn: Callable[[], None], size: str = "all") -> dict[str, Any]:
    """``rows`` of every part, and ``machine`` as the first part's process saw it.

    Args:
        parts: of :data:`TURNS`.
        on_turn: called after each piece.
        size: ``all``, or ``tiny`` for a look at how it works.

    Raises:
        DisagreementError: what would be compared computes something else.
        RuntimeError: a measuring process failed; its own traceback went to standard error.
    """
    measured = []
    for part in parts:
        # a real run sets its own threads and allocator; the others are measured on one thread
        threads = None if part == "run" else 1
        measured.append(measure_in_process(f"{__name__}:measure_{part}", {"size": size}, threads, on_turn))
    return {"rows": [row for one in measured for row in one.result], "machine": measured[0].machine}


def measure_learner(size: str, on_turn: Callable[[], None]) -> list[dict[str, Any]]:
    """The trainer against a bare loop."""
    from bgrpo.bench.step.trainer_against_bare import compare_learners
    from bgrpo.bench.step.update_workload import LARGE, SHIPPED, TINY

    rows = []
    for case, steps in {"all": [(SHIPPED, 10), (LARGE, 2)], "tiny": [(TINY, 2)]}[size]:
        rows.append({"part": "learner"} | compare_learners(case, steps))
        on_turn()
    return rows


def measure_sharing(size: str, on_turn: Callable[[], None]) -> list[dict[str, Any]]:
    """Packed groups against padded rows."""
    from bgrpo.bench.step.packed_against_padded import compare_updates
    from bgrpo.bench.step.update_workload import LARGE, SMALL, TINY

    rows = []
    for case, padded_groups, rounds in {"all": [(SMALL, 4, 3), (LARGE, 1, 1)], "tiny": [(TINY, 2, 1)]}[size]:
        rows += [{"part": "sharing"} | row for row in compare_updates(case, padded_groups, rounds)]
        on_turn()
    return rows


def measure_run(size: str, on_turn: Callable[[], None]) -> list[dict[str, Any]]:
    """Real training runs."""
    from bgrpo.bench.step.training_runs import RUNS, measure_runs

    return list(measure_runs(list(RUNS) if size == "all" else list(RUNS)[:1], on_turn))
