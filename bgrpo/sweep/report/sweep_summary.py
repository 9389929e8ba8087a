"""The numbers of a sweep's report, arm by arm, from the records of its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bgrpo.display.run_report import is_bounded
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.evaluation.intervals import Interval
from bgrpo.evaluation.metrics import REPEATED
from bgrpo.sweep.report.beam_widths import WidthSaving, first_correct_ranks, width_savings
from bgrpo.sweep.report.paired_statistics import bootstrap_mean, t_test, within_range
from bgrpo.sweep.report.sweep_records import AMOUNTS, SweepRecord, TrialRecord
from bgrpo.sweep.report.sweep_verdict import ArmComparison, Circumstances, Results, Verdict, compare_arms, decide


@dataclass(frozen=True)
class MetricRow:
    """One test metric of one arm."""

    before: float  # of the starting policy
    by_seed: dict[int, float]  # after training
    after: Interval  # their mean with its bootstrap interval over seeds
    after_t: Interval  # the same with its t interval
    gain: Interval  # after minus before, with its bootstrap interval over seeds


@dataclass(frozen=True)
class Cost:
    """What an arm used."""

    used: dict[str, float]  # amount -> mean over the confirm trials that have a result
    core_hours: float  # all its trials together
    gpu_hours: float
    search_core_hours: float  # the part of the search


@dataclass(frozen=True)
class ArmSummary:
    """One arm's results."""

    name: str
    trials: list[TrialRecord]  # its confirm trials
    searched: list[TrialRecord]  # its search trials
    metrics: dict[str, MetricRow]  # of the test problems; empty before the first confirm trial is finished
    savings: list[WidthSaving]  # beam widths needed after training
    ranks: dict[int, float]  # rank of the first correct completion -> share of problems after training, all seeds
    ranks_before: dict[int, float]  # the same for the starting policy
    cost: Cost

    @property
    def shown(self) -> list[TrialRecord]:
        """The trials whose curves are drawn: confirm trials once one of them has begun, else those of the search."""
        confirm = [record for record in self.trials if record.steps]
        return confirm or [record for record in self.searched if record.steps]


@dataclass(frozen=True)
class SweepSummary:
    """Everything that the report shows."""

    sweep: SweepRecord
    arms: list[ArmSummary]  # in the order of the plan
    metrics: list[str]  # test metrics that every evaluated arm has, the deciding one first
    verdict: Verdict  # on the deciding metric
    differences: dict[str, list[ArmComparison]]  # metric -> every other arm against the baseline
    metric: str  # the deciding one; p-values of the others are for orientation


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


def _summarize_arm(sweep: SweepRecord, arm: str) -> ArmSummary:
    done = sweep.evaluated(arm)
    comparisons = [c for c in done.values() if c.before.digest == next(iter(done.values())).before.digest]
    return ArmSummary(
        name=arm,
        trials=sweep.of(arm, "confirm"),
        searched=sweep.of(arm, "search"),
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
    rows = {}
    for name in (name for name in next(iter(after.values())) if name in everywhere and name != REPEATED):
        values = {seed: after[seed][name] for seed in done}
        after_t = t_test(list(values.values()))[0]
        rows[name] = MetricRow(
            before=float(np.mean([before[seed][name] for seed in done])),
            by_seed=values,
            after=bootstrap_mean(list(values.values())),
            after_t=within_range(after_t) if is_bounded(name) else after_t,
            gain=bootstrap_mean([values[seed] - before[seed][name] for seed in done]),
        )
    return rows


def _rank_shares(counts: Sequence[Mapping[int, int]]) -> dict[int, float]:
    total = sum(sum(found.values()) for found in counts)
    ranks = sorted({rank for found in counts for rank in found})
    return {rank: sum(found.get(rank, 0) for found in counts) / total for rank in ranks}


def _cost(sweep: SweepRecord, arm: str) -> Cost:
    done = [record.used for record in sweep.of(arm, "confirm") if record.comparison is not None and record.used]
    return Cost(
        used={name: float(np.mean([used[name] for used in done])) for name in AMOUNTS} if done else {},
        core_hours=sum(record.trial.cpu_seconds for record in sweep.of(arm)) / 3600,
        gpu_hours=sum(record.trial.gpu_seconds for record in sweep.of(arm)) / 3600,
        search_core_hours=sum(record.trial.cpu_seconds for record in sweep.of(arm, "search")) / 3600,
    )


def _results(sweep: SweepRecord, metric: str) -> Results:
    return {
        arm: {seed: comparison.after.values[metric] for seed, comparison in sweep.evaluated(arm).items()}
        for arm in sweep.arms
    }


def _judge(sweep: SweepRecord, arms: Sequence[ArmSummary], metric: str) -> Verdict:
    if sweep.baseline is None:
        return Verdict("No trial is planned yet.")
    if not any(arm.metrics for arm in arms):
        return Verdict("No result yet: no confirm trial has been tested.")
    tested = [comparison.after for arm in sweep.arms for comparison in sweep.evaluated(arm).values()]
    problems = {f"{evaluation.digest}/{len(evaluation.categories)}" for evaluation in tested}
    if len(problems) > 1:
        caution = f"The test problems differ between trials ({', '.join(sorted(problems))})."
        return Verdict("No comparison: trials were tested on different problems.", cautions=[caution])
    missing = [arm.name for arm in arms if arm.metrics and metric not in arm.metrics]
    if missing:
        return Verdict(f"No comparison: {', '.join(missing)} lack the metric {metric}.")
    waiting = {arm.name: [t.trial.state for t in arm.trials if t.comparison is None] for arm in arms}
    circumstances = Circumstances(
        budget=_budget(sweep),
        used={arm.name: arm.cost.used for arm in arms if arm.cost.used},
        unfinished={
            arm: len(states) - states.count("failed") - states.count("stopped") for arm, states in waiting.items()
        },
        failed={arm: states.count("failed") for arm, states in waiting.items()},
    )
    return decide(_results(sweep, metric), sweep.baseline, metric, circumstances)


def _budget(sweep: SweepRecord) -> str:
    budget = sweep.config.get("budget")
    if not isinstance(budget, dict) or "kind" not in budget:
        return ""
    amount = budget.get("amount")
    if not isinstance(amount, int | float):
        return str(budget["kind"])
    return f"{int(amount) if amount == amount // 1 else amount:,} {budget['kind']}"
