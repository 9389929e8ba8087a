"""From scores to rewards to advantages, and what an evaluation measures of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from bgrpo.config.metric_names import EMBEDDING_SIMILARITY, unknown_metric
from bgrpo.settings.values import (
    Batch,
    Cores,
    Few,
    Fraction,
    FreeText,
    PathText,
    Scale,
    Seconds,
    Section,
    Text,
    Threads,
)

RANK_WIDTH = 10
"""Width of the search behind the metrics top1 and beam_rank_score."""

WIN_RATE = "win_rate"
"""Share of problems on which a policy does better than the one that training started from; equals count half."""

ORACLE = "oracle"
"""Share of problems that the widest beam search solves, or any of the samples."""

Reward = Annotated[float, Field(ge=-(10**6), le=10**6)]
PART_SOURCES = ("check", "function", "metric", "model", "url")
_OF_SOURCE = {"model": ("label", "separator"), "url": ("token_variable",)}
_OF_MODELS = ("max_tokens", "too_long", "dtype")
PartName = Annotated[
    str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,40}$", description="a letter, then up to 40 letters, digits and _")
]


class PartSection(Section):
    """One score of a completion: exactly one of check, function, metric, model and url."""

    check: bool = Field(False, description="the task's exact check: 1 when correct, else 0")
    function: Text | None = Field(None, description="'module:function'; see the page on rewards for its forms")
    metric: Text | None = Field(None, description="a metric of text: exact_match, rouge_l, distinct_2, …")
    model: PathText | None = Field(None, description="a reward model: a directory, or a Hugging Face model id")
    url: Text | None = Field(None, description="a reward server: http://HOST:PORT/PATH")
    encoder: PathText | None = Field(
        None, description="of the metric embedding_similarity: a directory, or a Hugging Face model id"
    )
    weight: Reward = Field(1.0, description="factor in the sum; 0: watched, never learned from")
    timeout_s: Seconds | None = Field(None, description="default: verifier.timeout_s")
    score_truncated: bool = Field(False, description="score completions that max_new_tokens cut off, too")
    label: Text | None = Field(None, description="of a model with several outputs: the one whose probability counts")
    max_tokens: Batch | None = Field(None, description="of a model or encoder: longest text; default: what it takes")
    too_long: Literal["refuse", "cut"] | None = Field(
        None,
        description="of a model or encoder: a longer text fails (refuse, the default), or is cut on the left (cut)",
    )
    dtype: Literal["fp32", "bf16"] | None = Field(None, description="of a model or encoder; default: fp32")
    separator: FreeText | None = Field(
        None, description="of a model without chat template: between prompt and completion; default: nothing"
    )
    token_variable: Text | None = Field(None, description="of a url: environment variable with the bearer token")

    @property
    def source(self) -> str:
        """What gives the score: one of :data:`PART_SOURCES`."""
        return next(name for name in PART_SOURCES if getattr(self, name))

    @property
    def held_model(self) -> str | None:
        """Path of the reward model or sentence encoder that reward actors hold for it; None for any other part."""
        return self.model or self.encoder

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, name: str | None) -> str | None:
        if name is not None and (wrong := unknown_metric(name)) is not None:
            raise ValueError(wrong)
        return name

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        named = [name for name in PART_SOURCES if getattr(self, name)]
        if len(named) != 1:
            raise ValueError(f"names {' and '.join(named) or 'none'} of {', '.join(PART_SOURCES)}: expected one")
        for source, names in _OF_SOURCE.items():
            given = [name for name in names if getattr(self, name) is not None]
            if given and source != named[0]:
                raise ValueError(f"{given[0]} is an option of parts with {source}, but this one has {named[0]}")
        if (self.metric == EMBEDDING_SIMILARITY) != (self.encoder is not None):
            raise ValueError(f"metric={EMBEDDING_SIMILARITY} and encoder=PATH_OR_ID belong together: give both")
        given = [name for name in _OF_MODELS if getattr(self, name) is not None]
        if given and self.held_model is None:
            raise ValueError(f"{given[0]} is an option of parts with model or encoder, but this one has {named[0]}")
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
    def described(self) -> str:
        """What gives the scores that are learned from, for messages."""
        learned = {name: part for name, part in self.named_parts.items() if part.weight}
        texts = [
            "the task's check" if part.check else f"{part.source} {getattr(part, part.source)}"
            for part in learned.values()
        ]
        return (
            ", ".join(f"{name} ({text})" for name, text in zip(learned, texts, strict=True)) if self.parts else texts[0]
        )

    @property
    def says_what_is_correct(self) -> bool:
        """Whether there are solved problems to count."""
        return any(part.check for part in self.named_parts.values()) or self.least_correct is not None

    @property
    def scores_truncated(self) -> bool:
        """Whether any part scores completions that were cut off."""
        return any(part.score_truncated for part in self.named_parts.values())

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
            names += [ORACLE] if samples else []
        if self.is_graded:
            names += ["greedy_reward", *(f"greedy_{name}" for name in self.parts)]
            names += [f"{kind}_reward@{k}" for k in widths if k > 1 for kind in ("best", "mean")]
            if samples:
                names += ["sample_reward", *(f"sample_{name}" for name in self.parts)]
                names += [f"best_of@{k}" for k in ks if k > 1]
        return names

    def run_metrics(self, widths: Sequence[int], samples: int) -> list[str]:
        """Names of what the evaluations of a run measure: they know the starting policy, too."""
        return [*self.metrics(widths, samples), *([WIN_RATE] if self.is_graded else [])]

    @property
    def least_correct(self) -> float | None:
        """The score above which a completion counts as correct."""
        return 0.0 if self.correct_above is None and self.function is not None else self.correct_above

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.parts and self.function is not None:
            raise ValueError(f"function={self.function} and parts are both set: name the function in a part")
        if "reward" in self.parts and (len(self.parts) > 1 or self.parts["reward"].weight != 1):
            raise ValueError("parts.reward: metrics call the weighted sum of all parts so: give it another name")
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


AdvantageKind = Literal[
    "mean",
    "std",
    "batch",
    "none",
    "leave_one_out",
    "probability_weighted",
    "importance_weighted",
    "set_estimator",
    "pass_at_k",
    "sibling",
]

WITHOUT_REPLACEMENT = ("importance_weighted", "set_estimator")
"""Advantages of groups drawn by ``stochastic_beam``."""

OF_TOKENS = ("sibling",)
"""Advantages that differ from token to token of a completion."""


class AdvantageSection(Section):
    """From rewards to advantages."""

    kind: AdvantageKind | None = Field(
        None, description="default: mean for bgrpo, std for grpo, leave_one_out for reinforce"
    )
    alpha: Annotated[float, Field(gt=0, le=1000)] = Field(
        1.0, description="sharpness of probability_weighted, and of sibling with beams"
    )
    k: Annotated[int, Field(ge=1, le=10**5)] = Field(
        4, description="of pass_at_k: answers of which the best counts; fewer than group_size"
    )
    duplicates: Literal["count", "once"] = Field(
        "count", description="samples equal to an earlier one of their group: count like others, or are left out (once)"
    )
    keep: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of a group that is learned from: half of it the best, half the worst by reward"
    )
