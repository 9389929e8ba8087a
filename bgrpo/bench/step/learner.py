"""The learner's work against a bare PyTorch loop that makes the same update, interleaved in one process."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bgrpo.bench.step.floor import update_floor
from bgrpo.bench.step.workload import UpdateCase, build_workload
from bgrpo.config import TrainConfig
from bgrpo.groups import ScoredGroup
from bgrpo.learning.batch import choose_groups, draw_groups, split_update
from bgrpo.learning.packing import PackedGroups, pack_groups, packed_logps
from bgrpo.learning.trl_arguments import learning_rate_factor

WARM_UP = 2
TOLERANCE = 1e-5
"""Largest difference between weights after all updates, in multiples of what training moved them (both Euclidean)."""


def measure_learner(case: UpdateCase, steps: int) -> dict[str, Any]:
    """CPU seconds per update of :class:`bgrpo.learning.trainer.BGRPOTrainer` and of a bare loop, and their ratio.

    The trainer's time is everything between two looks at its rollout source: scoring, packing, TRL, accelerate,
    optimizer, statistics. The bare loop's is that of the same packed tensors through forward, backward, clipping and
    AdamW, with the reference's forward in both. Both start from the same weights and make the same updates.

    Call it in a process of one thread.

    Args:
        case: what is learned.
        steps: to measure, after :data:`WARM_UP` more.

    Raises:
        RuntimeError: the two loops ended with other weights.
    """
    from bgrpo.learning.trainer import BGRPOTrainer

    workload = build_workload(case)
    config = workload.config.model_copy(update={"steps": steps + WARM_UP})
    start = copy.deepcopy(workload.model)
    bare = _BareLearner(copy.deepcopy(workload.model), copy.deepcopy(workload.model), config)
    source = _TimedSource(workload.groups, config, bare)
    with tempfile.TemporaryDirectory() as folder:
        trainer = BGRPOTrainer(config, workload.model, workload.tokenizer, source, len(workload.groups), Path(folder))
        trainer.run()
        source.stop()
    error = _distance(workload.model, bare.model) / _distance(start, bare.model)
    if not error < TOLERANCE:
        raise RuntimeError(f"{case.name}: the trainer's weights differ from the bare loop's by {error:.1e} of the way")
    trainer_s, bare_s = source.trainer_s[WARM_UP:], source.bare_s[WARM_UP:]
    return {
        "case": case.name,
        "steps": steps,
        "learner_s": statistics.median(trainer_s),
        "bare_s": statistics.median(bare_s),
        "ratio": statistics.median(a / b for a, b in zip(trainer_s, bare_s, strict=True)),
        "floor_s": source.floor_s,
        "weights_differ": error,
    }


@dataclass(frozen=True, slots=True)
class _BareBatch:
    """One micro-batch of the bare loop."""

    packed: PackedGroups
    advantages_B1: Tensor


class _BareLearner:
    """GRPO's clipped loss with the k3 KL, as few lines as it takes."""

    def __init__(self, model: PreTrainedModel, reference: PreTrainedModel, config: TrainConfig) -> None:
        self.model = model.train()
        self._reference = reference.eval().requires_grad_(False)
        self._config = config
        learner = config.learner
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=learner.learning_rate,
            betas=(0.9, learner.adam_beta2),
            weight_decay=learner.weight_decay,
            fused=True,
        )

    def update(self, step: int, batches: list[_BareBatch], tokens: int) -> None:
        learner = self._config.learner
        factor = learning_rate_factor(
            step, self._config.steps, learner.warmup_steps, learner.schedule, learner.min_learning_rate_ratio
        )
        self._optimizer.param_groups[0]["lr"] = learner.learning_rate * factor
        for batch in batches:
            with torch.no_grad():
                reference_BC, _ = packed_logps(self._reference, batch.packed)
            logps_BC, _ = packed_logps(self.model, batch.packed)
            ratio_BC = (logps_BC - logps_BC.detach()).exp()
            clipped_BC = ratio_BC.clamp(1 - learner.epsilon, 1 + learner.epsilon)
            gain_BC = torch.min(ratio_BC * batch.advantages_B1, clipped_BC * batch.advantages_B1)
            log_ratio_BC = reference_BC - logps_BC
            kl_BC = log_ratio_BC.exp() - log_ratio_BC - 1
            ((learner.beta * kl_BC - gain_BC) * batch.packed.mask_BC).sum().div(tokens).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), learner.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()


class _FixedSource:
    """Gives out groups that were decoded before, as if by the version asked for."""

    def __init__(self, groups: list[ScoredGroup]) -> None:
        self._groups = groups

    def publish(self, version: int, model: PreTrainedModel) -> None:
        """Nobody decodes."""

    def prefetch(self, step: int, version: int, indices: list[int]) -> None:
        """Nobody decodes."""

    def collect(self, step: int, version: int, indices: list[int], draw: int) -> list[ScoredGroup]:
        return [replace(self._groups[index], version=version) for index in indices]


class _TimedSource(_FixedSource):
    """Times the trainer, which asks it for groups: each of its steps lies between two of the bare loop's."""

    def __init__(self, groups: list[ScoredGroup], config: TrainConfig, bare: _BareLearner) -> None:
        super().__init__(groups)
        self.trainer_s: list[float] = []
        self.bare_s: list[float] = []
        self.floor_s = 0.0
        self._config = config
        self._bare = bare
        self._resumed: float | None = None

    def collect(self, step: int, version: int, indices: list[int], draw: int) -> list[ScoredGroup]:
        self.stop()
        batches, tokens = self._prepare(step)
        if step == WARM_UP:
            self.floor_s = update_floor(self._bare.model, [batch.packed for batch in batches])
        self.bare_s.append(_seconds(lambda: self._bare.update(step, batches, tokens)))
        groups = super().collect(step, version, indices, draw)
        self._resumed = time.process_time()
        return groups

    def stop(self) -> None:
        """The trainer's step ends here."""
        if self._resumed is not None:
            self.trainer_s.append(time.process_time() - self._resumed)
        self._resumed = None

    def _prepare(self, step: int) -> tuple[list[_BareBatch], int]:
        groups = draw_groups(_FixedSource(self._groups), self._config, step, step, len(self._groups))
        (minibatch,) = split_update(choose_groups(groups, self._config).learning, self._config, rank=0, world_size=1)
        batches = []
        for cut in filter(None, minibatch.micro_batches):
            advantages = [value for group in cut for value in group.advantages]
            packed = pack_groups([(group.prompt, group.completions) for group in cut], "cpu")
            batches.append(_BareBatch(packed, torch.tensor(advantages)[:, None]))
        return batches, minibatch.tokens


def _seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def _distance(one: PreTrainedModel, other: PreTrainedModel) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return float(sum((a.detach() - b.detach()).double().square().sum() for a, b in pairs)) ** 0.5
