"""How fast the polynomial task checks and generates, on one core, next to the original project."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count as count_from
from itertools import cycle
from typing import Any

from bgrpo.tasks.polynomial.generator import Generated, generate
from bgrpo.tasks.polynomial.options import GeneratorOptions
from bgrpo.tasks.polynomial.verifier import check, read_target

# Published by the original project: SymPy, one core.
ORIGINAL_MICROSECONDS_PER_CHECK = 12_000
ORIGINAL_LINES_PER_S = {"single_4_4": 48, "multi_3": 106}

WORKLOADS = {
    "single_4_4": GeneratorOptions(degrees=((4, 4),), coefficients=20),
    "multi_3": GeneratorOptions(kind="multi", degrees=((3, 3),), coefficients=5, variables=3, inners=2),
}
_PROBLEMS = 300
_BLOCK = 50  # operations between two looks at the clock


def measure_speed(seconds: float = 3.0) -> dict[str, Any]:
    """Measure each of three things for ``seconds``; times are CPU time of this thread.

    Checks are of 4∘4 problems with coefficients up to 20: own answers, and as many wrong variants of them, each with
    the prompt read anew, as for a problem that is met once.

    Returns:
        ``microseconds_per_check``, ``lines_per_s`` per workload, and ``speed_up`` of each against the original.
    """
    problems = list(generate(WORKLOADS["single_4_4"], _PROBLEMS, seed=0))
    pairs = [pair for problem in problems for pair in ((problem.prompt, problem.answer), _wrong_variant(problem))]
    endless = cycle(pairs)

    def check_next() -> None:
        read_target.cache_clear()
        check(*next(endless))

    microseconds = 1e6 / _rate(check_next, seconds)
    lines_per_s = {name: _rate(partial(next, _endless_lines(options)), seconds) for name, options in WORKLOADS.items()}
    speed_up = {name: rate / ORIGINAL_LINES_PER_S[name] for name, rate in lines_per_s.items()}
    return {
        "microseconds_per_check": microseconds,
        "lines_per_s": lines_per_s,
        "speed_up": {"check": ORIGINAL_MICROSECONDS_PER_CHECK / microseconds, **speed_up},
    }


def _wrong_variant(problem: Generated) -> tuple[str, str]:
    """The problem's prompt with its answer's last digit changed."""
    changed = "3" if problem.answer[-1] != "3" else "2"
    return problem.prompt, problem.answer[:-1] + changed


def _endless_lines(options: GeneratorOptions) -> Iterator[str]:
    for seed in count_from():
        yield from (problem.line for problem in generate(options, 10_000, seed))


def _rate(operation: Callable[[], object], seconds: float) -> float:
    """Operations per second of CPU time."""
    started = time.thread_time()
    done, elapsed = 0, 0.0
    while elapsed < seconds:
        for _ in range(_BLOCK):
            operation()
        done += _BLOCK
        elapsed = time.thread_time() - started
    return done / elapsed
