"""The whole benchmark: a process per case that times its engines in turns, and one per engine for its peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bgrpo.bench.machine import measuring_environment
from bgrpo.bench.rollouts.cases import Case, DisagreementError, check_engines, choose_cases
from bgrpo.errors import UserError

CHILD = "bgrpo.bench.rollouts.child"
MEMORY = ("largest", "all", "none")


class CaseResult(NamedTuple):
    """One case, done.

    Attributes:
        case: the case.
        rows: see :mod:`bgrpo.bench.rollouts.rows`.
        machine: see :func:`bgrpo.bench.machine.describe_machine`, as the measuring process saw it.
    """

    case: Case
    rows: list[dict[str, Any]]
    machine: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RolloutBench:
    """What to measure.

    Attributes:
        cases: names, see :mod:`bgrpo.bench.rollouts.cases`.
        engines: names.
        threads: of every engine.
        rounds, seconds, longest: see :class:`bgrpo.bench.rollouts.measure.Limits`.
        memory: of :data:`MEMORY`: peak memory on the case with the most completions, on all, or not at all.

    Raises:
        UserError: an unknown name.
    """

    cases: tuple[str, ...]
    engines: tuple[str, ...]
    threads: int
    rounds: int
    seconds: float
    longest: float
    memory: str

    def __post_init__(self) -> None:
        choose_cases(self.cases)
        check_engines(self.engines)
        if self.memory not in MEMORY:
            raise UserError(f"--memory {self.memory}: expected one of {', '.join(MEMORY)}")

    def turns(self) -> int:
        """How often :meth:`run` calls ``on_turn``."""
        chosen = choose_cases(self.cases)
        timed = sum(len(case.taking_part(self.engines)) * (1 + self.rounds) for case in chosen)
        return timed + sum(len(case.taking_part(self.engines)) for case in self._measured_for_memory(chosen))

    def run(self, on_turn: Callable[[], None]) -> Iterator[CaseResult]:
        """Measure case by case.

        Args:
            on_turn: called after each turn of an engine.

        Raises:
            DisagreementError: before anything of that case was timed.
            RuntimeError: a measuring process failed; its own traceback went to standard error.
        """
        chosen = choose_cases(self.cases)
        for case in chosen:
            limits = {"rounds": self.rounds, "seconds": self.seconds, "longest": self.longest}
            timed = self._ask({"case": case.name, "engines": list(self.engines), "limits": limits}, on_turn)
            rows = timed["rows"]
            if case in self._measured_for_memory(chosen):
                for row in rows:
                    if row["skipped"] is None:
                        row["peak_bytes"] = self._ask({"case": case.name, "peak_of": row["name"]}, on_turn)
                    on_turn()
            yield CaseResult(case, rows, timed["machine"])

    def _measured_for_memory(self, chosen: Sequence[Case]) -> list[Case]:
        if self.memory == "all":
            return list(chosen)
        return [max(chosen, key=lambda case: case.beams)] if self.memory == "largest" else []

    def _ask(self, request: dict[str, Any], on_turn: Callable[[], None]) -> Any:
        """The result of one measuring process, which lives no longer than this call."""
        process = subprocess.Popen(
            [sys.executable, "-m", CHILD, json.dumps({**request, "threads": self.threads})],
            stdin=subprocess.PIPE,  # its end tells the child that this process has died
            stdout=subprocess.PIPE,
            text=True,
            env=measuring_environment(self.threads),
        )
        answers: dict[str, Any] = {}
        try:
            for line in process.stdout or ():
                answer = json.loads(line)
                answers |= answer
                if "turn" in answer:
                    on_turn()
            status = process.wait()
        finally:
            process.kill()
            process.wait()
        if "disagreement" in answers:
            raise DisagreementError(answers["disagreement"])
        if "result" not in answers:
            raise RuntimeError(f"the process that measures {request['case']} ended with status {status}, see above")
        return answers["result"]
