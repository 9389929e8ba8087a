"""Runs on chats with a composite reward on Ray: a reward model on its own actors, a function, metrics, a server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from signal import SIGKILL
from typing import Any

import psutil
import pytest
from starving_reward import Starving
from tiny_rewards import TEMPLATE, WORDS, write_model

import bgrpo
from bgrpo.chaos.faults import at_steps, hit
from bgrpo.chaos.run_comparison import compare_metrics
from bgrpo.config import RunSection, TrainConfig, build_config
from bgrpo.distributed.pool.actor_pool import PoolError
from bgrpo.distributed.rollout import scorers
from bgrpo.distributed.train.training_run import RayMachinery, RunResult, run_training
from bgrpo.errors import UserError
from bgrpo.evaluation.metrics import Evaluation
from bgrpo.files import sha256
from bgrpo.groups import Verdict
from bgrpo.policies.io import load_policy
from bgrpo.runs.samples import SampleReader
from bgrpo.scoring.attempts import Attempt
from bgrpo.scoring.judge import Judge
from bgrpo.tasks.base import Problem
from bgrpo.training import driver
from bgrpo.training.in_process import InProcess

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(600)]
STEPS = 12
PARTS = {
    "quality": {"model": "judge", "weight": 0.5, "score_truncated": True},
    "short": {"function": "reward_functions:shortness", "weight": 0.3, "score_truncated": True},
    "variety": {"metric": "distinct_1", "weight": 0.2, "score_truncated": True},
    "overlap": {"metric": "token_f1", "weight": 0, "score_truncated": True},
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy and a reward model with chat templates, and chats."""
    folder = tmp_path_factory.mktemp("chats")
    write_model(folder / "policy", "llama", template=TEMPLATE, kind="causal", limit=96)
    write_model(folder / "judge", "bert", template=TEMPLATE.replace("{{ bos_token }}", ""), seed=4)
    rows = []
    for i in range(60):
        text = f"{WORDS[i]} {WORDS[(7 * i) % 90]}"
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": WORDS[i % 9]}]
        rows.append({"messages": messages, "speaker": i % 6, "category": f"c{i % 2}"})
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config(here: Path, name: str, algorithm: str = "bgrpo", **reward: Any) -> TrainConfig:
    runs = reward.pop("runs", here / "runs")
    parts = {
        part: options | ({"model": str(here / options["model"])} if "model" in options else {})
        for part, options in reward.pop("parts", PARTS).items()
    }
    return build_config(
        TrainConfig,
        {
            "algorithm": algorithm,
            "steps": STEPS,
            "policy": {"path": str(here / "policy")},
            "task": {
                "name": "text",
                "split_by": "speaker",
                "train": {"file": str(here / "chats.jsonl")},
                "validation": {"share": 0.2},
                "test": {"share": 0.2},
            },
            "rollout": {"actors": 1, "group_size": 3, "prompts_per_step": 4, "prompts_per_request": 2}
            | {"max_new_tokens": 5, "log_groups": 3},
            "reward": {"parts": parts} | reward,
            "learner": {"warmup_steps": 0, "threads": 1, "learning_rate": 1e-2},
            "evaluation": {"beam_widths": [2], "samples": 2, "every": STEPS // 2},
            "checkpoint": {"every": 5, "metric": "win_rate"},
            "tracking": {"enabled": False},
            "run": {"dir": str(runs), "name": name},
        },
        "test",
    )


@pytest.fixture(scope="module")
def composite(here: Path) -> RunResult:
    """In this process; a run on Ray comes to the same below."""
    return driver.run_training(InProcess(), config(here, "composite", combine="normalize_then_sum"))


def test_a_composite_reward_is_learned_from_and_every_part_is_told(composite: RunResult) -> None:
    steps = composite.folder.metrics()
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    for part in PARTS:
        assert all(step[f"part/{part}/failed"] == 0 for step in steps)
        assert all(step[f"part/{part}/spread"] >= 0 and step[f"part/{part}/seconds"] > 0 for step in steps)
    shared = [sum(step[f"part/{part}/share"] for part in PARTS) for step in steps if "part/quality/share" in step]
    assert len(shared) > STEPS / 2 and shared == pytest.approx([1.0] * len(shared))
    assert any(step["groups_used"] > 0 for step in steps)
    table = json.loads(composite.folder.evaluation_path.read_text())["table"]
    assert {"greedy_reward", "greedy_quality", "best_reward@2", "sample_overlap", "best_of@2"} <= table.keys()
    assert "greedy" not in table, "nothing says what is correct"
    assert table["win_rate"]["before"] == [0.5] * 3 and 0 <= table["win_rate"]["after"][0] <= 1
    validated = [step for step in steps if "validation/greedy_reward" in step]
    assert [step["step"] for step in validated] == [STEPS // 2, STEPS]
    start = Evaluation.load(composite.folder.validation_before_path).metrics()
    assert set(start) == {"greedy_reward"}
    assert all(0 <= step["validation/win_rate"] <= 1 for step in validated)
    assert len((composite.folder.path / "groups.log").read_text().splitlines()) == STEPS * 3 * 3
    assert load_policy(str(composite.folder.policy)).tokenizer.chat_template
    samples = list(SampleReader(composite.folder))
    assert set(samples[0].completions[0].parts) == set(PARTS)


def test_a_reward_actor_that_is_killed_changes_nothing(here: Path, composite: RunResult) -> None:
    """The same as in one process, with nothing killed."""

    def kill() -> None:
        hit(next(p.pid for p in psutil.Process().children(recursive=True) if "RewardActor" in p.name()), SIGKILL)

    disturbed = config(here, "killed", combine="normalize_then_sum")
    with at_steps(here / "runs" / "killed" / "metrics.jsonl", {3: kill}) as begun:
        result = run_training(disturbed)
    assert begun == [3]
    assert compare_metrics(composite.folder.metrics(), result.folder.metrics()) == []


@pytest.mark.parametrize("starved", [2, pytest.param(3, marks=pytest.mark.long)])
def test_a_reward_model_without_memory_is_asked_again_then_the_cause_is_told(
    starved: int, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two actors die of it, and a third scores; or three do."""
    monkeypatch.setattr(scorers, "RewardActor", Starving)
    (tmp_path / "starve").write_text(str(starved))
    quality = {"quality": PARTS["quality"]}
    made = config(here, "starved", parts=quality).model_copy(update={"run": RunSection(dir=str(tmp_path))})
    attempts = [Attempt(Problem("w1 w2", "w3"), text, (1,)) for text in ("w4", "w5 w6")]

    if starved == 3:
        with pytest.raises(PoolError, match=r"(?s)3 actors in a row died over it; .*reward model judge: out of memory"):
            judged(made, attempts)
        return
    with Judge(made).start(None) as here_too:
        assert judged(made, attempts) == here_too.judge(attempts)


@pytest.mark.long
def test_a_reward_models_template_that_hangs_on_a_completion_ends_the_run(here: Path, tmp_path: Path) -> None:
    """Nobody can interrupt it, so the actor is killed each time."""
    hangs = TEMPLATE + "{% if messages[-1].content == 'w4' %}{{ 3 ** (messages|length * 10 ** 9) }}{% endif %}"
    made = config(here, "hangs", parts={"quality": {"model": str(write_model(tmp_path / "m", template=hangs))}})
    made = made.model_copy(update={"reward_model": made.reward_model.model_copy(update={"timeout_s": 4.0})})
    with pytest.raises(PoolError, match=r"(?s)3 actors in a row died over it"):
        judged(made, [Attempt(Problem("w1 w2", "w3"), text, (1,)) for text in ("w3", "w4")])


def judged(made: TrainConfig, attempts: list[Attempt]) -> list[Verdict]:
    """By the actors that a run has."""

    async def work() -> list[Verdict]:
        pools = scorers.ScorerPools(made, None)
        (pool,) = pools.pools.values()
        pool.start()
        judging = asyncio.ensure_future(pools.judge(attempts))
        while not judging.done():
            pool.tick()
            await asyncio.sleep(0.05)
        pool.shutdown()
        return await judging

    return asyncio.run(asyncio.wait_for(work(), 240))


@pytest.mark.long
def test_samples_with_a_reward_model_alone(here: Path) -> None:
    parts = {"quality": PARTS["quality"]}
    result = run_training(config(here, "model", "grpo", parts=parts, kind="unlikely"))
    assert len(result.folder.metrics()) == STEPS


@pytest.mark.parametrize("machinery", [InProcess, pytest.param(RayMachinery, marks=pytest.mark.long)])
def test_what_scores_nothing_ends_the_run_with_the_cause(here: Path, tmp_path: Path, machinery: type) -> None:
    for name, message in (
        ("nothing", "no part of the reward applies to any of"),
        ("fails_later", "ValueError: no such"),
    ):
        parts = {"x": {"function": f"reward_functions:{name}", "score_truncated": True}}
        with pytest.raises(UserError, match=message):
            driver.run_training(machinery(), config(here, name, parts=parts, runs=tmp_path))


def test_from_python_a_lambda_and_a_model_score_on_ray_as_in_this_process(here: Path) -> None:
    rows = [{"prompt": f"{WORDS[i]} {WORDS[i + 1]}"} for i in range(24)]
    short = {"function": lambda prompt, completion: 1.0 / (1 + len(completion.split())), "score_truncated": True}
    judge = {"model": str(here / "judge"), "score_truncated": True}
    keys = {"rollout": {"actors": 1, "prompts_per_step": 4, "max_new_tokens": 5}, "learner.threads": 1}
    keys |= {"evaluation": {"beam_widths": [1], "samples": 0}, "tracking.enabled": False}
    runs = [
        bgrpo.train(
            here / "policy",
            rows,
            {"short": short, "judge": (judge, 0.3)},
            algorithm="grpo",
            steps=3,
            group_size=4,
            config=keys,
            name=f"python-{local}",
            runs=here / "runs",
            local=local,
        )
        for local in (False, True)
    ]
    assert [run.status for run in runs] == ["finished", "finished"]
    digests = [sha256(run.folder / "policy" / "model.safetensors") for run in runs]
    assert digests[0] == digests[1] != sha256(here / "policy" / "model.safetensors")
    assert compare_metrics(runs[0].metrics(), runs[1].metrics()) == []
    assert runs[0].table().splitlines()[1:] == runs[1].table().splitlines()[1:]
