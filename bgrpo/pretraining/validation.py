"""Validation during supervised training: held-out loss and greedy accuracy, and which checkpoint is the best."""

from __future__ import annotations

import math
import time

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bgrpo.config import PretrainConfig
from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.policies.text import decode_completion, end_tokens
from bgrpo.pretraining.answer_logits import answer_logits, collate_for
from bgrpo.pretraining.supervised_lines import tokenise
from bgrpo.pretraining.supervised_trainer import Metrics, divergence, summed_loss
from bgrpo.scoring.readable_groups import encode_prompts, without_prefix
from bgrpo.tasks.base import Outcome, Problem, Task, load_task, outcome_of

SELECTION = "selection"  # metric that the best checkpoint maximises
_LARGEST_EXPONENT = 700.0
_ROWS = 64  # lines per forward pass of the loss


def selection_score(accuracy: float, loss: float) -> float:
    """Orders checkpoints by greedy accuracy, and those of equal accuracy by lower loss."""
    return accuracy + 1e-6 * math.exp(-loss)


def perplexity(loss: float) -> float:
    """Of a loss in nats per token; it stays a finite number."""
    return math.exp(min(loss, _LARGEST_EXPONENT))


class Validator:
    """Loss and greedy accuracy on held-out problems."""

    def __init__(self, config: PretrainConfig, problems: list[Problem], tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._config = config
        self._problems = problems
        self._task: Task = load_task(config.task.name, config.task.options)
        self._lines = tokenise(problems, tokenizer, "task.validation", tried=True)
        self._prompts = encode_prompts(tokenizer, problems, "task.validation", tried=True)
        self._settings = DecodeSettings(
            mode="beam",
            group_size=1,
            max_new_tokens=config.max_new_tokens,
            eos_token_id=end_tokens(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
        )

    def validate(self, model: PreTrainedModel, step: int) -> Metrics:
        """Measure the present weights.

        Returns:
            ``validation_loss`` (nats per answer token), ``validation_perplexity``, its exponential,
            ``greedy_accuracy`` (0 to 1), :data:`SELECTION` and ``validation_s`` (seconds).

        Raises:
            UserError: the loss is not finite.
        """
        started = time.monotonic()
        loss = self._loss(model)
        if not math.isfinite(loss):
            raise divergence(step, f"validation loss {loss}", self._config)
        groups = DecodeEngine(model).decode(self._prompts, self._settings)
        correct = 0
        for problem, group in zip(self._problems, groups, strict=True):
            completion = group.completions[0]
            text = without_prefix(decode_completion(self.tokenizer, completion.tokens), problem.answer_prefix)
            correct += completion.finished and outcome_of(self._task, problem, text) == Outcome.CORRECT
        accuracy = correct / len(self._problems)
        return {
            "validation_loss": loss,
            "validation_perplexity": perplexity(loss),
            "greedy_accuracy": accuracy,
            SELECTION: selection_score(accuracy, loss),
            "validation_s": time.monotonic() - started,
        }

    @torch.no_grad()
    def _loss(self, model: PreTrainedModel) -> float:
        total = 0.0
        order = self._lines.lengths.argsort(kind="stable")
        for start in range(0, len(order), _ROWS):
            batch = collate_for(model, self.tokenizer)(self._lines, order[start : start + _ROWS])
            targets_BT = batch["targets"].to(model.device)
            total += float(summed_loss(answer_logits(model, batch), targets_BT))
        return total / int(self._lines.answer_lengths.sum())
