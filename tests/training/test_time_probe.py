"""What a step takes, told from a probe: on a clock that only work moves, so that the right answers are known."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgrpo.cli.app import main
from bgrpo.config import TrainConfig, load_config
from bgrpo.learning.packing import pack_groups
from bgrpo.learning.trainer import BGRPOTrainer
from bgrpo.training import run_estimate, time_probe
from bgrpo.training.time_probe import StepTime, probe_step
from bgrpo.training.update_probe import ProbeSource, growing_sizes

CALL_S, TOKEN_S, LEARNED_S = 0.5, 0.01, 0.001
OVERRIDES = (
    "rollout.prompts_per_step=8", "rollout.prompts_per_request=4", "rollout.group_size=4", "rollout.max_new_tokens=20",
    "learner.minibatches=2", "learner.num_iterations=2", "learner.micro_groups=2", "learner.beta=0",
    "rollout.skip_uninformative=false",
)  # fmt: skip
SERVER = ('reward.parts={"far":{"url":"http://127.0.0.1:9/"}}', "reward.kind=simple")


@given(st.integers(1, 300), st.integers(1, 5000))
def test_sizes_at_most_double_and_end_at_the_full_one(most: int, longest: int) -> None:
    sizes = list(growing_sizes(most, longest))
    assert sizes[0] == (1, min(8, longest)) and sizes[-1] == (most, longest)
    assert all(
        0 < before[0] * before[1] < after[0] * after[1] <= 2 * before[0] * before[1]
        for before, after in pairwise(sizes)
    )


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Groups that the probe decodes; the clock moves by what they cost, and by the tokens that are learned from."""
    now, found = [1000.0], []
    decode, loss = ProbeSource.decode, BGRPOTrainer._compute_loss

    def decode_in_time(self: ProbeSource, first: int, count: int, new: int) -> Any:
        now[0] += CALL_S + TOKEN_S * count * new
        found.append(decode(self, first, count, new))
        return found[-1]

    def learn_in_time(self: BGRPOTrainer, model: Any, inputs: Any) -> Any:
        now[0] += LEARNED_S * inputs["packed"].input_ids_1T.numel()
        return loss(self, model, inputs)

    monkeypatch.setattr(ProbeSource, "decode", decode_in_time)
    monkeypatch.setattr(BGRPOTrainer, "_compute_loss", learn_in_time)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return found


def the_run(*overrides: str) -> tuple[TrainConfig, Any]:
    config = load_config(TrainConfig, "quickstart", [*OVERRIDES, *overrides])
    return config, run_estimate.policy_shape(config)


@pytest.mark.parametrize("limit_s", [1e6, 1.0])
def test_a_step_takes_what_its_requests_and_its_tokens_cost(decoded: list[Any], limit_s: float) -> None:
    """Without a limit whole requests are tried; within a second the first size alone, of one prompt and 8 tokens."""
    config, shape = the_run("steps=7", *(SERVER if limit_s == 1 else ()))
    told = probe_step(config, shape.problems, limit_s)
    whole = limit_s > 1
    assert told.prompts == (8 if whole else 1) and told.is_cut == (not whole) and told.steps == 7
    request_s = CALL_S + TOKEN_S * 4 * 20 if whole else 4 * (CALL_S + TOKEN_S * 20)
    assert told.rollouts == pytest.approx(2 * request_s)
    groups = [group for groups in decoded[-2:] for group in groups] if whole else decoded[-1]
    pairs = [(group.prompt_ids, [each.tokens for each in group.completions]) for group in groups]
    tokens = pack_groups(pairs, "cpu").input_ids_1T.numel() / len(groups)
    tokens += 0 if whole else 4 * (20 - 8)  # as if each completion went on alone to the longest that may be
    assert told.update == pytest.approx(
        2 * 8 * tokens * LEARNED_S, rel=0.35 if not whole else 0.2
    )  # rows are rounded up
    assert told.scoring == (0 if whole else None) and told.run == 7 * told.step  # servers are not asked


def test_a_budget_ends_the_run_earlier(decoded: list[Any]) -> None:
    config, shape = the_run("budget.completions=96", "steps=1000", *SERVER)
    assert probe_step(config, shape.problems, 1.0).steps == 3


def test_the_command_tells_the_time_and_leaves_it_out_where_the_run_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = StepTime(1.5, None, 0.25, 2.0, steps=7, prompts=3, completion_tokens=20.0, is_cut=True, took=4.0)
    monkeypatch.setattr(time_probe, "probe_step", lambda config, problems: replace(told, steps=config.steps))
    monkeypatch.setattr(run_estimate, "libraries_bytes", lambda: 10**8)
    memory = type("Memory", (), {"available": 10**12})
    monkeypatch.setattr(run_estimate.psutil, "virtual_memory", lambda: memory)
    command = ["doctor", "--config", "quickstart", *OVERRIDES, *SERVER, "steps=60"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["time"] == asdict(told) | {"steps": 60}
    assert main(command) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "3.75 s (rollouts 1.50 s, scoring not known, weights 0.25 s, update 2.00 s) 60 steps: 3.8 min" in text
    assert "3 prompts of 8, completions of 20 tokens (longest that may be, 20)" in text
    assert main([*command, "--no-probe"]) == 0 and "a step" not in capsys.readouterr().out
    memory.available = 10**6
    assert main(command) == 1
    assert "time: not tried" in capsys.readouterr().out
