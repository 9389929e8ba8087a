"""What each Ray Train worker runs: one learner of a training run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import ray.train

from bgrpo.config import TrainConfig
from bgrpo.distributed.rollout.remote import ServiceDecoder, ServiceRolloutSource
from bgrpo.distributed.train.failures import final_failure, is_owned, record_failure
from bgrpo.distributed.train.learner_places import record_learner
from bgrpo.distributed.train.learner_watch import LearnerWatch, crash_record
from bgrpo.distributed.watch.prometheus import MetricsRecorder, Sample, step_samples
from bgrpo.distributed.watch.run_log import RunLog, start_run_log
from bgrpo.runs.learning_signal import SignalWatch
from bgrpo.runs.redaction import remember_secrets_in
from bgrpo.runs.run_folder import RunFolder
from bgrpo.scoring.failed_checks import failures_of_steps
from bgrpo.training.learner import learn

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LearnerJob:
    """What a learner needs to know.

    Attributes:
        config: the run's configuration.
        folder: the run's folder, visible to every learner.
        service: handle of the rollout service.
        started: seconds since 1970 when this attempt at the run began; earlier failures are of other attempts.
    """

    config: TrainConfig
    folder: RunFolder
    service: Any
    started: float


def learner_loop(settings: dict[str, LearnerJob]) -> None:
    """Train from the newest complete checkpoint on; Ray Train calls this again after a learner was lost.

    A failure that would come again (a user's error, a divergence) is recorded and not tried again.
    """
    job = settings["job"]
    rank = ray.train.get_context().get_world_rank()
    remember_secrets_in(job.config.model_dump(mode="json"))
    log = start_run_log(job.folder.name, f"learner {rank}")
    if final_failure(job.folder.path, job.started) is not None or not is_owned(job.folder):
        return
    watch = LearnerWatch(job.folder.path, rank, job.config.watchdog.stall_s)
    try:
        with crash_record(job.folder.path, rank), watch:
            _learn(job, rank, log, watch)
    except Exception as error:
        record_failure(job.folder.path, error, rank, log.step)
        raise


def _learn(job: LearnerJob, rank: int, log: RunLog, watch: LearnerWatch) -> None:
    config, folder = job.config, job.folder

    def begin(step: int) -> None:
        log.step = step
        record_learner(folder.path, rank, step)

    learn(
        config,
        folder,
        rank,
        source=lambda problems: ServiceRolloutSource(job.service, config, problems),
        decoder=lambda version, tokenizer: ServiceDecoder(job.service, config, version, tokenizer),
        on_start=begin,
        on_step=_StepReporter(config, log, watch, folder if rank == 0 else None),
    )


class _StepReporter:
    """After each step: learner 0 appends its metrics to ``metrics.jsonl``, which the driver follows, and records them.

    Args:
        config: of the run.
        log: told the step.
        watch: told that a step has ended.
        folder: of the run, on learner 0; None on others, which report nothing.
    """

    def __init__(self, config: TrainConfig, log: RunLog, watch: LearnerWatch, folder: RunFolder | None) -> None:
        self._signal = SignalWatch(config)
        self._log = log
        self._watch = watch
        self._folder = folder
        if folder is not None:
            self._recorder = MetricsRecorder(folder.name)
            self._recorder.record([Sample("bgrpo_learner_starts_total", 1)])
            self._recorder.refresh_forever()

    def __call__(self, metrics: dict[str, Any]) -> None:
        self._log.step = int(metrics["step"])
        self._watch.moved()
        if self._folder is not None:
            for line in failures_of_steps([metrics]):
                logger.warning("step %d: %s", self._log.step, line)
            self._folder.append_metrics(self._log.step, metrics)
            self._recorder.record(step_samples(metrics))
            for line in self._signal.note(self._log.step, metrics):
                logger.warning(line)
