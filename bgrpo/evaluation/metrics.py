"""Held-out metrics of a policy, with per-problem values, so that before and after can be compared problem by problem.

Metrics (all higher is better, but parts that measure something else). Where something says what is correct:

- ``greedy``: solved by the width-1 search. Where the beam widths have a 1 it is called ``beam@1`` too.
- ``beam@k``: solved by any completion of a width-k search; every width is a search of its own.
- ``top1``: solved by the best completion of the width-10 search.
- ``beam_rank_score``: exp(-(rank - 1) / 10) of the first correct completion of the width-10 search, 0 if none.
- ``pass@k``: unbiased estimator over n >= k samples at ``evaluation.temperature``, 1 unless that is set, whatever a
  run trains at, so that figures of different runs compare (Chen et al. 2021, equation 1).
- ``oracle``: solved by any completion of the widest search, or by any of the samples.

Where completions have scores:

- ``greedy_reward``: the score of the width-1 search's completion; ``greedy_NAME`` the same of each part.
- ``best_reward@k``, ``mean_reward@k``: over the completions of a width-k search.
- ``sample_reward``: mean over the samples; ``sample_NAME`` the same of each part; ``best_of@k``: unbiased estimator of
  the best of k samples.

A completion whose check failed is not solved, and has no score. Where all checks fail, nothing is measured: that is an
error, not a table of zeros. A run adds ``win_rate``: see
``bgrpo.evaluation.win_rate``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from bgrpo.config import ORACLE, RANK_WIDTH, TrainConfig
from bgrpo.errors import UserError, reading
from bgrpo.evaluation.decoders import Decode, DecodeMode
from bgrpo.evaluation.intervals import Interval, intervals
from bgrpo.evaluation.ranks import first_correct, solved_within
from bgrpo.files import readable_file, seal, unseal, write_atomically
from bgrpo.groups import Verdict
from bgrpo.scoring.failed_checks import (
    describe_failures,
    first_details,
    refuse_failed_evaluation,
    refuse_unscored_evaluation,
)
from bgrpo.seeds import rollout_seed
from bgrpo.tasks.base import Outcome, Problem, listed

RANK_SCALE = 10.0
REPEATED = "beam@1"  # the same as greedy: in files, not in tables and pictures
_MOST_BYTES = 1 << 30
BATCH = 64  # problems per call of the decoder


@dataclass(frozen=True)
class Evaluation:
    """Per-problem values of each metric.

    Attributes:
        categories: category of each problem, in order.
        values: metric -> one value per problem, in the same order; NaN where nothing could be scored.
        outcomes: search (``"beam 10"``, ``"sample 10"``) -> outcome -> completions with that outcome.
        details: outcome -> what failed in the first check with that outcome, of ``error`` and ``timeout``.
        digest: names the problems; evaluations of other problems are not comparable.
        ranks: width of the widest beam search -> rank of the first correct completion of each problem, None for none.
    """

    categories: list[str]
    values: dict[str, list[float]]
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    digest: str = ""
    details: dict[str, str] = field(default_factory=dict)
    ranks: dict[str, list[int | None]] = field(default_factory=dict)

    def solved_within(self) -> dict[str, list[float]]:
        """For the widest search, under its width, the share of problems that its best 1, 2, … completions solve."""
        return {width: solved_within(ranks, int(width)) for width, ranks in self.ranks.items()}

    def metrics(self) -> dict[str, float]:
        """Mean of each metric over the problems that have a value."""
        return {name: float(np.nanmean(values)) for name, values in self.values.items()}

    def intervals(self, seed: int = 0) -> dict[str, Interval]:
        """Mean of each metric with its bootstrap interval."""
        return intervals(self.values, seed)

    def by_category(self) -> dict[str, dict[str, float]]:
        """Category -> ``problems`` (how many) and the mean of each metric, categories in alphabetical order."""
        table: dict[str, dict[str, float]] = {}
        for category in sorted(set(self.categories)):
            rows = [i for i, name in enumerate(self.categories) if name == category]
            means = {name: _mean([values[i] for i in rows]) for name, values in self.values.items()}
            table[category] = {"problems": len(rows)} | means
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "categories": self.categories,
            "values": {
                name: [None if math.isnan(value) else value for value in values] for name, values in self.values.items()
            },
            "outcomes": self.outcomes,
            "digest": self.digest,
            "details": self.details,
            "ranks": self.ranks,
        }

    def known(self, metric: str) -> int:
        """How many problems have a value of the metric."""
        return sum(not math.isnan(value) for value in self.values[metric])

    def failures(self) -> list[str]:
        """One line per kind of failure in the checks; empty when all came to a verdict."""
        return describe_failures(self.totals(), self.details)

    def totals(self) -> Counter[str]:
        """Completions by outcome, of all searches."""
        return sum(map(Counter, self.outcomes.values()), Counter())

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Self:
        """What :meth:`to_dict` gave.

        Raises:
            ValueError: something else.
            TypeError: likewise.
        """
        values = {
            name: [math.nan if value is None else value for value in values] for name, values in tree["values"].items()
        }
        found = cls(**tree | {"values": values})
        if not (found.categories and all(isinstance(category, str) for category in found.categories)):
            raise ValueError("categories: expected a text for each problem")
        for name, column in found.values.items():
            numbers = np.asarray(column, dtype=np.float64)
            plain = all(type(value) in (int, float) for value in column)
            if not plain or numbers.shape != (len(found.categories),) or np.isinf(numbers).any():
                raise ValueError(f"{name}: expected a number for each of {len(found.categories)} problems")
        for counts in found.outcomes.values():
            if not all(type(count) is int for count in counts.values()):
                raise ValueError("outcomes: expected numbers of completions")
        for width, ranks in found.ranks.items():
            known = all(rank is None or (type(rank) is int and rank >= 1) for rank in ranks)
            if not (width.isdecimal() and known and len(ranks) == len(found.categories)):
                raise ValueError("ranks: expected a rank or null for each problem")
        if not isinstance(found.digest, str):
            raise ValueError("digest: expected a text")
        return found

    def save(self, path: Path) -> None:
        """Write a file of JSON, with a checksum."""
        write_atomically(path, seal(json.dumps(self.to_dict())) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """What :meth:`save` wrote.

        Raises:
            UserError: missing, or not such a file, or not as it was written.
        """
        with reading(f"{path}: not an evaluation"):
            return cls.from_dict(json.loads(unseal(readable_file(path, _MOST_BYTES).read_bytes())))


@dataclass(frozen=True, slots=True)
class Measures:
    """What an evaluation can measure.

    Attributes:
        solved: something says which completions are correct.
        graded: completions have scores beyond correct and wrong.
        parts: names of the reward's parts.
        wrong_reward: score of a completion that was cut off.
        reward: what gives the scores, for messages.
    """

    solved: bool = True
    graded: bool = False
    parts: tuple[str, ...] = ()
    wrong_reward: float = 0.0
    reward: str = field(default="the reward", compare=False)

    @classmethod
    def of(cls, config: TrainConfig) -> Self:
        """What a run's reward lets be measured."""
        reward = config.reward
        parts = tuple(reward.parts) if reward.is_graded else ()
        return cls(reward.says_what_is_correct, reward.is_graded, parts, reward.wrong_reward, reward.described)

    def searches(self, beam_widths: Sequence[int], samples: int) -> list[tuple[DecodeMode, int]]:
        """(mode, group size) of the searches that the metrics need."""
        widths = {1, *beam_widths} | ({RANK_WIDTH} if self.solved else set())
        found: list[tuple[DecodeMode, int]] = [("beam", width) for width in sorted(widths)]
        return [*found, ("sample", samples)] if samples else found

    def of_search(
        self,
        mode: DecodeMode,
        group_size: int,
        groups: Sequence[Sequence[Verdict]],
        beam_widths: set[int],
    ) -> dict[str, list[float]]:
        """Per-problem values of the metrics that one search gives, where any problem has one.

        Args:
            mode: of the search.
            group_size: of the search.
            groups: verdicts in rank order.
            beam_widths: that were asked for.
        """
        values: dict[str, list[float]] = {}
        if self.solved:
            correct = [[verdict.outcome == Outcome.CORRECT for verdict in group] for group in groups]
            values |= _solved(mode, group_size, correct, beam_widths)
        if self.graded:
            rewards = [[self._reward(verdict) for verdict in group] for group in groups]
            values |= _graded(mode, group_size, [_known(row) for row in rewards], beam_widths)
            if mode == "sample" or group_size == 1:
                prefix = "sample" if mode == "sample" else "greedy"
                for name in self.parts:
                    parts = [_known([verdict.parts.get(name) for verdict in group]) for group in groups]
                    values[f"{prefix}_{name}"] = [_mean(row) for row in parts]
        return {name: column for name, column in values.items() if not all(map(math.isnan, column))}

    def _reward(self, verdict: Verdict) -> float | None:
        cut_off = verdict.score is None and verdict.outcome == Outcome.TRUNCATED
        return self.wrong_reward if cut_off else verdict.score


def evaluate(
    decode: Decode,
    problems: Sequence[Problem],
    beam_widths: Sequence[int],
    samples: int,
    seed: int,
    measures: Measures = Measures(),
    batch: int = BATCH,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a policy on problems.

    Args:
        decode: decodes and judges.
        problems: held-out problems, at least one.
        beam_widths: widths of beam@k; 1 (greedy) and 10 (rank score, top-1) are searched besides.
        samples: samples per problem for pass@k (k = 1, the beam widths up to ``samples``, and ``samples``); 0: none.
        seed: of the samples.
        measures: what can be measured.
        batch: problems per call of ``decode``.
        on_progress: called with (searches done, searches in all), counting problem × search.

    Raises:
        UserError: no problems; or no check came to a verdict, or no score applies.
    """
    if not problems:
        raise UserError("nothing to evaluate: no problems; give a data file with at least one usable line")
    searches = measures.searches(beam_widths, samples)
    values: dict[str, list[float]] = {}
    outcomes: dict[str, dict[str, int]] = {}
    details: dict[str, str] = {}
    counts: Counter[str] = Counter()
    found: dict[DecodeMode, list[int | None]] = {}
    for i, (mode, group_size) in enumerate(searches):
        verdicts: list[list[Verdict]] = []
        for start in range(0, len(problems), batch):
            part = problems[start : start + batch]
            seeds = [rollout_seed(seed, 0, start + j) for j in range(len(part))] if mode == "sample" else None
            groups = decode(part, mode, group_size, seeds)
            details = first_details(completion for group in groups for completion in group) | details
            verdicts += [[completion.judged for completion in group] for group in groups]
            counts.update(str(completion.outcome) for group in groups for completion in group)
            refuse_failed_evaluation(counts, details)
            if on_progress is not None:
                on_progress(i * len(problems) + len(verdicts), len(searches) * len(problems))
        outcomes[f"{mode} {group_size}"] = count_outcomes([[verdict.outcome for verdict in row] for row in verdicts])
        values |= measures.of_search(mode, group_size, verdicts, set(beam_widths))
        found[mode] = [first_correct([verdict.outcome for verdict in row]) for row in verdicts]  # widest last
    refuse_unscored_evaluation(counts, measures.reward)
    categories = [problem.category for problem in problems]
    ranks: dict[str, list[int | None]] = {}
    if measures.solved:
        ranks = {str(max(size for mode, size in searches if mode == "beam")): found["beam"]}
        if "sample" in found:
            either = zip(found["beam"], found["sample"], strict=True)
            values[ORACLE] = [float(beam is not None or sample is not None) for beam, sample in either]
    return Evaluation(categories, values, outcomes, problems_digest(problems), details, ranks)


def _solved(
    mode: DecodeMode, group_size: int, correct: list[list[bool]], beam_widths: set[int]
) -> dict[str, list[float]]:
    if mode == "sample":
        ks = _sample_counts(group_size, beam_widths)
        return {f"pass@{k}": [pass_at_k(group_size, sum(row), k) for row in correct] for k in ks}
    metrics = {"greedy": [float(row[0]) for row in correct]} if group_size == 1 else {}
    metrics |= {f"beam@{group_size}": [float(any(row)) for row in correct]} if group_size in beam_widths else {}
    if group_size == RANK_WIDTH:
        metrics["top1"] = [float(row[0]) for row in correct]
        metrics["beam_rank_score"] = [rank_score(row) for row in correct]
    return metrics


def _graded(
    mode: DecodeMode, group_size: int, rewards: list[list[float]], beam_widths: set[int]
) -> dict[str, list[float]]:
    if mode == "sample":
        metrics = {"sample_reward": [_mean(row) for row in rewards]}
        ks = [k for k in _sample_counts(group_size, beam_widths) if k > 1]
        return metrics | {f"best_of@{k}": [best_of(row, k) for row in rewards] for k in ks}
    metrics = {"greedy_reward": [_mean(row) for row in rewards]} if group_size == 1 else {}
    if group_size in beam_widths and group_size > 1:
        metrics[f"best_reward@{group_size}"] = [max(row, default=math.nan) for row in rewards]
        metrics[f"mean_reward@{group_size}"] = [_mean(row) for row in rewards]
    return metrics


def _sample_counts(samples: int, beam_widths: set[int]) -> list[int]:
    return sorted({1, samples, *(width for width in beam_widths if width <= samples)})


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float:
    """NaN where there is none."""
    there = [value for value in values if not math.isnan(value)]
    return float(np.mean(there)) if there else math.nan


def best_of(values: Sequence[float], k: int) -> float:
    """Expected largest of k values drawn without replacement; NaN where there are fewer than k."""
    n = len(values)
    if n < k:
        return math.nan
    return sum(value * math.comb(i, k - 1) for i, value in enumerate(sorted(values))) / math.comb(n, k)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that k of n samples, drawn without replacement, hold a correct one: 1 - C(n - correct, k) / C(n, k)."""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def rank_score(correct: Sequence[bool]) -> float:
    """exp(-(rank - 1) / 10) with the 1-based rank of the first correct completion; 0 when none is correct."""
    return next((math.exp(-position / RANK_SCALE) for position, is_correct in enumerate(correct) if is_correct), 0.0)


def count_outcomes(verdicts: Sequence[Sequence[str]]) -> dict[str, int]:
    """Completions by outcome, see :func:`bgrpo.tasks.base.listed`."""
    return listed(Counter(outcome for outcomes in verdicts for outcome in outcomes))


def problems_digest(problems: Sequence[Problem]) -> str:
    """Short name of an ordered set of problems."""
    text = "\n".join(problem.prompt for problem in problems)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
