"""TRL's arguments for a run, and the learning rate's course."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from trl import GRPOConfig

from bgrpo.config import TrainConfig
from bgrpo.learning.batch import micro_batches_per_minibatch
from bgrpo.learning.optimizers import OF_TRANSFORMERS


def grpo_arguments(config: TrainConfig, output_dir: Path, world_size: int) -> GRPOConfig:
    """TRL's arguments for a run: its defaults that would change the algorithm or its cost are overridden here.

    ``beta`` stays 0 so that TRL loads no reference; the trainer sets it, and what each cut's entropy weighs. Rewards
    are scaled, prompts drawn, cut-off completions left out, metrics logged and checkpoints saved by this package.
    """
    learner = config.learner
    return GRPOConfig(
        output_dir=str(output_dir),
        max_steps=config.steps * config.optimizer_steps_per_step,
        per_device_train_batch_size=config.rollout.group_size,
        gradient_accumulation_steps=micro_batches_per_minibatch(config, world_size),
        num_generations=config.rollout.group_size,
        num_iterations=learner.num_iterations,
        max_completion_length=config.rollout.max_new_tokens,
        loss_type=learner.loss,
        importance_sampling_level=learner.ratio_level,
        epsilon=learner.epsilon,
        epsilon_high=learner.upper_clip,
        delta=learner.delta,
        sapo_temperature_pos=learner.sapo.temperature_pos,
        sapo_temperature_neg=learner.sapo.temperature_neg,
        vespo_k_pos=learner.vespo.k_pos,
        vespo_lambda_pos=learner.vespo.lambda_pos,
        vespo_k_neg=learner.vespo.k_neg,
        vespo_lambda_neg=learner.vespo.lambda_neg,
        top_entropy_quantile=learner.top_entropy_quantile,
        entropy_coef=learner.entropy_coef,
        beta=0.0,
        use_bias_correction_kl=learner.kl_bias_correction,
        scale_rewards="none",
        temperature=config.rollout.temperature,
        disable_dropout=True,
        learning_rate=learner.learning_rate,
        weight_decay=learner.weight_decay,
        adam_beta2=learner.adam_beta2,
        max_grad_norm=learner.max_grad_norm,
        optim=OF_TRANSFORMERS[learner.optimizer],
        seed=config.seed % 2**31,  # of libraries that take no larger one; no draw of ours depends on it
        bf16=False,
        activation_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        remove_unused_columns=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def learning_rate_factor(step: int, steps: float, warmup: int, schedule: str, min_ratio: float) -> float:
    """Learning rate of a training step as a fraction of the peak.

    Args:
        step: from 0; at or past ``steps`` the schedule stays at its end.
        steps: training steps of the run; an estimate where its budget is not given in steps.
        warmup: steps of the linear rise; the first already moves.
        schedule: ``constant``, ``linear`` or ``cosine``, from the end of the warm-up to ``steps``.
        min_ratio: where ``linear`` and ``cosine`` end.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    if schedule == "constant":
        return 1.0
    fall = 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return min_ratio + (1 - min_ratio) * fall
