"""Whether a run has anything to learn from, told from the metrics of its steps, and what to change where it has not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bgrpo.config import TrainConfig
from bgrpo.runs.audit import audit

STREAK = 5
"""Steps in a row without an update after which that is said."""

_OUTCOME = "outcome/"


class SignalWatch:
    """Says once what keeps a run from learning: cut-off completions, such as earn most, or no group to learn from.

    Args:
        config: of the run.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._idle = 0  # steps in a row
        self._said: set[str] = set()

    def note(self, step: int, metrics: Mapping[str, Any]) -> list[str]:
        """Warnings that this step is the reason for, each once; steps come in order."""
        lines = []
        share = _truncated_share([metrics])
        if share > 0.5 and self._once("truncated"):
            lines.append(f"warning: step {step}: {_truncation(self._config, share)}")
        if cut_off_pays(self._config, metrics) and self._once("cut off pays"):
            lines.append(
                f"warning: step {step}: completions that were cut off get reward.wrong_reward="
                f"{self._config.reward.wrong_reward:g}, more than the others get on average, so the policy may learn "
                f"never to end: set a lower reward.wrong_reward, or score_truncated of a part"
            )
        self._idle = self._idle + 1 if made_no_update(metrics) else 0
        if self._idle == STREAK and self._once("idle"):
            lines.append(
                f"warning: steps {step - STREAK + 1} to {step} made no update: {_why(self._config, [metrics])}"
            )
        return lines

    def _once(self, kind: str) -> bool:
        new = kind not in self._said
        self._said.add(kind)
        return new


def cut_off_pays(config: TrainConfig, metrics: Mapping[str, Any]) -> bool:
    """Whether completions without an end had a higher reward in a step than the mean of those with one."""
    reward = config.reward
    if not reward.is_graded or reward.combine != "sum" or config.reward.scores_truncated:
        return False
    mean = metrics.get("reward_mean")
    return bool(metrics.get(f"{_OUTCOME}truncated")) and mean is not None and mean < reward.wrong_reward


def made_no_update(metrics: Mapping[str, Any]) -> bool:
    """Whether a step had nothing to learn from: no group was used, or the advantages of all are 0."""
    return metrics.get("groups_used") == 0 or metrics.get("advantage_max") == 0


def steps_without_update(steps: Sequence[Mapping[str, Any]]) -> int:
    """How many of these steps made no update."""
    return sum(made_no_update(metrics) for metrics in steps)


def conclusions(config: TrainConfig, steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the end of a run says about all its steps: those without an update, completions that were cut off, and what
    looks like reward hacking (:mod:`bgrpo.runs.audit`). Nothing where there is none of it.

    Args:
        config: of the run.
        steps: metrics of each.
    """
    idle = [metrics for metrics in steps if made_no_update(metrics)]
    share = _truncated_share(steps)
    lines = [f"warning: of the whole run, {_truncation(config, share)}"] if share > 0.5 else []
    if idle and len(idle) == len(steps):
        lines.append(
            f"warning: none of the {len(steps)} steps made an update, the policy is the one that training started "
            f"from: {_why(config, idle)}"
        )
    elif idle:
        lines.append(f"{len(idle)} of {len(steps)} steps made no update: {_why(config, idle)}")
    return [*lines, *audit(config.reward, steps)]


def _truncated_share(steps: Sequence[Mapping[str, Any]]) -> float:
    """Of all completions of these steps, the part that ``rollout.max_new_tokens`` cut off."""
    counts = [
        (name, value) for metrics in steps for name, value in metrics.items() if name.startswith(_OUTCOME) and value
    ]
    total = sum(value for _, value in counts)
    return sum(value for name, value in counts if name == f"{_OUTCOME}truncated") / total if total else 0.0


def _truncation(config: TrainConfig, share: float) -> str:
    meaning = "are scored as they are" if config.reward.scores_truncated else "count as wrong whatever they say"
    return (
        f"{share:.0%} of the completions were cut off at rollout.max_new_tokens={config.rollout.max_new_tokens}, and "
        f"{meaning}: raise it, or start from a policy that ends its answers"
    )


def _why(config: TrainConfig, steps: Sequence[Mapping[str, Any]]) -> str:
    """Why these steps made no update, and what would help."""
    if _truncated_share(steps) > 0.5 and not config.reward.scores_truncated:
        return "most completions were cut off; raise rollout.max_new_tokens"
    size = config.rollout.group_size
    if config.reward.is_graded:
        parts = {name: part for name, part in config.reward.named_parts.items() if part.weight}
        sources = [str(getattr(part, part.source)) for part in parts.values()]
        scores = ", ".join(parts if config.reward.parts else sources)
        return (
            f"the rewards within each group were equal; look at the scores of {scores}, or take a larger "
            f"rollout.group_size (now {size})"
        )
    solved = max((metrics.get("solved_groups") or 0.0) for metrics in steps)
    if solved == 0:
        return (
            f"no completion was correct; take easier problems, a larger rollout.group_size (now {size}), or a policy "
            f"that solves some"
        )
    return (
        f"the rewards within each group were equal; take problems that the policy solves now and then, or a larger "
        f"rollout.group_size (now {size})"
    )
