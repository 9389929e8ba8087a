"""The policy, and the processes that decode and check."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bgrpo.groups import Search
from bgrpo.settings.values import (
    Batch,
    Cores,
    Few,
    FewOrNone,
    FreeText,
    NonNegative,
    PathText,
    Seconds,
    Section,
    Text,
    Threads,
)

LongPrompts = Literal["refuse", "drop", "cut_left"]


class PolicySection(Section):
    """The policy that training starts from; also the frozen reference of the KL term, unless another is named."""

    path: PathText = Field("shipped", description="'shipped', a directory, or a Hugging Face model id")


class RolloutSection(Section):
    """How completions are decoded, and by how many actors."""

    search: Search | None = Field(
        None,
        description="beam: the K most probable completions; sample: independent ones; stochastic_beam: K distinct ones "
        "drawn without replacement; diverse_beam: groups of beams that avoid each other's tokens; default: beam for "
        "bgrpo, sample for the others",
    )
    beam_groups: Few | None = Field(
        None, description="of diverse_beam: groups, a divisor of group_size; default: as many, one beam each"
    )
    diversity: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.5, description="of diverse_beam: nats that a token loses for each beam of earlier groups that has it there"
    )
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
    max_prompt_tokens: Batch | None = Field(
        None,
        description="longest prompt in the policy's tokens, chat template and BOS included; default: what its context "
        "leaves beside max_new_tokens",
    )
    long_prompts: LongPrompts = Field(
        "refuse", description="longer prompts: refuse the run, leave them out, or keep the BOS and their last tokens"
    )
    temperature: Annotated[float, Field(ge=0.001, le=1000)] = Field(
        1.0, description="of what is drawn, and of all log-probabilities learned from; beams: 1"
    )
    top_k: NonNegative = Field(0, description="draw samples from so many most probable tokens; 0: from all")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="draw samples from the fewest most probable tokens that have this probability together"
    )
    min_p: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="draw samples from tokens at least so probable, as a part of the most probable one's"
    )
    stop: Annotated[list[FreeText], Field(max_length=100)] = Field(
        [], description="texts that end a completion, beside the end tokens; the judge reads what comes before"
    )
    min_new_tokens: Annotated[int, Field(ge=0, le=10**6)] = Field(
        0, description="tokens before an end token may come or a stop text may be completed"
    )
    banned_tokens: Annotated[list[Annotated[int, Field(ge=0, le=10**9)] | FreeText], Field(max_length=100_000)] = Field(
        [], description="ids, names or texts of single tokens that no completion holds"
    )
    allowed: PathText | None = Field(
        None, description="file with the only completions that there may be, a text in each line; default: all"
    )
    allowed_column: Text | None = Field(None, description="of JSON lines in allowed: the column that holds the text")
    dtype: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="of the layers' matrix products, keys and values in rollouts; norms, attention's arithmetic, head "
        "and scores are fp32",
    )
    engine: Literal["auto", "tree", "plain"] = Field(
        "auto",
        description="auto: the fast tree where it serves the model exactly, else the plain path, which is told; tree: "
        "refuse other models; plain: always the model's own forward pass, to compare",
    )
    threads: Threads = Field(1, description="torch threads of one actor")
    cpus_per_actor: Cores = Field(0.5, description="Ray CPUs that one actor reserves")
    gpus_per_actor: Cores = Field(0.0, description="Ray GPUs that one actor reserves")
    timeout_s: Seconds = Field(300.0, description="longest wait for one request")
    skip_uninformative: bool = Field(True, description="leave groups whose rewards are all equal out of the update")
    max_extra_draws: FewOrNone = Field(0, description="times to draw further prompts to replace uninformative groups")
    max_staleness: Annotated[int, Field(ge=0, le=8)] = Field(
        0, description="n: decode a step's rollouts while the n steps before are learned, with weights n versions old"
    )

    keep_samples: Annotated[int, Field(ge=0, le=1000)] = Field(
        2, description="groups of each step whose completions are kept for bgrpo show; 0: none"
    )
    log_groups: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="groups of each step whose rewards and advantages are written to groups.log; 0: none"
    )

    @property
    def truncates(self) -> bool:
        """Whether samples are drawn from a part of the policy's distribution."""
        return bool(self.top_k) or self.top_p < 1 or self.min_p > 0

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
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens}: expected at most max_new_tokens={self.max_new_tokens}, the "
                f"longest completion"
            )
        if self.search == "diverse_beam" and self.group_size % (self.beam_groups or self.group_size):
            raise ValueError(
                f"beam_groups={self.beam_groups}: expected a divisor of group_size={self.group_size}: all groups of "
                f"beams are equally wide"
            )
        if self.allowed_column and not self.allowed:
            raise ValueError(f"allowed_column={self.allowed_column} is of the file allowed: name it, too")
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
