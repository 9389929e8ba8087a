"""A stand-in for training runs: a trial whose scores are written in its configuration."""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Trainable

from bgrpo.runs.run_folder import RunFolder
from bgrpo.sweep.tune.tune_trial import OUTCOME, PERCENT, REASON, SCORE, TrialJob

REPORTS = 5


class ScriptedTrial(Trainable):
    """Reports a score that grows to ``learner.learning_rate`` in :data:`REPORTS` reports, noted as a run does."""

    def setup(self, config: dict[str, Any]) -> None:
        self._job: TrialJob = config["job"]

    def step(self) -> dict[str, Any]:
        done = self.iteration + 1
        score = self._job.config.learner.learning_rate * done / REPORTS
        run = RunFolder(self._job.folder)
        run.path.mkdir(parents=True, exist_ok=True)
        run.append_metrics(done, {f"validation/{self._job.metric}": score})
        result = {PERCENT: 100 * done / REPORTS, SCORE: score}
        return result | ({"done": True, OUTCOME: "finished", REASON: ""} if done == REPORTS else {})


class EndlessTrial(ScriptedTrial):
    """One that begins, and then never reports anything."""

    def step(self) -> dict[str, Any]:
        self._job.folder.mkdir(parents=True, exist_ok=True)
        time.sleep(3600)
        return {}
