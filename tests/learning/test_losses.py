"""TRL's losses and what is added to them, each against its formula written out row by row, in float64.

The gradient of the first update tests a ratio of 1, those of the second pass other ratios, some of them clipped. Cuts
are of one group each, so that losses which average over rows are put together from unequal parts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import (
    ScriptedSource,
    flat_gradient,
    make_trainer,
    row_logps,
    tiny_policy,
    train_config,
)
from loss_by_rows import CLIPPING, kl_terms, written_out_loss
from torch import Tensor
from transformers import PreTrainedModel

from bgrpo.errors import UserError
from bgrpo.groups import Completion, ScoredGroup
from bgrpo.learning.trl_arguments import grpo_arguments
from bgrpo.scoring.siblings import sibling_advantages
from bgrpo.scoring.without_replacement import inclusion_weights

LONGEST = 8
LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")
CASES: dict[str, dict[str, Any]] = {
    **{loss: {"loss": loss} for loss in LOSSES},
    **{f"{loss}, cut off left out": {"loss": loss, "mask_truncated": True} for loss in ("grpo", "dr_grpo", "dapo")},
    "GSPO": {"loss": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02, "epsilon_high": 0.03},
    "sequence ratios, token mean": {"loss": "dapo", "importance_sampling_level": "sequence", "epsilon": 0.02},
    "cispo of completions": {"loss": "cispo", "importance_sampling_level": "sequence", "epsilon_high": 1.01},
    "sapo of completions": {"loss": "sapo", "importance_sampling_level": "sequence"},
    "clip higher": {"loss": "dapo", "epsilon": 0.05, "epsilon_high": 0.6},
    "two-sided clip": {"loss": "grpo", "epsilon": 0.1, "delta": 1.2},
    "cispo, tight": {"loss": "cispo", "epsilon_high": 1.05},
    "sapo, temperatures": {"loss": "sapo", "sapo": {"temperature_pos": 2.0, "temperature_neg": 3.0}},
    "vespo, parameters": {
        "loss": "vespo",
        "vespo": {"k_pos": 1.0, "lambda_pos": 2.0, "k_neg": 2.0, "lambda_neg": 1.5},
    },
    **{f"k1, {loss}": {"loss": loss, "kl_estimator": "k1", "beta": 0.3} for loss in ("dapo", "dr_grpo", "luspo")},
    **{f"k2, {loss}": {"loss": loss, "kl_estimator": "k2", "beta": 0.3} for loss in ("dapo", "grpo", "bnpo")},
    "k3, corrected": {"loss": "dapo", "kl_bias_correction": True, "beta": 0.3},
    "k3, corrected by completion": {
        "loss": "grpo", "kl_bias_correction": True, "beta": 0.3, "importance_sampling_level": "sequence",
    },
    **{f"entropy bonus, {loss}": {"loss": loss, "entropy_coef": 0.2} for loss in ("dapo", "grpo", "bnpo")},
    **{f"top entropy, {loss}": {"loss": loss, "top_entropy_quantile": 0.3} for loss in ("dapo", "grpo", "vespo")},
    "both": {"loss": "sapo", "top_entropy_quantile": 0.5, "entropy_coef": 0.2, "mask_truncated": True},
}  # fmt: skip


def drawn(source: ScriptedSource) -> list[ScoredGroup]:
    step, version, indices, draw = source.asked[0]
    return [source.group(step, index, draw, version) for index in indices]


def centred(groups: list[ScoredGroup], charge: list[list[float]] | None = None) -> list[list[float]]:
    """Advantages of kind mean, from rewards less what is charged."""
    rewards = [[reward for reward in group.rewards if reward is not None] for group in groups]
    if charge is not None:
        rewards = [[r - c for r, c in zip(*pair, strict=True)] for pair in zip(rewards, charge, strict=True)]
    return [[reward - sum(group) / len(group) for reward in group] for group in rewards]


class FarRollouts(ScriptedSource):
    """Whose log-probs lie on both sides of the policy's."""

    def _completion(self, rng: random.Random, stem: Sequence[int]) -> Completion:
        plain = super()._completion(rng, stem)
        return replace(plain, logprobs=[6 * value for value in plain.logprobs])


def trained(
    tmp_path: Path, options: dict[str, Any], **sections: Any
) -> tuple[Any, ScriptedSource, list[dict[str, float]]]:
    """One step of two passes over two minibatches, in cuts of one group."""
    learner = {"num_iterations": 2, "minibatches": 2, "micro_groups": 1, "max_kl": 1e6, "learning_rate": 0.02}
    config = train_config(steps=1, learner=learner | options, **sections)
    source, steps = FarRollouts(cut_off=0.3), []
    trainer = make_trainer(
        config, source, tmp_path, policy=tiny_policy().double(), reference=tiny_policy(seed=1).double(),
        on_step=steps.append,
    )  # fmt: skip
    trainer.run()
    assert len(trainer.gradients) == 4
    return trainer, source, steps


def policy_with(weights: Tensor) -> PreTrainedModel:
    policy = tiny_policy().double()
    torch.nn.utils.vector_to_parameters(weights.clone(), policy.parameters())
    return policy


def assert_gradients(
    trainer: Any, groups: list[ScoredGroup], values: list[list[Any]], options: dict[str, Any], **more: Any
) -> None:
    """Of the first update, and of the last, in the second pass."""
    start, reference = tiny_policy().double(), tiny_policy(seed=1).double()
    for update in (0, 3):
        policy, part = policy_with(trainer.starts[update]), update % 2
        written_out_loss(
            policy, groups[part::2], values[part::2], {"loss": "dapo"} | options, old=start, reference=reference,
            longest=LONGEST, **more,
        ).backward()  # fmt: skip
        wanted = flat_gradient(policy)
        assert (trainer.gradients[update] - wanted).norm() < 1e-5 * wanted.norm(), f"update {update}"


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_every_gradient_is_that_of_the_loss_written_out(tmp_path: Path, options: dict[str, Any]) -> None:
    trainer, source, steps = trained(tmp_path, options)
    groups = drawn(source)
    assert {completion.finished for group in groups for completion in group.completions} == {True, False}
    assert_gradients(trainer, groups, centred(groups), options)
    if options["loss"] in (*CLIPPING, "cispo"):
        assert "clip_fraction" in steps[0]
        tight = options.get("epsilon", 1) < 0.2 or options.get("epsilon_high", 9) < 2
        assert not tight or 0 < steps[0]["clip_fraction"] < 1


@pytest.mark.parametrize("loss", ["dapo", "grpo", "cispo"])
def test_tokens_that_are_judged_apart_have_their_own_advantages(tmp_path: Path, loss: str) -> None:
    """In the packed update too, where completions share tokens: one advantage is not another's."""
    trainer, source, _ = trained(tmp_path, {"loss": loss}, advantage={"kind": "sibling"})
    groups, values = drawn(source), []
    for group in groups:
        weights = inclusion_weights(np.array([completion.logprob for completion in group.completions]), None)
        tokens = [completion.tokens for completion in group.completions]
        values.append([torch.tensor(of) for of in sibling_advantages(tokens, group.rewards, weights)])
    assert any(len(set(of.tolist())) > 2 for group in values for of in group)
    assert_gradients(trainer, groups, values, {"loss": loss})


def test_the_loss_by_default_is_the_token_mean() -> None:
    plain = grpo_arguments(train_config(), Path("x"), 1)
    assert (plain.loss_type, plain.importance_sampling_level, plain.epsilon_high) == ("dapo", "token", plain.epsilon)
    assert train_config(learner={"loss": "dapo"}) == train_config()


@pytest.mark.parametrize("estimator", [None, "k1", "k2", "k3"])
def test_the_kl_in_the_reward_is_charged_to_each_completion(tmp_path: Path, estimator: str | None) -> None:
    options = {"kl_in_reward": True, "kl_estimator": estimator, "beta": 0.5}
    trainer, source, steps = trained(tmp_path, options)
    groups, reference = drawn(source), tiny_policy(seed=1).double()
    kls = []
    for group in groups:
        with torch.no_grad():
            references = [row_logps(reference, group.prompt_ids, each.tokens) for each in group.completions]
        chosen = [torch.tensor(each.logprobs).double() for each in group.completions]
        by_token = [
            kl_terms(new, ref, new, {"kl_estimator": estimator or "k1"})
            for new, ref in zip(chosen, references, strict=True)
        ]
        kls.append([float(of_tokens.sum()) for of_tokens in by_token])
    values = centred(groups, [[0.5 * kl for kl in group] for group in kls])
    assert_gradients(trainer, groups, values, options)
    every = [kl for group in kls for kl in group]
    assert steps[0]["kl_in_reward"] == pytest.approx(sum(every) / len(every), rel=1e-5)
    assert steps[0]["kl"] > 0, "the KL is still watched"
    raw = [reward for group in groups for reward in group.rewards if reward is not None]
    assert steps[0]["reward_mean"] == pytest.approx(sum(raw) / len(raw)), "what is reported is the task's reward"


CORRECTIONS: dict[str, dict[str, Any]] = {
    "TIS": {"kind": "truncate", "high": 1.5},
    "TIS of completions": {"kind": "truncate", "level": "sequence", "high": 2.0},
    "IcePop": {"kind": "mask", "low": 0.5, "high": 5.0},
    "masked completions": {"kind": "mask", "level": "sequence", "low": 0.1, "high": 3.0},
}


@pytest.mark.parametrize(
    ("name", "loss", "staleness"),
    [
        *((name, "dapo", 0) for name in CORRECTIONS),
        *((name, "grpo", 1) for name in CORRECTIONS),
        ("TIS", "luspo", 0),
        ("masked completions", "luspo", 0),
        ("TIS", "vespo", 0),
        ("IcePop", "vespo", 0),
    ],
)
def test_the_mismatch_with_the_rollouts_is_weighed(tmp_path: Path, name: str, loss: str, staleness: int) -> None:
    """The scripted log-probs are far from the policy's, so that many ratios are bounded."""
    correction = CORRECTIONS[name]
    options = {"loss": loss, "rollout_correction": correction}
    trainer, source, steps = trained(tmp_path, options, rollout={"max_staleness": staleness})
    low, high = correction.get("low", 0.0), correction["high"]
    seen: list[Tensor] = []

    def weights(old: Tensor, rollout: Tensor) -> Tensor:
        difference = old - rollout
        ratio = (difference.sum() if correction.get("level") == "sequence" else difference).exp().expand(len(old))
        seen.append(ratio if correction.get("level") != "sequence" else ratio[:1])
        inside = (ratio >= low) & (ratio <= high)
        if correction["kind"] == "mask":
            return torch.where(inside, ratio, 1e-8 if loss == "vespo" else 0.0)  # vespo's logarithm has a floor
        return ratio.clamp(low, high)

    groups = drawn(source)
    assert_gradients(trainer, groups, centred(groups), options, weights=weights)
    start = tiny_policy().double()
    seen.clear()
    written_out_loss(
        start, groups, centred(groups), options, old=start, reference=start, longest=LONGEST, weights=weights
    )
    ratios = torch.cat(seen)
    outside = ((ratios < low) | (ratios > high)).double().mean()
    assert 0 < outside < 1
    assert steps[0]["mismatch/outside"] == pytest.approx(float(outside))
    assert steps[0]["mismatch/ratio_mean"] == pytest.approx(float(ratios.mean()), rel=1e-5)
    assert steps[0]["mismatch/ratio_max"] == pytest.approx(float(ratios.max()), rel=1e-5)
    assert steps[0]["mismatch/kl"] > 0


def test_a_step_whose_completions_were_all_cut_off_moves_nothing(tmp_path: Path) -> None:
    for loss in LOSSES:
        options = {"loss": loss, "mask_truncated": True, "entropy_coef": 0.1, "top_entropy_quantile": 0.5}
        source = ScriptedSource(cut_off=1.0)
        make_trainer(train_config(steps=1, learner=options), source, tmp_path).run()
        assert torch.equal(source.weights[0], source.weights[1]), loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "gspo"}, "'gspo': expected bnpo, cispo"),
        ({"loss": "sapo", "epsilon": 0.1}, r"epsilon=0\.1: loss=sapo has no lower clip"),
        ({"loss": "cispo", "epsilon": 0.1}, r"epsilon=0\.1: loss=cispo has no lower clip"),
        ({"loss": "cispo", "epsilon_high": 0.3}, r"epsilon_high=0\.3: of loss=cispo it is the largest ratio itself"),
        ({"loss": "vespo", "epsilon_high": 0.3}, r"epsilon_high=0\.3: loss=vespo has no clip"),
        ({"loss": "cispo", "delta": 3.0}, r"delta=3: loss=cispo does not clip ratios"),
        ({"delta": 1.1}, r"delta=1\.1 must lie above 1 \+ epsilon_high = 1\.2"),
        ({"sapo": {"temperature_pos": 2.0}}, "sapo holds options of loss=sapo, but loss=dapo"),
        ({"loss": "sapo", "vespo": {"k_pos": 1.0}}, "vespo holds options of loss=vespo, but loss=sapo"),
        ({"loss": "luspo", "importance_sampling_level": "token"}, "loss=luspo is defined on sequence ratios"),
        ({"loss": "vespo", "importance_sampling_level": "sequence"}, "loss=vespo makes its own weight"),
        ({"beta": 0.0, "kl_in_reward": True}, "kl_in_reward=True needs a KL: beta=0"),
        ({"beta": 0.0, "kl_estimator": "k2"}, "kl_estimator=k2 needs a KL"),
        ({"beta": 0.0, "reference": {"sync_every": 5}}, r"reference\.sync_every=5 needs a KL"),
        ({"reference": {"mixing": 0.5}}, r"reference\.mixing=0\.5 needs reference\.sync_every"),
        ({"kl_bias_correction": True, "kl_estimator": "k1"}, "kl_bias_correction is of the k3 estimate"),
        ({"kl_bias_correction": True, "kl_in_reward": True}, "kl_bias_correction is of the k3 estimate"),
        ({"rollout_correction": {"high": 2.0}}, "kind=none: set kind=truncate or mask"),
        (
            {"loss": "vespo", "rollout_correction": {"kind": "mask", "level": "sequence"}},
            "loss=vespo takes ratios of tokens only",
        ),
        ({"optimizer": "sgd", "adam_beta2": 0.9}, r"adam_beta2=0\.9: optimizer=sgd has no such moment"),
    ],
)
def test_options_that_cannot_apply_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^test: learner\b.*{message}"):
        train_config(learner=options)
