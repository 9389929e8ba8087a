"""What surrounds the updates of a training step: rollouts before them; publishing, validating and saving after them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from bgrpo.checkpoints import CheckpointStore
from bgrpo.config import TrainConfig
from bgrpo.learner_state import load_learner_state, write_checkpoint
from bgrpo.learning_batch import ScoredStep, collect_step
from bgrpo.rollouts import RolloutSource
from bgrpo.step_metrics import LearnerMeter, StepClock, rollout_metrics

OnStep = Callable[[dict[str, float]], None]
Validate = Callable[[int], dict[str, float]]
ShouldStop = Callable[[], bool]


class OuterLoop(TrainerCallback):
    """Counts training steps; a policy version is the number of steps done. Driven by the trainer's events.

    Attributes:
        step: training steps done, which is also the version of the weights that the next rollouts need.
        meter: statistics of the present step's updates, filled by the trainer.

    Args: see :class:`bgrpo.trainer.BGRPOTrainer`.
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
        self._clock = StepClock()
        self._scored: ScoredStep | None = None
        self._learning_rate = 0.0

    def begin_step(self) -> ScoredStep:
        """Collect this step's groups."""
        self.meter = LearnerMeter()
        with self._clock.measure("rollout"):
            self._scored = collect_step(self._source, self._config, self.step, self._problems)
        return self._scored

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore a resumed run's optimizer and place, then give the rollout source its first weights."""
        if self._resume is not None:
            load_learner_state(self._resume, kwargs["optimizer"], kwargs["lr_scheduler"])
            state.global_step = self.step * self._config.optimizer_steps_per_step
        self._clock = StepClock()
        if state.is_world_process_zero:
            self._publish(kwargs["model"])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the rate of this step; the schedule moves on before the step ends."""
        self._learning_rate = float(kwargs["lr_scheduler"].get_last_lr()[0])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a training step's last optimizer step: publish, validate, save, report, and end where asked to."""
        if state.global_step % self._config.optimizer_steps_per_step:
            return
        model = kwargs["model"]
        metrics = self._step_metrics()
        self.step += 1
        control.should_training_stop = control.should_training_stop or self._asked_to_stop()
        if state.is_world_process_zero:
            self._publish(model)
            validation = self._run_validation()
            if control.should_training_stop or self._checkpoint_due(validation):
                self._save(model, kwargs["optimizer"], kwargs["lr_scheduler"], metrics | validation)
            metrics |= {f"validation/{name}": value for name, value in validation.items()}
        metrics |= self._clock.restart(_completions(self._scored))
        if self._on_step is not None:
            self._on_step(metrics)

    def _step_metrics(self) -> dict[str, float]:
        if self._scored is None:
            raise RuntimeError("a training step ended that collected no rollouts")
        return {
            "step": float(self.step + 1),
            **rollout_metrics(self._scored, self.step, self._config.decode_mode),
            **self.meter.result(),
            "learning_rate": self._learning_rate,
        }

    def _publish(self, model: PreTrainedModel) -> None:
        with self._clock.measure("weights"):
            self._source.publish(self.step, model)

    def _run_validation(self) -> dict[str, float]:
        every = self._config.evaluation.every
        if self._validate is None or not every or self.step % every:
            return {}
        with self._clock.measure("validation"):
            return self._validate(self.step)

    def _asked_to_stop(self) -> bool:
        """Learner 0's answer, on every learner: all end with the same step."""
        answer = [self._should_stop is not None and self._should_stop()]
        broadcast_object_list(answer)
        return answer[0]

    def _checkpoint_due(self, validation: dict[str, float]) -> bool:
        """Every ``checkpoint.every`` steps, at the end, and after each validation, which makes a candidate for best."""
        section = self._config.checkpoint
        return self.step % section.every == 0 or self.step == self._config.steps or section.metric in validation

    def _save(self, model: PreTrainedModel, optimizer: Any, lr_scheduler: Any, metrics: dict[str, float]) -> None:
        if self._store is None:
            return
        with self._clock.measure("checkpoint"):
            self._store.save(
                self.step,
                lambda folder: write_checkpoint(
                    folder, model, self._tokenizer, optimizer, lr_scheduler, self._config, self._problems
                ),
                metrics,
                self._config.checkpoint.metric,
            )


def _completions(scored: ScoredStep | None) -> int:
    return sum(len(group.completions) for group in scored.groups) if scored is not None else 0
