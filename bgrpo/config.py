"""The one typed configuration tree: YAML file, then dotted overrides, then checks that show their arithmetic."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from bgrpo.errors import UserError, one_line
from bgrpo.settings.messages import explain, shown
from bgrpo.settings.paths import expanded
from bgrpo.settings.spelling import nearest
from bgrpo.settings.strict_yaml import dump_yaml, read_yaml
from bgrpo.settings.typed import UNKNOWN, below, override_value, settle
from bgrpo.settings.values import (
    Batch,
    Cores,
    Few,
    FewOrNone,
    Fraction,
    NonNegative,
    Options,
    PathText,
    Positive,
    Samples,
    Scale,
    Seconds,
    Section,
    Seed,
    Text,
    Threads,
    ThreadsOrAuto,
    Weight,
    Width,
)

SHIPPED_CONFIGS = Path(__file__).resolve().parent.parent / "ray_jobs" / "configs"
MAX_PARAMETERS = 10**11
RANK_WIDTH = 10
"""Width of the search behind the metrics top1 and beam_rank_score."""
SPLITS = ("train", "validation", "test")

C = TypeVar("C", bound=Section)

Reward = Annotated[float, Field(ge=-(10**6), le=10**6)]
PART_SOURCES = ("check", "function", "metric", "model", "url")
_OF_SOURCE = {"model": ("label", "max_tokens", "too_long", "dtype", "separator"), "url": ("token_variable",)}
PartName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,40}$")]


class ProblemSource(Section):
    """Where problems come from: a data file, or the task's generator."""

    file: PathText | None = Field(None, description="data file; when set, nothing is generated")
    options: Options = Field({}, description="of the task's generator: see bgrpo generate-data --help")
    count: Positive = Field(1000, description="how many problems to generate, or at most to read from the file")
    seed: Seed = Field(0, description="of the generator, or of what is held out")
    share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="part of task.train's file to hold out for validation or test when they have no file; default: "
        "none, or 0.05 where the task has no generator",
    )


class TaskSection(Section):
    """The problems and their exact check."""

    name: Text = Field("polynomial", description="a shipped task's name, or 'module:Class'")
    options: Options = Field({}, description="arguments of the task")
    train: ProblemSource = Field(ProblemSource(count=50000, seed=1), description="problems to learn from")
    validation: ProblemSource = Field(ProblemSource(count=500, seed=2), description="problems for model selection")
    test: ProblemSource = Field(ProblemSource(count=1000, seed=3), description="problems for the before/after table")
    split_by: Text | None = Field(
        None, description="column whose values are never on two sides of a split that task.*.share makes"
    )
    allow_bad_lines: bool = Field(False, description="train on a file some of whose own answers are wrong")


class PolicySection(Section):
    """The policy that training starts from; also the frozen reference of the KL term."""

    path: PathText = Field("shipped", description="'shipped', a directory, or a Hugging Face model id")


class RolloutSection(Section):
    """How completions are decoded, and by how many actors."""

    actors: Few = Field(2, description="rollout actors at the start")
    min_actors: Few | None = Field(None, description="fewest rollout actors; default: actors")
    max_actors: Few | None = Field(None, description="most rollout actors; default: actors, a pool of one size")
    scale_up_s: Seconds = Field(
        10.0, description="one more actor is asked for when requests have waited this long within scale_down_s"
    )
    scale_down_s: Seconds = Field(
        300.0, description="an actor not needed for this long goes; longer than learning from one batch takes"
    )
    stand_ins: FewOrNone = Field(
        0, description="spare actors: they reserve no CPU, rest, and work only while others are lost and start again"
    )
    placement_s: Seconds = Field(
        900.0, description="longest wait for the cluster to have room for any rollout actor or verifier"
    )
    node_resource: Text | None = Field(None, description="Ray resource of the nodes that rollout actors run on")
    group_size: Annotated[int, Field(ge=2, le=10**5)] = Field(
        10, description="K: completions (beams or samples) per prompt"
    )
    prompts_per_step: Batch = Field(32, description="prompts decoded for one training step")
    prompts_per_request: Batch = Field(16, description="prompts in one request; fixed whatever the number of actors")
    max_new_tokens: Batch = Field(32, description="longest completion, end token included")
    temperature: Annotated[float, Field(ge=0.001, le=1000)] = Field(
        1.0, description="of sampling, and of all log-probabilities learned from; beams: 1"
    )
    dtype: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="of the layers' matrix products, keys and values in rollouts; norms, attention's arithmetic, head "
        "and scores are fp32",
    )
    threads: Threads = Field(1, description="torch threads of one actor")
    cpus_per_actor: Cores = Field(0.5, description="Ray CPUs that one actor reserves")
    gpus_per_actor: Cores = Field(0.0, description="Ray GPUs that one actor reserves")
    timeout_s: Seconds = Field(300.0, description="longest wait for one request")
    skip_uninformative: bool = Field(True, description="leave groups whose rewards are all equal out of the update")
    max_extra_draws: FewOrNone = Field(0, description="times to draw further prompts to replace uninformative groups")
    max_staleness: Annotated[int, Field(ge=0, le=1)] = Field(
        0, description="1: decode a step's rollouts while the step before is learned, with weights one version old"
    )

    keep_samples: Annotated[int, Field(ge=0, le=1000)] = Field(
        2, description="groups of each step whose completions are kept for bgrpo show; 0: none"
    )

    @property
    def least_actors(self) -> int:
        """The pool of rollout actors is never smaller."""
        return self.actors if self.min_actors is None else self.min_actors

    @property
    def most_actors(self) -> int:
        """The pool of rollout actors is never larger."""
        return self.actors if self.max_actors is None else self.max_actors

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.least_actors <= self.actors <= self.most_actors:
            raise ValueError(
                f"expected min_actors <= actors <= max_actors: "
                f"min_actors={self.least_actors}, actors={self.actors}, max_actors={self.most_actors}"
            )
        if self.stand_ins and self.gpus_per_actor:
            raise ValueError(
                f"stand_ins={self.stand_ins} reserve nothing, but gpus_per_actor={self.gpus_per_actor:g}: an actor "
                "cannot decode on a GPU that it did not reserve; use stand_ins=0"
            )
        return self


class VerifierSection(Section):
    """The processes that check completions."""

    processes: Few = Field(1, description="verifier actors, each with one killable child process")
    timeout_s: Seconds = Field(5.0, description="limit of one check; past it the child is killed")
    node_resource: Text | None = Field(None, description="Ray resource of the nodes that verifiers run on")


class PartSection(Section):
    """One score of a completion: exactly one of check, function, metric, model and url."""

    check: bool = Field(False, description="the task's exact check: 1 when correct, else 0")
    function: Text | None = Field(None, description="'module:function'; see the page on rewards for its forms")
    metric: Text | None = Field(None, description="a metric of text: exact_match, rouge_l, distinct_2, …")
    model: PathText | None = Field(None, description="a reward model: a directory, or a Hugging Face model id")
    url: Text | None = Field(None, description="a reward server: http://HOST:PORT/PATH")
    weight: Reward = Field(1.0, description="factor in the sum; 0: watched, never learned from")
    timeout_s: Seconds | None = Field(None, description="default: verifier.timeout_s")
    score_truncated: bool = Field(False, description="score completions that max_new_tokens cut off, too")
    label: Text | None = Field(None, description="of a model with several outputs: the one whose probability counts")
    max_tokens: Batch | None = Field(None, description="of a model: longest text; default: what it takes")
    too_long: Literal["refuse", "cut"] | None = Field(
        None, description="of a model: a longer text fails (refuse, the default), or loses tokens on the left (cut)"
    )
    dtype: Literal["fp32", "bf16"] | None = Field(None, description="of a model; default: fp32")
    separator: Text | None = Field(
        None, description="of a model without chat template: between prompt and completion; default: nothing"
    )
    token_variable: Text | None = Field(None, description="of a url: environment variable with the bearer token")

    @property
    def source(self) -> str:
        """What gives the score: one of :data:`PART_SOURCES`."""
        return next(name for name in PART_SOURCES if getattr(self, name))

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        named = [name for name in PART_SOURCES if getattr(self, name)]
        if len(named) != 1:
            raise ValueError(f"names {' and '.join(named) or 'none'} of {', '.join(PART_SOURCES)}: expected one")
        for source, names in _OF_SOURCE.items():
            given = [name for name in names if getattr(self, name) is not None]
            if given and source != named[0]:
                raise ValueError(f"{given[0]} is an option of parts with {source}, but this one has {named[0]}")
        return self


class RewardModelSection(Section):
    """The processes that hold the reward models of parts."""

    processes: Few = Field(1, description="reward actors, each with all reward models")
    threads: Threads = Field(1, description="torch threads of one actor")
    cpus_per_actor: Cores = Field(0.5, description="Ray CPUs that one actor reserves")
    gpus_per_actor: Cores = Field(0.0, description="Ray GPUs that one actor reserves; above 0 the models are there")
    timeout_s: Seconds = Field(300.0, description="longest wait for one request")
    node_resource: Text | None = Field(None, description="Ray resource of the nodes that reward actors run on")


class RewardSection(Section):
    """From the scores of a completion, and its rank, to a number."""

    parts: dict[PartName, PartSection] = Field(
        {}, description="named scores, weighted together; default: the task's check"
    )
    combine: Literal["sum", "normalize_then_sum"] = Field(
        "sum", description="normalize_then_sum: each part by the group's mean and deviation first (GDPO)"
    )
    kind: Literal["simple", "rank", "reverse_rank", "unlikely", "function"] | None = Field(
        None,
        description="how rank shapes the score; default: rank where bgrpo learns from the check alone, else simple",
    )
    function: Text | None = Field(None, description="short for one part of this function; a score above 0 is correct")
    tau: Scale | None = Field(None, description="scale of the rank kinds; default: group_size")
    unlikely_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25, description="of kind unlikely: a completion loses this × (K - rank) / K of its score"
    )
    wrong_reward: Reward = Field(0.0, description="reward of a completion that is not correct, or was cut off")
    balance_negatives: bool = Field(False, description="set wrong rewards so that each mixed group sums to zero")
    correct_above: Reward | None = Field(None, description="score above which a completion counts as correct")
    max_failures: Fraction = Field(
        0.5, description="share of a step's scores that may fail; beyond it the run ends with the first cause"
    )

    @property
    def named_parts(self) -> dict[str, PartSection]:
        """The parts, also where only a function is named, or nothing: then it is the task's check."""
        if self.parts:
            return self.parts
        if self.function is None:
            return {"check": PartSection(check=True)}
        return {"function": PartSection(function=self.function)}

    @property
    def learns_from_check_alone(self) -> bool:
        """Whether a completion is right or wrong, and no other score counts."""
        return [part.check for part in self.named_parts.values() if part.weight] == [True]

    @property
    def says_what_is_correct(self) -> bool:
        """Whether there are solved problems to count."""
        return any(part.check for part in self.named_parts.values()) or self.least_correct is not None

    @property
    def is_graded(self) -> bool:
        """Whether completions have scores beyond correct and wrong."""
        return not self.learns_from_check_alone or len(self.named_parts) > 1

    def metrics(self, widths: Sequence[int], samples: int) -> list[str]:
        """Names of what an evaluation measures, see :mod:`bgrpo.evaluation.metrics`.

        Args:
            widths: of its searches, besides the greedy one and the one of width :data:`RANK_WIDTH`.
            samples: of each problem.
        """
        names = []
        ks = sorted({1, samples, *(k for k in widths if k <= samples)}) if samples else []
        if self.says_what_is_correct:
            names += ["beam_rank_score", "greedy", "top1", *(f"beam@{k}" for k in widths), *(f"pass@{k}" for k in ks)]
        if self.is_graded:
            names += ["greedy_reward", *(f"greedy_{name}" for name in self.parts)]
            names += [f"{kind}_reward@{k}" for k in widths if k > 1 for kind in ("best", "mean")]
            if samples:
                names += ["sample_reward", *(f"sample_{name}" for name in self.parts)]
                names += [f"best_of@{k}" for k in ks if k > 1]
        return names

    @property
    def least_correct(self) -> float | None:
        """The score above which a completion counts as correct."""
        return 0.0 if self.correct_above is None and self.function is not None else self.correct_above

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.parts and self.function is not None:
            raise ValueError(f"function={self.function} and parts are both set: name the function in a part")
        if not any(part.weight for part in self.named_parts.values()):
            raise ValueError("every part has weight 0: nothing would be learned")
        checks = [name for name, part in self.named_parts.items() if part.check]
        if len(checks) > 1:
            raise ValueError(f"parts {' and '.join(checks)} are both the task's check: one is enough")
        if checks and self.correct_above is not None:
            raise ValueError(f"correct_above={self.correct_above:g}: the check says what is correct; leave it out")
        if self.balance_negatives and not checks and self.least_correct is None:
            raise ValueError("balance_negatives needs a check, or correct_above: nothing says what is wrong")
        return self


class AdvantageSection(Section):
    """From rewards to advantages."""

    kind: Literal["mean", "std", "batch", "none", "leave_one_out", "probability_weighted"] | None = Field(
        None, description="default: mean for bgrpo, std for grpo, leave_one_out for reinforce"
    )
    alpha: Annotated[float, Field(gt=0, le=1000)] = Field(1.0, description="sharpness of probability_weighted")


class LearnerSection(Section):
    """The update, and the processes that do it."""

    workers: Few = Field(1, description="learner processes; gradients are averaged, groups never split")
    threads: ThreadsOrAuto = Field(0, description="torch threads of one learner; 0 means cores / workers")
    cpus_per_worker: Cores = Field(0.5, description="Ray CPUs that one learner reserves")
    gpus_per_worker: Cores = Field(0.0, description="Ray GPUs that one learner reserves")
    node_resource: Text | None = Field(None, description="Ray resource of the nodes that learners run on")
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(1e-4, description="peak learning rate of AdamW")
    warmup_steps: NonNegative = Field(10, description="training steps of linear warm-up")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="after the warm-up")
    min_learning_rate_ratio: Fraction = Field(0.1, description="where the schedule ends")
    weight_decay: Weight = Field(0.0, description="of AdamW")
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = Field(0.99, description="of AdamW")
    max_grad_norm: Scale = Field(1.0, description="gradient norm is clipped to this")
    epsilon: Scale = Field(0.2, description="clip range of the probability ratio")
    beta: Weight = Field(0.01, description="weight of the k3 KL to the reference policy")
    num_iterations: Few = Field(1, description="mu: passes over each batch of rollouts")
    minibatches: Few = Field(1, description="optimizer steps per pass")
    micro_groups: Batch = Field(8, description="groups per forward pass of one learner (bounds memory)")
    max_kl: Scale = Field(10.0, description="stop with a message when KL passes this")
    max_failures: NonNegative = Field(
        3, description="crashes of learners or of the rollout service to survive by resuming from the last checkpoint"
    )


class EvaluationSection(Section):
    """Held-out metrics."""

    every: NonNegative = Field(0, description="training steps between validations; 0: none")
    problems: Positive = Field(200, description="validation problems used each time")
    beam_widths: Annotated[list[Width], Field(max_length=100)] = Field(
        [1, 3, 5, 10], description="beam@k widths of the before/after table"
    )
    samples: Samples = Field(10, description="samples per problem for pass@k; 0: none")
    validation_samples: Samples = Field(0, description="samples per problem for pass@k at each validation; 0: none")
    final: bool = Field(True, description="make the before/after table on the test problems")


class CheckpointSection(Section):
    """When to save, and what to keep."""

    every: Positive = Field(50, description="training steps between checkpoints")
    keep: Positive = Field(2, description="newest checkpoints to keep; the best one is kept besides")
    metric: Text | None = Field(
        None,
        description="validation metric that decides which checkpoint is best, larger being better; default: "
        "beam_rank_score, or greedy_reward where nothing says what is correct",
    )


class TrackingSection(Section):
    """MLflow, and what else records metrics."""

    enabled: bool = Field(True, description="record the run in MLflow")
    uri: Text | None = Field(None, description="tracking server; default: an embedded sqlite store in run.dir")
    experiment: Text = Field("bgrpo", description="MLflow experiment; also the wandb project")
    also: Annotated[list[Literal["wandb", "tensorboard"]], Field(max_length=2)] = Field(
        [], description="further places that get the metrics"
    )


class BudgetSection(Section):
    """What a run may spend besides ``steps``: it ends with the step that uses up the first of them.

    The learning-rate schedule then ends there too.
    """

    completions: Positive | None = Field(None, description="scored completions of training")
    tokens: Positive | None = Field(None, description="decoded tokens of training")
    seconds: Annotated[float, Field(gt=0, le=10**9)] | None = Field(
        None, description="of rollouts, weights and updates; start-up, validation and checkpoints do not count"
    )


class RunSection(Section):
    """Where the run lives. On a cluster this folder must be visible to the driver and to every learner."""

    dir: PathText = Field("runs", description="folder of all runs")
    name: Text | None = Field(None, description="name of this run; default: config, algorithm and start time")


class WatchdogSection(Section):
    """What to do when nothing moves."""

    stall_s: Seconds = Field(180.0, description="say who waits for whom after this silence")
    silence_s: Annotated[float, Field(ge=10, le=10**6)] = Field(
        30.0, description="replace a rollout actor or verifier whose process gives no sign of life for so long"
    )


class TrainConfig(Section):
    """One training run: ``bgrpo train --config NAME key=value …``; every key below may be given as an override."""

    algorithm: Literal["bgrpo", "grpo", "reinforce"] = Field("bgrpo", description="beams, samples, or plain REINFORCE")
    steps: Positive = Field(100, description="training steps: one batch of rollouts each")
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
    def decode_mode(self) -> Literal["beam", "sample"]:
        """BGRPO's groups are beams, the others' are samples."""
        return "beam" if self.algorithm == "bgrpo" else "sample"

    @property
    def reward_kind(self) -> str:
        """How rank shapes the score: as asked for, or the algorithm's default."""
        if self.reward.kind is not None:
            return "simple" if self.reward.kind == "function" else self.reward.kind
        return "rank" if self.algorithm == "bgrpo" and self.reward.learns_from_check_alone else "simple"

    @property
    def advantage_kind(self) -> str:
        """The advantage asked for, or the algorithm's default."""
        defaults = {"bgrpo": "mean", "grpo": "std", "reinforce": "leave_one_out"}
        return self.advantage.kind or defaults[self.algorithm]

    @property
    def checkpoint_metric(self) -> str:
        """The validation metric asked for, or the one that this reward lets be measured."""
        return self.checkpoint.metric or ("beam_rank_score" if self.reward.says_what_is_correct else "greedy_reward")

    @property
    def optimizer_steps_per_step(self) -> int:
        """Optimizer steps made from one batch of rollouts."""
        return self.learner.num_iterations * self.learner.minibatches

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
        if self.decode_mode == "sample" and self.reward_kind in ("rank", "reverse_rank"):
            raise ValueError(
                f"reward.kind={self.reward_kind} needs ranked beams, but algorithm={self.algorithm} draws samples, "
                f"which have no rank: use reward.kind=simple, or algorithm=bgrpo"
            )
        if self.decode_mode == "beam" and rollout.temperature != 1:
            raise ValueError(
                f"rollout.temperature={rollout.temperature:g}: beams are the policy's own best completions, so "
                f"algorithm={self.algorithm} needs temperature 1; samples (algorithm=grpo) may be drawn at others"
            )
        if self.reward.kind == "function" and self.reward.function is None:
            raise ValueError("reward.kind=function needs reward.function='module:function'")
        if self.algorithm == "reinforce" and learner.num_iterations != 1:
            raise ValueError(
                f"algorithm=reinforce is on-policy: learner.num_iterations={learner.num_iterations} must be 1"
            )
        if rollout.max_extra_draws and not rollout.skip_uninformative:
            raise ValueError("rollout.max_extra_draws needs rollout.skip_uninformative=true")
        measured = self.reward.metrics([RANK_WIDTH], self.evaluation.validation_samples)
        if self.checkpoint_metric not in measured:
            meant = nearest(self.checkpoint_metric, measured)
            raise ValueError(
                f"checkpoint.metric={self.checkpoint_metric}: validations measure {', '.join(measured)} "
                f"(pass@k needs evaluation.validation_samples)" + (f"; did you mean {meant!r}?" if meant else "")
            )
        return self


class PretrainConfig(Section):
    """Supervised training of a policy from generated or given data: ``bgrpo pretrain --config NAME key=value …``."""

    seed: Seed = Field(0, description="of initialisation and data order")
    layers: Annotated[int, Field(ge=1, le=1000)] = Field(3, description="transformer blocks")
    heads: Few = Field(4, description="attention heads per block")
    width: Width = Field(128, description="width of the residual stream; a multiple of heads")
    context: Batch = Field(256, description="longest prompt plus completion in tokens")
    task: TaskSection = TaskSection()
    steps: Positive = Field(2000, description="optimizer steps")
    batch_size: Batch = Field(64, description="lines per optimizer step, over all workers")
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(2e-3, description="peak learning rate of AdamW")
    warmup_steps: NonNegative = Field(100, description="optimizer steps of linear warm-up")
    min_learning_rate_ratio: Fraction = Field(0.1, description="where the cosine ends and stays")
    weight_decay: Weight = Field(0.01, description="of AdamW")
    max_grad_norm: Scale = Field(1.0, description="gradient norm is clipped to this")
    bf16: bool = Field(True, description="bf16 autocast; weights stay fp32")
    workers: Few = Field(1, description="Ray Train workers; gradients are averaged")
    threads: ThreadsOrAuto = Field(0, description="torch threads of one worker; 0 means cores / workers")
    cpus_per_worker: Cores = Field(0.5, description="Ray CPUs that one worker reserves")
    gpus_per_worker: Cores = Field(0.0, description="Ray GPUs that one worker reserves")
    max_failures: NonNegative = Field(3, description="worker crashes to survive by resuming from the last checkpoint")
    max_new_tokens: Batch = Field(32, description="longest answer, end token included")
    validate_every: Positive = Field(500, description="optimizer steps between validations and checkpoints")
    validation_problems: Positive = Field(200, description="held-out problems per validation")
    keep: Positive = Field(2, description="newest checkpoints to keep; the best one is kept besides")
    tracking: TrackingSection = TrackingSection()
    run: RunSection = RunSection()
    out: PathText | None = Field(None, description="where to write the policy; default: the run folder")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        if 12 * self.layers * self.width**2 > MAX_PARAMETERS:
            raise ValueError(
                f"12 × layers={self.layers} × width={self.width}² = {12 * self.layers * self.width**2:.0e} parameters "
                f"in the blocks, more than {MAX_PARAMETERS:.0e}"
            )
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of workers={self.workers}")
        if self.max_new_tokens >= self.context:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} leaves no room in context={self.context}")
        return self


def load_config(model: type[C], config: str | None, overrides: Sequence[str] = ()) -> C:
    """Read a configuration.

    Args:
        model: the tree's class, for example :class:`TrainConfig`.
        config: name of a shipped configuration (``quickstart``), path of a YAML file, or None for the defaults.
        overrides: ``key.path=value`` each. The type of a key says how its value is read: text as it stands, everything
            else as YAML. One that names another task than the file does leaves out what the file tells its own task.

    Raises:
        UserError: missing file, bad YAML, unknown key (with the one that was probably meant), or a value that does not
            fit.
    """
    source = config or "defaults"
    tree = read_yaml(_find(config)) if config is not None else {}
    parsed = [_parse(model, text, overrides[i + 1 : i + 2]) for i, text in enumerate(overrides)]
    names = {tuple(path[:-1]): value for path, value in parsed if path[-2:] == ["task", "name"]}
    for path, name in names.items():
        _leave_to_its_task(tree, path, name, source)
    for key, value in parsed:
        _assign(tree, key, value)
    return build_config(model, settle(tree, model, source), source)


def build_config(model: type[C], tree: dict[str, Any], source: str) -> C:
    """Validate a plain dictionary; ``source`` names it in errors."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(model, error)}") from None


def dump_config(config: Section, path: Path) -> None:
    """Write the whole tree as YAML, so that loading it again gives an equal configuration."""
    path.write_text(dump_yaml(config.model_dump(mode="json")), "utf-8")


def drop_foreign_options(tree: dict[str, Any], name: str, source: str) -> None:
    """Take the options out of a section ``task`` that is to name another task: they are for the present one.

    Args:
        tree: the section; changed in place.
        name: of the other task. Nothing happens when it is the present one.
        source: where the tree comes from, for the line on standard error that says what was left out.
    """
    present = tree.get("name", TaskSection().name)
    parts = [("task", tree), *((f"task.{split}", tree.get(split)) for split in SPLITS)]
    dropped = [f"{key}.options" for key, part in parts if isinstance(part, dict) and part.get("options")]
    if name == present or not dropped:
        return
    for _, part in parts:
        if isinstance(part, dict):
            part.pop("options", None)
    print(
        f"note: task.name={name}: {', '.join(dropped)} of {source} are left out: they are for task {present!r}; give "
        f"your own where you need them",
        file=sys.stderr,
    )


def _leave_to_its_task(tree: dict[str, Any], path: Sequence[str], name: str, source: str) -> None:
    section: Any = tree
    for key in path:
        section = section.get(key) if isinstance(section, dict) else None
    if isinstance(section, dict) and isinstance(name, str):
        drop_foreign_options(section, name, source)


def _find(config: str) -> Path:
    try:
        path = expanded(config)
    except ValueError as error:
        raise UserError(f"--config {shown(config)}: {error}") from None
    shipped = SHIPPED_CONFIGS / f"{config}.yaml"
    is_file = os.path.isfile  # raises nothing, whatever the path
    if is_file(path) or (os.path.lexists(path) and not is_file(shipped)):
        return Path(path)
    if is_file(shipped):
        return shipped
    names = sorted(path.stem for path in SHIPPED_CONFIGS.glob("*.yaml"))
    raise UserError(f"--config {config}: no such file, and no shipped configuration of that name; shipped: {names}")


def _parse(model: type[Section], override: str, following: Sequence[str]) -> tuple[list[str], Any]:
    """The path of an override's key, and its value."""
    name, equals, text = override.partition("=")
    path = name.strip().split(".")
    if not equals:
        values = [word for word in following if "=" not in word] or ["…"]
        example = "rollout.group_size=10" if below(model, name) is UNKNOWN else f"{name}={values[0]}"
        raise UserError(f"override {shown(override)}: expected key=value, for example {example}")
    return path, override_value(text, reduce(below, path, model), one_line(override, 100))


def _assign(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for i, key in enumerate(path[:-1], start=1):
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise UserError(f"override of {'.'.join(path)}: {'.'.join(path[:i])} is a value, not a section")
    tree[path[-1]] = value
