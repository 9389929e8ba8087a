"""The process that measures one part: its name as argument, lines of JSON on standard output.

``{"row": …}`` per row, ``{"turn": 1}`` when a piece is done, ``{"machine": …}`` once. Run by
:mod:`bgrpo.bench.step.parent` as ``python -m bgrpo.bench.step.child``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from bgrpo.bench.machine import describe_machine
from bgrpo.bench.step.workload import LARGE, SHIPPED, SMALL, TINY, UpdateCase

Answer = Callable[[dict[str, Any]], None]

LEARNER_CASES: dict[str, list[tuple[UpdateCase, int]]] = {"all": [(SHIPPED, 10), (LARGE, 2)], "tiny": [(TINY, 2)]}
SHARING_CASES: dict[str, list[tuple[UpdateCase, int, int]]] = {
    "all": [(SMALL, 4, 3), (LARGE, 1, 1)],
    "tiny": [(TINY, 2, 1)],
}
"""Case, groups of the padded update that are timed, rounds."""


def main() -> None:
    """Answer the request. What libraries print goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    part, size = sys.argv[1:]

    def answer(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=answers, flush=True)

    transformers_logging.set_verbosity_error()
    if part != "run":
        torch.set_num_threads(1)
    answer({"machine": describe_machine()})
    _PARTS[part](size, answer)


def _run(size: str, answer: Answer) -> None:
    from bgrpo.bench.step.runs import RUNS, measure_runs

    names = list(RUNS) if size == "all" else list(RUNS)[:1]
    for row in measure_runs(names, lambda: answer({"turn": 1})):
        answer({"row": row})


def _learner(size: str, answer: Answer) -> None:
    from bgrpo.bench.step.learner import measure_learner

    for case, steps in LEARNER_CASES[size]:
        answer({"row": {"part": "learner"} | measure_learner(case, steps)})
        answer({"turn": 1})


def _sharing(size: str, answer: Answer) -> None:
    from bgrpo.bench.step.sharing import measure_sharing

    for case, padded_groups, rounds in SHARING_CASES[size]:
        for row in measure_sharing(case, padded_groups, rounds):
            answer({"row": {"part": "sharing"} | row})
        answer({"turn": 1})


_PARTS = {"run": _run, "learner": _learner, "sharing": _sharing}

if __name__ == "__main__":
    main()
