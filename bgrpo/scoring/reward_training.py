"""Training a reward model on preference pairs with TRL's RewardTrainer (Bradley-Terry loss), in this process."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from bgrpo.errors import DivergenceError, UserError, brief
from bgrpo.policies.classifier import read_base
from bgrpo.policies.io import loading
from bgrpo.scoring.fixed_shapes import FixedShapes
from bgrpo.scoring.preference_pairs import Pair, accuracy_interval
from bgrpo.scoring.reward_model import ENCODE_ERRORS, check_bounds, encode, token_limit

OnStep = Callable[[int, int, dict[str, float]], None]
"""Told of every step: its number, how many there are, and metrics."""


@dataclass(frozen=True)
class TrainingOptions:
    """How a reward model is trained.

    Attributes:
        epochs: passes over the pairs.
        max_steps: at most so many optimizer steps; 0: as the epochs say.
        batch_size: pairs in a step.
        learning_rate: highest, after warming up for a tenth of the steps; falls to 0 linearly.
        max_tokens: longer pairs are left out; None: what the model takes.
        seed: of the head and of the order of pairs.
    """

    epochs: float = 1.0
    max_steps: int = 0
    batch_size: int = 16
    learning_rate: float = 5e-5
    max_tokens: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class TrainedReward:
    """A trained reward model and what it scores on held-out pairs.

    Attributes:
        model: the classifier, in evaluation mode.
        tokenizer: its tokenizer, with a chat template.
        before: share of held-out pairs in their order before training, with its 95 % interval.
        after: the same after training.
        pairs: training and held-out pairs that were used.
        too_long: training and held-out pairs that were left out.
        steps: optimizer steps.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    before: tuple[float, float, float]
    after: tuple[float, float, float]
    pairs: tuple[int, int]
    too_long: tuple[int, int]
    steps: int


class _WeightedPairs(DataCollatorForPreference):
    """TRL's batches, with the weights of the pairs."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        weights = torch.tensor([example["weight"] for example in examples])
        return {**super().torch_call(examples), "weight": weights}


class WeightedRewardTrainer(RewardTrainer):
    """TRL's trainer, with a weight for each pair: -w log sigmoid(r_chosen - r_rejected - margin)."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the batch; weights have mean 1 over the training pairs."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        losses = -torch.nn.functional.logsigmoid(chosen - rejected - inputs["margin"])
        self._metrics["train"]["accuracy"].append((chosen > rejected).float().mean().item())
        loss = (inputs["weight"] * losses).mean()
        return (loss, outputs) if return_outputs else loss


class _Watch(TrainerCallback):
    """Tells of every step, and ends a run whose loss is not finite."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise DivergenceError(
                    f"step {state.global_step}: the loss is {logs['loss']}; try a lower --learning-rate"
                )
            kept: dict[str, float] = {
                name: logs[name] for name in ("loss", "accuracy", "learning_rate") if name in logs
            }
            self._on_step(state.global_step, state.max_steps, kept)


def load_base(path: str, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An encoder or decoder with a head of one output, drawn from the seed where the model has none.

    A tokenizer without a chat template gets one: every message's text, ended by its separator or end token.

    Raises:
        UserError: the model cannot be loaded.
    """
    with loading("base model", path) as folder:
        model, tokenizer = read_base(folder, seed)
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise UserError("its tokenizer has neither a pad nor an end token; set eos_token")
            tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:
        tokenizer.chat_template = plain_template(tokenizer)
    return model, tokenizer


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """A chat template for tokenizers without one: the texts alone, with the special tokens that the model knows."""
    start = next((name for name in ("cls_token", "bos_token") if getattr(tokenizer, name)), None)
    end = next((name for name in ("sep_token", "eos_token") if getattr(tokenizer, name)), None)
    first = "{{ " + start + " }}" if start else ""
    last = "{{ " + end + " }}" if end else "\n"
    return first + "{% for message in messages %}{{ message['content'] }}" + last + "{% endfor %}"


def train_reward_model(
    base: str, train: Sequence[Pair], held_out: Sequence[Pair], options: TrainingOptions, on_step: OnStep
) -> TrainedReward:
    """Train a reward model and measure it on held-out pairs before and after.

    Args:
        base: directory or Hub id of an encoder or decoder.
        train: pairs to learn from.
        held_out: pairs to measure on.
        options: how.
        on_step: told of every step.

    Raises:
        UserError: the base model cannot be loaded, every pair is too long, or training diverges.
    """
    model, tokenizer = load_base(base, options.seed)
    model_limit = token_limit(model, tokenizer)
    limit = min((n for n in (model_limit, options.max_tokens) if n is not None), default=None)
    learned, measured = (_encoded(tokenizer, pairs, limit, base) for pairs in (train, held_out))
    for rows, what in ((learned, "training"), (measured, "held-out")):
        if not rows:
            raise UserError(
                f"every {what} pair is longer than {limit} tokens; raise --max-tokens or shorten the prompts"
            )
    shapes = FixedShapes(model.eval(), limit)
    before = _accuracy(shapes, measured)
    mean_weight = sum(row["weight"] for row in learned) / len(learned)
    if not mean_weight:
        raise UserError("every weight of the training pairs is 0: there is nothing to learn")
    rows = [{name: row[name] for name in ("chosen_ids", "rejected_ids", "margin")} for row in learned]
    for row, pair in zip(rows, learned, strict=True):
        row["weight"] = pair["weight"] / mean_weight
    with tempfile.TemporaryDirectory() as scratch:
        trainer = WeightedRewardTrainer(
            model=model,
            args=_arguments(options, scratch),
            data_collator=_WeightedPairs(pad_token_id=tokenizer.pad_token_id),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[_Watch(on_step)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
    return TrainedReward(
        model,
        tokenizer,
        before,
        _accuracy(shapes, measured),
        (len(learned), len(measured)),
        (len(train) - len(learned), len(held_out) - len(measured)),
        trainer.state.global_step,
    )


def _arguments(options: TrainingOptions, scratch: str) -> RewardConfig:
    return RewardConfig(
        output_dir=scratch,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=0.1,
        seed=options.seed,
        bf16=False,
        activation_checkpointing=False,
        remove_unused_columns=False,
        max_length=None,  # pairs that are too long are left out, and counted, before
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _encoded(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], limit: int | None, path: str
) -> list[dict[str, Any]]:
    """Rows for the trainer, without those that are too long.

    Raises:
        UserError: a pair that the chat template refuses, with its line, or on which it does not end.
    """
    rows = []
    check_bounds(tokenizer, [(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)], path)
    for pair in pairs:
        try:
            chosen, rejected = (encode(tokenizer, pair.prompt, text) for text in (pair.chosen, pair.rejected))
        except ENCODE_ERRORS as error:
            raise UserError(f"line {pair.line}: the tokenizer refuses it: {brief(error)}") from error
        if limit is None or max(len(chosen), len(rejected)) <= limit:
            rows.append(
                {
                    "chosen_ids": chosen,
                    "rejected_ids": rejected,
                    "margin": pair.margin,
                    "weight": pair.weight,
                    "group": pair.group,
                }
            )
    return rows


def _accuracy(shapes: FixedShapes, rows: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Share of pairs whose chosen text scores above the rejected one, with its interval.

    Raises:
        DivergenceError: a score is not finite.
    """
    scores = dict(shapes.logits([row[name] for row in rows for name in ("chosen_ids", "rejected_ids")]))
    if not all(math.isfinite(score) for logits in scores.values() for score in logits):
        raise DivergenceError("the scores of held-out pairs are not finite; try a lower --learning-rate")
    right = [scores[2 * i][0] > scores[2 * i + 1][0] for i in range(len(rows))]
    return accuracy_interval(right, [row["group"] for row in rows])
