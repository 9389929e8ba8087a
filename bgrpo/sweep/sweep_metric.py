"""Which metrics a sweep can decide by: those that the runs of all its trials measure, and measure alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bgrpo.config import WIN_RATE, RewardSection, TrainConfig
from bgrpo.errors import UserError
from bgrpo.settings.spelling import nearest

_OF_A_PART = ("greedy_", "sample_")
_OF_THE_SUM = ("_reward", "best_of@", WIN_RATE)


def check_metric(metric: str, configs: Mapping[str, TrainConfig], validates: bool) -> None:
    """Refuse a metric that some trial would not have, or that trials would measure by different rewards.

    Args:
        metric: by which the sweep selects and decides.
        configs: of trials that the sweep may come to, by how a message calls them.
        validates: whether the sweep selects by validations, too.

    Raises:
        UserError: says which trials lack it, and the nearest that all have.
    """
    common = _common(list(configs.values()), validates)
    for where, config in configs.items():
        validated, tested = _validated(config), _tested(config)
        if metric not in tested or (validates and metric not in validated):
            hint = _hint(metric, common)
            if metric in tested:
                raise UserError(
                    f"metric={metric}: validations of {where} do not measure it, only {', '.join(validated)}; samples "
                    f"of validations are set by train.evaluation.validation_samples{hint}"
                )
            if metric in validated:
                raise UserError(
                    f"metric={metric}: the test of {where} does not measure it, only {', '.join(tested)}; its searches "
                    f"are set by train.evaluation.beam_widths and samples{hint}"
                )
            raise UserError(f"metric={metric}: {where} does not measure it, only {', '.join(tested)}{hint}")
    first, *others = configs.items()
    for where, config in others:
        if _meaning(metric, config.reward) != _meaning(metric, first[1].reward):
            alike = [name for name in common if _is_alike(name, list(configs.values()))]
            raise UserError(
                f"metric={metric}: {first[0]} and {where} have different rewards, so that their values could not be "
                f"compared" + (f"; these mean the same for all: {', '.join(alike)}" if alike else "")
            )


def _validated(config: TrainConfig) -> list[str]:
    return config.reward.run_metrics(config.evaluation.validation_beam_widths, config.evaluation.validation_samples)


def _tested(config: TrainConfig) -> list[str]:
    return config.reward.run_metrics(config.evaluation.beam_widths, config.evaluation.samples)


def _common(configs: Sequence[TrainConfig], validates: bool) -> list[str]:
    """What all measure."""
    lists = [_tested(config) for config in configs] + [_validated(config) for config in configs if validates]
    return [name for name in lists[0] if all(name in other for other in lists)]


def _hint(metric: str, common: Sequence[str]) -> str:
    meant = nearest(metric, common)
    return f"; did you mean {meant!r}?" if meant else f"; all have {', '.join(common)}" if common else ""


def _is_alike(metric: str, configs: Sequence[TrainConfig]) -> bool:
    return all(_meaning(metric, config.reward) == _meaning(metric, configs[0].reward) for config in configs)


def _meaning(metric: str, reward: RewardSection) -> Any:
    """What decides the value of a completion; equal for two rewards that measure the metric alike."""
    sources = {name: part.model_dump(exclude={"weight", "timeout_s"}) for name, part in reward.named_parts.items()}
    stem, _, name = metric.partition("_")
    if f"{stem}_" in _OF_A_PART and name in reward.parts:
        return sources[name]
    checks = [sources[part] for part, section in reward.named_parts.items() if section.check]
    if checks and not any(mark in metric for mark in _OF_THE_SUM):
        return checks  # solved or not
    weighted = {part: (sources[part], section.weight) for part, section in reward.named_parts.items() if section.weight}
    return weighted, reward.wrong_reward, reward.least_correct
