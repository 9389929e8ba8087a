"""transformers' Trainer for supervised lines. Where it deviates from a plain Trainer:

- The batch of a step is a pure function of (seed, step), so a resumed run needs no replay and N processes, each taking
  every N-th line of the same batch, make the update of one process.
- The loss is the mean over the answer tokens and end tokens of the *global* batch.
- Autocast is entered in the loss alone, so validation sees the fp32 weights that are saved.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from bgrpo.config import PretrainConfig
from bgrpo.errors import UserError
from bgrpo.pretraining.answer_logits import Collate, answer_logits, collate_for
from bgrpo.pretraining.supervised_lines import IGNORED, BatchOrder, Lines

LOG_EVERY = 20  # optimizer steps between log lines; each one waits for the device

Metrics = dict[str, float]


def learning_rate_ratio(step: int, warmup_steps: int, steps: int, min_ratio: float) -> float:
    """Learning rate of a 0-based step over its peak: linear warm-up, then a cosine down to ``min_ratio``, then flat."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, steps - 1 - warmup_steps))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def uses_gpu(config: PretrainConfig) -> bool:
    """GPUs are used where they are reserved."""
    return config.gpus_per_worker > 0 and torch.cuda.is_available()


def divergence(step: int, found: str, config: PretrainConfig) -> UserError:
    """The error that ends a run whose numbers are no longer finite."""
    return UserError(
        f"pre-training diverged at step {step}: {found}; start again with a lower learning_rate "
        f"(now {config.peak_learning_rate:g}) or more warmup_steps (now {config.warmup_steps})"
    )


class SupervisedTrainer(Trainer):
    """Trainer whose batches are a pure function of the step and whose loss is that of the global batch."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: PretrainConfig,
        lines: Lines,
        run_dir: Path,
        sink: Callable[[Metrics], None],
    ) -> None:
        super().__init__(model=model, args=_arguments(config, run_dir))
        self._config = config
        self._lines = lines
        self._order = BatchOrder(len(lines), config.batch_size, config.seed)
        self._collate = collate_for(model, tokenizer)
        self._sink = sink
        self._logged = (0, time.monotonic())  # step and time of the last log line
        self._more: Metrics = {}

    def get_train_dataloader(self) -> DataLoader:
        """One batch per step, from the current step on."""
        dataset = _StepBatches(self._lines, self._order, self._collate, self.args)
        return DataLoader(dataset, batch_size=None, sampler=_StepsToGo(self))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Cross-entropy of the answer tokens, over those of the global batch; DDP's mean is undone by the factor."""
        device_type = inputs["input_ids"].device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=self._config.bf16):
            logits_BTV = answer_logits(model, inputs)
        return summed_loss(logits_BTV, inputs["targets"]) * (self.args.world_size / inputs["global_tokens"])

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Warm-up, then a cosine that ends at its minimum and stays there."""
        config = self._config
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer or self.create_optimizer(),
            lambda step: learning_rate_ratio(step, config.warmup_steps, config.steps, config.min_learning_rate_ratio),
        )
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand loss, gradient norm, learning rate and speed to the caller's sink.

        Raises:
            UserError: the loss or the gradient norm is not finite.
        """
        if "loss" not in logs:  # the Trainer's own summary at the end
            return
        step, now = self.state.global_step, time.monotonic()
        if not (math.isfinite(logs["loss"]) and math.isfinite(logs.get("grad_norm", 0.0))):
            found = f"loss {logs['loss']}, gradient norm {logs.get('grad_norm')}"
            raise divergence(step, found, self._config)
        last_step, last_time = self._logged
        self._logged = (step, now)
        rate = (step - last_step) * self._config.batch_size / (now - last_time)
        epoch = step * self._config.batch_size / len(self._lines)
        record = {"step": step, **logs, "epoch": epoch, "lines_per_s": rate, **self._more}
        self._more = {}
        if self.is_world_process_zero():
            self._sink(record)

    def add_to_log(self, metrics: Metrics) -> None:
        """Make these part of the next record."""
        self._more |= metrics

    def start_clock(self) -> None:
        """Measure speed from here on."""
        self._logged = (self.state.global_step, time.monotonic())

    def leave_out(self, seconds: float) -> None:
        """Leave time that was not spent on training out of the next ``lines_per_s``."""
        step, started = self._logged
        self._logged = (step, started + seconds)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: walking the parameters on each step costs more than the optimizer."""
        return 0


class _StepBatches(Dataset):
    """This process's share of the batch of each step, with the number of answer tokens in the whole batch."""

    def __init__(self, lines: Lines, order: BatchOrder, collate: Collate, args: TrainingArguments) -> None:
        self._lines = lines
        self._answer_lengths = lines.answer_lengths
        self._order = order
        self._collate = collate
        self._args = args

    def __len__(self) -> int:
        return self._args.max_steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        indices = self._order.batch(step)
        mine = indices[self._args.process_index :: self._args.world_size]
        global_tokens = int(self._answer_lengths[indices].sum())
        return {**self._collate(self._lines, mine), "global_tokens": global_tokens}


class _StepsToGo(Sampler[int]):
    """Steps from the Trainer's current one, known once a checkpoint is loaded, to the last; its length is all steps."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._trainer.state.global_step, self._trainer.args.max_steps))

    def __len__(self) -> int:
        return self._trainer.args.max_steps


def _arguments(config: PretrainConfig, run_dir: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(run_dir),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size // int(os.environ.get("WORLD_SIZE", "1")),
        learning_rate=config.peak_learning_rate,
        weight_decay=config.weight_decay,
        adam_beta2=0.99,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        seed=config.seed,
        use_cpu=not uses_gpu(config),
        bf16=False,  # entered in compute_loss
        logging_steps=LOG_EVERY,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        ignore_data_skip=True,
        ddp_find_unused_parameters=False,
    )


def summed_loss(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in fp32, summed over the positions that carry a target; position t predicts token t + 1."""
    logits = logits_BTV[:, :-1].float().flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, targets_BT[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")
