"""Whole runs of a T5, which reads several passages apart: from Python, stopped and resumed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from learning.test_encoder_decoders_learned import separate_rows
from tiny_t5 import WORDS, write_t5

import bgrpo
from bgrpo.chaos.run_comparison import compare_metrics
from bgrpo.groups import fused
from bgrpo.policies.flat_weights import flatten_parameters
from bgrpo.runs.run_folder import RunFolder

ROWS = [
    {
        "prompt": f"{WORDS[i]} {WORDS[i + 1]}",
        "answer": WORDS[i],
        "stories": [WORDS[i + 2], "w3 w4", WORDS[i]][: 1 + i % 3],
    }
    for i in range(20)
]
OPTIONS: dict[str, Any] = {
    "task.options.passages": "stories",
    "rollout": {"prompts_per_step": 4, "max_new_tokens": 5, "keep_samples": 1},
    "learner": {"warmup_steps": 0, "threads": 1, "learning_rate": 1e-2},
    "evaluation": {"beam_widths": [2], "samples": 0},
    "tracking.enabled": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("t5") / "policy"
    write_t5(path, "t5 untied")
    return path


def test_decode_takes_texts_ids_and_passages(folder: Path) -> None:
    policy = bgrpo.load_policy(folder)
    text, ids, apart = bgrpo.decode(policy, ["w1 w2", [4, 5, 1], ["w1 w2", "w3"]], group_size=3, max_new_tokens=4)
    assert text == ids and text.prompt_ids == [4, 5, 1] and len(text.completions) == 3
    assert apart.prompt_ids == [4, 5, 1, -1, 6, 1]
    with pytest.raises(bgrpo.UserError, match=r"prompts\[0\]\[1\]: prompt '' is empty"):
        bgrpo.decode(policy, [["w1", ""]])
    with pytest.raises(bgrpo.UserError, match="list of passages, but the policy has no encoder"):
        bgrpo.decode("shipped", [["a", "b"]])


def test_a_run_that_is_stopped_and_resumed_comes_to_the_same(folder: Path, tmp_path: Path) -> None:
    def stop(step: int, metrics: Any) -> None:
        if step == 2:
            (tmp_path / "cut" / "stop").touch()

    def words(prompt: str, completion: str) -> float:
        time.sleep(0.02)  # the stop is to come before the last step
        return float(len(set(completion.split())))

    arguments: dict[str, Any] = {"steps": 5, "group_size": 4, "config": OPTIONS, "runs": tmp_path, "local": True}
    arguments |= {"policy": folder, "problems": ROWS, "rewards": {"function": words, "score_truncated": True}}
    whole = bgrpo.train(**arguments, progress=False, name="whole")
    cut = bgrpo.train(**arguments, progress=False, name="cut", on_step=stop)
    assert whole.status == "finished" and cut.status == "stopped" and 2 <= cut.steps < 5
    resumed = bgrpo.train(resume=cut, local=True, progress=False)
    weights = [flatten_parameters(run.policy.model) for run in (whole, resumed)]
    assert (weights[0] == weights[1]).all() and compare_metrics(whole.metrics(), resumed.metrics()) == []
    start = bgrpo.load_policy(folder).model
    assert not torch.equal(start.lm_head.weight, whole.policy.model.lm_head.weight)
    assert not torch.equal(
        start.encoder.block[0].layer[0].SelfAttention.q.weight,
        whole.policy.model.encoder.block[0].layer[0].SelfAttention.q.weight,
    )


def test_what_does_not_fit_is_told_before_the_run(folder: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"rewards": "token_f1", "runs": tmp_path, "local": True, "steps": 1, "group_size": 2}
    rows = [{"prompt": "w1", "answer": "w2", "stories": ["w1", 3]}] * 30
    with pytest.raises(bgrpo.UserError, match=r"'stories' is list .*expected a list of texts"):
        bgrpo.train(folder, rows, config=OPTIONS, **arguments)
    with pytest.raises(bgrpo.UserError, match="dtype bf16 is for the fast tree"):
        bgrpo.train(folder, ROWS, config=OPTIONS | {"rollout.dtype": "bf16", "rollout.engine": "plain"}, **arguments)


ALGORITHMS: dict[str, dict[str, Any]] = {
    "bgrpo": {"algorithm": "bgrpo", "advantage.kind": "probability_weighted"},
    "grpo": {"algorithm": "grpo"},
    "reinforce": {"algorithm": "reinforce"},
    "reinforce without a baseline": {"algorithm": "reinforce", "advantage.kind": "none"},
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_twenty_steps_of_each_algorithm_raise_the_reward(name: str, folder: Path, tmp_path: Path) -> None:
    """Of a tiny reader of fused passages; the reward is the share of one word. A wrong sign would lower it."""

    def share(prompt: str, completion: str) -> float:
        words = completion.split()
        return words.count("w7") / len(words) if words else 0.0

    run = bgrpo.train(
        folder,
        ROWS,
        rewards={"function": share, "score_truncated": True},
        config=OPTIONS | {"evaluation.final": False, "learner.reference.path": str(folder)} | ALGORITHMS[name],
        steps=20,
        group_size=8,
        runs=tmp_path,
        local=True,
        progress=False,
    )
    metrics = run.metrics()
    assert run.status == "finished" and len(metrics) == 20
    rewards = [line["reward_mean"] for line in metrics]
    assert sum(rewards[-4:]) > sum(rewards[:4]) + 0.4
    kls = [line["kl"] for line in metrics if "kl" in line]  # a step whose rewards are all equal has none
    assert kls[0] < 1e-6 < kls[-1]


def test_another_reference_has_a_kl_at_the_first_step(folder: Path, tmp_path: Path) -> None:
    """It is the k3 estimate from the log-probabilities of separate rows; a reference that has changed is noticed."""
    other = tmp_path / "other"
    write_t5(other, "t5 untied", seed=8)
    rollout = OPTIONS["rollout"] | {"keep_samples": 4, "skip_uninformative": False}
    run = bgrpo.train(
        folder,
        ROWS,
        rewards="token_f1",
        config=OPTIONS | {"evaluation.final": False, "learner.reference.path": str(other), "rollout": rollout},
        steps=1,
        group_size=4,
        runs=tmp_path,
        name="run",
        local=True,
        progress=False,
    )
    models = [bgrpo.load_policy(path).model for path in (folder, other)]
    total, tokens = 0.0, 0
    with torch.no_grad():
        for group in run.samples():
            prompt = fused([[*(3 + int(word[1:]) for word in text.split()), 1] for text in group.passages])
            for completion in group.completions:
                logps, reference = (separate_rows(model, prompt, completion.tokens) for model in models)
                total += float(((reference - logps).exp() - (reference - logps) - 1).sum())
                tokens += len(completion.tokens)
    assert tokens and run.metrics()[0]["kl"] == pytest.approx(total / tokens, rel=1e-4) and total / tokens > 0.05
    write_t5(other, "t5 untied", seed=9)
    RunFolder(tmp_path / "run").update(status="stopped")
    with pytest.raises(bgrpo.UserError, match=r"its reference .* is not what it was started with"):
        bgrpo.train(resume=run, steps=2, local=True, progress=False)
