"""Supervised training of a policy on problems with known answers. No Ray here.

:func:`make_data` and :meth:`SupervisedData.save` put the tokenised problems into the run folder, :func:`train` runs the
loop (in one process, or in each process of a ``torch.distributed`` group), :func:`export_best` writes the best policy
with its model card; :func:`pretrain` is all of it in this process. Checkpoints are complete or absent, made at
validations.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bgrpo.config import PretrainConfig
from bgrpo.errors import UserError
from bgrpo.policies.io import load_policy, save_policy, write_policy
from bgrpo.pretraining.model_card import model_card
from bgrpo.pretraining.start import Start, choose_start, starting_model
from bgrpo.pretraining.supervised_lines import BatchOrder, Lines
from bgrpo.pretraining.supervised_trainer import LOG_EVERY, Metrics, SupervisedTrainer, uses_gpu
from bgrpo.pretraining.usable_lines import usable_lines
from bgrpo.pretraining.validation import SELECTION, Validator
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.redaction import redact_credentials
from bgrpo.tasks.base import Problem, load_task
from bgrpo.tasks.problem_files import read_problems, write_problems
from bgrpo.tasks.splits import load_splits, place_of_split

REQUIRED = ("config.json", "optimizer.pt", "scheduler.pt", "trainer_state.json")
"""Files of a checkpoint besides the weights, which may be in several."""


@dataclass(frozen=True, slots=True)
class SupervisedData:
    """Tokenised training lines, and held-out problems to validate on.

    Attributes:
        train: lines to learn from.
        validation: problems with an answer.
        start: what they are made for.
        counts: for each split how many problems it has, and how many were left out.
        notes: what was left out, one line each.
    """

    train: Lines
    validation: list[Problem]
    start: Start
    counts: dict[str, dict[str, int]]
    notes: list[str]

    def save(self, run_dir: Path) -> None:
        """Keep it in the run folder, where every process finds it."""
        folder = run_dir / "data"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_problems(folder / "validation.jsonl", self.validation)
            self.train.save(folder / "train.npz")
            self.start.save(run_dir)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error}): free some space") from error


def load_data(run_dir: Path) -> tuple[Lines, list[Problem]]:
    """The training lines and validation problems that :meth:`SupervisedData.save` kept."""
    folder = run_dir / "data"
    return Lines.load(folder / "train.npz"), read_problems(folder / "validation.jsonl")


def pretrain(config: PretrainConfig, run_dir: Path, command: str, log: Callable[[Metrics], None]) -> Path:
    """All of it in this process.

    Args:
        config: what to do; ``config.workers`` is not used here.
        run_dir: folder of a new run.
        command: makes the policy again; for its model card.
        log: called with each metrics record.

    Returns:
        Directory of the best policy.
    """
    data = make_data(config)
    data.save(run_dir)
    config = config.with_steps(len(data.train))
    train(config, run_dir, log)
    return export_best(config, run_dir, command)


def make_data(config: PretrainConfig) -> SupervisedData:
    """Read or generate the problems and tokenise them.

    Raises:
        UserError: bad data, a policy that cannot be loaded, lines that do not fit ``context`` or ``max_new_tokens``, or
            too few for one batch.
    """
    task = load_task(config.task.name, config.task.options)
    splits = load_splits(task, config.task, needs_test=False)
    start = choose_start(config, task, splits.train)
    usable = {
        name: usable_lines(config, start, getattr(splits, name), place_of_split(task, config.task, name))
        for name in ("train", "validation")
    }
    train, validation = usable["train"], usable["validation"]
    BatchOrder(len(train.lines), config.batch_size, config.seed)
    counts = {name: each.counts for name, each in usable.items()}
    notes = [*splits.notes, *train.notes, *validation.notes]
    return SupervisedData(train.lines, validation.problems[: config.validation_problems], start, counts, notes)


def train(
    config: PretrainConfig,
    run_dir: Path,
    log: Callable[[Metrics], None],
    should_stop: Callable[[], bool] = lambda: False,
    check_owner: Callable[[], None] = lambda: None,
) -> None:
    """Train from the newest checkpoint of ``run_dir``, or from scratch, up to ``config.steps``.

    In a ``torch.distributed`` group every process calls this; process 0 validates, saves, logs and asks
    ``should_stop``, which ends the training early with a checkpoint, and ``check_owner`` before it writes one.

    Raises:
        UserError: the loss is no longer finite, or a checkpoint cannot be written.
    """
    torch.set_num_threads(config.threads or max(1, len(os.sched_getaffinity(0)) // config.workers))
    lines, validation = load_data(run_dir)
    store = pretraining_store(config, run_dir, check_owner)
    resume = store.latest()
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    if resume is None:
        model, tokenizer = starting_model(config, run_dir)
    elif store.step_of(resume) >= config.steps:
        return
    else:
        policy = load_policy(str(resume))
        model, tokenizer = policy.model, policy.tokenizer
    model.set_attn_implementation(_training_attention(config))
    trainer = SupervisedTrainer(model, tokenizer, config, lines, run_dir, log)
    validator = Validator(config, validation, tokenizer)
    trainer.add_callback(ValidateAndSave(config, trainer, validator, store, should_stop))
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)


def pretraining_store(
    config: PretrainConfig, run_dir: Path, check_owner: Callable[[], None] = lambda: None
) -> CheckpointStore:
    """The checkpoints of a supervised run."""
    return CheckpointStore(run_dir / "checkpoints", config.keep, REQUIRED, check_owner)


def export_best(config: PretrainConfig, run_dir: Path, command: str) -> Path:
    """Write the best checkpoint's policy, with its model card, to ``config.out`` or ``run_dir/policy``."""
    store = CheckpointStore(run_dir / "checkpoints", config.keep)
    best = store.best(SELECTION)
    if best is None:
        raise UserError(f"{store.directory}: no complete checkpoint to take the policy from")
    out = Path(config.out) if config.out else run_dir / "policy"
    policy = load_policy(str(best))
    lines, validation = load_data(run_dir)
    card = model_card(config, policy, command, store.step_of(best), store.metrics(best), len(lines), validation)
    save_policy(policy.model, policy.tokenizer, out, redact_credentials(card))
    return out


class ValidateAndSave(TrainerCallback):
    """Every ``validate_every`` steps and at the last one: validate, save, log."""

    def __init__(
        self,
        config: PretrainConfig,
        trainer: SupervisedTrainer,
        validator: Validator,
        store: CheckpointStore,
        should_stop: Callable[[], bool],
    ) -> None:
        self._config = config
        self._trainer = trainer
        self._validator = validator
        self._store = store
        self._should_stop = should_stop

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start measuring speed at the first step, not at construction."""
        self._trainer.start_clock()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **now: Any) -> None:
        """Validate and save on process 0; the others meet it at the next exchange.

        ``now`` is what the Trainer hands to callbacks: the unwrapped ``model``, ``optimizer``, ``lr_scheduler``.
        """
        step = state.global_step
        stop = step % LOG_EVERY == 0 and self._agreed_to_stop(args)
        if not stop and step % self._config.validate_every and step != self._config.steps:
            return
        control.should_log = True  # on every process: logging gathers the loss
        control.should_training_stop = control.should_training_stop or stop
        if state.is_world_process_zero:
            started = time.monotonic()
            self._trainer.add_to_log(self._validate_and_save(state, **now))
            self._trainer.leave_out(time.monotonic() - started)

    def _validate_and_save(
        self,
        state: TrainerState,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        **_: Any,
    ) -> Metrics:
        model.set_attn_implementation("sdpa")
        metrics = self._validator.validate(model, state.global_step)
        model.set_attn_implementation(_training_attention(self._config))

        def write(directory: Path) -> None:
            """The files that ``Trainer.train(resume_from_checkpoint=…)`` reads."""
            write_policy(model, self._validator.tokenizer, directory)
            _write_tensors(optimizer.state_dict(), directory / "optimizer.pt")
            _write_tensors(lr_scheduler.state_dict(), directory / "scheduler.pt")
            state.save_to_json(str(directory / "trainer_state.json"))

        self._store.save(state.global_step, write, metrics, best_key=SELECTION)
        return metrics

    def _agreed_to_stop(self, args: TrainingArguments) -> bool:
        """Process 0's answer, on every process."""
        if args.world_size == 1:
            return self._should_stop()
        answer = torch.tensor(int(args.process_index == 0 and self._should_stop()), device=args.device)
        torch.distributed.broadcast(answer, src=0)
        return bool(answer)


def _training_attention(config: PretrainConfig) -> str:
    """On a CPU, plain attention: the backward pass of torch's fused kernel costs there as much as all the rest."""
    return "sdpa" if uses_gpu(config) else "eager"


def _write_tensors(state: dict[str, Any], path: Path) -> None:
    """torch.save by way of memory: its own file writer hides a full disk behind a RuntimeError."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getbuffer())
