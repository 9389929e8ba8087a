"""What each Ray Train worker runs: one learner of a training run."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray.train

from bgrpo.config import TrainConfig
from bgrpo.distributed.rollout.remote import ServiceDecoder, ServiceRolloutSource
from bgrpo.distributed.train.driving import STOP_FILE
from bgrpo.distributed.train.failures import final_failure, is_owned, record_failure
from bgrpo.distributed.train.learner_places import record_learner
from bgrpo.distributed.train.learner_watch import LearnerWatch, crash_record
from bgrpo.distributed.watch.prometheus import MetricsRecorder, Sample, step_samples
from bgrpo.distributed.watch.run_log import RunLog, start_run_log
from bgrpo.learning.learner_state import policy_folder, training_store
from bgrpo.runs.learning_signal import SignalWatch
from bgrpo.runs.redaction import remember_secrets_in
from bgrpo.runs.run_folder import RunFolder
from bgrpo.runs.samples import SampleWriter
from bgrpo.scoring.failed_checks import failures_of_steps
from bgrpo.tasks.problem_files import read_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    import torch

    from bgrpo.learning.trainer import BGRPOTrainer
    from bgrpo.policies.io import load_policy

    config, folder = job.config, job.folder
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(config.learner.threads or max(1, cores // config.learner.workers))
    torch.manual_seed(config.seed)
    store = training_store(config, folder)
    resume = store.latest()
    start = load_policy(config.policy.path)
    policy = start if resume is None else load_policy(str(policy_folder(resume)))
    reference = start.model if config.learner.beta > 0 and resume is not None else None
    problems = read_problems(folder.data / "train.jsonl")
    samples = SampleWriter(folder, problems, policy.tokenizer, config.rollout.keep_samples)
    log.step = 0 if resume is None else store.step_of(resume)
    if rank == 0:
        folder.truncate_after(log.step)
        samples.truncate_after(log.step)
    record_learner(folder.path, rank, log.step)
    trainer = BGRPOTrainer(
        config,
        policy.model,
        policy.tokenizer,
        ServiceRolloutSource(job.service, config, problems),
        len(problems),
        output_dir=folder.path / "trl",
        reference=reference,
        store=store,
        resume=resume,
        on_step=_StepReporter(config, log, watch, folder if rank == 0 else None),
        validate=_Validator(job, policy.tokenizer) if config.evaluation.every else None,
        should_stop=(folder.path / STOP_FILE).exists,
        keep_samples=samples.write,
    )
    trainer.run()


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


class _Validator:
    """Held-out metrics of the present weights, decoded by the rollout actors."""

    def __init__(self, job: LearnerJob, tokenizer: PreTrainedTokenizerBase) -> None:
        self._job = job
        self._tokenizer = tokenizer
        problems = read_problems(job.folder.data / "validation.jsonl")
        self._problems = problems[: job.config.evaluation.problems]

    def __call__(self, version: int) -> dict[str, float]:
        from bgrpo.evaluation.metrics import RANK_WIDTH, Measures, evaluate

        decode = ServiceDecoder(self._job.service, self._job.config, version, self._tokenizer)
        samples, seed = self._job.config.evaluation.validation_samples, self._job.config.seed
        evaluation = evaluate(decode, self._problems, [RANK_WIDTH], samples, seed, Measures.of(self._job.config))
        for line in evaluation.failures():
            logger.warning("validation of version %d: %s", version, line)
        return evaluation.metrics()
