"""The whole benchmark: a process per case that times its engines in turns, and one per engine for its peak memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bgrpo.bench.processes import Measured, measure_in_process
from bgrpo.bench.rollouts.cases import ENGINES, Case, check_name, choose_cases

MEMORY = ("largest", "all", "none")


class CaseResult(NamedTuple):
    """One case, done: rows of :mod:`bgrpo.bench.rollouts.timed_case`, and the machine as its process saw it."""

    case: Case
    rows: list[dict[str, Any]]
    machine: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RolloutBench:
    """What to measure.

    Raises:
        UserError: an unknown name.
    """

    cases: Sequence[str]
    engines: Sequence[str]
    threads: int  # of every engine
    rounds: int  # this and the next two: see timed_case.measure_case
    seconds: float
    longest: float
    memory: str  # of MEMORY: peak memory on the case with the most completions, on all, or not at all

    def __post_init__(self) -> None:
        choose_cases(self.cases)
        for engine in self.engines:
            check_name("--engine", engine, ENGINES)
        check_name("--memory", self.memory, MEMORY)

    def turns(self) -> int:
        """How often :meth:`run` calls ``on_turn``."""
        engines = {case.name: len(case.taking_part(self.engines)) for case in choose_cases(self.cases)}
        return sum(engines.values()) * (1 + self.rounds) + sum(engines[case.name] for case in self._for_memory())

    def run(self, on_turn: Callable[[], None]) -> Iterator[CaseResult]:
        """Measure case by case.

        Args:
            on_turn: called after each turn of an engine.

        Raises:
            DisagreementError: before anything of that case was timed.
            RuntimeError: a measuring process failed; its own traceback went to standard error.
        """
        limits = {"rounds": self.rounds, "seconds": self.seconds, "longest": self.longest}
        for case in choose_cases(self.cases):
            rows, machine = self._ask("measure_case", case, {"engines": list(self.engines)} | limits, on_turn)
            for row in rows if case in self._for_memory() else ():
                if row["skipped"] is None:
                    row["peak_bytes"] = self._ask("measure_peak", case, {"engine": row["name"]}, on_turn).result
                else:
                    on_turn()
            yield CaseResult(case, rows, machine)

    def _for_memory(self) -> list[Case]:
        """The cases whose peak memory is measured."""
        chosen = choose_cases(self.cases)
        return {"all": chosen, "largest": [max(chosen, key=lambda case: case.beams)], "none": []}[self.memory]

    def _ask(self, what: str, case: Case, request: dict[str, Any], on_turn: Callable[[], None]) -> Measured:
        function = f"bgrpo.bench.rollouts.timed_case:{what}"
        return measure_in_process(function, {"case": case.name, **request}, self.threads, on_turn)
