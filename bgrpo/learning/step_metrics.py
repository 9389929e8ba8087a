"""What a training step reports: its rollouts, its updates, and where the time went. Names are accepted by MLflow."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bgrpo.config import RewardSection
from bgrpo.groups import RANKED, ScoredGroup, Verdict
from bgrpo.learning.batch import LearningGroup, LearningStep
from bgrpo.scoring.advantages import is_informative
from bgrpo.scoring.rewards import contributions
from bgrpo.tasks.base import Outcome

_LOGGED = {"kl": "kl", "entropy": "entropy"}
_CLIPPED = {"clip_ratio/region_mean": "clip_fraction", "cispo_clip_ratio": "clip_fraction"}
"""TRL's names and ours; what is clipped are ratios, of tokens or of completions."""

EQUAL = 1e-12
"""Differences below this part of the largest value are rounding."""


def rollout_metrics(scored: LearningStep, version: int, mode: str, reward: RewardSection) -> dict[str, float]:
    """Statistics of all groups drawn for one step.

    Args:
        scored: the step.
        version: policy version that the update starts from.
        mode: ``beam`` or ``diverse_beam`` (add ``top1_accuracy``: rank 1 is correct), ``sample`` (adds ``duplicates``:
            fraction of completions equal to an earlier one of their group) or ``stochastic_beam``.
        reward: of the run.

    Returns:
        ``reward_mean`` and ``reward_std`` (within groups, mean over groups); the fractions of groups with a correct
        completion (``solved_groups``) and with rewards that differ (``informative_groups``); ``groups_drawn`` and
        ``groups_used``; ``advantage_max``, the largest absolute advantage: where it is 0 no reward moves the policy;
        ``completion_length`` in tokens; ``staleness`` in versions, the largest, and ``staleness_mean`` over
        completions; ``kl_in_reward``, of a completion, where rewards are charged for it; ``outcome/…``, a count each.
        Where completions are graded and nothing says what is correct, neither ``solved_groups`` nor ``top1_accuracy``.
    """
    groups = scored.groups
    rewards = [[reward for reward in group.rewards if reward is not None] for group in groups]
    counts = Counter(outcome for group in groups for outcome in group.outcomes)
    lengths = [len(completion.tokens) for group in groups for completion in group.completions]
    metrics = {
        "reward_mean": _mean([reward for values in rewards for reward in values]),
        "reward_std": _mean([float(np.std(values)) for values in rewards if values]),
        "informative_groups": float(np.mean([is_informative(values) for values in rewards])),
        "groups_drawn": float(len(groups)),
        "groups_used": float(len(scored.learning)),
        "advantage_max": _largest_advantage(scored.learning),
        "completion_length": float(np.mean(lengths)),
        "staleness": float(max(version - group.version for group in groups)),
        "staleness_mean": float(
            np.average(
                [version - group.version for group in groups], weights=[len(group.completions) for group in groups]
            )
        ),
    }
    if scored.kl_in_reward is not None:
        metrics["kl_in_reward"] = scored.kl_in_reward
    checked = reward.says_what_is_correct and not counts[Outcome.SCORED]
    if checked:
        metrics["solved_groups"] = float(np.mean([Outcome.CORRECT in group.outcomes for group in groups]))
    if mode in RANKED:
        if checked:
            metrics["top1_accuracy"] = float(np.mean([group.outcomes[0] == Outcome.CORRECT for group in groups]))
    elif mode == "sample":
        metrics["duplicates"] = _duplicates(groups)
    metrics |= {f"outcome/{outcome}": float(counts[outcome]) for outcome in Outcome}
    return metrics | part_metrics(groups, reward)


def _largest_advantage(groups: Sequence[LearningGroup]) -> float:
    """The largest absolute advantage of any completion, or of any token where tokens are judged apart."""
    rows = [row for group in groups for row in (group.token_advantages or [group.advantages])]
    return max((abs(value) for row in rows for value in row), default=0.0)


def part_metrics(groups: Sequence[ScoredGroup], reward: RewardSection) -> dict[str, float]:
    """What the named parts of the reward say, over all completions of a step; nothing where it has none.

    Returns:
        ``score_mean``: of the weighted sums of the parts, before normalising and rank shaping. For each part
        ``part/NAME/mean`` and ``std``; ``spread``: standard deviation within groups, mean over groups; ``share`` of
        the variance within groups, see :func:`variance_shares`; ``none``, ``failed`` and ``cut``: shares of
        completions to which it did not apply, for which it failed, and of which a reward model read only the end;
        ``seconds`` that it took, those of calls at the same time added up. No mean where no completion has a value.
    """
    if not reward.parts:
        return {}
    verdicts = [[completion.judged for completion in group.completions] for group in groups]
    count = sum(map(len, verdicts))
    shares = variance_shares(verdicts, reward)
    metrics = {"score_mean": _mean([each.score for group in verdicts for each in group if each.score is not None])}
    for name in reward.parts:
        known = [[value for verdict in group if (value := verdict.parts.get(name)) is not None] for group in verdicts]
        every = [value for values in known for value in values]
        failed = sum(name in verdict.failures for group in verdicts for verdict in group)
        cut = sum(name in verdict.cut for group in verdicts for verdict in group)
        found = {"none": (count - len(every) - failed) / count, "failed": failed / count, "cut": cut / count}
        found["seconds"] = sum(verdict.seconds.get(name, 0.0) for group in verdicts for verdict in group)
        if every:
            spread = _mean([float(np.std(values)) for values in known if values])
            found |= {"mean": _mean(every), "std": float(np.std(every)), "spread": spread}
        if name in shares:
            found["share"] = shares[name]
        metrics |= {f"part/{name}/{key}": value for key, value in found.items()}
    return metrics


def variance_shares(groups: Sequence[Sequence[Verdict]], reward: RewardSection) -> dict[str, float]:
    """How much of what the update learns from comes from each part.

    With c_pk = what part p adds to completion k (its weight × its score; with ``normalize_then_sum`` after it was
    normalised; 0 where it does not apply) and T_k = Σ_p c_pk, both less their mean in the group, the share is
    Σ c_pk T_k / Σ T_k² over the completions of all groups that have a score: Cov(c_p, T) / Var(T) within groups.
    Shares sum to 1. One below 0 belongs to a part that is outvoted: it falls where the sum rises. Rank shaping comes
    after it.

    Returns:
        Part -> share; nothing where all sums of each group are equal.
    """
    weights = {name: part.weight for name, part in reward.parts.items()}
    products, total = dict.fromkeys(weights, 0.0), 0.0
    for group in groups:
        scored = [verdict for verdict in group if verdict.score is not None]
        if len(scored) > 1:
            added = contributions(scored, weights, reward.combine == "normalize_then_sum")
            centred = {name: column - column.mean() for name, column in added.items()}
            sums = sum(centred.values(), np.zeros(len(scored)))
            if np.abs(sums).max() > EQUAL * max(np.abs(column).max() for column in added.values()):
                products = {name: products[name] + float(centred[name] @ sums) for name in weights}
                total += float(sums @ sums)
    return {name: product / total for name, product in products.items()} if total else {}


def _mean(values: Sequence[float]) -> float:
    """NaN where there is none."""
    return float(np.mean(values)) if values else float("nan")


def _duplicates(groups: Sequence[ScoredGroup]) -> float:
    total = sum(len(group.completions) for group in groups)
    distinct = sum(len({tuple(completion.tokens) for completion in group.completions}) for group in groups)
    return (total - distinct) / total


class UpdateReport(NamedTuple):
    """One optimizer step: this learner's loss, the gradient norm before clipping, the KL (0 without a reference)."""

    loss: float
    grad_norm: float
    kl: float


class LearnerMeter:
    """KL, entropy, clipping and gradient norm of one training step's updates, as means over completion tokens."""

    def __init__(self) -> None:
        self._step_means = _Means()
        self._update_means = _Means()
        self._losses: list[Tensor] = []
        self._norms: list[float] = []
        self._noted: dict[str, float] = {}

    def note(self, metrics: Mapping[str, float]) -> None:
        """Take figures of the whole step."""
        self._noted |= metrics

    def add_micro_batch(
        self,
        logged: Mapping[str, Sequence[float]],
        tokens: int,
        loss: Tensor,
        completions: tuple[int, float] | None = None,
    ) -> None:
        """Take what TRL logged for one micro-batch, already averaged over all learners.

        Args:
            logged: TRL's metrics, the latest value last.
            tokens: completion tokens of all learners in this micro-batch.
            loss: this learner's loss.
            completions: where ratios are of completions: how many all learners have in this micro-batch, and the
                factor from the mean over TRL's rows to the mean over them.
        """
        self._losses.append(loss)
        ratios, factor = completions or (tokens, 1.0)
        for means in (self._step_means, self._update_means):
            means.add({ours: logged[theirs][-1] for theirs, ours in _LOGGED.items() if logged.get(theirs)}, tokens)
            means.add(
                {ours: factor * logged[theirs][-1] for theirs, ours in _CLIPPED.items() if logged.get(theirs)}, ratios
            )

    def end_optimizer_step(self, grad_norm: float) -> UpdateReport:
        """Note the gradient norm; called before the optimizer moves the weights."""
        report = UpdateReport(
            float(torch.stack(self._losses).sum()), grad_norm, self._update_means.result().get("kl", 0.0)
        )
        self._norms.append(grad_norm)
        self._losses, self._update_means = [], _Means()
        return report

    def result(self) -> dict[str, float]:
        """``kl`` (with a reference), ``entropy`` in nats, ``clip_fraction`` (where the loss clips), what was noted, and
        the mean and largest gradient norm.
        """
        norms = {"grad_norm": float(np.mean(self._norms)), "grad_norm_max": max(self._norms)}
        return self._step_means.result() | self._noted | norms


class _Means:
    """Means weighted by tokens or ratios; micro-batches without any do not count."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, int] = {}

    def add(self, values: Mapping[str, float], weight: int) -> None:
        for name, value in values.items() if weight else ():
            self._sums[name] = self._sums.get(name, 0.0) + value * weight
            self._weights[name] = self._weights.get(name, 0) + weight

    def result(self) -> dict[str, float]:
        return {name: value / self._weights[name] for name, value in self._sums.items()}


class StepClock:
    """Where a step's time went, in seconds; what no other part took is the learning, the optimizer included.

    Args:
        overlapped: rollouts are decoded while the step before is learned, so that ``rollout`` is only the time that
            the learner waited for them, and their rate is that of whole steps.
    """

    def __init__(self, overlapped: bool = False) -> None:
        self._overlapped = overlapped
        self._start = self._optimizer_start = time.perf_counter()
        self._optimizer_s = 0.0
        self._parts: dict[str, float] = {}

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Count the time in this block as ``part``."""
        start = time.perf_counter()
        yield
        self._parts[part] = self._parts.get(part, 0.0) + time.perf_counter() - start

    def begin_optimizer(self) -> None:
        """The optimizer starts to move the weights."""
        self._optimizer_start = time.perf_counter()

    def end_optimizer(self) -> None:
        """The optimizer is done; its time is part of ``learn`` too."""
        self._optimizer_s += time.perf_counter() - self._optimizer_start

    def elapsed(self) -> float:
        """Seconds of this step so far."""
        return time.perf_counter() - self._start

    def restart(self, completions: int) -> dict[str, float]:
        """The step's ``seconds/…`` and ``rollouts_per_s``; the next step begins now."""
        now = time.perf_counter()
        total = now - self._start
        parts = {part: self._parts.get(part, 0.0) for part in ("rollout", "weights", "validation", "checkpoint")}
        parts |= {"learn": total - sum(parts.values()), "optimizer": self._optimizer_s, "total": total}
        self._start, self._parts, self._optimizer_s = now, {}, 0.0
        rate = completions / max(total if self._overlapped else parts["rollout"], 1e-9)
        return {f"seconds/{part}": seconds for part, seconds in parts.items()} | {"rollouts_per_s": rate}
