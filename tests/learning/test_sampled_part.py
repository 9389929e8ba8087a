"""Samples from a part of the distribution, and policies that cannot write some tokens: what is learned from them.

Everything is enumerated: the sequences that can be drawn, their probabilities by the warpers of transformers, and the
gradient of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding.test_truncation import cut_off
from decoding.tiny_models import tiny_model
from learner_cases import EOS, PAD, TOKENIZER, VOCABULARY, make_trainer, row_logps, tiny_policy, train_config
from reference.beam_oracle import next_logprobs
from torch import Tensor
from transformers import PreTrainedModel

from bgrpo.decoding import DecodeEngine
from bgrpo.decoding.allowed import AllowedCompletions
from bgrpo.decoding.token_mask import AllowedMask, CompletionMask, TokenMask
from bgrpo.errors import UserError
from bgrpo.groups import ScoredGroup, Verdict
from bgrpo.learning.forward_pass import Scoring
from bgrpo.learning.packing import pack_groups
from bgrpo.learning.padded_rows import pad_groups
from bgrpo.learning.rollout_source import decode_settings

LONGEST = 3
PROMPT = [5, 9]
NO_KL: dict[str, Any] = {"beta": 0.0, "loss": "dr_grpo", "max_kl": 1e6}


def reward_of(tokens: Sequence[int]) -> float:
    """Some number of 0 to 2."""
    return (sum((place + 2) * token for place, token in enumerate(tokens)) % 7) / 3


class Decoding:
    """Decodes with the published policy, and pays by :func:`reward_of`."""

    def __init__(self, seed: int = 0) -> None:
        self.config: Any = None  # of the run; make_trainer sets it
        self.seed = seed
        self.groups: list[ScoredGroup] = []

    def publish(self, version: int, model: PreTrainedModel) -> None:
        self.model = model

    def prefetch(self, step: int, version: int, indices: list[int]) -> None: ...

    def collect(self, step: int, version: int, indices: list[int], draw: int) -> list[ScoredGroup]:
        engine = DecodeEngine(self.model, engine=self.config.rollout.engine)
        prompts = [[*PROMPT, 2 + index] if index else PROMPT for index in indices]
        decoded = engine.decode(prompts, decode_settings(self.config, TOKENIZER), [self.seed + i for i in indices])
        self.groups = []
        for index, group in zip(indices, decoded, strict=True):
            rewards = [reward_of(completion.tokens) for completion in group.completions]
            completions = [
                replace(each, verdict=Verdict("scored", reward))
                for each, reward in zip(group.completions, rewards, strict=True)
            ]
            self.groups.append(ScoredGroup(group.prompt_ids, completions, list(rewards), index, version))
        return self.groups


def first_gradient(tmp_path: Path, samples: int, **learner: Any) -> Tensor:
    """Of the first update, from one prompt whose samples are drawn from the three likeliest tokens, less the least."""
    config = train_config(
        algorithm="grpo",
        steps=1,
        advantage={"kind": "none"},
        learner=NO_KL | learner,
        rollout={
            "top_k": 3, "min_p": 0.02, "temperature": 1.5, "group_size": samples, "prompts_per_step": 1,
            "max_new_tokens": LONGEST,
        },
    )  # fmt: skip
    trainer = make_trainer(config, Decoding(), tmp_path, problems=1)
    trainer.run()
    return trainer.gradients[0].double()


def exact_gradient(directions: Tensor, samples: int, corrected: bool) -> tuple[Tensor, Tensor]:
    """Mean of the update's gradient along each direction where samples are weighed so, and its standard error."""
    policy = tiny_policy().double()
    after = next_logprobs(policy, PROMPT)
    part = _part(cut_off(after, 1.5, top_k=3, top_p=1.0, min_p=0.02))
    assert len(part) > 15 and sum(map(math.exp, part.values())) == pytest.approx(1)
    means, squares = torch.zeros(len(directions), dtype=torch.float64), torch.zeros(len(directions)).double()
    for tokens, drawn in part.items():
        policy.zero_grad()
        logp = row_logps(policy, PROMPT, list(tokens), 1.5).sum()
        logp.backward()
        gradient = torch.cat([parameter.grad.reshape(-1) for parameter in policy.parameters()])
        weight = math.exp(float(logp.detach()) - drawn) if corrected else 1.0
        along = directions @ (-weight * reward_of(tokens) * gradient / LONGEST)
        means += math.exp(drawn) * along
        squares += math.exp(drawn) * along**2
    return means, ((squares - means**2) / samples).sqrt()


def _part(after: Any) -> dict[tuple[int, ...], float]:
    """Every sequence that can be drawn, with its log-probability there."""
    found: dict[tuple[int, ...], float] = {}
    beginnings: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    while beginnings:
        before, score = beginnings.pop()
        for token, logp in enumerate(after(before)):
            if logp > -math.inf:
                longer = ((*before, token), score + logp)
                if token == EOS or len(before) + 1 == LONGEST:
                    found[longer[0]] = longer[1]
                else:
                    beginnings.append(longer)
    return found


def test_the_weighed_gradient_has_no_bias_and_the_unweighed_one_has(tmp_path: Path) -> None:
    """Weights of whole completions: the expectation is the sum of π(x) r(x) ∇ log π(x) over what can be drawn."""
    samples, size = 3000, sum(parameter.numel() for parameter in tiny_policy().parameters())
    directions = torch.randn(8, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted, error = exact_gradient(directions, samples, corrected=True)
    weighed = first_gradient(tmp_path, samples, rollout_correction={"level": "sequence"})
    assert ((directions @ weighed - wanted).abs() < 3 * error).all()
    unweighed = first_gradient(tmp_path, samples, rollout_correction={"kind": "none"})
    assert ((directions @ unweighed - wanted).abs() / error).max() > 12, "the test must notice that weights are missing"
    biased, its_error = exact_gradient(directions, samples, corrected=False)
    assert ((directions @ unweighed - biased).abs() < 3 * its_error).all()


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("kind", [None, "truncate", "none"])
def test_what_the_weights_are_is_logged(tmp_path: Path, level: str, kind: str | None) -> None:
    """Without older weights or rounding, a token's weight is the probability of all that it was drawn from."""
    correction: dict[str, Any] = {"kind": kind} | ({} if kind == "none" else {"level": level, "low": 0.6})
    config = train_config(
        algorithm="grpo", steps=1, learner=NO_KL | {"rollout_correction": correction}, rollout={"top_p": 0.7}
    )
    source, steps = Decoding(), []
    make_trainer(config, source, tmp_path, on_step=steps.append).run()
    log_ratios = [
        torch.tensor(each.logprobs) - torch.tensor(each.sampled_logprobs)
        for g in source.groups
        for each in g.completions
    ]
    if level == "sequence" and kind != "none":
        log_ratios = [values.sum().view(1) for values in log_ratios]
    ratios = torch.cat(log_ratios).exp().double()
    weights = ratios if kind == "none" else ratios.clamp(min=0.6)
    assert ratios.max() < 1.0001 and ratios.min() < 0.9
    told = steps[0]
    assert told["mismatch/ratio_mean"] == pytest.approx(float(ratios.mean()), rel=1e-4)
    assert told["mismatch/weight_mean"] == pytest.approx(float(weights.mean()), rel=1e-4)
    assert told["mismatch/effective"] == pytest.approx(
        float(weights.sum() ** 2 / (weights.square().sum() * len(weights))), rel=1e-4
    )
    outside = float((ratios < 0.6).double().mean()) if kind != "none" else 0.0
    assert told["mismatch/outside"] == pytest.approx(outside, abs=1e-6)


@pytest.mark.parametrize("engine", ["tree", "plain"])
@pytest.mark.parametrize("algorithm", ["bgrpo", "grpo"])
def test_the_learner_scores_the_policy_that_cannot_write_some_tokens(
    tmp_path: Path, engine: str, algorithm: str
) -> None:
    """The ratio starts at 1 and the KL at 0, which a learner without the mask would miss by far."""
    rollout = {"engine": engine, "banned_tokens": [4, "t7", 9], "min_new_tokens": 3, "max_new_tokens": 5}
    rollout |= {"temperature": 1.3} if algorithm == "grpo" else {}
    config = train_config(
        algorithm=algorithm,
        steps=1,
        learner={"rollout_correction": {"kind": "truncate"}, "beta": 0.1, "entropy_coef": 0.1},
        rollout=rollout,
    )
    source, steps = Decoding(), []
    make_trainer(config, source, tmp_path, reference=tiny_policy(), on_step=steps.append).run()
    tokens = [each.tokens for group in source.groups for each in group.completions]
    assert not any({4, 7, 9}.intersection(each) or EOS in each[:3] for each in tokens)
    assert steps[0]["mismatch/ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert steps[0]["mismatch/ratio_max"] == pytest.approx(1, abs=1e-3)
    assert abs(steps[0]["kl"]) < 1e-6 and math.isfinite(steps[0]["entropy"]) and steps[0]["grad_norm"] > 0


@pytest.mark.parametrize("engine", ["tree", "plain"])
@pytest.mark.parametrize("search", ["beam", "sample", "stochastic_beam"])
def test_the_learner_scores_the_policy_that_can_only_write_some_completions(
    tmp_path: Path, engine: str, search: str
) -> None:
    items = [f"t{a} t{b}" for a in (3, 4, 9) for b in (5, 6)] + ["t4 t7 t8", "t30"]
    (tmp_path / "items.txt").write_text("\n".join(items) + "\n")
    config = train_config(
        algorithm="grpo",
        steps=1,
        learner={"rollout_correction": {"kind": "truncate"}, "beta": 0.1, "entropy_coef": 0.1},
        rollout={"engine": engine, "search": search, "allowed": str(tmp_path / "items.txt")},
    )
    source, steps = Decoding(), []
    make_trainer(config, source, tmp_path, reference=tiny_policy(), on_step=steps.append).run()
    written = {TOKENIZER.decode(each.tokens[:-1]) for group in source.groups for each in group.completions}
    assert written <= set(items) and len(written) > 2
    assert all(each.finished for group in source.groups for each in group.completions)
    assert steps[0]["mismatch/ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert abs(steps[0]["kl"]) < 1e-6 and steps[0]["grad_norm"] > 0
    assert 0 < steps[0]["entropy"] < math.log(4), "four tokens at most are allowed at a place"


ITEMS = [[7, 8, 1], [7, 9, 10, 2], [8, 11, 3, 1], [0, 3, 2], [4, 4, 4, 4, 1], [7, 8, 2], [4, 5, 1]]
MASKS: dict[str, tuple[CompletionMask, Callable[[list[int]], list[int]]]] = {
    "some tokens": (
        TokenMask(banned=(5, 6), ends=(1, 2), min_new_tokens=2),
        lambda before: [t for t in range(12) if t not in (5, 6) and (len(before) >= 2 or t not in (1, 2))],
    ),
    "some completions": (
        AllowedMask(AllowedCompletions.of(ITEMS)),
        lambda before: sorted({item[len(before)] for item in ITEMS if item[: len(before)] == before}),
    ),
}


@pytest.mark.parametrize("lay_out", [pack_groups, pad_groups])
@pytest.mark.parametrize("name", MASKS)
def test_masked_logprobs_entropies_and_gradients(lay_out: Any, name: str) -> None:
    model = tiny_model(vocabulary=12, seed=3).double()
    mask, allowed_after = MASKS[name]
    groups = [([3, 4], [[7, 8, 1], [7, 9, 10, 2], [8, 11]]), ([9], [[0, 3, 2], [4, 4, 4, 4]])]
    packed = lay_out(groups, "cpu")
    found_BC, entropies_BC = packed.logps(model, Scoring(1.4, mask, entropy_gradient=True))
    (found_BC.sum() + entropies_BC.sum()).backward()
    found = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])
    model.zero_grad()
    row, total = 0, torch.zeros(())
    for prompt, completions in groups:
        for completion in completions:
            logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1] / 1.4
            for place, token in enumerate(completion):
                allowed = allowed_after(completion[:place])
                of_place = torch.distributions.Categorical(logits=logits[place, allowed])
                logp = of_place.log_prob(torch.tensor(allowed.index(token)))
                assert float(found_BC[row, place]) == pytest.approx(float(logp), abs=1e-9)
                assert float(entropies_BC[row, place]) == pytest.approx(float(of_place.entropy()), abs=1e-9)
                total = total + logp + of_place.entropy()
            row += 1
    total.backward()
    wanted = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])
    assert torch.allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize(
    ("rollout", "learner", "message"),
    [
        (
            {"top_p": 0.9},
            {},
            r"top_p=0\.9: cuts off what independent samples are drawn from, but algorithm=bgrpo",
        ),
        ({"top_k": 5}, {}, r"rollout\.top_k=5: cuts off"),
        ({"min_p": 0.1}, {}, r"rollout\.min_p=0\.1: cuts off"),
        ({"top_p": 0.0}, {}, r"rollout\.top_p=0"),
        ({"min_p": 1.0}, {}, r"rollout\.min_p=1"),
        ({"stop": [""]}, {}, r"rollout\.stop"),
        ({"stop": "END"}, {}, r"rollout\.stop.*list"),
        ({"min_new_tokens": 9}, {}, r"min_new_tokens=9: expected at most max_new_tokens=8"),
        ({}, {"level": "sequence"}, "rollout_correction has bounds or a level, but kind=none"),
        ({}, {"kind": "none", "high": 2.0}, "rollout_correction has bounds or a level, but kind=none"),
    ],
)
def test_options_that_cannot_apply_are_refused(rollout: dict[str, Any], learner: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_config(rollout=rollout, learner={"rollout_correction": learner} if learner else {})


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        ({"banned_tokens": [VOCABULARY]}, r"^rollout\.banned_tokens=31: the policy's vocabulary has ids 0 to 30"),
        ({"banned_tokens": ["t2 t3"]}, r"^rollout\.banned_tokens='t2 t3': is 2 tokens of the policy's vocabulary"),
        ({"banned_tokens": ["⁇"]}, r"^banned_tokens: token 1 ends a completion"),
        ({"banned_tokens": list(range(VOCABULARY))}, r"^banned_tokens: token 1 ends a completion"),
        (
            {"banned_tokens": [PAD, *range(2, VOCABULARY)], "min_new_tokens": 1},
            "^banned_tokens are all 31 tokens of the vocabulary but those that end a completion",
        ),
        ({"stop": ["\ufffd"]}, "^stop: .* holds half of a character"),
        ({"allowed": "no/such/file"}, r"^rollout\.allowed=no/such/file: no such file"),
    ],
)
def test_what_the_tokenizer_cannot_do_is_refused(rollout: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        decode_settings(train_config(rollout=rollout), TOKENIZER)


def test_a_token_is_given_as_id_as_name_or_as_text() -> None:
    settings = decode_settings(train_config(rollout={"banned_tokens": ["t5", 7, " t9 ", "t5"]}), TOKENIZER)
    assert settings.banned_tokens == (5, 7, 9)
