"""``RUN/groups.log``: rewards and advantages of the first groups of every step, a line per completion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bgrpo.errors import UserError, one_line
from bgrpo.files import open_to_append
from bgrpo.groups import ScoredGroup
from bgrpo.runs.run_folder import RunFolder

TEXT_SHOWN = 60  # characters of a completion


class GroupLog:
    """Appends to the log of a run; one process writes: learner 0. What a resumed run makes again is there twice.

    Args:
        run: whose folder it is in.
        groups: how many of each step; 0 writes nothing.
    """

    def __init__(self, run: RunFolder, groups: int) -> None:
        self._run = run
        self._groups = groups

    def write(self, step: int, groups: Sequence[ScoredGroup], advantages: Mapping[int, Sequence[float]]) -> None:
        """Add the first groups of a step.

        Args:
            step: from 1.
            groups: of the step, in the order in which they were drawn.
            advantages: by position in ``groups``; of those that the update uses.

        Raises:
            LostRunError: the folder is not this run's any more.
            UserError: the file cannot be written.
        """
        if not self._groups:
            return
        self._run.check_owner()
        try:
            with open_to_append(self._run.group_log_path) as file:
                file.writelines(f"step {step} · {line}\n" for line in group_lines(groups[: self._groups], advantages))
        except OSError as error:
            raise UserError(
                f"{self._run.group_log_path}: cannot be written ({error.strerror}): free some space"
            ) from error


def group_lines(groups: Sequence[ScoredGroup], advantages: Mapping[int, Sequence[float]]) -> Iterator[str]:
    """A line per completion: its rank or place, the parts of its reward, reward, advantage, and how its text begins."""
    for position, group in enumerate(groups):
        used = advantages.get(position)
        for rank, (completion, reward) in enumerate(zip(group.completions, group.rewards, strict=True), start=1):
            verdict = completion.judged
            parts = [f"{name} {_number(value)}" for name, value in verdict.parts.items()]
            facts = [
                f"group {position + 1}, problem {group.index}, {rank} of {len(group.completions)}",
                ", ".join([str(verdict.outcome), *parts]),
                f"reward {_number(reward)}",
                "left out of the update" if used is None else f"advantage {_number(used[rank - 1])}",
                repr(one_line(completion.text, TEXT_SHOWN)),
            ]
            yield " · ".join(facts)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
