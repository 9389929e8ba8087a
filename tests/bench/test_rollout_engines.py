"""The engines of the rollout benchmark against brute force in float64, and against a plain forward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from decoding.tiny_models import bias_token, ragged_prompts
from reference.beam_oracle import beam_search, next_logprobs

from bgrpo.bench.rollouts.agreement import score
from bgrpo.bench.rollouts.cases import ENGINES, EXTRA_CASES, OF_LANGUAGE_MODELS, SHAPES, Case
from bgrpo.bench.rollouts.decode_workload import EOS, PAD, Workload, build_workload, random_model
from bgrpo.bench.rollouts.engines import Engine, make_engine, missing_package

CASE = EXTRA_CASES["tiny-2x4"]
PEERS = ["bgrpo", "generate", "ctranslate2", "ctranslate2-batched", "loop"]
LANGUAGE_PEERS = [name for name in OF_LANGUAGE_MODELS if ENGINES[name].dtype == "fp32"]


def engine_of(name: str, workload: Workload, case: Case = CASE) -> Engine:
    if missing := missing_package(name):
        pytest.skip(missing)
    return make_engine(ENGINES[name], workload, case)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        *(("tiny-2x4", name) for name in PEERS),
        *((f"tiny-{family}-2x4", name) for family in ("llama", "qwen2") for name in LANGUAGE_PEERS),
    ],
)
def test_finds_the_beams_of_a_brute_force(case: str, name: str) -> None:
    """The model that it decodes is left as it was: the same object gives the oracle's log-probabilities afterwards."""
    chosen = EXTRA_CASES[case]
    workload = build_workload(chosen)
    found = engine_of(name, workload, chosen).completions(workload.prompts, chosen.new_tokens)
    for prompt, group in zip(workload.prompts, found, strict=True):
        expected = beam_search(next_logprobs(workload.model, prompt), chosen.beam_width, chosen.new_tokens, EOS)
        assert expected.margin > 1e-4, "too close a call for float32: choose another seed"
        assert dict(group) == pytest.approx(expected.scores, abs=1e-4)


def test_the_loop_keeps_ended_beams_in_their_slots() -> None:
    model = bias_token(random_model(SHAPES["tiny"]), EOS, 1.0)
    prompts = ragged_prompts(3, 19, seed=4)
    found = make_engine(ENGINES["loop"], Workload(model, prompts, EOS, PAD), CASE).completions(prompts, 8)
    lengths = set()
    for prompt, group in zip(prompts, found, strict=True):
        expected = beam_search(next_logprobs(model, prompt), CASE.beam_width, 8, EOS)
        assert dict(group) == pytest.approx(expected.scores, abs=1e-4)
        lengths |= {len(tokens) for tokens in expected.scores}
    assert len(lengths) > 1, "some beams must end before others"


@pytest.mark.parametrize("name", ["generate", "ctranslate2", "ctranslate2-batched"])
def test_peers_score_completions_that_end_with_their_end_token(name: str) -> None:
    model = bias_token(random_model(SHAPES["tiny"]), EOS, 1.0)
    prompts = [[2, 3], *ragged_prompts(3, 19, seed=4)[1:]]  # CTranslate2 repeats beams after a prompt of one token
    found = engine_of(name, Workload(model, prompts, EOS, PAD)).completions(prompts, 8)
    ended = [beam.tokens[-1] == EOS for group in found for beam in group]
    assert any(ended)
    for prompt, group in zip(prompts, found, strict=True):
        assert len({beam.tokens for beam in group}) == CASE.beam_width
        for beam in group:
            assert EOS not in beam.tokens[:-1]
            assert beam.logprob == pytest.approx(score(model, prompt, beam.tokens), abs=1e-4)


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        *(("tiny", name) for name in ("bgrpo", "generate", "ctranslate2")),
        *(("tiny qwen2", name) for name in LANGUAGE_PEERS),
    ],
)
def test_samples_carry_their_own_log_probability(shape: str, name: str) -> None:
    case = EXTRA_CASES["tiny-sample-2x4"]
    model = bias_token(random_model(SHAPES[shape]), EOS, 1.0)
    prompts = [[2, 3], *ragged_prompts(4, 19, seed=4)[1:]]  # CTranslate2 takes no prompt of one token apart
    found = engine_of(name, Workload(model, prompts, EOS, PAD), case).completions(prompts, 8)
    assert len({beam.tokens for group in found for beam in group}) > 4, "samples must differ"
    for prompt, group in zip(prompts, found, strict=True):
        assert len(group) == case.beam_width
        for beam in group:
            assert beam.logprob == pytest.approx(score(model, prompt, beam.tokens), abs=1e-4)


def test_bf16_leaves_the_model_of_the_others_alone() -> None:
    workload = build_workload(CASE)
    before = [parameter.clone() for parameter in workload.model.parameters()]
    found = make_engine(ENGINES["bgrpo-bf16"], workload, CASE).completions(workload.prompts, CASE.new_tokens)
    exact = make_engine(ENGINES["bgrpo"], workload, CASE).completions(workload.prompts, CASE.new_tokens)
    assert all(torch.equal(a, b) for a, b in zip(before, workload.model.parameters(), strict=True))
    shared = [
        (beam.logprob, dict(ours)[beam.tokens])
        for ours, theirs in zip(exact, found, strict=True)
        for beam in theirs
        if beam.tokens in dict(ours)
    ]
    assert len(shared) >= 4
    assert 0 < max(abs(rounded - full) for rounded, full in shared) < 0.3


def test_workload_is_the_same_every_time_and_never_ends() -> None:
    first, second = build_workload(CASE), build_workload(CASE)
    assert first.prompts == second.prompts
    assert [len(prompt) for prompt in first.prompts] == [CASE.prompt_tokens] * CASE.prompts
    for (name, a), (_, b) in zip(first.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    shipped = build_workload(replace(CASE, model="shipped")).model
    assert shipped.get_output_embeddings().weight is shipped.get_input_embeddings().weight, "tied, as before"
    with torch.inference_mode():
        logits = first.model(torch.tensor(first.prompts)).logits
    assert logits.softmax(-1)[..., EOS].max() == 0
    spread = logits[..., 2:].softmax(-1).max(-1).values.median()
    assert spread > 2 / 19, "distributions far from uniform"


def test_the_shipped_policy_gets_problems_of_its_own() -> None:
    case = replace(CASE, model="shipped", prompt_tokens=None, prompts=5)
    workload = build_workload(case)
    assert len(workload.prompts) == 5
    assert len({len(prompt) for prompt in workload.prompts}) > 1
    assert all(prompt[-1] == workload.eos_token_id for prompt in workload.prompts), "the separator, which also ends"
    group = make_engine(ENGINES["bgrpo"], workload, case).completions(workload.prompts, 24)[0]
    assert group[0].tokens[-1] == workload.eos_token_id
