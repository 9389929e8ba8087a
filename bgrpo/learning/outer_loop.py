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
from bgrpo.learning.batch import LearningStep, ReferenceLogprobs, choose_groups, draw_groups
from bgrpo.learning.learner_state import load_groups_ahead, load_learner_state, write_checkpoint
from bgrpo.learning.moving_reference import move_reference
from bgrpo.learning.prompt_order import epochs_done, indices_of_draw
from bgrpo.learning.rollout_source import RolloutSource
from bgrpo.learning.sharding import is_sharded, whole_model, whole_state
from bgrpo.learning.step_metrics import LearnerMeter, StepClock, rollout_metrics
from bgrpo.policies.adapter import adapter_of
from bgrpo.policies.flat_weights import published_bytes
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

    With ``rollout.max_staleness=n`` the rollouts of step t + n are decoded while the steps from t on are learned. Which
    version decodes a step is planned, whatever the timing: n versions before the step's own, but none before the start.
    A checkpoint therefore holds the groups of the n steps after it, whose weights a resumed run would not have.

    Attributes:
        step: training steps done, which is also the version of the weights that the next rollouts need.
        meter: statistics of the present step's updates, filled by the trainer.
        reference: the reference policy where it follows the policy; set by the trainer.

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
        self.reference: PreTrainedModel | None = None
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
        self._published_bytes = 0
        self._ahead: dict[int, list[ScoredGroup]] = {}  # groups of steps to come, where they are here already
        if resume is not None and config.rollout.max_staleness:
            self._ahead = load_groups_ahead(resume, config, self.step, problems)
        self._first_version = self._begun = self.step  # the last step whose rollouts were begun ahead

    @property
    def is_complete(self) -> bool:
        """True when the run has made its steps, or spent its budget."""
        return is_spent(self._config, self._spent)

    def expected_steps(self) -> float:
        """Training steps that the whole run will have made, as far as can be told now."""
        return expected_steps(self._config, self._spent, self._batches)

    def begin_step(self, reference_logprobs: ReferenceLogprobs | None = None) -> LearningStep:
        """Collect this step's groups, and have those of the next one begun where they are decoded ahead.

        Args:
            reference_logprobs: see :func:`bgrpo.learning.batch.choose_groups`.
        """
        self.meter = LearnerMeter()
        with self._clock.measure("rollout"):
            groups = self._ahead.pop(self.step) if self.step in self._ahead else self._draw(self.step)
        self._scored = choose_groups(groups, self._config, reference_logprobs)
        self._spent, self._batches = self._spent.with_rollouts(self._scored.groups), self._batches + 1
        last = self._last_ahead()
        for ahead in range(max(self._begun, self.step) + 1, last + 1):
            if self._publishes and ahead not in self._ahead:
                indices = indices_of_draw(self._config, ahead, self._problems)
                self._source.prefetch(ahead, self._planned_version(ahead), indices)
        self._begun = last
        return self._scored

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore a resumed run's optimizer and place, then give the rollout source its first weights."""
        if self._resume is not None:
            load_learner_state(self._resume, kwargs["optimizer"], kwargs["lr_scheduler"])
            state.global_step = self.step * self._config.optimizer_steps_per_step
        self._clock.restart(0)
        self._publishes = state.is_world_process_zero
        self._publish(kwargs["model"])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the rate of this step; the schedule moves on before the step ends."""
        self._learning_rate = float(kwargs["lr_scheduler"].get_last_lr()[0])
        self._clock.begin_optimizer()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The weights have moved."""
        self._clock.end_optimizer()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a training step's last optimizer step: publish, validate, report, save, and end where asked to.

        A step is reported before it is saved: a resumed run forgets the reports of later steps than its checkpoint's,
        and misses none. The seconds of a checkpoint are told with the next step.
        """
        if state.global_step % self._config.optimizer_steps_per_step:
            return
        model = kwargs["model"]
        metrics = self._step_metrics()
        self.step += 1
        self._move_reference(model)
        if self._publishes and self._keep_samples is not None and self._scored is not None:
            # before the checkpoint: none is missing
            self._keep_samples(self.step, self._scored.groups, self._scored.advantages)
        self._publish(model)
        stop = self._settle() or self.is_complete
        control.should_training_stop = control.should_training_stop or stop
        metrics |= self._spent.metrics()
        validation = self._run_validation() if self._publishes else {}
        details = validation.pop(DETAILS, {})
        told = metrics | {f"validation/{name}": value for name, value in validation.items()}
        told |= self._clock.restart(len(_completions(self._scored)))
        if self._publishes:
            told["published_bytes"] = float(self._published_bytes)
        if self._on_step is not None:
            details = first_details(_completions(self._scored)) | details
            self._on_step(told | ({DETAILS: details} if details else {}))
        due = self._publishes and (control.should_training_stop or self._checkpoint_due(validation))
        if is_sharded(model):  # which all learners must gather
            answer = [due]
            broadcast_object_list(answer)
            due = answer[0]
        if due:
            self._save(model, kwargs["optimizer"], kwargs["lr_scheduler"], metrics | validation)

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

    def _move_reference(self, model: PreTrainedModel) -> None:
        """Every ``learner.reference.sync_every`` steps, alike on every learner."""
        section = self._config.learner.reference
        if self.reference is not None and self.step % section.sync_every == 0:
            move_reference(model, self.reference, section.mixing)

    def _planned_version(self, step: int) -> int:
        return max(self._first_version, step - self._config.rollout.max_staleness)

    def _last_ahead(self) -> int:
        """The last step that may be decoded with the weights of this moment."""
        return min(self.step + self._config.rollout.max_staleness, self._config.steps - 1)

    def _draw(self, step: int) -> list[ScoredGroup]:
        groups = draw_groups(self._source, self._config, step, self._planned_version(step), self._problems)
        completions = [each for group in groups for each in group.completions]
        refuse_failed_step(completions, self._config.reward, f"step {step + 1}")
        return groups

    def _publish(self, model: PreTrainedModel) -> None:
        with self._clock.measure("weights"):
            whole = whole_model(model, self._publishes)
            if whole is None:
                return
            weights = adapter_of(whole) or whole
            self._source.publish(self.step, weights)
        self._published_bytes = published_bytes(weights)

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
        if self._publishes and not self.is_complete:  # of the steps whose weights are not the checkpoint's
            with self._clock.measure("rollout"):
                for step in range(self.step, min(self.step + self._config.rollout.max_staleness, self._config.steps)):
                    self._ahead[step] = self._ahead[step] if step in self._ahead else self._draw(step)
        with self._clock.measure("checkpoint"):
            whole, state = whole_model(model, self._publishes), whole_state(optimizer, self._publishes)
            reference = None if self.reference is None else whole_model(self.reference, self._publishes)
            if whole is None:
                return
            self._store.save(
                self.step,
                lambda folder: write_checkpoint(
                    folder,
                    whole,
                    self._tokenizer,
                    state,
                    lr_scheduler,
                    self._config,
                    self._problems,
                    self._ahead,
                    reference,
                ),
                metrics,
                self._config.checkpoint_metric,
            )


def _completions(scored: LearningStep | None) -> list[Completion]:
    return [completion for group in scored.groups for completion in group.completions] if scored is not None else []
