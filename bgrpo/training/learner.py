"""One learner of a training run, wherever it runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bgrpo.config import TrainConfig
from bgrpo.evaluation.decoders import Decode
from bgrpo.groups import ScoredGroup
from bgrpo.runs.group_log import GroupLog
from bgrpo.runs.run_folder import RunFolder
from bgrpo.runs.samples import SampleWriter
from bgrpo.scoring.failed_checks import DETAILS
from bgrpo.tasks.base import Problem
from bgrpo.tasks.problem_files import read_problems
from bgrpo.training.run_attempt import STOP_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bgrpo.learning.rollout_source import RolloutSource
    from bgrpo.policies.io import LoadedPolicy


def learn(
    config: TrainConfig,
    folder: RunFolder,
    rank: int,
    source: Callable[[Sequence[Problem]], RolloutSource],
    decoder: Callable[[int, PreTrainedTokenizerBase], Decode],
    on_start: Callable[[int], None],
    on_step: Callable[[dict[str, Any]], None],
    start: LoadedPolicy | None = None,
) -> None:
    """Train from the newest complete checkpoint to the last step, or until the stop file is there.

    Args:
        config: of the run.
        folder: of the run.
        rank: of this learner; 0 writes.
        source: makes what decodes and scores the training problems.
        decoder: makes what decodes and scores with a published version, for validations.
        on_start: called with the number of steps that were made before.
        on_step: called with each step's metrics.
        start: the starting policy, where this process has it and nobody else learns in it.
    """
    import torch

    from bgrpo.learning.learner_state import training_store
    from bgrpo.learning.starting_point import starting_point
    from bgrpo.learning.trainer import BGRPOTrainer

    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(config.learner.threads or max(1, cores // config.learner.workers))
    torch.manual_seed(config.seed)
    store = training_store(config, folder)
    resume = store.latest()
    policy, reference = starting_point(config, start, resume)
    problems = read_problems(folder.data / "train.jsonl")
    samples = SampleWriter(folder, problems, policy.tokenizer, config.rollout.keep_samples)
    group_log = GroupLog(folder, config.rollout.log_groups)

    def keep(step: int, groups: Sequence[ScoredGroup], advantages: Mapping[int, Sequence[float]]) -> None:
        samples.write(step, groups, advantages)
        group_log.write(step, groups, advantages)

    begun = 0 if resume is None else store.step_of(resume)
    if rank == 0:
        folder.truncate_after(begun)
        samples.truncate_after(begun)
    on_start(begun)
    trainer = BGRPOTrainer(
        config,
        policy.model,
        policy.tokenizer,
        source(problems),
        len(problems),
        output_dir=folder.path / "trl",
        reference=reference,
        store=store,
        resume=resume,
        on_step=on_step,
        validate=_validator(config, folder, lambda version: decoder(version, policy.tokenizer)),
        should_stop=(folder.path / STOP_FILE).exists,
        keep_samples=keep,
    )
    trainer.run()


def _validator(
    config: TrainConfig, folder: RunFolder, decoder: Callable[[int], Decode]
) -> Callable[[int], dict[str, Any]] | None:
    """Measures a version on held-out problems, also against the starting policy; None without validations."""
    from bgrpo.evaluation.metrics import Evaluation, Measures, evaluate
    from bgrpo.evaluation.win_rate import with_win_rate

    section = config.evaluation
    if not section.every:
        return None
    problems = read_problems(folder.data / "validation.jsonl")[: section.problems]

    start = Evaluation.load(folder.validation_before_path) if config.reward.is_graded else None

    def validate(version: int) -> dict[str, Any]:
        samples, measures = section.validation_samples, Measures.of(config)
        widths = section.validation_beam_widths
        evaluation = evaluate(decoder(version), problems, widths, samples, config.seed, measures)
        if start is not None:
            evaluation = with_win_rate(evaluation, start)
        told = "; ".join(evaluation.failures())
        return evaluation.metrics() | ({DETAILS: {"validation": told}} if told else {})

    return validate
