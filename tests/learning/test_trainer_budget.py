"""A run that ends by what it spent: where it ends, where its learning rate ends, and that a resumed one counts on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from learner_cases import ScriptedSource, make_trainer, tiny_policy, train_config

from bgrpo.learning import step_metrics
from bgrpo.learning.learner_state import policy_folder
from bgrpo.policies.io import load_policy
from bgrpo.runs.checkpoints import CheckpointStore

LEARNER = {"schedule": "linear", "min_learning_rate_ratio": 0.0, "learning_rate": 1e-3, "num_iterations": 2}


def run(folder: Path, resume: Path | None = None, **sections: Any) -> tuple[list[dict[str, float]], ScriptedSource]:
    """Steps and source of a run that has far more steps than its budget allows."""
    config = train_config(steps=10_000, learner=LEARNER, checkpoint={"every": 2, "keep": 99}, **sections)
    store, source, steps = CheckpointStore(folder / "checkpoints", keep=99), ScriptedSource(), []
    options: dict[str, Any] = {"store": store, "on_step": steps.append}
    if resume is not None:
        options |= {
            "resume": resume,
            "reference": tiny_policy(),
            "policy": load_policy(str(policy_folder(resume))).model,
        }
    make_trainer(config, source, folder, **options).run()
    return steps, source


@pytest.mark.parametrize("kind", ["completions", "tokens"])
def test_a_run_ends_with_the_step_that_uses_up_its_budget(kind: str, tmp_path: Path) -> None:
    amount = {"completions": 130, "tokens": 700}[kind]
    steps, source = run(tmp_path, budget={kind: amount})
    counted = {"completions": 0, "tokens": 0}
    for step, (of_step, version, indices, draw) in zip(steps, source.asked, strict=True):
        drawn = [source.group(of_step, index, draw, version) for index in indices]
        counted["completions"] += sum(len(group.completions) for group in drawn)
        counted["tokens"] += sum(len(one.tokens) for group in drawn for one in group.completions)
        assert {name: step[f"used/{name}"] for name in counted} == counted
        assert step["used/steps"] == step["step"] and step["used/gradient_steps"] == 2 * step["step"]
    assert steps[-2][f"used/{kind}"] < amount <= steps[-1][f"used/{kind}"]
    rates = [step["learning_rate"] for step in steps]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.2 * rates[0]  # one step before the end of a linear fall to 0


def test_seconds_end_a_run_and_leave_validations_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Slow(ScriptedSource):
        def collect(self, *request: Any) -> Any:
            pass_by(0.125)
            return super().collect(*request)

    def validate(version: int) -> dict[str, float]:
        pass_by(0.25)
        return {"beam_rank_score": 0.5}

    monkeypatch.setattr(step_metrics, "time", SimpleNamespace(perf_counter=lambda: now))
    config = train_config(steps=10_000, learner=LEARNER, budget={"seconds": 0.3}, evaluation={"every": 1})
    steps: list[dict[str, float]] = []
    make_trainer(config, Slow(), tmp_path, on_step=steps.append, validate=validate).run()
    assert [step["used/seconds"] for step in steps] == [0.125, 0.25, 0.375]
    assert [step["seconds/validation"] for step in steps] == [0.25] * 3


def test_an_interrupted_run_with_a_budget_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, source = run(tmp_path / "whole", budget={"tokens": 700})
    half = tmp_path / "whole" / "checkpoints" / "step-00000002"
    resumed, again = run(tmp_path / "again", resume=half, budget={"tokens": 700})
    assert len(whole) > 3
    names = ("step", "learning_rate", "used/steps", "used/gradient_steps", "used/completions", "used/tokens")
    assert [[step[name] for name in names] for step in resumed] == [
        [step[name] for name in names] for step in whole[2:]
    ]
    last = source.published[-1]
    assert torch.equal(source.weights[last], again.weights[last])


def test_the_last_step_is_validated_and_saved_whenever_it_comes(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=99)
    config = train_config(steps=10_000, budget={"tokens": 500}, evaluation={"every": 100}, checkpoint={"every": 100})
    steps: list[dict[str, float]] = []
    trainer = make_trainer(
        config, ScriptedSource(), tmp_path, store=store, on_step=steps.append, validate=lambda _: {"greedy": 0.25}
    )
    trainer.run()
    assert [step["step"] for step in steps if "validation/greedy" in step] == [len(steps)]
    newest = store.latest()
    assert newest is not None and store.step_of(newest) == len(steps)
    assert store.metrics(newest)["used/tokens"] == steps[-1]["used/tokens"] >= 500
