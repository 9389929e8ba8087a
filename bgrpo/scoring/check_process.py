"""Checks with a real time limit: they run in a child process that is killed, not interrupted, when one takes too long.

Neither a check that never returns, nor one that crashes the interpreter, nor one that prints to standard output can
disturb the caller: the item gets the outcome ``timeout`` or ``error`` and the others go on. No Ray here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bgrpo.errors import UserError
from bgrpo.groups import Verdict
from bgrpo.scoring.attempts import Attempt, by_group, to_json
from bgrpo.scoring.check_child import GROUPS, ITEMS, REFUSED, TASK_PREFIX
from bgrpo.scoring.check_link import BrokenLinkError, CheckLink
from bgrpo.scoring.check_output import CheckOutput
from bgrpo.scoring.failed_checks import FAILED
from bgrpo.scoring.kept_functions import PREFIX
from bgrpo.tasks.base import Outcome
from bgrpo.waits import waiting

START_LIMIT_S = 120.0  # importing the target, for example a reward model's libraries; and the same for its first call
CRASHES_PER_ITEM = 2  # the first is forgiven: somebody else may have killed the child
_SHOWN = 60  # characters of a text in a message


class CheckProcess:
    """One child process that scores completions with a task's check or a user's function.

    The child imports the target and nothing else: no torch unless the target needs it. It is started at construction,
    so that a target that cannot be imported is refused at once, and again after each kill. Each start ends with a check
    of ``trial``, so that what the target imports or loads at its first call does not count against ``timeout_s``.

    Args:
        target: ``"task:NAME"`` for a task's own check (NAME as in :func:`bgrpo.tasks.base.load_task`), or
            ``"module:function"`` for a user's reward function, see :mod:`bgrpo.scoring.user_functions`: its outcomes
            are ``scored`` and, for None, ``unscored``. An exception, and a value
            that is no finite number of at most 1e12 in size, is an ``error``. Functions are taken to be
            deterministic. ``"kept:PATH"`` for one that the run keeps, see :mod:`bgrpo.scoring.kept_functions`.
        options: arguments of the task; of what the run keeps, its ``digest``.
        timeout_s: limit of one call in seconds.
        memory_bytes: limit of the child's data (RLIMIT_DATA; past it, MemoryError or an abort); None for no limit.
        trial: what to try the target on; None tries nothing.

    Attributes:
        tried: the verdict on that, once there is one.

    Raises:
        UserError: the target cannot be imported, or its check of ``trial`` is an error or takes 120 s.
    """

    def __init__(
        self,
        target: str,
        options: dict[str, Any] | None = None,
        timeout_s: float = 5.0,
        memory_bytes: int | None = None,
        trial: Attempt | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._setup = {"target": target, "options": options or {}, "memory_bytes": memory_bytes}
        self._trial = trial
        self._output = CheckOutput(f"check {target!r}")
        self._link: CheckLink | None = None
        self._form = ITEMS
        self.tried: Verdict | None = None
        self._fault: Verdict | None = None  # of the newest call that ended the child
        fault = self._start()
        if fault is not None:
            self.close()
            raise UserError(fault.detail)

    @property
    def pid(self) -> int | None:
        """Id of the process to kill to end the child; None while there is none."""
        return self._link.pid if self._link is not None else None

    def run(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """Score attempts, in order; where one is scored at a time, each distinct text of a group once."""
        if self._form == GROUPS:
            return self._run_groups(by_group(attempts))
        keys = [(attempt.group, attempt.problem.prompt, attempt.text) for attempt in attempts]
        distinct = dict(zip(keys, attempts, strict=True))
        verdicts = dict(zip(distinct, self._run_items(list(distinct.values())), strict=True))
        return [verdicts[key] for key in keys]

    def _run_items(self, items: list[Attempt]) -> list[Verdict]:
        """One verdict per item; what disturbs the check of one is its fault alone."""
        results: list[Verdict] = []
        crashes: Counter[int] = Counter()  # by position
        while len(results) < len(items):
            fault = self._run_until_fault(items, results)
            if fault is None:
                continue
            if fault.outcome == Outcome.ERROR:
                crashes[len(results)] += 1
                if crashes[len(results)] < CRASHES_PER_ITEM:
                    continue
            results.append(fault)
        return results

    def _run_groups(self, groups: list[list[Attempt]]) -> list[Verdict]:
        """All groups in one call; where that fails, each in a call of its own, so that one disturbs no other."""
        items = [attempt for group in groups for attempt in group]
        for _ in range(CRASHES_PER_ITEM):
            results: list[Verdict] = []
            fault = self._run_until_fault(items, results)
            if fault is None or fault.outcome == Outcome.TIMEOUT or len(groups) > 1:
                break
        if fault is None and not (results and all(result.outcome in FAILED for result in results)):
            return results
        if len(groups) > 1:
            return [verdict for group in groups for verdict in self._run_groups([group])]
        return results if fault is None else [fault] * len(items)

    def close(self) -> None:
        """End the child and what it has started."""
        self._end_child()
        self._output.close()

    def _end_child(self) -> None:
        if self._link is not None:
            self._link.stop()
            self._link = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run_until_fault(self, items: list[Attempt], results: list[Verdict]) -> Verdict | None:
        """Append the results of the items that have none yet; on a fault, end the child and return the culprit's."""
        if self._link is None:
            fault = self._start()
            if self._link is None:
                return fault
        rest = items[len(results) :]
        return self._ask(to_json(rest, self._form == GROUPS), len(rest), results, self._timeout_s)

    def _start(self) -> Verdict | None:
        """Start the child and try it; what is wrong, None when nothing is. Where it is of no use there is no link."""
        target, answers = self._setup["target"], list[Verdict]()
        self._link = CheckLink(self._output)
        again = f" again: in the last call {self._fault.detail}" if self._fault is not None else ""
        with waiting(f"{self._named()} to be imported{again}", START_LIMIT_S):
            fault = self._ask(self._setup, 1, answers, START_LIMIT_S)
        if fault is not None:
            return replace(fault, detail=f"{target!r}: on import, {fault.detail}")
        if answers[0].outcome == REFUSED:
            self._end_child()
            return Verdict(Outcome.ERROR, detail=answers[0].detail)
        self._form = answers[0].detail
        if self._trial is None:
            return None
        with waiting(f"{self._named()}, which is tried on one prompt", START_LIMIT_S):
            count = 2 if self._form == GROUPS else 1  # a list of another length than asked for shows in a group only
            fault = self._ask(to_json([self._trial] * count, self._form == GROUPS), count, answers, START_LIMIT_S)
        if fault is None and answers[1].outcome not in FAILED:
            self.tried = answers[1]
            return None
        texts = (self._trial.problem.prompt, self._trial.text)
        prompt, completion = (text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…" for text in texts)
        tried = f"{target!r}: tried on prompt {prompt!r} and completion {completion!r}"
        return replace(fault or answers[1], detail=f"{tried}: {(fault or answers[1]).detail}")

    def _named(self) -> str:
        target = str(self._setup["target"])
        if target.startswith(TASK_PREFIX):
            return f"the check of task {target.removeprefix(TASK_PREFIX)!r}"
        return f"reward function {Path(target).stem if target.startswith(PREFIX) else target!r}"

    def _ask(self, content: Any, count: int, results: list[Verdict], limit_s: float) -> Verdict | None:
        """Append the answers to a request; on a fault, end the child and return what the item at hand gets."""
        if self._link is None:
            raise RuntimeError("the check process has not been started")
        try:
            name = self._link.ask(content, limit_s)
            for position in range(count):
                results.append(self._link.answer(name, position, limit_s))
        except TimeoutError:
            fault = Verdict(Outcome.TIMEOUT, detail=f"the check took longer than {limit_s:g} s")
        except BrokenLinkError as error:
            fault = Verdict(Outcome.ERROR, detail=str(error))
        else:
            return None
        self._end_child()
        self._fault = fault
        return fault
