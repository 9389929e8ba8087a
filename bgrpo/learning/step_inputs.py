"""What TRL's loss takes for each cut of a training step, on one learner, and what this learner computes beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedModel

from bgrpo.config import TrainConfig
from bgrpo.decoding.token_mask import CompletionMask
from bgrpo.groups import ScoredGroup
from bgrpo.learning.batch import Minibatch
from bgrpo.learning.forward_pass import Arithmetic, Scoring
from bgrpo.learning.kl import divergence
from bgrpo.learning.loss_terms import loss_factor, token_weights
from bgrpo.learning.padded_rows import LaidOutGroups, LayOut
from bgrpo.learning.rollout_mismatch import RolloutCorrection, laid_out
from bgrpo.learning.sharding import drop_gathered


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Scores and lays out the groups of training steps.

    Attributes:
        config: of the run.
        policy: as the learner has it.
        reference: of the KL; None without one.
        accelerator: knows the device and the other learners.
        pad_token_id: of the policy.
        lay_out: how groups are laid out for its forward passes.
        mask: tokens that completions cannot have; None: they can have all.
    """

    config: TrainConfig
    policy: PreTrainedModel
    reference: PreTrainedModel | None
    accelerator: Accelerator
    pad_token_id: int
    lay_out: LayOut
    mask: CompletionMask | None

    def of_step(self, minibatches: Sequence[Minibatch], correction: RolloutCorrection) -> list[list[dict[str, Any]]]:
        """For each minibatch, for each of its cuts; before the first update of the step."""
        return [
            [self.of_cut(minibatch, cut, correction) for cut in range(len(minibatch.micro_batches))]
            for minibatch in minibatches
        ]

    def of_cut(self, minibatch: Minibatch, cut: int, correction: RolloutCorrection) -> dict[str, Any]:
        """TRL's loss inputs for one cut, and what its loss is multiplied by.

        TRL gathers statistics per row from all learners, so all have equally many rows, some masked out. An empty
        cut is one masked token, whose loss and gradient are exactly 0.
        """
        learner, groups, device = self.config.learner, minibatch.micro_batches[cut], self.accelerator.device
        real = [(group.prompt, group.completions) for group in groups]
        real_or_pad = real or [([self.pad_token_id], [[self.pad_token_id]])]
        packed = self.lay_out(real_or_pad, device, minibatch.cut_rows[cut])
        mask_BC = packed.mask_BC.long() if real else torch.zeros_like(packed.tokens_BC)
        nothing_B0 = packed.tokens_BC[:, :0]
        values = [value for group in groups for value in group.advantages]
        advantages_B = torch.zeros(len(nothing_B0), dtype=torch.float32, device=device)
        advantages_B[: len(values)] = torch.tensor(values, dtype=torch.float32)
        of_tokens = [tokens for group in groups for tokens in group.token_advantages]
        tokens, learners = sum(group.tokens for group in groups), self.accelerator.num_processes
        inputs = {
            "packed": packed,
            "prompt_ids": nothing_B0,
            "prompt_mask": nothing_B0,
            "completion_ids": packed.tokens_BC,
            "completion_mask": mask_BC,
            "advantages": laid_out(of_tokens, packed) if of_tokens else advantages_B,
            "num_items_in_batch": torch.tensor(minibatch.tokens, device=device),
            "tokens": tokens,
            "factor": loss_factor(learner.loss, minibatch, len(advantages_B), tokens, learners),
        }
        if learner.kl_in_reward:
            known = (values for group in groups for values in group.reference_logprobs)
            inputs["ref_per_token_logps"] = laid_out(known, packed)
        elif self.reference is not None:
            inputs["ref_per_token_logps"] = self._logps(self.reference, packed)
        rollout_BC = laid_out((values for group in groups for values in group.logprobs), packed)
        all_of_learner = learner.rollout_correction.kind in ("truncate", "mask")
        own_BC = self._logps(self.policy, packed) if all_of_learner else rollout_BC
        if all_of_learner or self.config.rollout.truncates:
            drawn_BC = laid_out((values for group in groups for values in group.drawn_logprobs), packed)
            weights_BR = correction.weights(own_BC, drawn_BC, mask_BC)
            if self.config.weighs_rollouts:
                inputs["importance_sampling_ratio"] = weights_BR
        if all_of_learner:
            inputs["old_per_token_logps"] = own_BC
        elif self.config.rollout.max_staleness:
            # Older weights than these decoded. With rollout.dtype=bf16 the log-probs differ from the learner's even at
            # equal weights; the clipped ratio treats that difference as any other.
            inputs["old_per_token_logps"] = rollout_BC
        elif learner.minibatches > 1:
            inputs["old_per_token_logps"] = self._logps(self.policy, packed)
        return inputs

    def scoring(self, entropy_gradient: bool = False) -> Scoring:
        """How this run's completions are scored."""
        arithmetic: Arithmetic = "bf16" if self.config.learner.dtype == "bf16" else "fp32"
        return Scoring(self.config.rollout.temperature, self.mask, entropy_gradient, arithmetic)

    def entropies(self, inputs: dict[str, Any]) -> Tensor:
        """Of the policy at this moment, ``entropies_BC`` of a cut."""
        return self._scored(self.policy, inputs["packed"])[1]

    def kl_term(self, logps_BC: Tensor, inputs: dict[str, Any], minibatch: Minibatch) -> tuple[Tensor | float, float]:
        """Where TRL's loss of a cut has no KL: what is added to it, and the cut's KL per token over all learners (k3).

        Nothing is added where the KL is in the reward.
        """
        learner, mask_BC = self.config.learner, inputs["completion_mask"]
        reference_BC = inputs["ref_per_token_logps"]
        seen = (divergence(logps_BC.detach(), reference_BC, "k3") * mask_BC).sum()
        total, tokens = self.accelerator.reduce(torch.stack([seen, mask_BC.sum()]), reduction="sum").tolist()
        kl = total / max(tokens, 1)
        if learner.kl_in_reward:
            return 0.0, kl
        weights_BC = token_weights(learner.loss, minibatch, mask_BC, self.config.rollout.max_new_tokens)
        sum_of_terms = (weights_BC * divergence(logps_BC, reference_BC, learner.estimator)).sum()
        return learner.beta * self.accelerator.num_processes * sum_of_terms, kl

    def reference_logprobs(self, groups: Sequence[ScoredGroup]) -> list[list[list[float]]]:
        """What the reference gives each token of each completion; every learner scores a share of the groups."""
        if self.reference is None:
            raise RuntimeError("the KL in the reward needs a reference")
        rank, learners = self.accelerator.process_index, self.accelerator.num_processes
        mine, size = groups[rank::learners], self.config.learner.micro_groups
        found: list[list[list[float]]] = []
        for start in range(0, len(mine), size):
            part = mine[start : start + size]
            tokens = [[completion.tokens for completion in group.completions] for group in part]
            prompts = [group.prompt_ids for group in part]
            packed = self.lay_out(list(zip(prompts, tokens, strict=True)), self.accelerator.device)
            logps_BC = self._logps(self.reference, packed)
            rows = iter([logps[mask].tolist() for logps, mask in zip(logps_BC, packed.mask_BC, strict=True)])
            found += [[next(rows) for _ in completions] for completions in tokens]
        of_learners = gather_object([found])
        return [of_learners[place % learners][place // learners] for place in range(len(groups))]

    def _logps(self, model: PreTrainedModel, packed: LaidOutGroups) -> Tensor:
        return self._scored(model, packed)[0]

    def _scored(self, model: PreTrainedModel, packed: LaidOutGroups) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            found = packed.logps(model, self.scoring())
        drop_gathered(model)
        return found
