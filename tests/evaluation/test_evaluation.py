"""Metrics against hand-made completions, brute force and closed forms."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgrpo.api.run import as_text
from bgrpo.config import TrainConfig, build_config
from bgrpo.display.run_report import comparison_table
from bgrpo.errors import UserError
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.evaluation.intervals import bootstrap_interval, paired_difference
from bgrpo.evaluation.metrics import Evaluation, Measures, best_of, evaluate, pass_at_k, rank_score
from bgrpo.groups import Completion, Verdict
from bgrpo.scoring.failed_checks import truncation
from bgrpo.tasks.base import Problem

PROBLEMS = [Problem(f"p{i}", category="even" if i % 2 == 0 else "odd") for i in range(7)]


class ScriptedDecoder:
    """A width-k search of problem i finds the answer at rank ``first_correct[i]``, if that is within k."""

    def __init__(self, first_correct: Sequence[int | None], correct_samples: Sequence[int]) -> None:
        self.first_correct = first_correct
        self.correct_samples = correct_samples
        self.calls: list[tuple[str, int, int]] = []
        self.seeds: list[int] = []

    def __call__(
        self, problems: Sequence[Problem], mode: str, group_size: int, seeds: Sequence[int] | None
    ) -> list[list[Completion]]:
        self.calls.append((mode, group_size, len(problems)))
        self.seeds += seeds or []
        return [self._group(int(problem.prompt[1:]), mode, group_size) for problem in problems]

    def _group(self, i: int, mode: str, group_size: int) -> list[Completion]:
        if mode == "sample":
            outcomes = ["correct" if j < self.correct_samples[i] else "wrong" for j in range(group_size)]
        else:
            rank = self.first_correct[i]
            outcomes = ["correct" if rank == j + 1 else "truncated" for j in range(group_size)]
        return [Completion([1], [-1.0], True, "x", Verdict(outcome)) for outcome in outcomes]


def test_an_evaluation_that_could_score_nothing_is_an_empty_table(tmp_path: Path) -> None:
    nothing = Evaluation(["c"] * 3, {}, digest="d")
    comparison = EvaluationComparison(nothing, nothing)
    comparison.save(tmp_path / "evaluation.json")
    assert EvaluationComparison.load(tmp_path / "evaluation.json").rows() == [] == comparison.rows()


def test_metrics_of_known_ranks() -> None:
    decoder = ScriptedDecoder([1, 2, 3, 5, 10, 11, None], [0, 1, 2, 3, 4, 4, 0])
    evaluation = evaluate(decoder, PROBLEMS, [1, 3, 5, 10, 12], samples=4, seed=3, batch=4)
    metrics = evaluation.metrics()
    assert metrics["greedy"] == pytest.approx(1 / 7)
    assert metrics["top1"] == pytest.approx(1 / 7)
    assert metrics["beam@3"] == pytest.approx(3 / 7)
    assert metrics["beam@5"] == pytest.approx(4 / 7)
    assert metrics["beam@10"] == pytest.approx(5 / 7)
    assert metrics["beam@12"] == pytest.approx(6 / 7)
    ranks_found = [1, 2, 3, 5, 10]
    assert metrics["beam_rank_score"] == pytest.approx(sum(math.exp(-(rank - 1) / 10) for rank in ranks_found) / 7)
    assert metrics["pass@1"] == pytest.approx((0 + 1 + 2 + 3 + 4 + 4 + 0) / 4 / 7)
    assert metrics["pass@4"] == pytest.approx(5 / 7)
    assert set(metrics) == {
        "greedy", "top1", "beam_rank_score", "beam@1", "beam@3", "beam@5", "beam@10", "beam@12",
        "pass@1", "pass@3", "pass@4", "oracle",
    }  # fmt: skip
    assert metrics["oracle"] == pytest.approx(6 / 7), "the widest beams solve 6, and samples none of the rest"
    assert evaluation.solved_within() == {"12": [k / 7 for k in (1, 2, 3, 3, 4, 4, 4, 4, 4, 5, 6, 6)]}
    assert Evaluation.from_dict(evaluation.to_dict()) == evaluation
    assert evaluation.outcomes["beam 1"] == dict.fromkeys(evaluation.outcomes["beam 1"], 0) | {
        "correct": 1,
        "truncated": 6,
    }
    assert set(metrics) == set(TrainConfig().reward.metrics([1, 3, 5, 10, 12], 4))
    assert evaluation.outcomes["sample 4"]["correct"] == 14


def test_each_width_is_a_search_of_its_own_over_batches() -> None:
    decoder = ScriptedDecoder([1] * 7, [0] * 7)
    progress: list[tuple[int, int]] = []
    evaluate(
        decoder,
        PROBLEMS,
        [3],
        samples=2,
        seed=0,
        batch=4,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    searches = [("beam", 1), ("beam", 3), ("beam", 10), ("sample", 2)]
    assert decoder.calls == [(*search, size) for search in searches for size in (4, 3)]
    assert progress[-1] == (28, 28)
    assert [done for done, _ in progress] == sorted({done for done, _ in progress})
    assert len(set(decoder.seeds)) == 7, "one seed per problem, whatever the batch"


def test_what_failed_in_the_checks_is_kept_with_the_evaluation() -> None:
    """The first of each kind, over all searches and batches."""

    def decode(problems: Sequence[Problem], mode: str, size: int, seeds: object) -> list[list[Completion]]:
        late = Verdict("timeout", detail=f"late at width {size}") if size > 1 else Verdict("wrong")
        failed = Verdict("error", detail=problems[0].prompt)
        verdicts = [[failed, *[late] * (size - 1)]] * (len(problems) - 1) + [[Verdict("wrong")] * size]
        return [[Completion([1], [0.0], True, "", verdict) for verdict in row] for row in verdicts]

    evaluation = evaluate(decode, PROBLEMS, [3], samples=0, seed=0, batch=4)
    assert evaluation.details == {"error": PROBLEMS[0].prompt, "timeout": "late at width 3"}
    assert Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict()))) == evaluation
    assert evaluation.failures() == [
        f"error in 15 of 98 checks, the first: {PROBLEMS[0].prompt}",
        "timeout in 55 of 98 checks, the first: late at width 3",
    ]
    before_there_were_details = evaluation.to_dict()
    del before_there_were_details["details"]
    assert Evaluation.from_dict(before_there_were_details).failures() == []


@pytest.mark.parametrize(
    ("verdicts", "message"),
    [
        ([Verdict("error", detail="no"), Verdict("truncated")], "no check came to a verdict, .*error in .* first: no;"),
        ([Verdict("timeout", detail="late")], "no check came to a verdict, .*timeout in .* first: late;"),
        ([Verdict("unscored"), Verdict("truncated")], "no part of the reward applies to any of"),
    ],
)
def test_where_nothing_was_judged_there_is_no_table_of_zeros(verdicts: list[Verdict], message: str) -> None:
    calls: list[str] = []

    def decode(problems: Sequence[Problem], mode: str, size: int, seeds: object) -> list[list[Completion]]:
        calls.append(mode)
        cycle = itertools.cycle(verdicts)
        return [[Completion([1], [0.0], True, "", next(cycle)) for _ in range(size)] for _ in problems]

    with pytest.raises(UserError, match=message):
        evaluate(decode, PROBLEMS, [3], samples=2, seed=0, batch=4)
    failed = any(verdict.outcome in ("error", "timeout") for verdict in verdicts)
    assert len(calls) == (1 if failed else 8), "checks that fail may take their whole time limit each"


def test_where_everything_was_cut_off_that_is_what_the_table_says() -> None:
    def decode(problems: Sequence[Problem], mode: str, size: int, seeds: object) -> list[list[Completion]]:
        return [[Completion([1], [0.0], False, "", Verdict("truncated"))] * size for _ in problems]

    evaluation = evaluate(decode, PROBLEMS, [], samples=0, seed=0)
    assert evaluation.totals() == {"truncated": 11 * 7} | dict.fromkeys(set(evaluation.totals()) - {"truncated"}, 0)
    for scored, how in ((False, "unjudged"), (True, "and are scored as they are")):
        told = truncation(evaluation.totals(), 5, "--longer", scored)
        assert told == f"77 of 77 completions were cut off at 5 tokens, {how}: raise --longer"
    assert not truncation({"correct": 1, "truncated": 1}, 5, "--longer", False)


def test_widths_that_were_not_asked_for_give_no_metric() -> None:
    metrics = evaluate(ScriptedDecoder([2] * 7, [0] * 7), PROBLEMS, [3], samples=0, seed=0).metrics()
    assert set(metrics) == {"greedy", "beam@3", "top1", "beam_rank_score"}


def test_categories_are_counted_apart() -> None:
    evaluation = evaluate(ScriptedDecoder([1, None, 1, 2, None, None, 1], [0] * 7), PROBLEMS, [10], 0, seed=0)
    table = evaluation.by_category()
    assert table["even"]["problems"] == 4
    assert table["odd"]["problems"] == 3
    assert table["even"]["greedy"] == pytest.approx(3 / 4)
    assert table["odd"]["beam@10"] == pytest.approx(1 / 3)


def test_no_problems_is_an_error() -> None:
    with pytest.raises(UserError, match="no problems"):
        evaluate(ScriptedDecoder([], []), [], [1], 0, seed=0)


@settings(deadline=None)
@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_fraction_of_subsets_with_a_correct_sample(case: tuple[int, int, int]) -> None:
    n, correct, k = case
    subsets = list(itertools.combinations(range(n), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(min(subset) < correct for subset in subsets) / len(subsets))


@pytest.mark.parametrize(
    ("correct", "expected"),
    [([True, False], 1.0), ([False, True, True], 0.904837418), ([False] * 9 + [True], 0.406569660), ([False] * 10, 0)],
)
def test_rank_score_by_hand(correct: list[bool], expected: float) -> None:
    assert rank_score(correct) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_agrees_with_the_normal_approximation(seed: int) -> None:
    values = (np.random.default_rng(seed).random(2000) < 0.3).astype(float)
    low, high = bootstrap_interval(values.tolist(), seed)
    half_width = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert high == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)


def test_bootstrap_of_three_values_against_all_resamples() -> None:
    values = [0.0, 0.5, 2.0]
    means = sorted(sum(draw) / 3 for draw in itertools.product(values, repeat=3))
    cumulative = {mean: (sum(m <= mean for m in means) / 27) for mean in means}
    low, high = bootstrap_interval(values, seed=1)
    assert low == pytest.approx(min(mean for mean, share in cumulative.items() if share >= 0.025))
    assert high == pytest.approx(min(mean for mean, share in cumulative.items() if share >= 0.975))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 100))
def test_bootstrap_stays_within_the_values_and_repeats(values: list[float], seed: int) -> None:
    low, high = bootstrap_interval(values, seed, resamples=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert (low, high) == bootstrap_interval(values, seed, resamples=200)


def test_pairing_narrows_the_interval_of_a_constant_gain() -> None:
    before = np.random.default_rng(0).random(200)
    mean, low, high = paired_difference(before.tolist(), (before + 0.125).tolist(), seed=0)
    assert (mean, low, high) == pytest.approx((0.125, 0.125, 0.125))


def _evaluation(ranks: Sequence[int | None]) -> Evaluation:
    return evaluate(ScriptedDecoder(ranks, [1] * 7), PROBLEMS, [3, 10], samples=3, seed=0)


def test_comparison_survives_the_disk(tmp_path: Path) -> None:
    comparison = EvaluationComparison(_evaluation([2] * 7), _evaluation([1, 1, 1, 1, 1, 1, None]), seed=5)
    comparison.save(tmp_path / "evaluation.json")
    loaded = EvaluationComparison.load(tmp_path / "evaluation.json")
    assert loaded == comparison
    assert loaded.rows() == comparison.rows()
    rows = {row.metric: row for row in loaded.rows()}
    assert rows["greedy"].before.mean == 0
    assert rows["greedy"].after.mean == pytest.approx(6 / 7)
    assert rows["greedy"].difference.mean == pytest.approx(6 / 7)
    assert rows["greedy"].difference == paired_difference([0.0] * 7, [1.0] * 6 + [0.0], seed=5)
    assert rows["beam@10"].difference.mean == pytest.approx(-1 / 7)
    table = json.loads((tmp_path / "evaluation.json").read_text())["table"]
    assert table["greedy"]["after"] == pytest.approx(list(rows["greedy"].after))


def test_other_problems_are_not_compared() -> None:
    other = evaluate(ScriptedDecoder([1] * 7, [1] * 7), [Problem(f"p{6 - i}") for i in range(7)], [3], 0, seed=0)
    with pytest.raises(UserError, match="different problems"):
        EvaluationComparison(_evaluation([1] * 7), other)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"before": {"x": 1}, "after": {}, "seed": 0}'])
def test_a_file_that_is_no_comparison_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"evaluation\.json: not an evaluation"):
        EvaluationComparison.load(path)


# -- graded scores -----------------------------------------------------------------------------------------------------

GRADED = Measures(solved=False, graded=True, parts=("a", "b"), wrong_reward=-1.0)


class GradingDecoder:
    """Problem i's completion at position j scores i + 10 j, its part a the same, its part b nothing; the last fails."""

    def __call__(
        self, problems: Sequence[Problem], mode: str, group_size: int, seeds: Sequence[int] | None
    ) -> list[list[Completion]]:
        return [[self._completion(int(problem.prompt[1:]), j) for j in range(group_size)] for problem in problems]

    @staticmethod
    def _completion(i: int, j: int) -> Completion:
        verdict = Verdict("scored", i + 10.0 * j, parts={"a": i + 10.0 * j, "b": None})
        if i == 6:
            verdict = Verdict("error", None, "why", parts={"a": None, "b": None}, failures={"a": "why"})
        if i == 5:
            verdict = Verdict("truncated", None, parts={"a": None, "b": None})
        return Completion([1], [-1.0], True, "x", verdict)


def test_graded_metrics_of_known_scores() -> None:
    evaluation = evaluate(GradingDecoder(), PROBLEMS, [1, 3], samples=4, seed=0, measures=GRADED)
    metrics = evaluation.metrics()
    assert metrics["greedy_reward"] == pytest.approx((0 + 1 + 2 + 3 + 4 - 1) / 6)
    assert metrics["greedy_a"] == pytest.approx(2.0)
    assert metrics["best_reward@3"] == pytest.approx((20 + 21 + 22 + 23 + 24 - 1) / 6)
    assert metrics["mean_reward@3"] == pytest.approx((10 + 11 + 12 + 13 + 14 - 1) / 6)
    assert metrics["sample_reward"] == pytest.approx((15 + 16 + 17 + 18 + 19 - 1) / 6)
    assert metrics["best_of@4"] == pytest.approx((30 + 31 + 32 + 33 + 34 - 1) / 6)
    assert set(metrics) == {
        "greedy_reward", "greedy_a", "best_reward@3", "mean_reward@3", "sample_reward", "sample_a", "best_of@3",
        "best_of@4",
    }  # fmt: skip
    reward = {"parts": {"a": {"metric": "bleu"}, "b": {"metric": "bleu"}}}
    known = build_config(TrainConfig, {"reward": reward}, "test").reward.metrics([1, 3], 4)
    assert metrics.keys() | {"greedy_b", "sample_b"} == set(known)
    assert evaluation.values["greedy_reward"][5] == -1.0 and math.isnan(evaluation.values["greedy_reward"][6])
    assert evaluation.failures() == ["error in 8 of 48 checks, the first: why"]


SOME = st.one_of(st.just(math.nan), st.floats(-10, 10))


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(SOME, SOME), min_size=7, max_size=7))
def test_before_and_after_are_of_the_problems_that_have_a_value_in_both(pairs: list[tuple[float, float]]) -> None:
    first = evaluate(GradingDecoder(), PROBLEMS, [1], samples=0, seed=0, measures=GRADED)
    before, after = (replace(first, values={"greedy_reward": [pair[i] for pair in pairs]}) for i in range(2))
    rows = EvaluationComparison(before, after).rows()
    both = [(x, y) for x, y in pairs if not math.isnan(x) and not math.isnan(y)]
    assert len(rows) == bool(both), "what no problem has twice cannot be compared"
    for row in rows:
        assert row.problems == len(both)
        assert row.before.mean == pytest.approx(sum(x for x, _ in both) / len(both))
        assert row.after.mean == pytest.approx(sum(y for _, y in both) / len(both))
        assert row.difference.mean == pytest.approx(row.after.mean - row.before.mean, abs=1e-9)
        table = as_text(comparison_table(EvaluationComparison(before, after)), 100)
        assert (f"of {len(both)} problems" in table) == (len(both) < 7)


def test_problems_without_a_value_count_in_no_mean_no_interval_and_survive_a_file(tmp_path: Path) -> None:
    before = evaluate(GradingDecoder(), PROBLEMS, [1, 3], samples=0, seed=0, measures=GRADED)
    rows = {row.metric: row for row in EvaluationComparison(before, before).rows()}
    greedy = rows["greedy_reward"]
    assert greedy.before.low <= greedy.before.mean <= greedy.before.high and tuple(greedy.difference) == (0.0, 0.0, 0.0)
    known = before.values["greedy_reward"][:6]
    low, high = bootstrap_interval(known, seed=0)
    assert greedy.before.low == pytest.approx(low, abs=0.5) and greedy.before.high == pytest.approx(high, abs=0.5)
    EvaluationComparison(before, before).save(tmp_path / "evaluation.json")
    assert "NaN" not in (tmp_path / "evaluation.json").read_text()
    read = EvaluationComparison.load(tmp_path / "evaluation.json").before
    assert read.metrics() == before.metrics() and math.isnan(read.values["greedy_reward"][6])


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=7), st.data())
def test_best_of_k_is_the_mean_over_all_draws(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    draws = [max(drawn) for drawn in itertools.combinations(values, k)]
    assert best_of(values, k) == pytest.approx(np.mean(draws), abs=1e-9)
    assert math.isnan(best_of(values, len(values) + 1))


@pytest.mark.parametrize(
    ("reward", "measures"),
    [
        ({}, Measures()),
        ({"function": "m:f"}, Measures(True, True)),
        ({"parts": {"c": {"check": True}}}, Measures(True, False)),
        ({"parts": {"c": {"check": True}, "l": {"metric": "bleu", "weight": 0}}}, Measures(True, True, ("c", "l"))),
        ({"parts": {"l": {"metric": "bleu"}}}, Measures(False, True, ("l",))),
        ({"parts": {"l": {"metric": "bleu"}}, "correct_above": 0.5}, Measures(True, True, ("l",))),
    ],
)
def test_what_a_reward_lets_be_measured(reward: dict, measures: Measures) -> None:
    assert Measures.of(build_config(TrainConfig, {"reward": reward}, "test")) == measures
