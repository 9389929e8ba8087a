"""The numbers of a sweep's report, arm by arm, from the records of its trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.evaluation.intervals import Interval
from bgrpo.sweep.report.records import AMOUNTS, CONFIRM, SEARCH, SweepRecord, TrialRecord, evaluation_digests
from bgrpo.sweep.report.statistics import bootstrap_mean, t_interval, within_range
from bgrpo.sweep.report.verdict import ArmComparison, Circumstances, Verdict, compare_arms, decide
from bgrpo.sweep.report.widths import WidthSaving, first_correct_ranks, width_savings

REPEATED = "beam@1"  # the same as greedy


@dataclass(frozen=True)
class MetricRow:
    """One test metric of one arm.

    Attributes:
        before: of the starting policy.
        by_seed: after training, per seed.
        after: their mean with its bootstrap interval over seeds.
        after_t: the same with its t interval.
        gain: after minus before, with its bootstrap interval over seeds.
    """

    before: float
    by_seed: dict[int, float]
    after: Interval
    after_t: Interval
    gain: Interval


@dataclass(frozen=True)
class Cost:
    """What an arm used.

    Attributes:
        used: amount -> mean over the confirm trials that have a result.
        core_hours: all its trials together; None when no trial says.
        gpu_hours: likewise.
        search_core_hours: the part of the search.
    """

    used: dict[str, float]
    core_hours: float | None
    gpu_hours: float | None
    search_core_hours: float | None


@dataclass(frozen=True)
class ArmSummary:
    """One arm's results.

    Attributes:
        name: of the arm.
        trials: its confirm trials.
        searched: its search trials.
        metrics: test metric -> numbers; empty before the first confirm trial is finished.
        savings: beam widths needed after training.
        ranks: rank of the first correct completion -> share of problems after training, pooled over seeds.
        ranks_before: the same for the starting policy.
        cost: what it used.
    """

    name: str
    trials: list[TrialRecord]
    searched: list[TrialRecord]
    metrics: dict[str, MetricRow]
    savings: list[WidthSaving]
    ranks: dict[int, float]
    ranks_before: dict[int, float]
    cost: Cost


@dataclass(frozen=True)
class SweepSummary:
    """Everything that the report shows.

    Attributes:
        sweep: the records.
        arms: in the order of the plan.
        metrics: test metrics that every evaluated arm has, the deciding one first.
        verdict: on the deciding metric.
        differences: metric -> every other arm against the baseline; p-values of other metrics than the deciding one
            are for orientation.
        metric: the deciding one.
    """

    sweep: SweepRecord
    arms: list[ArmSummary]
    metrics: list[str]
    verdict: Verdict
    differences: dict[str, list[ArmComparison]]
    metric: str


def summarize(sweep: SweepRecord) -> SweepSummary:
    """Work out a sweep's numbers, as far as its trials have come."""
    arms = [_summarize_arm(sweep, arm) for arm in sweep.arms]
    measured = [arm.metrics for arm in arms if arm.metrics]
    shared = [name for name in measured[0] if all(name in other for other in measured)] if measured else []
    metric = sweep.metric if sweep.metric in shared or not shared else shared[0]
    metrics = sorted(shared, key=lambda name: name != metric)
    verdict = _judge(sweep, arms, metric)
    differences: dict[str, list[ArmComparison]] = {}
    if verdict.comparisons and sweep.baseline is not None:
        differences = {name: compare_arms(_results(sweep, name), sweep.baseline) for name in metrics}
    return SweepSummary(sweep, arms, metrics, verdict, differences, metric)


def pooled_outcomes(trials: Sequence[TrialRecord]) -> dict[int, dict[str, float]]:
    """Step -> outcome -> share of the completions of all these trials at that step."""
    counts: dict[int, Counter[str]] = {}
    for trial in trials:
        for step in trial.steps:
            counts.setdefault(int(step["step"]), Counter()).update(outcome_counts(step))
    return {
        step: {name: count / max(1, sum(counts[step].values())) for name, count in counts[step].items()}
        for step in sorted(counts)
    }


def outcome_counts(step: Mapping[str, Any]) -> dict[str, float]:
    """Outcome -> completions of one training step."""
    prefix = "outcome/"
    return {name.removeprefix(prefix): value or 0.0 for name, value in step.items() if name.startswith(prefix)}


def shown_trials(arm: ArmSummary) -> list[TrialRecord]:
    """The trials whose curves are drawn: confirm trials once one of them has begun, else those of the search."""
    confirm = [trial for trial in arm.trials if trial.steps]
    return confirm or [trial for trial in arm.searched if trial.steps]


def _summarize_arm(sweep: SweepRecord, arm: str) -> ArmSummary:
    done = sweep.evaluated(arm)
    comparisons = [c for c in done.values() if c.before.digest == next(iter(done.values())).before.digest]
    return ArmSummary(
        name=arm,
        trials=sweep.of(arm, CONFIRM),
        searched=sweep.of(arm, SEARCH),
        metrics=_metric_rows(done),
        savings=width_savings(comparisons[0].before, [c.after for c in comparisons]) if comparisons else [],
        ranks=_rank_shares([first_correct_ranks(comparison.after) for comparison in comparisons]),
        ranks_before=_rank_shares([first_correct_ranks(comparison.before) for comparison in comparisons]),
        cost=_cost(sweep, arm),
    )


def _metric_rows(done: Mapping[int, EvaluationComparison]) -> dict[str, MetricRow]:
    if not done:
        return {}
    before = {seed: comparison.before.metrics() for seed, comparison in done.items()}
    after = {seed: comparison.after.metrics() for seed, comparison in done.items()}
    everywhere = set.intersection(*(set(values) for values in [*before.values(), *after.values()]))
    shared = [name for name in next(iter(after.values())) if name in everywhere and name != REPEATED]
    rows = {}
    for name in shared:
        values = {seed: after[seed][name] for seed in done}
        rows[name] = MetricRow(
            before=float(np.mean([before[seed][name] for seed in done])),
            by_seed=values,
            after=bootstrap_mean(list(values.values())),
            after_t=within_range(t_interval(list(values.values()))),
            gain=bootstrap_mean([values[seed] - before[seed][name] for seed in done]),
        )
    return rows


def _rank_shares(counts: Sequence[Mapping[int, int]]) -> dict[int, float]:
    total = sum(sum(found.values()) for found in counts)
    ranks = sorted({rank for found in counts for rank in found})
    return {rank: sum(found.get(rank, 0) for found in counts) / total for rank in ranks}


def _cost(sweep: SweepRecord, arm: str) -> Cost:
    trials = [trial for trial in sweep.trials if trial.arm == arm]
    done = [trial for trial in trials if trial.phase == CONFIRM and trial.comparison is not None and trial.used]
    return Cost(
        used={name: float(np.mean([trial.used[name] for trial in done])) for name in AMOUNTS} if done else {},
        core_hours=_total([trial.cpu_hours for trial in trials]),
        gpu_hours=_total([trial.gpu_hours for trial in trials]),
        search_core_hours=_total([trial.cpu_hours for trial in trials if trial.phase == SEARCH]),
    )


def _total(hours: Sequence[float | None]) -> float | None:
    known = [value for value in hours if value is not None]
    return sum(known) if known else None


def _results(sweep: SweepRecord, metric: str) -> dict[str, dict[int, list[float]]]:
    return {
        arm: {seed: comparison.after.values[metric] for seed, comparison in sweep.evaluated(arm).items()}
        for arm in sweep.arms
    }


def _judge(sweep: SweepRecord, arms: Sequence[ArmSummary], metric: str) -> Verdict:
    if sweep.baseline is None:
        return Verdict("No trial is planned yet.", None, [], [], [])
    if not any(arm.metrics for arm in arms):
        return Verdict("No result yet: no confirm trial has been tested.", None, [], [], [])
    digests = evaluation_digests(sweep)
    if len(digests) > 1:
        caution = f"The test problems differ between trials ({', '.join(sorted(digests))})."
        return Verdict("No comparison: trials were tested on different problems.", None, [], [caution], [])
    missing = [arm.name for arm in arms if arm.metrics and metric not in arm.metrics]
    if missing:
        return Verdict(f"No comparison: {', '.join(missing)} lack the metric {metric}.", None, [], [], [])
    circumstances = Circumstances(
        budget=_budget(sweep),
        used={arm.name: arm.cost.used for arm in arms if arm.cost.used},
        unfinished={
            arm.name: sum(t.comparison is None and t.state not in ("failed", "stopped") for t in arm.trials)
            for arm in arms
        },
        failed={arm.name: sum(t.comparison is None and t.state == "failed" for t in arm.trials) for arm in arms},
    )
    return decide(_results(sweep, metric), sweep.baseline, metric, circumstances)


def _budget(sweep: SweepRecord) -> str:
    budget = sweep.config.get("budget")
    if not isinstance(budget, dict) or "kind" not in budget:
        return ""
    amount = budget.get("amount")
    return f"{amount:,} {budget['kind']}" if isinstance(amount, int | float) else str(budget["kind"])
