"""The benchmark times nothing that computes something else: wrong engines, injected, are all caught."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bgrpo.bench.rollouts import engines, timed_case
from bgrpo.bench.rollouts.agreement import compare, differing_share, score, worse_on_average
from bgrpo.bench.rollouts.cases import ENGINES, EXTRA_CASES, EngineSpec
from bgrpo.bench.rollouts.decode_workload import Workload, build_workload
from bgrpo.bench.rollouts.engines import Beam, Engine, Prompts, make_engine
from bgrpo.bench.rollouts.timed_case import measure_case
from bgrpo.bench.turns import DisagreementError

CASE = EXTRA_CASES["tiny-2x4"]
SAMPLING = EXTRA_CASES["tiny-sample-2x4"]
Groups = list[list[Beam]]


@pytest.fixture(scope="module")
def workload() -> Workload:
    return build_workload(CASE)


@pytest.fixture(scope="module")
def beams(workload: Workload) -> Groups:
    return make_engine(ENGINES["loop"], workload, CASE).completions(workload.prompts, CASE.new_tokens)


def problems(name: str, workload: Workload, reference: Groups, found: Groups) -> list[str]:
    return compare(ENGINES[name], CASE, workload.model, workload.prompts, reference, found).problems


def test_the_same_beams_agree(workload: Workload, beams: Groups) -> None:
    agreement = compare(ENGINES["loop"], CASE, workload.model, workload.prompts, beams, [g[::-1] for g in beams])
    assert agreement.problems == []
    assert agreement.differing == 0
    assert agreement.logprob_error < 1e-4


def _without_one(groups: Groups) -> Groups:
    return [groups[0][:-1], *groups[1:]]


def _twice(groups: Groups) -> Groups:
    return [[groups[0][0], *groups[0][:-1]], *groups[1:]]


def _shorter(groups: Groups) -> Groups:
    return [[Beam(beam.tokens[:-1], beam.logprob) for beam in groups[0]], *groups[1:]]


def _of_another_prompt(groups: Groups) -> Groups:
    return [groups[1], groups[0]]


def _normalised_by_length(groups: Groups) -> Groups:
    return [[Beam(beam.tokens, beam.logprob / len(beam.tokens)) for beam in group] for group in groups]


def _another_beam(groups: Groups) -> Groups:
    first = groups[0][0]
    return [[Beam((*first.tokens[:-1], 18 - first.tokens[-1]), first.logprob), *groups[0][1:]], *groups[1:]]


def _worse_beam(groups: Groups) -> Groups:
    """Of a search that lost a beam: one in the middle is another, with its own true score."""
    workload = build_workload(CASE)
    tokens = (2, 3, 4, 5, 6, 7)
    lost = Beam(tokens, score(workload.model, workload.prompts[0], tokens))
    return [[groups[0][0], lost, *groups[0][2:]], *groups[1:]]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (_without_one, "has 3 completions, expected 4"),
        (_twice, "the same beam twice"),
        (_shorter, "not 6 tokens long"),
        (_of_another_prompt, "off by up to"),
        (_normalised_by_length, "off by up to"),
        (_another_beam, "off by up to"),
        (_worse_beam, "12.5% of the beams differ"),
    ],
)
def test_wrong_beams_are_named(workload: Workload, beams: Groups, wrong: Callable[[Groups], Groups], says: str) -> None:
    assert says in "; ".join(problems("generate", workload, beams, wrong(beams)))


def test_bf16_may_differ_a_little(workload: Workload, beams: Groups) -> None:
    rounded = [[Beam(beam.tokens, beam.logprob + 0.05) for beam in group] for group in beams]
    assert problems("bgrpo-bf16", workload, beams, rounded) == []
    assert "off by up to 0.05" in "; ".join(problems("bgrpo", workload, beams, rounded))


def test_bf16_beams_must_be_as_good(workload: Workload, beams: Groups) -> None:
    worse = shifted(beams, [0.6, 0.6])
    expected = "mean log-probability of the beams differs by 0.6, standard error 0"
    assert problems("bgrpo-bf16", workload, beams, worse) == [expected]


def shifted(groups: Groups, nats: list[float]) -> Groups:
    """Every prompt's beams less probable by so much."""
    return [
        [Beam(beam.tokens, beam.logprob - less) for beam in group] for group, less in zip(groups, nats, strict=True)
    ]


@pytest.mark.parametrize(
    ("nats", "accepted"),
    [
        ([4.1, 0.0, -2.1, 0.0], True),  # what large vocabularies do
        ([-4.1, 0.3, 0.0, 0.0], True),
        ([0.4, 0.45, 0.5, 0.4], True),
        ([0.6, 0.7, 0.6, 0.65], False),
        ([3.0, 3.5, 2.5, 3.2], False),
        ([-3.0, -3.5, -2.5, -3.2], False),
        ([0.6], False),
        ([0.4], True),
        ([math.nan, 0.0], False),
    ],
)
def test_bf16_may_be_better_here_and_worse_there(nats: list[float], accepted: bool) -> None:
    groups = [[Beam((2, 3), -20.0), Beam((2, 4), -21.0)] for _ in nats]
    assert (worse_on_average(groups, shifted(groups, nats)) == []) == accepted


@pytest.mark.parametrize(("share", "accepted"), [(1.4, True), (1.6, False)])
def test_bf16_may_be_off_as_far_as_transformers_own_pass_in_bf16_is(
    share: float, accepted: bool, workload: Workload, beams: Groups
) -> None:
    """A deep model's rounding moves every beam to one side; here large logits do."""
    deep = copy.deepcopy(workload.model)
    with torch.no_grad():
        deep.transformer.ln_f.weight *= 300
    prompts, tokens = workload.prompts, beams[0][0].tokens
    exact = score(deep, prompts[0], tokens)
    off = share * abs(score(copy.deepcopy(deep).bfloat16(), prompts[0], tokens) - exact)
    assert off > 1.0, "the usual bound would do"
    reference, found = [[Beam(tokens, exact)]], [[Beam(tokens, exact + off)]]
    case = replace(CASE, prompts=1, beam_width=1)
    problems = compare(ENGINES["bgrpo-bf16"], case, deep, prompts[:1], reference, found).problems
    assert (problems == []) == accepted


def test_beams_with_equal_scores_may_be_others(workload: Workload, beams: Groups) -> None:
    first, *others = beams[0]
    twin = [[Beam((9,) * CASE.new_tokens, first.logprob + 1e-4), *others], beams[1]]
    assert differing_share(twin, beams) == 1 / 8
    assert problems("loop", workload, twin, beams) == []


def test_scores_that_are_not_numbers_are_a_disagreement(workload: Workload, beams: Groups) -> None:
    broken = [[Beam(beam.tokens, float("nan")) for beam in group] for group in beams]
    assert problems("generate", workload, beams, broken)


def test_share_of_beams_that_differ() -> None:
    ours = [[Beam((1,), -1.0), Beam((2,), -2.0)], [Beam((3,), -1.0), Beam((4,), -2.0)]]
    theirs = [[Beam((2,), -2.0), Beam((9,), -2.0)], [Beam((4,), -2.0), Beam((3,), -1.0)]]
    assert differing_share(ours, theirs) == 0.25


def _sampled(workload: Workload, temperature: float, seed: int) -> Groups:
    """Samples with their true log-probabilities, drawn token by token with the standard library."""
    from reference.beam_oracle import next_logprobs

    draw = random.Random(seed)
    groups = []
    for prompt in workload.prompts:
        after, group = next_logprobs(workload.model, prompt), []
        for _ in range(SAMPLING.beam_width):
            tokens: tuple[int, ...] = ()
            total = 0.0
            for _ in range(SAMPLING.new_tokens):
                logps = after(tokens)
                weights = [2.718281828 ** (logp / temperature) for logp in logps]
                token = draw.choices(range(len(logps)), weights)[0]
                tokens, total = (*tokens, token), total + logps[token]
            group.append(Beam(tokens, total))
        groups.append(group)
    return groups


def test_samples_of_another_temperature_are_caught(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, same, colder = (_sampled(workload, t, seed) for t, seed in ((1.0, 0), (1.0, 1), (0.2, 2)))
    spec = ENGINES["generate"]
    prompts = workload.prompts
    assert compare(spec, SAMPLING, workload.model, prompts, reference, same).problems == []
    assert "mean log-probability of the samples differs" in "; ".join(
        compare(spec, SAMPLING, workload.model, prompts, reference, colder).problems
    )


class _Altered(Engine):
    """An engine whose completions are changed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def decode(self, prompts: Prompts, new_tokens: int) -> object:
        return self._engine.decode(prompts, new_tokens)

    def completions(self, prompts: Prompts, new_tokens: int) -> Groups:
        return _worse_beam(self._engine.completions(prompts, new_tokens))


def test_a_wrong_engine_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(spec: EngineSpec, *arguments: object) -> Engine:
        engine = make_engine(spec, *arguments)  # type: ignore[arg-type]
        return _Altered(engine) if spec.name == "loop" else engine

    def interleave(*arguments: object) -> None:
        raise AssertionError("must not be timed")

    monkeypatch.setattr(timed_case, "make_engine", make)
    monkeypatch.setattr(timed_case, "interleave", interleave)
    with pytest.raises(DisagreementError, match=r"tiny-2x4: .* so nothing was timed: loop: 12.5% of the beams differ"):
        measure_case("tiny-2x4", ["bgrpo", "loop"], 1, 1.0, 100.0, lambda: None)


def test_rows_of_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []
    rows = measure_case("tiny-2x4", ["bgrpo", "generate", "loop"], 2, 5.0, 100.0, lambda: turns.append(1))
    assert [row["engine"] for row in rows] == ["bgrpo", "generate", "loop"]
    assert len(turns) == 3 * (1 + 2)
    for row in rows:
        assert row["skipped"] is None
        assert row["rounds"] == 2
        assert row["sequences_per_round"] == 8
        assert row["beams_differing"] == 0
    assert rows[1]["ratio_to_generate"] == 1


def test_a_slow_engine_is_left_out_and_said() -> None:
    (row,) = measure_case("tiny-2x4", ["loop"], 1, 1.0, 1e-9, lambda: None)
    assert "the limit is 0 s" in row["skipped"]
    assert row["sequences_per_s"] is None


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda package: None)
    for case, engine in (("tiny-2x4", "ctranslate2"), ("tiny-llama-2x4", "openvino-genai")):
        (row,) = measure_case(case, [engine], 1, 1.0, 100.0, lambda: None)
        assert row["skipped"] == f"{engine} is not installed: pip install 'bgrpo[bench]'"


def test_one_prompt_engines_decode_what_fits_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    class Counting(_Altered):
        def completions(self, prompts: Prompts, new_tokens: int) -> Groups:
            decoded.append(len(prompts))
            return self._engine.completions(prompts, new_tokens)

    def make(spec: EngineSpec, *arguments: object) -> Engine:
        engine = make_engine(spec, *arguments)  # type: ignore[arg-type]
        return Counting(engine) if spec.name == "loop" else engine

    monkeypatch.setattr(timed_case, "make_engine", make)
    monkeypatch.setattr(timed_case, "TURN_S", 1e-9)
    (row,) = measure_case("tiny-2x4", ["loop"], 1, 1.0, 100.0, lambda: None)
    assert decoded == [1]
    assert row["sequences_per_round"] == CASE.beam_width
