"""Which arm is better, in plain language, and only as far as seeds and problems carry it.

The rule, fixed before any number is seen: an arm differs from the baseline when, on the deciding test metric, the
paired difference exceeds the noise between seeds and that between problems (:attr:`PairedEffect.p_decision`), at 5 %
after Holm's adjustment for the number of arms, with at least :data:`MIN_SEEDS` seeds that both ran. Else no difference
is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from bgrpo.display.run_report import is_bounded, is_fraction, metric_label
from bgrpo.evaluation.intervals import Interval
from bgrpo.sweep.report.paired_statistics import PairedEffect, holm, paired_effect

MIN_SEEDS = 3
LEVEL = 0.05
NO_ROOM = 0.005
"""So near to 0 or 1 a mean has no room for a difference that matters."""
BUDGET_TOLERANCE = 0.05

BySeed = Mapping[int, Sequence[float]]
"""Seed -> one value per test problem, in the same order everywhere; NaN where nothing could be scored."""

Results = Mapping[str, BySeed]
"""Arm -> its results."""


class Conclusion(StrEnum):
    """What is said of an arm against the baseline."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference shown"
    TOO_FEW_SEEDS = "too few seeds"


@dataclass(frozen=True)
class ArmComparison:
    """An arm against the baseline on one metric."""

    arm: str
    seeds: list[int]  # that both ran to the end
    effect: PairedEffect | None  # arm minus baseline; None without a common seed
    adjusted_p: float | None  # the deciding p-value after Holm's adjustment; None with too few seeds
    conclusion: Conclusion


@dataclass(frozen=True)
class Circumstances:
    """What a verdict must tell besides the numbers."""

    budget: str = ""  # how much each trial might use, in words; empty when unknown
    used: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # arm -> amount -> mean over finished trials
    unfinished: Mapping[str, int] = field(default_factory=dict)  # arm -> confirm trials without a result (yet)
    failed: Mapping[str, int] = field(default_factory=dict)  # arm -> confirm trials that failed


@dataclass(frozen=True)
class Verdict:
    """The answer."""

    headline: str  # one sentence
    winner: str | None = None  # the arm named as the best, if any
    sentences: list[str] = field(default_factory=list)  # one for each comparison, then on what it rests
    cautions: list[str] = field(default_factory=list)  # what weakens it
    comparisons: list[ArmComparison] = field(default_factory=list)  # the numbers behind it

    def lines(self) -> list[str]:
        """All of it, for a terminal."""
        return [self.headline, *self.sentences, *self.cautions]


def compare_arms(results: Results, baseline: str) -> list[ArmComparison]:
    """Every other arm against the baseline, paired by seed and problem, adjusted for their number."""
    effects: dict[str, tuple[list[int], PairedEffect | None]] = {}
    for arm in results:
        if arm != baseline:
            seeds = sorted(set(results[arm]) & set(results[baseline]))
            effects[arm] = (seeds, _effect(results[arm], results[baseline], seeds))
    tested = {arm: effect.p_decision for arm, (seeds, effect) in effects.items() if effect and len(seeds) >= MIN_SEEDS}
    adjusted = holm(tested)
    return [
        ArmComparison(arm, seeds, effect, adjusted.get(arm), _conclude(effect, adjusted.get(arm)))
        for arm, (seeds, effect) in effects.items()
    ]


def _effect(arm: BySeed, baseline: BySeed, seeds: Sequence[int]) -> PairedEffect | None:
    """Over the problems that have a value in all these runs; None where there is no such problem, or no seed."""
    if not seeds:
        return None
    differences_SN = np.stack([np.subtract(arm[seed], baseline[seed]) for seed in seeds])
    differences_SN = differences_SN[:, np.isfinite(differences_SN).all(axis=0)]
    return paired_effect(differences_SN) if differences_SN.size else None


def decide(results: Results, baseline: str, metric: str, circumstances: Circumstances) -> Verdict:
    """The verdict on one test metric, higher being better.

    Args:
        results: finished confirm trials; every arm has an entry, empty where none is finished.
        baseline: one of the arms.
        metric: name, for the words.
        circumstances: what else must be told.
    """
    comparisons = compare_arms(results, baseline)
    headline, winner = _headline(comparisons, baseline, results, metric)
    sentences = [_comparison_sentence(comparison, baseline, metric) for comparison in comparisons]
    problems = {len(values) for by_seed in results.values() for values in by_seed.values()}
    counts = ", ".join(f"{arm} {len(by_seed)} ({_listed(sorted(by_seed))})" for arm, by_seed in results.items())
    basis = f"Metric: {metric_label(metric)} on {max(problems, default=0):,} test problems. Seeds: {counts}."
    left_out = {c.arm: max(problems) - c.effect.problems for c in comparisons if c.effect is not None}
    if any(left_out.values()):
        told = ", ".join(f"{arm} {count:,}" for arm, count in left_out.items() if count)
        basis += f" Problems without a score in some run, which no comparison counts: {told}."
    if circumstances.budget:
        basis += f" Budget of each trial: {circumstances.budget}."
    cautions = [*_no_room(results, metric), *_cautions(comparisons, circumstances)]
    return Verdict(headline, winner, [*sentences, basis], cautions, comparisons)


def _no_room(results: Results, metric: str) -> list[str]:
    """A metric that is at an end of its range for every arm cannot show a difference."""
    means = [_mean(by_seed) for by_seed in results.values() if by_seed]
    if not is_bounded(metric) or len(means) < 2:
        return []
    for end, name in ((1.0, "highest"), (0.0, "lowest")):
        if all(abs(mean - end) <= NO_ROOM for mean in means):
            return [
                f"{metric_label(metric)} of every arm is at, or next to, its {name} value, where it cannot tell them "
                f"apart: take harder problems, a smaller budget, or another metric."
            ]
    return []


def difference_text(metric: str, interval: Interval) -> str:
    """A difference with its interval: of shares in points of a percentage, of scores as it is."""
    if not is_fraction(metric):
        return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
    mean, low, high = (100 * value for value in interval)
    return f"{mean:+.1f} points [{low:+.1f}, {high:+.1f}]"


def unequal_amounts(used: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[str, str, float]]:
    """Amounts that differ between arms by more than 5 %: amount -> (least, most, their ratio minus 1)."""
    unequal = {}
    for amount in dict.fromkeys(name for amounts in used.values() for name in amounts):
        by_arm = {arm: amounts[amount] for arm, amounts in used.items() if amounts.get(amount, 0) > 0}
        if len(by_arm) > 1:
            least, most = min(by_arm, key=by_arm.__getitem__), max(by_arm, key=by_arm.__getitem__)
            excess = by_arm[most] / by_arm[least] - 1
            if excess > BUDGET_TOLERANCE:
                unequal[amount] = (least, most, excess)
    return unequal


def _conclude(effect: PairedEffect | None, adjusted_p: float | None) -> Conclusion:
    if effect is None or adjusted_p is None:
        return Conclusion.TOO_FEW_SEEDS
    if adjusted_p > LEVEL:
        return Conclusion.NO_DIFFERENCE
    return Conclusion.BETTER if effect.mean > 0 else Conclusion.WORSE


def _headline(
    comparisons: Sequence[ArmComparison], baseline: str, results: Results, metric: str
) -> tuple[str, str | None]:
    """The sentence, and the winner it names."""
    found = {kind: [c.arm for c in comparisons if c.conclusion == kind] for kind in Conclusion}
    label = metric_label(metric)
    if not comparisons:
        return f"No comparison: {baseline} is the only arm.", None
    if len(found[Conclusion.TOO_FEW_SEEDS]) == len(comparisons):
        fewest = min(len(c.seeds) for c in comparisons)
        return f"Too few seeds to judge: {fewest} in common, at least {MIN_SEEDS} are needed for any claim.", None
    if found[Conclusion.BETTER]:
        winner = max(found[Conclusion.BETTER], key=lambda arm: _mean(results[arm]))
        others = [arm for arm in found[Conclusion.BETTER] if arm != winner]
        also = f" {_listed(others)} {'does' if len(others) == 1 else 'do'} so too." if others else ""
        return f"{winner} beats {baseline} in {label}.{also}", winner
    if len(found[Conclusion.WORSE]) == len(comparisons):
        return f"{baseline} beats {_listed(found[Conclusion.WORSE])} in {label}.", baseline
    undecided = [c.arm for c in comparisons if c.conclusion == Conclusion.NO_DIFFERENCE]
    worse = f" {_listed(found[Conclusion.WORSE])}: worse than {baseline}." if found[Conclusion.WORSE] else ""
    return f"No difference shown between {_listed([*undecided, baseline])} in {label}.{worse}", None


def _comparison_sentence(comparison: ArmComparison, baseline: str, metric: str) -> str:
    effect, seeds = comparison.effect, comparison.seeds
    if effect is None:
        return f"{comparison.arm} and {baseline} have no finished seed, or no scored problem, in common."
    by_problems = len(seeds) == 1 or effect.p_problems > effect.p_seeds  # the noise that weighs more
    numbers = difference_text(metric, effect.problem_interval if by_problems else effect.seed_interval)
    counted = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    over = f"95 % t interval over problems, {counted}" if by_problems else f"95 % t interval over {counted}"
    if comparison.adjusted_p is None:
        return f"{comparison.arm} against {baseline}: {numbers} ({over}); no claim with fewer than {MIN_SEEDS} seeds."
    return (
        f"{comparison.arm} against {baseline}: {comparison.conclusion}: {numbers} ({over}; p = "
        f"{comparison.adjusted_p:.3f} after adjustment)."
    )


def _cautions(comparisons: Sequence[ArmComparison], circumstances: Circumstances) -> list[str]:
    cautions = []
    for amount, (least, most, excess) in unequal_amounts(circumstances.used).items():
        cautions.append(
            f"Budgets differ: {most} used {100 * excess:.0f} % more {AMOUNT_LABELS.get(amount, amount)} than {least}."
        )
    for arm, count in circumstances.failed.items():
        if count:
            cautions.append(f"Confirm trials of {arm} that failed: {count}; its mean is over the others only.")
    waiting = {arm: count for arm, count in circumstances.unfinished.items() if count}
    if waiting:
        listed = ", ".join(f"{arm} {count}" for arm, count in waiting.items())
        cautions.append(f"Preliminary: confirm trials without a result yet: {listed}.")
    few = [c for c in comparisons if c.effect and MIN_SEEDS <= len(c.seeds) < 6]
    if few:
        cautions.append(
            "With fewer than 6 seeds no test free of assumptions can reach 5 %; the claim takes the differences "
            "between seeds as roughly normal."
        )
    return cautions


AMOUNT_LABELS = {
    "steps": "training steps",
    "gradient_steps": "gradient steps",
    "completions": "scored completions",
    "tokens": "decoded tokens",
    "seconds": "seconds of training",
}


def _mean(by_seed: BySeed) -> float:
    return float(np.nanmean([np.nanmean(values) for values in by_seed.values()]))


def _listed(items: Sequence[object]) -> str:
    names = [str(item) for item in items] or ["none"]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
