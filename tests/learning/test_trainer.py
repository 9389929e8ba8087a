from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding.tiny_models import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import (
    EOS,
    PAD,
    TOKENIZER,
    VOCABULARY,
    ScriptedSource,
    flat_gradient,
    flat_weights,
    make_trainer,
    row_by_row_loss,
    row_logps,
    scored,
    tiny_policy,
    train_config,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from trl import GRPOTrainer

from bgrpo.errors import DivergenceError, UserError
from bgrpo.groups import Completion, ScoredGroup
from bgrpo.learning.packing import pack_groups
from bgrpo.learning.trl_arguments import learning_rate_factor
from bgrpo.runs.checkpoints import CheckpointStore


def written_out(kind: str, groups: list[ScoredGroup], rewards: list[torch.Tensor]) -> list[list[float]]:
    """Each advantage by its formula, in torch, sharing no code with the package."""
    values = []
    for group, reward in zip(groups, rewards, strict=True):
        centred, size = reward - reward.mean(), len(reward)
        if kind == "std":
            centred = centred / (reward.std() + 1e-4)
        elif kind == "batch":
            centred = centred / (torch.cat(rewards).std() + 1e-4)
        elif kind == "none":
            centred = reward
        elif kind == "leave_one_out":
            centred = reward - (reward.sum() - reward) / (size - 1)
        elif kind == "probability_weighted":
            weight = torch.tensor([sum(c.logprobs) for c in group.completions], dtype=torch.float64).softmax(0)
            centred = size * weight * (reward - (weight * reward).sum())
        values.append(centred.tolist())
    return values


def rewards_of(groups: list[ScoredGroup], algorithm: str, tau: float = 5.0) -> list[torch.Tensor]:
    """Rank rewards for beams, 1 and 0 for samples."""
    ranks = [torch.arange(len(group.outcomes), dtype=torch.float64) for group in groups]
    right = [torch.tensor([outcome == "correct" for outcome in group.outcomes]) for group in groups]
    scale = [torch.exp(-rank / tau) if algorithm == "bgrpo" else torch.ones_like(rank) for rank in ranks]
    return [mask * reward for mask, reward in zip(right, scale, strict=True)]


def drawn(source: ScriptedSource) -> list[ScoredGroup]:
    """The groups of the first step."""
    step, version, indices, draw = source.asked[0]
    return [source.group(step, index, draw, version) for index in indices]


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        *itertools.product(
            ["bgrpo", "grpo"], ["mean", "std", "batch", "none", "leave_one_out", "probability_weighted"]
        ),
        ("reinforce", "leave_one_out"),
        ("reinforce", "none"),
    ],
)
def test_gradient_is_that_of_the_loss_written_out_row_by_row(tmp_path: Path, algorithm: str, kind: str) -> None:
    source, reference = ScriptedSource(), tiny_policy(seed=1)
    config = train_config(steps=1, algorithm=algorithm, advantage={"kind": kind}, learner={"beta": 0.05})
    trainer = make_trainer(config, source, tmp_path, reference=reference)
    trainer.run()

    policy, groups = tiny_policy(), drawn(source)
    values = written_out(kind, groups, rewards_of(groups, algorithm))
    row_by_row_loss(policy, groups, values, beta=0.05, reference=reference).backward()
    assert relative_error(trainer.gradients[0], flat_gradient(policy)) < 1e-5


@pytest.mark.parametrize(("iterations", "minibatches"), [(1, 2), (3, 1), (2, 2)])
def test_every_update_of_a_step_is_that_of_a_plain_loop(tmp_path: Path, iterations: int, minibatches: int) -> None:
    """Old log-probs are the rollout policy's in every pass; the parts of a pass are its groups 0::m, 1::m, …"""
    learner = {"num_iterations": iterations, "minibatches": minibatches, "beta": 0.05, "adam_beta2": 0.95}
    config, source = train_config(steps=1, learner=learner | {"learning_rate": 0.02}), ScriptedSource()
    trainer = make_trainer(config, source, tmp_path, policy=tiny_policy().double())
    trainer.run()

    policy, start = tiny_policy().double(), tiny_policy().double()
    groups = drawn(source)
    values = written_out("mean", groups, rewards_of(groups, "bgrpo"))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.02, betas=(0.9, 0.95), weight_decay=0.0)
    expected = []
    for _, part in itertools.product(range(iterations), range(minibatches)):
        some, some_values = groups[part::minibatches], values[part::minibatches]

        def old(g: int, k: int, some: list[ScoredGroup] = some) -> torch.Tensor:
            return row_logps(start, some[g].prompt_ids, some[g].completions[k].tokens).detach()

        optimizer.zero_grad()
        row_by_row_loss(policy, some, some_values, beta=0.05, reference=start, old=old).backward()
        expected.append(flat_gradient(policy))
        optimizer.step()
    assert len(trainer.gradients) == len(expected)
    for gradient, wanted in zip(trainer.gradients, expected, strict=True):
        assert relative_error(gradient, wanted) < 1e-6
    # Adam turns rounding noise into full steps where the gradient is 0 by symmetry (biases of keys)
    real = torch.stack(expected).abs().amin(0) > 1e-6
    assert real.float().mean() > 0.5
    assert torch.allclose(source.weights[1][real], flat_weights(policy)[real], atol=1e-5)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_loss_kl_and_old_log_probs_are_at_the_sampling_temperature(tmp_path: Path, minibatches: int) -> None:
    """With two parts the old log-probs are made before the first update, with one they are the first pass's own."""
    source, reference = ScriptedSource(), tiny_policy(seed=1)
    learner = {"beta": 0.05, "minibatches": minibatches, "max_kl": 1e6}
    config = train_config(steps=1, algorithm="grpo", rollout={"temperature": 0.5}, learner=learner)
    trainer = make_trainer(config, source, tmp_path, reference=reference)
    trainer.run()

    groups = drawn(source)
    values = written_out("std", groups, rewards_of(groups, "grpo"))
    some, some_values = groups[::minibatches], values[::minibatches]
    gradients = {}
    for temperature in (0.5, 1.0):
        policy = tiny_policy()
        row_by_row_loss(policy, some, some_values, beta=0.05, reference=reference, temperature=temperature).backward()
        gradients[temperature] = flat_gradient(policy)
    assert relative_error(trainer.gradients[0], gradients[0.5]) < 1e-5
    assert relative_error(trainer.gradients[0], gradients[1.0]) > 1e-2, "the test must notice another temperature"


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
def test_log_probs_are_those_that_trl_computes_from_padded_rows(tmp_path: Path, temperature: float) -> None:
    config = train_config(steps=1, algorithm="grpo", rollout={"temperature": temperature})
    trainer = make_trainer(config, ScriptedSource(), tmp_path)
    completions = [[5, 6, EOS], [7, 3, EOS], [5, 9, EOS]]
    trainer._inputs = {"packed": pack_groups([([3, 4], completions)], "cpu")}
    rows = torch.tensor([[3, 4, *completion] for completion in completions])
    with torch.no_grad():
        ours, our_entropies, _ = trainer._get_per_token_logps_and_entropies(trainer._policy)
        theirs, their_entropies, *_ = GRPOTrainer._get_per_token_logps_and_entropies(
            trainer, trainer._policy, rows, torch.ones_like(rows), 3, compute_entropy=True
        )
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(our_entropies, their_entropies, atol=1e-5)


def test_the_cut_into_micro_batches_does_not_matter(tmp_path: Path) -> None:
    gradients = []
    for micro_groups in (1, 3, 32):
        trainer = make_trainer(train_config(learner={"micro_groups": micro_groups}), ScriptedSource(), tmp_path)
        trainer.run()
        gradients.append(trainer.gradients[0])
    assert relative_error(gradients[0], gradients[2]) < 1e-5
    assert relative_error(gradients[1], gradients[2]) < 1e-5


def test_the_ratio_is_exactly_one_on_the_first_pass(tmp_path: Path) -> None:
    config = train_config(steps=1, learner={"minibatches": 2, "num_iterations": 2})
    trainer = make_trainer(config, ScriptedSource(), tmp_path)
    passes: list[torch.Tensor] = []
    original = trainer._get_per_token_logps_and_entropies

    def watch(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        passes.append(result[0].detach().clone())
        return result

    trainer._get_per_token_logps_and_entropies = watch
    trainer.run()
    old = [micro_batches[0]["old_per_token_logps"] for micro_batches in trainer._step_inputs]
    assert torch.equal(passes[0], old[0])
    assert not torch.equal(passes[2], old[0]), "the second pass must see the first pass's update"


@pytest.mark.parametrize("algorithm", ["bgrpo", "grpo", "reinforce"])
def test_a_rewarded_completion_becomes_more_probable(tmp_path: Path, algorithm: str) -> None:
    config = train_config(steps=1, algorithm=algorithm, learner={"learning_rate": 1e-3})
    source = ScriptedSource(outcome=lambda rng: "wrong")
    plain = source.group

    def one_correct(step: int, index: int, draw: int, version: int) -> ScoredGroup:
        group = plain(step, index, draw, version)
        outcomes = ["wrong"] * len(group.completions)
        outcomes[2] = "correct"
        return scored(index, group.prompt_ids, group.completions, outcomes, version, config)

    source.group = one_correct  # type: ignore[method-assign]
    trainer = make_trainer(config, source, tmp_path)
    trainer.run()
    before, after = tiny_policy(), trainer._policy.eval()
    with torch.no_grad():
        gains = [
            (row_logps(after, *pair) - row_logps(before, *pair)).sum()
            for pair in ((group.prompt_ids, group.completions[2].tokens) for group in drawn(source))
        ]
    assert sum(gains) > 0


@pytest.mark.parametrize("outcome", ["wrong", "correct"])
@pytest.mark.parametrize("kind", ["mean", "std", "batch", "leave_one_out", "probability_weighted"])
def test_groups_without_signal_move_nothing(tmp_path: Path, outcome: str, kind: str) -> None:
    reward = {"kind": "simple"}
    source = ScriptedSource(outcome=lambda rng: outcome)
    config = train_config(steps=1, advantage={"kind": kind}, reward=reward, learner={"beta": 0.0})
    make_trainer(config, source, tmp_path).run()
    assert torch.equal(source.weights[0], source.weights[1])


def test_uninformative_groups_are_left_out_and_counted(tmp_path: Path) -> None:
    source = ScriptedSource(outcome=lambda rng: "correct" if rng.random() < 0.15 else "wrong")
    steps: list[dict[str, float]] = []
    config = train_config(steps=1, rollout={"skip_uninformative": True})
    trainer = make_trainer(config, source, tmp_path, on_step=steps.append)
    trainer.run()

    groups = [group for group in drawn(source) if len(set(group.outcomes)) > 1]
    assert 0 < len(groups) < 4
    assert steps[0]["groups_used"] == len(groups) and steps[0]["informative_groups"] == len(groups) / 4
    policy = tiny_policy()
    values = written_out("mean", groups, rewards_of(groups, "bgrpo"))
    row_by_row_loss(policy, groups, values, beta=0.01, reference=tiny_policy()).backward()
    assert relative_error(trainer.gradients[0], flat_gradient(policy)) < 1e-5


def test_further_prompts_replace_uninformative_groups(tmp_path: Path) -> None:
    source = ScriptedSource(outcome=lambda rng: "correct" if rng.random() < 0.15 else "wrong")
    steps: list[dict[str, float]] = []
    config = train_config(steps=3, rollout={"skip_uninformative": True, "max_extra_draws": 2})
    make_trainer(config, source, tmp_path, on_step=steps.append, problems=1000).run()
    by_step = [[asked for asked in source.asked if asked[0] == step] for step in range(3)]
    assert all([asked[3] for asked in asks] == list(range(len(asks))) for asks in by_step)
    assert any(len(asks) > 1 for asks in by_step)
    for asks, metrics in zip(by_step, steps, strict=True):
        assert metrics["groups_drawn"] == 4 * len(asks)
        assert metrics["groups_used"] == 4 or len(asks) == 3
    indices = [index for asks in by_step for asked in asks for index in asked[2]]
    assert len(set(indices)) == len(indices), "a problem came twice within one epoch"


def test_a_step_without_any_signal_leaves_weights_and_moments_alone(tmp_path: Path) -> None:
    def outcome_of(rng: random.Random) -> str:
        return rng.choice(["correct", "wrong"]) if informative else "wrong"

    informative = True
    source = ScriptedSource(outcome=outcome_of)
    plain = source.collect

    def collect(step: int, *rest: Any) -> list[ScoredGroup]:
        nonlocal informative
        informative = step == 0
        return plain(step, *rest)

    source.collect = collect  # type: ignore[method-assign]
    make_trainer(train_config(rollout={"skip_uninformative": True}), source, tmp_path).run()
    assert not torch.equal(source.weights[0], source.weights[1])
    assert torch.equal(source.weights[1], source.weights[2]), "momentum moved the weights without a gradient"


def test_nothing_after_the_end_token_is_scored(tmp_path: Path) -> None:
    source = ScriptedSource()
    trainer = make_trainer(train_config(steps=1), source, tmp_path)
    trainer.run()
    (inputs,) = trainer._step_inputs[0]
    ids, mask = inputs["completion_ids"], inputs["completion_mask"]
    lengths = sorted(len(completion.tokens) for group in drawn(source) for completion in group.completions)
    assert sorted(mask.sum(1).tolist()) == lengths and lengths[0] < lengths[-1]
    assert (mask * (ids == EOS)).sum() == len(lengths), "each end token is scored once"
    assert torch.equal(mask.cumprod(1), mask) and int(inputs["num_items_in_batch"]) == sum(lengths)


def gpt2_with_dropout(probability: float) -> PreTrainedModel:
    policy = tiny_policy()
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
    return policy


def llama_with_dropout(probability: float) -> PreTrainedModel:
    """Its attention keeps the probability as a number, which no module shows."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        attention_dropout=probability, pad_token_id=PAD, bos_token_id=None, eos_token_id=EOS,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("build", [gpt2_with_dropout, llama_with_dropout])
def test_dropout_is_off(tmp_path: Path, build: Callable[[float], PreTrainedModel]) -> None:
    gradients = []
    for probability in (0.0, 0.5):
        trainer = make_trainer(train_config(steps=1), ScriptedSource(), tmp_path, policy=build(probability))
        trainer.run()
        gradients.append(trainer.gradients[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("offset", [-1, 1])
def test_rollouts_of_other_weights_are_refused(tmp_path: Path, offset: int) -> None:
    source = ScriptedSource()
    source.version_offset = offset
    with pytest.raises(RuntimeError, match=rf"stale rollouts: problem \d+ was decoded by version {offset} .*version 0"):
        make_trainer(train_config(), source, tmp_path).run()


def wrong_order(groups: list[ScoredGroup]) -> list[ScoredGroup]:
    return groups[::-1]


def one_missing(groups: list[ScoredGroup]) -> list[ScoredGroup]:
    return groups[1:]


def empty_completion(groups: list[ScoredGroup]) -> list[ScoredGroup]:
    first = groups[0]
    return [scored(first.index, first.prompt_ids, [Completion([], [], False)], ["wrong"], 0), *groups[1:]]


@pytest.mark.parametrize("change", [wrong_order, one_missing, empty_completion])
def test_rollouts_other_than_asked_for_are_refused(
    tmp_path: Path, change: Callable[[list[ScoredGroup]], list[ScoredGroup]]
) -> None:
    source = ScriptedSource()
    plain = source.collect
    source.collect = lambda *request: change(plain(*request))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"asked for rollouts of problems|empty one"):
        make_trainer(train_config(), source, tmp_path).run()


def test_divergence_stops_with_a_message_and_nothing_is_kept_of_it(tmp_path: Path) -> None:
    source, store = ScriptedSource(), CheckpointStore(tmp_path / "checkpoints", keep=9)
    learner = {"learning_rate": 10.0, "max_kl": 0.5}
    config = train_config(steps=5, learner=learner, checkpoint={"every": 1})
    with pytest.raises(DivergenceError, match=r"diverged at step 2: loss .*KL .*max_kl=0\.5.*learning_rate \(now 10\)"):
        make_trainer(config, source, tmp_path, store=store).run()
    assert source.published == [0, 1]
    latest = store.latest()
    assert latest is not None and store.step_of(latest) == 1


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(tmp_path: Path) -> None:
    source, policy = ScriptedSource(), tiny_policy()
    with torch.no_grad():
        policy.transformer.wte.weight[5] = float("nan")
    with pytest.raises(DivergenceError, match="diverged at step 1: loss nan, gradient norm nan"):
        make_trainer(train_config(learner={"beta": 0.0}), source, tmp_path, policy=policy).run()
    assert source.published == [0]
    assert torch.equal(flat_weights(policy).nan_to_num(), source.weights[0].nan_to_num())


def test_metrics_of_a_step(tmp_path: Path) -> None:
    source, steps = ScriptedSource(), []
    config = train_config(
        steps=4, learner={"warmup_steps": 2, "schedule": "linear", "num_iterations": 2}, evaluation={"every": 2}
    )
    trainer = make_trainer(
        config, source, tmp_path, on_step=steps.append, validate=lambda version: {"beam_rank_score": version / 10}
    )
    trainer.run()
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert source.published == [0, 1, 2, 3, 4]
    assert [round(step["learning_rate"], 6) for step in steps] == [0.005, 0.01, 0.01, 0.0055]
    assert [step.get("validation/beam_rank_score") for step in steps] == [None, 0.2, None, 0.4]
    outcomes = [outcome for group in drawn(source) for outcome in group.outcomes]
    assert steps[0]["outcome/correct"] == outcomes.count("correct")
    assert steps[0]["top1_accuracy"] == sum(group.outcomes[0] == "correct" for group in drawn(source)) / 4
    assert steps[0]["kl"] > 0 and steps[0]["staleness"] == 0
    for name, value in steps[1].items():
        assert re.fullmatch(r"[\w\-./: ]+", name, re.ASCII) and isinstance(value, float), name
    parts = sum(steps[1][f"seconds/{part}"] for part in ("rollout", "weights", "validation", "checkpoint", "learn"))
    assert steps[1]["seconds/total"] == pytest.approx(parts), "no time is counted twice, and none is left out"


def test_checkpoints_are_saved_when_due_at_a_validation_and_at_the_end(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=9)
    config = train_config(steps=7, checkpoint={"every": 3}, evaluation={"every": 5})
    scores = {5: 0.7, 7: 0.3}  # the last step is validated, due or not
    steps: list[dict[str, float]] = []
    make_trainer(
        config,
        ScriptedSource(),
        tmp_path,
        store=store,
        on_step=steps.append,
        validate=lambda step: {"beam_rank_score": scores[step]},
    ).run()
    assert sorted(store.step_of(path) for path in store.directory.iterdir()) == [3, 5, 6, 7]
    best = store.best("beam_rank_score")
    assert best is not None and store.step_of(best) == 5
    assert store.metrics(best)["reward_mean"] == steps[4]["reward_mean"]


def test_evaluation_and_the_padded_path_are_closed(tmp_path: Path) -> None:
    trainer = make_trainer(train_config(), ScriptedSource(), tmp_path)
    trainer._policy.eval()
    with pytest.raises(RuntimeError, match="does not evaluate"):
        trainer._prepare_inputs({})
    rows = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(RuntimeError, match="outside the loss"):
        trainer._get_per_token_logps_and_entropies(trainer._policy, rows, rows, 2)


def test_what_the_tree_does_not_serve_is_refused_where_the_tree_is_asked_for(tmp_path: Path) -> None:
    policy = tiny_policy()
    policy.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match=r"rollout\.engine=tree: attn_implementation 'flash_attention_2' takes no"):
        make_trainer(train_config(rollout={"engine": "tree"}), ScriptedSource(), tmp_path, policy=policy)


def test_the_plain_path_learns_what_the_tree_learns(tmp_path: Path) -> None:
    """Two steps of two updates each, with a reference."""
    learner = {"beta": 0.05, "minibatches": 2, "micro_groups": 1}
    runs = []
    for engine in ("tree", "plain"):
        config = train_config(learner=learner, rollout={"engine": engine})
        runs.append(make_trainer(config, ScriptedSource(), tmp_path / engine))
        runs[-1].run()
    tree, plain = runs
    assert len(tree.gradients) == len(plain.gradients) == 4
    for found, expected in zip(plain.gradients, tree.gradients, strict=True):
        assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize("kind", ["mamba", "qwen2_moe"])
def test_models_of_the_plain_path_learn_the_loss_written_out_row_by_row(tmp_path: Path, kind: str) -> None:
    source, config = ScriptedSource(), train_config(steps=1)
    trainer = make_trainer(config, source, tmp_path, policy=tiny_model(kind, VOCABULARY))
    trainer.run()
    policy, groups = tiny_model(kind, VOCABULARY), drawn(source)
    values = written_out("mean", groups, rewards_of(groups, "bgrpo"))
    row_by_row_loss(policy, groups, values).backward()
    assert relative_error(trainer.gradients[0], flat_gradient(policy)) < 1e-5


def test_no_telemetry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("telemetry was sent")

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", send)
    make_trainer(train_config(), ScriptedSource(), tmp_path)


def test_the_tokens_of_the_cases_are_the_tokenizer_s() -> None:
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id) == (PAD, EOS)


@given(
    st.integers(1, 300),
    st.integers(0, 50),
    st.sampled_from(["constant", "linear", "cosine"]),
    st.floats(0, 1),
)
def test_the_rate_rises_in_the_warm_up_and_never_again(steps: int, warmup: int, schedule: str, ratio: float) -> None:
    rates = [learning_rate_factor(step, steps, warmup, schedule, ratio) for step in range(steps + 100)]
    rise, fall = rates[: min(warmup, steps)], rates[warmup:]
    assert rise == [(step + 1) / warmup for step in range(len(rise))]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(fall))
    assert fall[0] == pytest.approx(1.0) or steps <= warmup
    assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else ratio)
