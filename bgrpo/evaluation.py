"""Held-out metrics of a policy, with per-problem values, so that before and after can be compared problem by problem.

Metrics (all higher is better):

- ``greedy``: solved by the width-1 search. A width-1 entry in the beam widths means the same and is not repeated.
- ``beam@k``: solved by any completion of a width-k search; every width is a search of its own.
- ``top1``: solved by the best completion of the width-10 search.
- ``beam_rank_score``: exp(-(rank - 1) / 10) of the first correct completion of the width-10 search, 0 if none.
- ``pass@k``: unbiased estimator over n >= k samples (Chen et al. 2021, equation 1).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from bgrpo.errors import UserError
from bgrpo.seeds import rollout_seed
from bgrpo.tasks.base import Outcome, Problem

if TYPE_CHECKING:
    from bgrpo.policies.io import LoadedPolicy
    from bgrpo.verification import CheckProcess

RANK_WIDTH = 10  # width of the search behind top1 and beam_rank_score
RANK_SCALE = 10.0
BATCH = 64  # problems per call of the decoder
RESAMPLES = 10_000
BOOTSTRAP_ENTRIES = 4_000_000  # drawn at a time: bounds memory to a few times 32 MB

DecodeMode = Literal["beam", "sample"]
Name = TypeVar("Name", str, tuple[str, str])


@dataclass(frozen=True, slots=True)
class JudgedCompletion:
    """One completion and what the check said.

    Attributes:
        tokens: token ids, end token included when finished.
        text: what was checked, without end token.
        logprob: summed natural-log probability.
        finished: False when the length limit cut it.
        outcome: a :class:`bgrpo.tasks.base.Outcome` value.
    """

    tokens: list[int]
    text: str
    logprob: float
    finished: bool
    outcome: str


class Decode(Protocol):
    """Decodes and checks; here or on the rollout pool."""

    def __call__(
        self, prompts: Sequence[str], mode: DecodeMode, completions: int, seeds: Sequence[int] | None
    ) -> list[list[JudgedCompletion]]:
        """For each prompt its beams, best first, or its samples (one seed per prompt)."""
        ...


class LocalDecoder:
    """:class:`Decode` in this process; the checks run in ``checks``, a child process with a time limit.

    Args:
        policy: what decodes.
        checks: what judges.
        max_new_tokens: longest completion, end token included; longer ones are ``truncated``, unchecked.
    """

    def __init__(self, policy: LoadedPolicy, checks: CheckProcess, max_new_tokens: int) -> None:
        from bgrpo.decoding import DecodeEngine

        self._policy = policy
        self._checks = checks
        self._max_new_tokens = max_new_tokens
        self._engine = DecodeEngine(policy.model)

    def __call__(
        self, prompts: Sequence[str], mode: DecodeMode, completions: int, seeds: Sequence[int] | None
    ) -> list[list[JudgedCompletion]]:
        from bgrpo.decoding import DecodeSettings
        from bgrpo.policies.tokenizer import decode_completion, encode_texts

        tokenizer = self._policy.tokenizer
        settings = DecodeSettings(
            mode=mode,
            completions=completions,
            max_new_tokens=self._max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        groups = self._engine.decode(encode_texts(tokenizer, prompts), settings, seeds)
        decoded = [
            (prompt, completion, decode_completion(tokenizer, completion.tokens))
            for prompt, group in zip(prompts, groups, strict=True)
            for completion in group.completions
        ]
        checked = iter(
            self._checks.run([(prompt, text) for prompt, completion, text in decoded if completion.finished])
        )
        judged = iter(
            JudgedCompletion(
                completion.tokens,
                text,
                completion.logprob,
                completion.finished,
                next(checked).outcome if completion.finished else Outcome.TRUNCATED,
            )
            for _, completion, text in decoded
        )
        return [[next(judged) for _ in group.completions] for group in groups]


class Interval(NamedTuple):
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Per-problem values of each metric.

    Attributes:
        categories: category of each problem, in order.
        values: metric -> one value in [0, 1] per problem, in the same order.
        outcomes: search (``"beam 10"``, ``"sample 10"``) -> outcome -> completions with that outcome.
        digest: names the problems; evaluations of other problems are not comparable.
    """

    categories: list[str]
    values: dict[str, list[float]]
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    digest: str = ""

    def metrics(self) -> dict[str, float]:
        """Mean of each metric over the problems."""
        return {name: float(np.mean(values)) for name, values in self.values.items()}

    def intervals(self, seed: int = 0) -> dict[str, Interval]:
        """Mean of each metric with its bootstrap interval."""
        return _intervals(self.values, seed)

    def by_category(self) -> dict[str, dict[str, float]]:
        """Category -> ``problems`` (how many) and the mean of each metric, categories in alphabetical order."""
        table: dict[str, dict[str, float]] = {}
        for category in sorted(set(self.categories)):
            rows = [i for i, name in enumerate(self.categories) if name == category]
            means = {name: float(np.mean([values[i] for i in rows])) for name, values in self.values.items()}
            table[category] = {"problems": len(rows)} | means
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "categories": self.categories,
            "values": self.values,
            "outcomes": self.outcomes,
            "digest": self.digest,
        }

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Self:
        """What :meth:`to_dict` gave."""
        return cls(**tree)


def evaluate(
    decode: Decode,
    problems: Sequence[Problem],
    beam_widths: Sequence[int],
    samples: int,
    seed: int,
    batch: int = BATCH,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a policy on problems.

    Args:
        decode: decodes and checks.
        problems: held-out problems, at least one.
        beam_widths: widths of beam@k; 1 (greedy) and 10 (rank score, top-1) are searched besides.
        samples: samples per problem for pass@k (k = 1, the beam widths up to ``samples``, and ``samples``); 0: none.
        seed: of the samples.
        batch: problems per call of ``decode``.
        on_progress: called with (searches done, searches in all), counting problem × search.

    Raises:
        UserError: no problems.
    """
    if not problems:
        raise UserError("nothing to evaluate: no problems; give a data file with at least one usable line")
    widths = sorted({1, RANK_WIDTH, *beam_widths})
    searches: list[tuple[DecodeMode, int]] = [("beam", width) for width in widths]
    if samples:
        searches.append(("sample", samples))
    values: dict[str, list[float]] = {}
    outcomes: dict[str, dict[str, int]] = {}
    for i, (mode, completions) in enumerate(searches):
        verdicts: list[list[str]] = []
        for start in range(0, len(problems), batch):
            part = problems[start : start + batch]
            seeds = [rollout_seed(seed, 0, start + j) for j in range(len(part))] if mode == "sample" else None
            groups = decode([problem.prompt for problem in part], mode, completions, seeds)
            verdicts += [[str(completion.outcome) for completion in group] for group in groups]
            if on_progress is not None:
                on_progress(i * len(problems) + len(verdicts), len(searches) * len(problems))
        outcomes[f"{mode} {completions}"] = count_outcomes(verdicts)
        values |= _search_metrics(mode, completions, verdicts, set(beam_widths))
    return Evaluation([problem.category for problem in problems], values, outcomes, problems_digest(problems))


def _search_metrics(
    mode: DecodeMode, completions: int, verdicts: list[list[str]], beam_widths: set[int]
) -> dict[str, list[float]]:
    """Per-problem values of the metrics that one search gives; ``verdicts`` holds outcomes in rank order."""
    correct = [[outcome == Outcome.CORRECT for outcome in outcomes] for outcomes in verdicts]
    if mode == "sample":
        ks = sorted({1, completions, *(width for width in beam_widths if width <= completions)})
        return {f"pass@{k}": [pass_at_k(completions, sum(row), k) for row in correct] for k in ks}
    metrics = {"greedy": [float(row[0]) for row in correct]} if completions == 1 else {}
    metrics |= {f"beam@{completions}": [float(any(row)) for row in correct]} if completions in beam_widths else {}
    if completions == RANK_WIDTH:
        metrics["top1"] = [float(row[0]) for row in correct]
        metrics["beam_rank_score"] = [rank_score(row) for row in correct]
    return metrics


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that k of n samples, drawn without replacement, hold a correct one: 1 - C(n - correct, k) / C(n, k)."""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def rank_score(correct: Sequence[bool]) -> float:
    """exp(-(rank - 1) / 10) with the 1-based rank of the first correct completion; 0 when none is correct."""
    return next((math.exp(-position / RANK_SCALE) for position, is_correct in enumerate(correct) if is_correct), 0.0)


def count_outcomes(verdicts: Sequence[Sequence[str]]) -> dict[str, int]:
    """Completions by outcome, every outcome listed."""
    counts = Counter(outcome for outcomes in verdicts for outcome in outcomes)
    return {str(outcome): counts[outcome] for outcome in Outcome}


def problems_digest(problems: Sequence[Problem]) -> str:
    """Short name of an ordered set of problems."""
    text = "\n".join(problem.prompt for problem in problems)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def bootstrap_interval(values: Sequence[float], seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean (Efron 1979), problems drawn with replacement."""
    low, high = _bootstrap_bounds(np.asarray(values, dtype=np.float64)[:, None], seed, resamples)[:, 0]
    return float(low), float(high)


def paired_difference(before: Sequence[float], after: Sequence[float], seed: int) -> Interval:
    """Mean of after - before over the same problems, with its bootstrap interval."""
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return Interval(float(difference.mean()), *bootstrap_interval(difference.tolist(), seed))


def _intervals(values: dict[Name, list[float]], seed: int) -> dict[Name, Interval]:
    values_NM = np.array(list(values.values()), dtype=np.float64).T
    bounds_2M = _bootstrap_bounds(values_NM, seed, RESAMPLES)
    means_M = values_NM.mean(axis=0)
    return {
        name: Interval(float(means_M[m]), float(bounds_2M[0, m]), float(bounds_2M[1, m]))
        for m, name in enumerate(values)
    }


def _bootstrap_bounds(values_NM: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Bounds [2, M] for M metrics on N problems; all metrics share the resampled problems."""
    problems = len(values_NM)
    generator = np.random.default_rng(seed)
    chunk = max(1, BOOTSTRAP_ENTRIES // problems)
    means = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn_RN = generator.integers(problems, size=(rows, problems), dtype=np.int64)
        drawn_RN += np.arange(rows)[:, None] * problems
        counts_RN = np.bincount(drawn_RN.ravel(), minlength=rows * problems).reshape(rows, problems)
        means.append(counts_RN.astype(np.float64) @ values_NM / problems)
    return np.percentile(np.concatenate(means), [2.5, 97.5], axis=0)


class ComparisonRow(NamedTuple):
    """One metric before and after training; ``difference`` is paired by problem."""

    metric: str
    before: Interval
    after: Interval
    difference: Interval


@dataclass(frozen=True)
class EvaluationComparison:
    """The same problems before and after training.

    Raises:
        UserError: the two evaluations are of other problems.
    """

    before: Evaluation
    after: Evaluation
    seed: int = 0

    def __post_init__(self) -> None:
        same_problems = self.before.digest == self.after.digest
        if not same_problems or len(self.before.categories) != len(self.after.categories):
            raise UserError(
                f"evaluations of different problems cannot be compared: {len(self.before.categories)} problems "
                f"({self.before.digest}) before, {len(self.after.categories)} ({self.after.digest}) after"
            )

    def rows(self) -> list[ComparisonRow]:
        """Every metric that both evaluations have."""
        return self._rows

    @cached_property
    def _rows(self) -> list[ComparisonRow]:
        names = [name for name in self.before.values if name in self.after.values]
        columns = {("before", name): self.before.values[name] for name in names}
        columns |= {("after", name): self.after.values[name] for name in names}
        pairs = {name: zip(self.before.values[name], self.after.values[name], strict=True) for name in names}
        columns |= {("difference", name): [after - before for before, after in pairs[name]] for name in names}
        intervals = _intervals(columns, self.seed)
        return [
            ComparisonRow(name, intervals["before", name], intervals["after", name], intervals["difference", name])
            for name in names
        ]

    def save(self, path: Path) -> None:
        """Write both evaluations and the table of means and intervals as JSON."""
        table = {
            row.metric: {key: list(value) for key, value in row._asdict().items() if key != "metric"}
            for row in self.rows()
        }
        tree = {"table": table, "seed": self.seed, "before": self.before.to_dict(), "after": self.after.to_dict()}
        path.write_text(json.dumps(tree) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """What :meth:`save` wrote.

        Raises:
            UserError: missing or not such a file.
        """
        try:
            tree = json.loads(path.read_text("utf-8"))
            return cls(Evaluation.from_dict(tree["before"]), Evaluation.from_dict(tree["after"]), tree["seed"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not an evaluation of a run: {error}") from error
