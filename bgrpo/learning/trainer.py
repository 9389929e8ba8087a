"""The learner: TRL's GRPO loss on whole groups that come scored from a rollout source."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl import GRPOTrainer

from bgrpo.config import TrainConfig
from bgrpo.decoding.support import service_of
from bgrpo.decoding.token_mask import mask_of
from bgrpo.errors import DivergenceError, UserError
from bgrpo.learning.batch import Minibatch, split_update
from bgrpo.learning.learner_state import check_resumable, load_reference
from bgrpo.learning.loss_terms import entropy_weight
from bgrpo.learning.moving_reference import frozen_copy
from bgrpo.learning.optimizers import MuonAndAdamW
from bgrpo.learning.outer_loop import KeepSamples, OnStep, OuterLoop, ShouldStop, Validate
from bgrpo.learning.padded_rows import lay_out_of
from bgrpo.learning.recomputation import recompute_layers
from bgrpo.learning.rollout_mismatch import RolloutCorrection
from bgrpo.learning.rollout_source import RolloutSource
from bgrpo.learning.rounded_weights import round_weights
from bgrpo.learning.sharding import gathered, shard
from bgrpo.learning.step_inputs import StepInputs
from bgrpo.learning.step_metrics import UpdateReport
from bgrpo.learning.stochastic_rounding import StochasticallyRounded
from bgrpo.learning.trl_arguments import grpo_arguments, learning_rate_factor
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.scoring.readable_groups import decode_settings_of


class BGRPOTrainer(GRPOTrainer):
    """Trains a policy for ``config.steps`` steps, each one batch of rollouts.

    A step: collect scored groups (the same on every learner), turn them into advantages over all of them, take this
    learner's share of whole groups, make ``num_iterations * minibatches`` optimizer steps with TRL's loss, publish the
    new weights as the next version, and now and then validate and save. The loss is a mean over the completion tokens
    (or completions: ``learner.loss``) of all learners, so the update does not depend on their number. All
    log-probabilities, the reference's too, are those of the distribution that was sampled: at ``rollout.temperature``.
    Works on its own, or in a process of an initialised ``torch.distributed`` group (gloo or nccl) whose environment
    names RANK and WORLD_SIZE. Start it with :meth:`run`.

    Args:
        config: the run.
        model: the policy, fp32; a trainer's own, never used by another one. On resume: the checkpoint's policy. With
            ``learner.lora`` one of :func:`bgrpo.policies.lora.attach`.
        tokenizer: of the policy, with different pad and end tokens.
        source: where scored groups come from.
        problems: number of training problems.
        output_dir: for TRL; nothing is written there.
        reference: the starting policy, frozen here, for the KL term; default: a copy of ``model``, which shares what is
            not learned. Required on resume, where it becomes the checkpoint's if ``learner.reference.sync_every`` has
            moved it.
        store: where checkpoints go; None saves none.
        resume: complete checkpoint of ``store`` to continue from.
        on_step: called on every learner after each step with its metrics: its weights are out, it is not saved yet.
        validate: called on learner 0 with the version every ``evaluation.every`` steps; its metrics join the step's.
        should_stop: asked on learner 0 after each step; True saves a checkpoint and ends all learners.
        keep_samples: called on learner 0 with each step's groups, before its weights and checkpoint are out.

    Raises:
        UserError: a model that cannot be scored exactly; a checkpoint of another run; resume without reference.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        source: RolloutSource,
        problems: int,
        output_dir: Path,
        *,
        reference: PreTrainedModel | None = None,
        store: CheckpointStore | None = None,
        resume: Path | None = None,
        on_step: OnStep | None = None,
        validate: Validate | None = None,
        should_stop: ShouldStop | None = None,
        keep_samples: KeepSamples | None = None,
    ) -> None:
        lay_out = lay_out_of(service_of(model, config.rollout.engine))
        if resume is not None:
            check_resumable(resume, config, problems)
            if reference is None and config.learner.beta > 0:
                raise UserError(f"resuming {resume} needs the starting policy too: it is the reference of the KL term")
        if reference is None and config.learner.beta > 0:
            reference = frozen_copy(model)  # before TRL patches the model's forward
        if resume is not None and reference is not None and config.learner.reference.sync_every:
            load_reference(resume, reference)
        if config.learner.dtype == "pure_bf16":
            round_weights(model)
        if reference is not None and config.learner.reference_dtype == "bf16":
            round_weights(reference, of_products_only=config.learner.dtype == "bf16")
        self._outer = OuterLoop(
            config,
            tokenizer,
            source,
            problems,
            store=store,
            resume=resume,
            on_step=on_step,
            validate=validate,
            should_stop=should_stop,
            keep_samples=keep_samples,
        )
        super().__init__(
            model=model,
            reward_funcs=_no_reward,
            args=grpo_arguments(config, output_dir, int(os.environ.get("WORLD_SIZE", "1"))),
            train_dataset=Dataset.from_dict({"prompt": [""]}),
            processing_class=tokenizer,
            callbacks=[self._outer],
        )
        self.remove_callback(PrinterCallback)
        _disable_module_dropout(model)
        if config.learner.gradient_checkpointing:
            recompute_layers(model)
        if config.learner.sharding == "full":
            shard(model, self.accelerator.device.type, rounds_products=config.learner.dtype == "bf16")
            sharded: Any = model
            sharded._is_accelerate_prepared = True  # Trainer would wrap it once more
        self._policy = model
        self._run_config = config
        learner = config.learner
        self._trl_has_kl = learner.estimator == "k3" and not learner.kl_in_reward
        self.beta = learner.beta if self._trl_has_kl else 0.0  # TRL was told 0, lest it load a reference of its own
        self.aux_loss_enabled = False  # how often a shared token counted would depend on the layout
        self.ref_model = None
        if learner.beta > 0 and reference is not None:
            self.ref_model = reference.to(self.accelerator.device).eval().requires_grad_(False)
            if config.learner.sharding == "full":
                shard(self.ref_model, self.accelerator.device.type, rounds_products=config.learner.dtype == "bf16")
        if learner.reference.sync_every:
            self._outer.reference = self.ref_model
        self.use_vllm = config.weighs_rollouts  # which is how TRL's loss is made to read the weights
        mask = mask_of(decode_settings_of(config.rollout, config.decode_mode, tokenizer))
        self._make_inputs = StepInputs(
            config, model, self.ref_model, self.accelerator, tokenizer.pad_token_id, lay_out, mask
        )
        self._minibatches: list[Minibatch] = []
        self._step_inputs: list[list[dict[str, Any]]] = []
        self._minibatch, self._cut = 0, 0
        self._inputs: dict[str, Any] | None = None  # of the micro-batch at hand
        self._logps: Tensor | None = None  # of the latest forward pass

    def run(self) -> None:
        """Train up to ``config.steps`` or the end of ``config.budget``; nothing happens when a resumed run is there.

        Raises:
            DivergenceError: the loss or the gradient norm is not finite, or the KL passed ``learner.max_kl``.
            RuntimeError: stale or wrong rollouts.
        """
        if not self._outer.is_complete:
            self.train()

    # --- overrides: what Trainer and GRPOTrainer are made to do differently ---

    def get_train_dataloader(self) -> DataLoader:
        """Empty batches, one per micro-batch: :func:`bgrpo.learning.prompt_order.prompt_indices` draws the prompts."""
        places = range(self.args.max_steps * self.args.gradient_accumulation_steps)
        return DataLoader(places, collate_fn=_empty_batch)  # type: ignore[arg-type]  # a range is a map-style dataset

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """The configured schedule, which moves with training steps, not optimizer steps."""
        factor = functools.partial(_optimizer_step_factor, config=self._run_config, outer=self._outer)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)  # type: ignore[arg-type]
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The configured optimizer; norms and biases do not decay."""
        learner = self._run_config.learner
        if self.optimizer is None and learner.optimizer == "muon":
            self.optimizer = MuonAndAdamW(self._policy, learner, self.get_decay_parameter_names(self._policy))
        optimizer = super().create_optimizer(model)
        if learner.dtype == "pure_bf16" and not isinstance(optimizer, StochasticallyRounded):
            seed = self._run_config.seed
            self.optimizer = StochasticallyRounded(optimizer, seed, lambda: self.state.global_step)
            return self.optimizer
        return optimizer

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted."""
        return 0

    def _send_telemetry(self) -> None:
        """None is sent: a training run talks to nobody its user did not name."""

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        """The next micro-batch; a step's first one collects its rollouts."""
        if not self._policy.training:
            raise RuntimeError("BGRPOTrainer does not evaluate: use bgrpo.evaluation.metrics")
        cuts = self.args.gradient_accumulation_steps
        position = self._step % (self._run_config.optimizer_steps_per_step * cuts)
        if position == 0:
            self._prepare_step()
        self._minibatch, self._cut = position // cuts % self._run_config.learner.minibatches, position % cuts
        if self._cut == 0 and (self.top_entropy_quantile < 1 or self._entropy_bonus_enabled):
            self._choose_tokens()
        return self._step_inputs[self._minibatch][self._cut]

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, *_padded: Any, **_options: Any
    ) -> tuple[Tensor, Tensor, None]:
        """Of the micro-batch at hand; TRL's padded rows, which it would give wrong positions, are not read."""
        if self._inputs is None:
            raise RuntimeError("log-probabilities are asked for outside the loss")
        logps_BC, entropies_BC = self._inputs["packed"].logps(
            model, self._make_inputs.scoring(entropy_gradient=self._entropy_bonus_enabled)
        )
        self._logps = logps_BC
        return logps_BC, entropies_BC, None

    def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
        """Of the micro-batch at hand: its part of the minibatch's, see :meth:`_choose_tokens`."""
        if self._inputs is None:
            raise RuntimeError("tokens of high entropy are asked for outside the loss")
        return self._inputs["entropy_mask"]

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        learner, minibatch = self._run_config.learner, self._minibatches[self._minibatch]
        self._inputs, self.entropy_coef = inputs, inputs.get("entropy_coef", 0.0)
        loss = super()._compute_loss(model, inputs)
        logps_BC, self._logps = self._logps, None
        if logps_BC is None:
            raise RuntimeError("TRL's loss was made without log-probabilities")
        if inputs["factor"] != 1:
            loss = loss * inputs["factor"]
        logged = self._metrics["train"]
        if self.ref_model is not None and not self._trl_has_kl:
            term, kl = self._make_inputs.kl_term(logps_BC, inputs, minibatch)
            loss, logged["kl"] = loss + term, [kl]
        # where no old log-probs were prepared, no update precedes the first pass, so its own are the old policy's
        inputs.setdefault("old_per_token_logps", logps_BC.detach())
        tokens, completions = minibatch.cut_tokens[self._cut], minibatch.cut_completions[self._cut]
        by_row = learner.ratio_level == "sequence"
        rows = len(inputs["advantages"]) * self.accelerator.num_processes  # TRL counts the masked ones too
        self._outer.meter.add_micro_batch(
            logged, tokens, loss.detach(), (completions, rows / max(completions, 1)) if by_row else None
        )
        logged.clear()
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm = gathered(super()._clip_grad_norm(model))
        update = self._outer.meter.end_optimizer_step(float(norm))
        finite = math.isfinite(update.grad_norm) and math.isfinite(update.loss)
        if not finite or not update.kl <= self._run_config.learner.max_kl:
            raise DivergenceError(self._divergence_message(update))
        if not self._minibatches[self._minibatch].tokens:  # no group has a signal: leave weights and moments alone
            model.zero_grad(set_to_none=True)
        return norm

    # --- one training step ---

    def _prepare_step(self) -> None:
        learner, inputs = self._run_config.learner, self._make_inputs
        scored = self._outer.begin_step(inputs.reference_logprobs if learner.kl_in_reward else None)
        self._minibatches = split_update(
            scored.learning, self._run_config, self.accelerator.process_index, self.accelerator.num_processes
        )
        correction = RolloutCorrection(learner.rollout_correction)
        self._step_inputs = inputs.of_step(self._minibatches, correction)
        if self._run_config.weighs_rollouts or self._run_config.rollout.truncates:
            self._outer.meter.note(correction.metrics(self.accelerator.gather, self.accelerator.device))

    def _choose_tokens(self) -> None:
        """What the entropies of a whole minibatch decide, with the weights that its update starts from.

        Which tokens are among the ``learner.top_entropy_quantile`` of highest entropy, over all learners and cuts, and
        what each cut's entropy weighs. TRL would look at each micro-batch alone.
        """
        minibatch, cuts = self._minibatches[self._minibatch], self._step_inputs[self._minibatch]
        learners, total = self.accelerator.num_processes, minibatch.tokens
        active = [inputs["tokens"] for inputs in cuts]
        if self.top_entropy_quantile < 1:
            masks = [inputs["completion_mask"] for inputs in cuts]
            entropies_1N = torch.cat([self._make_inputs.entropies(inputs).float().view(1, -1) for inputs in cuts], 1)
            mask_1N = torch.cat([mask_BC.view(1, -1) for mask_BC in masks], 1)
            high_1N = super().get_high_entropy_mask(entropies_1N, mask_1N, 1 - self.top_entropy_quantile)
            parts = high_1N.split([mask_BC.numel() for mask_BC in masks], 1)
            for inputs, part, mask_BC in zip(cuts, parts, masks, strict=True):
                inputs["entropy_mask"] = part.view_as(mask_BC)
            active = [int(part.sum()) for part in parts]
            total = int(self.accelerator.reduce(high_1N.sum(), reduction="sum"))
        weight = self._run_config.learner.entropy_coef
        for inputs, count in zip(cuts, active, strict=True):
            inputs["entropy_coef"] = entropy_weight(weight, inputs["factor"], minibatch, count, total, learners)

    def _divergence_message(self, update: UpdateReport) -> str:
        learner = self._run_config.learner
        return (
            f"training diverged at step {self._outer.step + 1}: loss {update.loss:.4g}, gradient norm "
            f"{update.grad_norm:.4g}, KL {update.kl:.4g} (limit learner.max_kl={learner.max_kl:g}); this update was "
            f"not made and nothing was saved after it: try a smaller learner.learning_rate (now "
            f"{learner.learning_rate:g}), a larger learner.beta (now {learner.beta:g}), or "
            f"advantage.kind=probability_weighted"
        )


def _disable_module_dropout(model: nn.Module) -> None:
    """Attention dropouts that models keep as plain numbers; TRL zeroes the modules."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)


def _optimizer_step_factor(optimizer_steps: int, config: TrainConfig, outer: OuterLoop) -> float:
    learner = config.learner
    step = optimizer_steps // config.optimizer_steps_per_step
    return learning_rate_factor(
        step, outer.expected_steps(), learner.warmup_steps, learner.schedule, learner.min_learning_rate_ratio
    )


def _no_reward(**_inputs: Any) -> list[float | None]:
    raise RuntimeError("rewards come scored from the rollout source")


def _empty_batch(_items: list[int]) -> dict[str, Any]:
    return {}
