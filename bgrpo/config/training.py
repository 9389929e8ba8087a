"""The configuration of a training run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bgrpo.config.learner import LearnerSection
from bgrpo.config.problems import TaskSection, steps_of_epochs
from bgrpo.config.rewards import OF_TOKENS, WITHOUT_REPLACEMENT, AdvantageSection, RewardModelSection, RewardSection
from bgrpo.config.rollouts import PolicySection, RolloutSection, VerifierSection
from bgrpo.config.upkeep import (
    BudgetSection,
    CheckpointSection,
    EvaluationSection,
    RunSection,
    TrackingSection,
    WatchdogSection,
)
from bgrpo.groups import RANKED, Search
from bgrpo.settings.spelling import nearest
from bgrpo.settings.values import Epochs, Positive, Section, Seed


class TrainConfig(Section):
    """One training run: ``bgrpo train --config NAME key=value …``; every key below may be given as an override."""

    algorithm: Literal["bgrpo", "grpo", "reinforce"] = Field("bgrpo", description="beams, samples, or plain REINFORCE")
    steps: Positive = Field(100, description="training steps: one batch of rollouts each")
    epochs: Epochs | None = Field(
        None, description="passes over the training problems: where they are given, they decide the number of steps"
    )
    budget: BudgetSection = BudgetSection()
    seed: Seed = Field(0, description="of prompt order, sampling and initialisation")
    policy: PolicySection = PolicySection()
    task: TaskSection = TaskSection()
    rollout: RolloutSection = RolloutSection()
    verifier: VerifierSection = VerifierSection()
    reward_model: RewardModelSection = RewardModelSection()
    reward: RewardSection = RewardSection()
    advantage: AdvantageSection = AdvantageSection()
    learner: LearnerSection = LearnerSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()
    run: RunSection = RunSection()
    watchdog: WatchdogSection = WatchdogSection()

    @property
    def decode_mode(self) -> Search:
        """How groups are made: as asked for, or beams for BGRPO and samples for the others."""
        return self.rollout.search or ("beam" if self.algorithm == "bgrpo" else "sample")

    @property
    def reward_kind(self) -> str:
        """How rank shapes the score: as asked for, or the algorithm's default."""
        if self.reward.kind is not None:
            return "simple" if self.reward.kind == "function" else self.reward.kind
        return "rank" if self.decode_mode in RANKED and self.reward.learns_from_check_alone else "simple"

    @property
    def advantage_kind(self) -> str:
        """The advantage asked for, or the algorithm's default."""
        defaults = {"bgrpo": "mean", "grpo": "std", "reinforce": "leave_one_out"}
        return self.advantage.kind or defaults[self.algorithm]

    @property
    def weighs_rollouts(self) -> bool:
        """Whether the loss weighs each token, or completion, by how the rollouts' policy differs from the learner's."""
        kind = self.learner.rollout_correction.kind
        return self.rollout.truncates if kind is None else kind != "none"

    @property
    def _search_as_given(self) -> str:
        """The key that decided how groups are made."""
        return f"rollout.search={self.rollout.search}" if self.rollout.search else f"algorithm={self.algorithm}"

    @property
    def checkpoint_metric(self) -> str:
        """The validation metric asked for, or the one that this reward lets be measured."""
        return self.checkpoint.metric or ("beam_rank_score" if self.reward.says_what_is_correct else "greedy_reward")

    @property
    def optimizer_steps_per_step(self) -> int:
        """Optimizer steps made from one batch of rollouts."""
        return self.learner.num_iterations * self.learner.minibatches

    def with_steps(self, problems: int) -> Self:
        """Where ``epochs`` are given, the same with the ``steps`` that they come to.

        Args:
            problems: how many there are to train on.
        """
        if self.epochs is None:
            return self
        steps = steps_of_epochs(self.epochs, problems, self.rollout.prompts_per_step)
        return self.model_copy(update={"steps": steps})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        rollout, learner = self.rollout, self.learner
        parts = learner.workers * learner.minibatches
        if rollout.prompts_per_step % parts:
            raise ValueError(
                f"rollout.prompts_per_step={rollout.prompts_per_step} does not divide into whole groups: "
                f"learner.workers={learner.workers} × learner.minibatches={learner.minibatches} = {parts}, and "
                f"{rollout.prompts_per_step} = {rollout.prompts_per_step // parts} × {parts} + "
                f"{rollout.prompts_per_step % parts}; the nearest that does is "
                f"{max(1, round(rollout.prompts_per_step / parts)) * parts}"
            )
        if self.decode_mode not in RANKED and self.reward_kind in ("rank", "reverse_rank"):
            raise ValueError(
                f"reward.kind={self.reward_kind} needs ranked beams, but {self._search_as_given} draws completions, "
                f"which have no rank: use reward.kind=simple, or algorithm=bgrpo with rollout.search=beam"
            )
        if self.decode_mode in RANKED and rollout.temperature != 1:
            raise ValueError(
                f"rollout.temperature={rollout.temperature:g}: beams are the policy's own best completions, so "
                f"{self._search_as_given} needs temperature 1; samples (algorithm=grpo) may be drawn at others"
            )
        if self.decode_mode != "stochastic_beam" and self.advantage_kind in WITHOUT_REPLACEMENT:
            raise ValueError(
                f"advantage.kind={self.advantage_kind} weighs completions drawn without replacement, but "
                f"{self._search_as_given} makes {'beams' if self.decode_mode in RANKED else 'independent samples'}: "
                f"use rollout.search=stochastic_beam"
            )
        if self.decode_mode != "sample" and rollout.truncates:
            given = [("top_k", rollout.top_k, 0), ("top_p", rollout.top_p, 1), ("min_p", rollout.min_p, 0)]
            name, value = next((name, value) for name, value, nothing in given if value != nothing)
            raise ValueError(
                f"rollout.{name}={value:g}: cuts off what independent samples are drawn from, but "
                f"{self._search_as_given} makes others: leave it out, or use algorithm=grpo with rollout.search=sample"
            )
        correction = learner.rollout_correction
        if not self.weighs_rollouts and correction.kind is None and correction != type(correction)():
            raise ValueError(
                "learner.rollout_correction has bounds or a level, but kind=none: set kind=truncate or mask"
            )
        if self.advantage.keep < 1 and self.advantage_kind == "set_estimator":
            raise ValueError(
                f"advantage.keep={self.advantage.keep:g}: set_estimator has no bias where it learns from whole groups; "
                f"leave advantage.keep at 1, or take another advantage.kind"
            )
        if self.advantage_kind == "pass_at_k" and self.advantage.k >= rollout.group_size:
            raise ValueError(
                f"advantage.k={self.advantage.k}: the best of k is compared with others of the group: expected k fewer "
                f"than rollout.group_size={rollout.group_size}"
            )
        if self.advantage_kind in OF_TOKENS and (learner.ratio_level == "sequence" or learner.loss == "vespo"):
            raise ValueError(
                f"advantage.kind={self.advantage_kind} judges each token, but learner.loss={learner.loss} has here one "
                f"ratio for a whole completion: take a loss with ratios of tokens, such as dapo"
            )
        if self.reward.kind == "function" and self.reward.function is None:
            raise ValueError("reward.kind=function needs reward.function='module:function'")
        if self.algorithm == "reinforce" and learner.num_iterations != 1:
            raise ValueError(
                f"algorithm=reinforce is on-policy: learner.num_iterations={learner.num_iterations} must be 1"
            )
        if rollout.max_extra_draws and not rollout.skip_uninformative:
            raise ValueError("rollout.max_extra_draws needs rollout.skip_uninformative=true")
        measured = self.reward.run_metrics(self.evaluation.validation_beam_widths, self.evaluation.validation_samples)
        if self.checkpoint_metric not in measured:
            meant = nearest(self.checkpoint_metric, measured)
            raise ValueError(
                f"checkpoint.metric={self.checkpoint_metric}: validations measure {', '.join(measured)} "
                f"(beam@k needs evaluation.validation_beam_widths, pass@k evaluation.validation_samples)"
                + (f"; did you mean {meant!r}?" if meant else "")
            )
        return self
