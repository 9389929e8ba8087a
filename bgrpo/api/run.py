"""What a training run left behind, from Python."""

from __future__ import annotations

import io
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bgrpo.api.policy import Policy
from bgrpo.config import TrainConfig
from bgrpo.errors import UserError
from bgrpo.runs.run_folder import RunFolder, settle_runs

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bgrpo.evaluation.comparison import EvaluationComparison
    from bgrpo.runs.samples import SampledGroup

WIDTH = 100  # of tables, in characters


class Run:
    """A training run: its folder, and what is in it. Everything is read from there when it is asked for.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._policy: Policy | None = None

    def __repr__(self) -> str:
        return f"Run({self.name!r}, {self.status}, {self.steps} steps, {str(self.folder)!r})"

    @property
    def name(self) -> str:
        """Its name, which is its folder's."""
        return self._folder.name

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self._folder.path

    @property
    def status(self) -> str:
        """``finished``, ``stopped``, ``failed``, ``interrupted`` or ``running``."""
        return self._folder.status

    @property
    def config(self) -> TrainConfig:
        """Its whole configuration."""
        return self._folder.load_config(TrainConfig)

    @property
    def steps(self) -> int:
        """Training steps that it has made."""
        return max((int(step["step"]) for step in self.metrics()), default=0)

    @property
    def policy(self) -> Policy:
        """The policy that it trained; of a run that has not finished, that of its newest checkpoint.

        Raises:
            UserError: there is none yet.
        """
        if self._policy is None:
            from bgrpo.learning.learner_state import policy_of_run
            from bgrpo.runs.preparation import check_policy

            path = policy_of_run(self._folder)
            self._policy = Policy(check_policy(str(path)), self.config.rollout.max_new_tokens)
        return self._policy

    @property
    def comparison(self) -> EvaluationComparison | None:
        """The test problems before and after, problem by problem; None where they were not measured (yet)."""
        from bgrpo.evaluation.comparison import EvaluationComparison

        path = self._folder.evaluation_path
        return EvaluationComparison.load(path) if path.exists() else None

    def metrics(self) -> list[dict[str, Any]]:
        """A dictionary for each training step: ``step``, ``reward_mean``, …; what ``pandas.DataFrame`` takes."""
        return self._folder.metrics()

    def samples(self, step: int | None = None) -> list[SampledGroup]:
        """What the policy wrote: the groups that were kept of each step, or of one, with verdicts and rewards."""
        from bgrpo.runs.samples import SampleReader

        return [group for group in SampleReader(self._folder) if step is None or group.step == step]

    def conclusions(self) -> list[str]:
        """What kept it from learning, if anything did, and which checks failed."""
        from bgrpo.runs.learning_signal import conclusions
        from bgrpo.scoring.failed_checks import failures_of_steps

        steps = self.metrics()
        return [*failures_of_steps(steps), *conclusions(self.config, steps)]

    def table(self) -> str:
        """The test problems before and after, with intervals; where they were not measured, what there is instead."""
        from bgrpo.display.run_report import comparison_table

        comparison = self.comparison
        if comparison is None:
            return f"{self.name}: {self.status} after {self.steps} steps; nothing was measured before and after"
        return as_text(comparison_table(comparison, f"{self.name}: before and after"))


def load_run(name: str | PathLike[str], runs: str | PathLike[str] = "runs") -> Run:
    """A training run that was made before, here or on the command line, in whatever state.

    Args:
        name: of the run, or its folder.
        runs: folder of all runs.

    Raises:
        UserError: there is no such run; names the nearest.
    """
    for key, value in {"name": name, "runs": runs}.items():
        if not isinstance(value, str | PathLike):
            raise UserError(f"{key}: is a {type(value).__name__}: expected text or a path")
    folder = RunFolder.open(settle_runs(fspath(runs)), fspath(name))
    try:
        folder.load_config(TrainConfig)
    except UserError as error:
        raise UserError(f"run {folder.name} cannot be read as a training run: {error}") from error
    return Run(folder)


def as_text(*renderables: RenderableType) -> str:
    """What a terminal would show, without colours."""
    from bgrpo.display.terminal import PlainConsole

    file = io.StringIO()
    console = PlainConsole(file=file, width=WIDTH)
    for each in renderables:
        console.print(each)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())
