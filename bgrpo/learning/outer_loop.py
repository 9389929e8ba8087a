"""What surrounds the updates of a training step: rollouts before them; publishing, validating and saving after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from bgrpo.config import TrainConfig
from bgrpo.groups import Completion, ScoredGroup
from bgrpo.learning.batch import LearningStep, choose_groups, draw_groups
from bgrpo.learning.learner_state import load_groups_ahead, load_learner_state, write_checkpoint
from bgrpo.learning.prompt_order import epochs_done, indices_of_draw
from bgrpo.learning.rollout_source import RolloutSource
from bgrpo.learning.step_metrics import LearnerMeter, StepClock, rollout_metrics
from bgrpo.runs.budget import Spent, expected_steps, is_spent
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.scoring.failed_checks import DETAILS, first_details, refuse_failed_step

OnStep = Callable[[dict[str, Any]], None]
"""Takes a step's metrics, and under :data:`bgrpo.scoring.failed_checks.DETAILS` what failed in its checks, if any."""

Validate = Callable[[int], dict[str, Any]]
"""Measures a version of the weights; what it returns is as for :data:`OnStep`."""

ShouldStop = Callable[[], bool]
KeepSamples = Callable[[int, Sequence[ScoredGroup], Mapping[int, Sequence[float]]], None]
"""Called with the step, its groups, and the advantages of those that the update used, by position."""


class OuterLoop(TrainerCallback):
    """Counts training steps; a policy version is the number of steps done. Driven by the trainer's events.

    With ``rollout.max_staleness=1`` the rollouts of step t + 1 are decoded while step t is learned. Which version
    decodes a step is planned, whatever the timing: t for the first step after a start, the one before for all others.
    A checkpoint therefore holds the groups of the step after it, whose weights a resumed run would not have.

    Attributes:
        step: training steps done, which is also the version of the weights that the next rollouts need.
        meter: statistics of the present step's updates, filled by the trainer.

    Args: see :class:`bgrpo.learning.trainer.BGRPOTrainer`.
    """

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: PreTrainedTokenizerBase,
        source: RolloutSource,
        problems: int,
        *,
        store: CheckpointStore | None,
        resume: Path | None,
        on_step: OnStep | None,
        validate: Validate | None,
        should_stop: ShouldStop | None,
        keep_samples: KeepSamples | None,
    ) -> None:
        self.step = 0 if resume is None else CheckpointStore.step_of(resume)
        self.meter = LearnerMeter()
        self._config = config
        self._tokenizer = tokenizer
        self._source = source
        self._problems = problems
        self._store = store
        self._resume = resume
        self._on_step = on_step
        self._validate = validate
        self._should_stop = should_stop
        self._keep_samples = keep_samples
        self._clock = StepClock(overlapped=config.rollout.max_staleness > 0)
        self._scored: LearningStep | None = None
        self._spent = Spent() if resume is None or store is None else Spent.from_metrics(store.metrics(resume))
        self._spent = replace(self._spent, steps=self.step)
        self._batches = self.step
        self._learning_rate = 0.0
        self._publishes = False
        self._ahead: list[ScoredGroup] | None = None  # groups of the next step, where they are here already
        if resume is not None and config.rollout.max_staleness:
            self._ahead = load_groups_ahead(resume, config, self.step, problems)
        self._first_version = self.step if self._ahead is None else self._ahead[0].version

    @property
    def is_complete(self) -> bool:
        """True when the run has made its steps, or spent its budget."""
        return is_spent(self._config, self._spent)

    def expected_steps(self) -> float:
        """Training steps that the whole run will have made, as far as can be told now."""
        return expected_steps(self._config, self._spent, self._batches)

    def begin_step(self) -> LearningStep:
        """Collect this step's groups, and have those of the next one begun where they are decoded ahead."""
        self.meter = LearnerMeter()
        with self._clock.measure("rollout"):
            groups = self._draw() if self._ahead is None else self._ahead
            self._ahead = None
            self._scored = choose_groups(groups, self._config)
        self._spent, self._batches = self._spent.with_rollouts(self._scored.groups), self._batches + 1
        ahead = self.step + 1
        if self._publishes and self._config.rollout.max_staleness and ahead < self._config.steps:
            self._source.prefetch(
                ahead, self._planned_version(ahead), indices_of_draw(self._config, ahead, self._problems)
            )
        return self._scored

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore a resumed run's optimizer and place, then give the rollout source its first weights."""
        if self._resume is not None:
            load_learner_state(self._resume, kwargs["optimizer"], kwargs["lr_scheduler"])
            state.global_step = self.step * self._config.optimizer_steps_per_step
        self._clock.restart(0)
        self._publishes = state.is_world_process_zero
        if self._publishes:
            self._publish(kwargs["model"])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the rate of this step; the schedule moves on before the step ends."""
        self._learning_rate = float(kwargs["lr_scheduler"].get_last_lr()[0])
        self._clock.begin_optimizer()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The weights have moved."""
        self._clock.end_optimizer()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a training step's last optimizer step: publish, validate, save, report, and end where asked to."""
        if state.global_step % self._config.optimizer_steps_per_step:
            return
        model = kwargs["model"]
        metrics = self._step_metrics()
        self.step += 1
        if self._publishes:
            if self._keep_samples is not None and self._scored is not None:  # before the checkpoint: none is missing
                self._keep_samples(self.step, self._scored.groups, self._scored.advantages)
            self._publish(model)
        stop = self._settle() or self.is_complete
        control.should_training_stop = control.should_training_stop or stop
        metrics |= self._spent.metrics()
        details: dict[str, str] = {}
        if self._publishes:
            validation = self._run_validation()
            details = validation.pop(DETAILS, {})
            if control.should_training_stop or self._checkpoint_due(validation):
                self._save(model, kwargs["optimizer"], kwargs["lr_scheduler"], metrics | validation)
            metrics |= {f"validation/{name}": value for name, value in validation.items()}
        metrics |= self._clock.restart(len(_completions(self._scored)))
        if self._on_step is not None:
            details = first_details(_completions(self._scored)) | details
            self._on_step(metrics | ({DETAILS: details} if details else {}))

    def _step_metrics(self) -> dict[str, float]:
        if self._scored is None:
            raise RuntimeError("a training step ended that collected no rollouts")
        return {
            "step": float(self.step + 1),
            "epoch": epochs_done(self._config, self.step + 1, self._problems),
            **rollout_metrics(self._scored, self.step, self._config.decode_mode, self._config.reward),
            **self.meter.result(),
            "learning_rate": self._learning_rate,
        }

    def _planned_version(self, step: int) -> int:
        return max(self._first_version, step - self._config.rollout.max_staleness)

    def _draw(self) -> list[ScoredGroup]:
        version = self._planned_version(self.step)
        groups = draw_groups(self._source, self._config, self.step, version, self._problems)
        completions = [each for group in groups for each in group.completions]
        refuse_failed_step(completions, self._config.reward.max_failures, f"step {self.step + 1}")
        return groups

    def _publish(self, model: PreTrainedModel) -> None:
        with self._clock.measure("weights"):
            self._source.publish(self.step, model)

    def _run_validation(self) -> dict[str, Any]:
        every = self._config.evaluation.every
        if self._validate is None or not every or (self.step % every and not self.is_complete):
            return {}
        with self._clock.measure("validation"):
            return self._validate(self.step)

    def _settle(self) -> bool:
        """Count the step as learner 0 timed it, and take its answer whether to stop: all learners end together."""
        answer = [self._clock.elapsed(), self._should_stop is not None and self._should_stop()]
        broadcast_object_list(answer)
        self._spent = self._spent.with_update(self._config.optimizer_steps_per_step, answer[0])
        return bool(answer[1])

    def _checkpoint_due(self, validation: dict[str, float]) -> bool:
        """Every ``checkpoint.every`` steps, at the end, and after each validation, which makes a candidate for best."""
        section = self._config.checkpoint
        return self.step % section.every == 0 or self.is_complete or self._config.checkpoint_metric in validation

    def _save(self, model: PreTrainedModel, optimizer: Any, lr_scheduler: Any, metrics: dict[str, float]) -> None:
        if self._store is None:
            return
        if self._config.rollout.max_staleness and not self.is_complete:
            with self._clock.measure("rollout"):
                self._ahead = self._draw()
        with self._clock.measure("checkpoint"):
            self._store.save(
                self.step,
                lambda folder: write_checkpoint(
                    folder, model, self._tokenizer, optimizer, lr_scheduler, self._config, self._problems, self._ahead
                ),
                metrics,
                self._config.checkpoint_metric,
            )


def _completions(scored: LearningStep | None) -> list[Completion]:
    return [completion for group in scored.groups for completion in group.completions] if scored is not None else []
