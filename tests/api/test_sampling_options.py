"""What samples are drawn from, what ends them and what none holds: in runs, evaluations, decoding and generating."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import bgrpo
from bgrpo.chaos.run_comparison import compare_metrics
from bgrpo.cli.app import main
from bgrpo.config import RolloutSection
from bgrpo.evaluation.decoders import LocalDecoder
from bgrpo.evaluation.metrics import evaluate
from bgrpo.groups import Verdict
from bgrpo.scoring.attempts import Attempt
from bgrpo.tasks.base import Problem

OPTIONS: dict[str, Any] = {"stop": ["w3", "w1 w"], "banned_tokens": ["w7", "w9", 12]}
DRAWN: dict[str, Any] = {"top_p": 0.8, "top_k": 40, "min_p": 0.001, "temperature": 1.2}


def test_a_run_with_every_option_is_stopped_and_resumed_bit_for_bit(
    tmp_path: Path, policy_folder: Path, rows: list[dict[str, Any]], small: dict[str, Any]
) -> None:
    small["rollout"] |= OPTIONS | DRAWN | {"min_new_tokens": 1, "max_staleness": 1, "keep_samples": 4}
    small["evaluation"] |= {"every": 2, "validation_samples": 2, "samples": 2}
    arguments: dict[str, Any] = {"problems": rows, "steps": 4, "group_size": 4, "config": small, "algorithm": "grpo"}
    arguments |= {"policy": policy_folder, "runs": tmp_path, "local": True, "progress": False}
    arguments |= {"rewards": {"metric": "distinct_1", "score_truncated": True}}
    whole = bgrpo.train(**arguments, name="whole")

    def stop(step: int, metrics: Any) -> None:
        if step == 2:
            (tmp_path / "cut" / "stop").touch()

    assert bgrpo.train(**arguments, name="cut", on_step=stop).status == "stopped"
    resumed = bgrpo.train(resume="cut", runs=tmp_path, local=True, progress=False)
    for a, b in zip(whole.policy.model.parameters(), resumed.policy.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert compare_metrics(whole.metrics(), resumed.metrics()) == []
    first, seen = whole.metrics()[0], [each for sample in whole.samples() for each in sample.completions]
    assert 0 < first["mismatch/weight_mean"] < 1 and 0 < first["mismatch/effective"] <= 1
    assert first["mismatch/weight_mean"] == pytest.approx(first["mismatch/ratio_mean"])
    vocabulary = whole.policy.tokenizer.get_vocab()
    banned = {vocabulary["w7"], vocabulary["w9"], 12}
    assert not any(banned.intersection(each.tokens) for each in seen)
    assert not any("w3" in word for each in seen for word in each.text.split()[1:])
    assert all(each.length > 1 for each in seen if each.finished)
    by_text = [each for each in seen if each.finished and each.tokens[-1] != whole.policy.tokenizer.eos_token_id]
    assert by_text and all(each.outcome == "scored" for each in by_text)


def test_an_evaluation_decodes_as_the_configuration_says(policy_folder: Path, rows: list[dict[str, Any]]) -> None:
    """Beams are those of the policy that cannot write some tokens; what cuts off is of samples alone."""
    policy = bgrpo.load_policy(policy_folder)
    problems = [Problem(row["prompt"]) for row in rows[:8]]
    found: dict[bool, list[Attempt]] = {True: [], False: []}
    for asked, rollout in [(True, RolloutSection(**OPTIONS, top_p=0.8)), (False, RolloutSection())]:

        def check(attempts: Sequence[Attempt], asked: bool = asked) -> list[Verdict]:
            found[asked] += attempts
            return [Verdict("correct", 1.0)] * len(attempts)

        evaluate(LocalDecoder(policy.loaded, check, 5, rollout), problems, [3], 6, 0)
    banned = {policy.tokenizer.get_vocab()[name] for name in ("w7", "w9")} | {12}
    written = {asked: any(banned.intersection(each.tokens) for each in attempts) for asked, attempts in found.items()}
    stopped = {asked: any("w3" in each.text for each in attempts) for asked, attempts in found.items()}
    assert written == stopped == {True: False, False: True}


def test_decoding_and_generating_take_them(policy_folder: Path) -> None:
    policy = bgrpo.load_policy(policy_folder)
    (group,) = bgrpo.decode(
        policy, "w1 w2", "sample", 40, 6, temperature=1.5, top_p=0.9, top_k=50, min_p=0.01, seed=4, **OPTIONS
    )
    banned = {policy.tokenizer.get_vocab()[name] for name in ("w7", "w9")} | {12}
    for completion in group.completions:
        assert not banned.intersection(completion.tokens) and "w3" not in completion.text
        assert len(completion.sampled_logprobs) == len(completion.tokens)
        assert all(a <= b + 1e-5 for a, b in zip(completion.logprobs, completion.sampled_logprobs, strict=True))
    (word, *_) = policy.generate("w1 w2", max_new_tokens=6)[0].split()
    assert policy.generate("w1 w2", max_new_tokens=6, stop=word) == [""]
    assert not policy.generate("w1 w2", max_new_tokens=6, banned_tokens=[word])[0].startswith(word)
    (longer,) = policy.decode("w1 w2", group_size=3, max_new_tokens=6, min_new_tokens=4)
    assert all(len(completion.tokens) > 4 for completion in longer.completions)


def test_only_what_is_allowed_is_written(policy_folder: Path) -> None:
    policy, items = bgrpo.load_policy(policy_folder), ["w3 w4", "w3 w5", "w9"]
    (group,) = bgrpo.decode(policy, "w1 w2", "beam", 5, 4, allowed=items)
    assert sorted(each.text for each in group.completions) == items
    assert sum(math.exp(each.logprob) for each in group.completions) == pytest.approx(1, abs=1e-4)
    end, word = policy.tokenizer.eos_token_id, policy.tokenizer.get_vocab()["w9"]

    def allow(prompt: list[int], written: list[int]) -> list[int]:
        assert prompt == group.prompt_ids
        return [end] if written else [word]

    (only,) = policy.decode("w1 w2", search="sample", group_size=2, max_new_tokens=4, allowed=allow)
    assert [each.text for each in only.completions] == ["w9", "w9"]


def test_bgrpo_decode_takes_them(policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "beams.jsonl"
    data.write_text('{"prompt": "w1 w2"}\n{"prompt": "w5"}\n')
    base = ["decode", "--policy", str(policy_folder), "--data", str(data), "--out", str(out), "--max-new-tokens", "5"]
    base += ["--overwrite", "task.name=text", "reward.parts.distinct.metric=distinct_1"]
    options = ['rollout.stop=["w3", "w1 w"]', "rollout.min_new_tokens=2", "rollout.banned_tokens=[w7, 12]"]
    assert main([*base, *options]) == 0, capsys.readouterr().err
    completions = [each for line in out.read_text().splitlines() for each in json.loads(line)["completions"]]
    assert len(completions) == 20
    assert not any("w7" in each["text"].split() or 12 in each["tokens"] for each in completions)
    assert all(len(each["tokens"]) > 2 for each in completions)
    for wrong, told in [
        ("rollout.top_p=0.9", "rollout.top_p=0.9: cuts off what independent samples are drawn from"),
        ("rollout.banned_tokens=[no such word]", "rollout.banned_tokens='no such word': is no token"),
        ("rollout.min_new_tokens=6", "min_new_tokens=6: expected 0 to max_new_tokens=5"),
    ]:
        capsys.readouterr()
        assert main([*base, wrong]) == 2
        assert told in capsys.readouterr().err
