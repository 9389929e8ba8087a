"""One trial of a sweep in Ray Tune: an ordinary training run, whose validations are Tune's results."""

from __future__ import annotations

import queue
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import Trainable

from bgrpo.config import TrainConfig
from bgrpo.display.terminal import PLAIN_WIDTH, PlainConsole
from bgrpo.errors import DivergenceError, RunError, UserError
from bgrpo.files import open_to_append
from bgrpo.runs.budget import Spent, progress
from bgrpo.runs.redaction import redact_credentials, redacted
from bgrpo.training.run_attempt import STOP_FILE, Background

if TYPE_CHECKING:
    from bgrpo.distributed.train.training_run import RunResult

PERCENT, SCORE, OUTCOME, REASON = "percent", "score", "outcome", "reason"
"""Keys of a trial's results; ``outcome`` (finished, failed, diverged, interrupted) comes with the last one only."""

PROCESS_LOSSES = 3
"""Losses of a trial's process that it survives by going on from its checkpoint."""

CLEANUP_S = 300.0


@dataclass(frozen=True, slots=True, repr=False)
class TrialJob:
    """What a trial needs to know."""

    trial: str  # its id
    config: TrainConfig  # run says where its folder is or will be
    tags: dict[str, str]  # of its MLflow run
    metric: str  # validation metric that Tune's schedulers compare
    log: Path  # for what the run prints

    def __repr__(self) -> str:
        return self.trial

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.config.run.dir) / str(self.config.run.name)


class SweepTrial(Trainable):
    """Tune's view of a training run, which goes on in a thread of the trial's process.

    A trial whose process was lost goes on from the run's newest checkpoint when Tune starts it again. One that Tune's
    scheduler cuts is asked to stop, which saves a checkpoint and closes its records.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the run, or go on with it."""
        self._job: TrialJob = config["job"]
        self._results: queue.SimpleQueue[dict[str, float] | None] = queue.SimpleQueue()
        self._last = {PERCENT: 0.0}
        self._result: RunResult | None = None
        self._run = Background(self._train)

    def step(self) -> dict[str, Any]:
        """Wait for the next validation, or for the end of the run."""
        result = self._results.get()
        if result is not None:
            self._last = result
            return dict(result)
        self._run.wait(CLEANUP_S)
        return self._end()

    def cleanup(self) -> None:
        """Let a run that is cut save its checkpoint."""
        if not self._run.wait(0):
            (self._job.folder / STOP_FILE).touch()
            self._run.wait(CLEANUP_S)

    def _end(self) -> dict[str, Any]:
        error, outcome, reason = self._run.error, "finished", ""
        if error is not None:
            outcome = "diverged" if isinstance(error, DivergenceError) else "failed"
            reason = redact_credentials(str(error))
            if not isinstance(error, UserError | RunError):
                reason = f"{type(error).__name__}: {reason}"
                with open_to_append(self._job.log) as log:
                    traceback.print_exception(error, file=redacted(log))
        elif self._result is not None and self._result.stopped:
            outcome = "interrupted"
        return self._last | {"done": True, OUTCOME: outcome, REASON: reason}

    def _train(self) -> None:
        from bgrpo.distributed.train.training_run import run_training  # slow, and of no use to Tune's own process

        job = self._job
        resume = (job.folder / "run.json").is_file()
        try:
            with open_to_append(job.log) as log, _event_file(job.folder.parent.parent, job.trial) as events:

                def on_step(step: int, metrics: Mapping[str, float]) -> None:
                    for name, value in metrics.items():
                        events.add_scalar(name, value, step)
                    self._report(metrics)

                console = PlainConsole(file=redacted(log), width=PLAIN_WIDTH)
                self._result = run_training(job.config, "sweep", resume, console, job.tags, on_step)
        finally:
            self._results.put(None)

    def _report(self, metrics: Mapping[str, float]) -> None:
        """A validation becomes a result; that of the last step comes with the end of the run."""
        score = metrics.get(f"validation/{self._job.metric}")
        if score is None:
            return
        percent = 100 * progress(self._job.config, Spent.from_metrics(metrics))
        result = {PERCENT: min(percent, 100.0), SCORE: score}
        if percent < 100:
            self._results.put(result)
        else:
            self._last = result


def _event_file(sweep: Path, trial: str) -> Any:
    """TensorBoard's record of a trial, beside the trials so that one ``--logdir`` shows them all."""
    from tensorboardX import SummaryWriter

    return SummaryWriter(logdir=str(sweep / "tensorboard" / trial))
