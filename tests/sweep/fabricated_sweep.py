"""Sweep folders as ``bgrpo sweep`` writes them, with results made up from known effects."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.evaluation.metrics import Evaluation, pass_at_k, rank_score
from bgrpo.evaluation.win_rate import with_win_rate

WIDTHS = (1, 3, 5, 10)
SAMPLES = 10


@dataclass(frozen=True)
class Arm:
    """A fabricated algorithm.

    Attributes:
        algorithm: ``bgrpo`` or ``grpo``.
        gain: added to the logit of each beam being correct by training.
        tokens: decoded tokens per completion.
    """

    algorithm: str = "grpo"
    gain: float = 0.8
    tokens: float = 15.0


@dataclass(frozen=True)
class Fabrication:
    """What to make up.

    Attributes:
        arms: name -> arm.
        seeds: confirm seeds of each arm.
        problems: on the test split.
        seed_noise: standard deviation of the gain between seeds.
        points: search trials per arm; 0 for no search.
        steps: of each trial, validated every 5.
        number: seed of the fabrication.
        graded: rewards are graded, and nothing says what is correct.
    """

    arms: dict[str, Arm]
    seeds: int = 3
    problems: int = 120
    seed_noise: float = 0.05
    points: int = 0
    steps: int = 20
    number: int = 0
    graded: bool = False
    extra_config: dict[str, Any] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """By which the sweep decides."""
        return "greedy_reward" if self.graded else "beam_rank_score"


def fabricate_sweep(folder: Path, what: Fabrication) -> Path:
    """Write the folder; every trial is finished. Returns ``folder``."""
    generator = np.random.default_rng(what.number)
    difficulty_N = generator.normal(0, 1.5, what.problems)
    entries = []
    (folder / "trials").mkdir(parents=True)
    for name in what.arms:
        for point in range(what.points):
            rate = [1e-5, 5e-5, 2e-4][point % 3]
            entry = _entry(
                f"{name}-search-{point:02d}-seed0", name, "search", 0, {"learner.learning_rate": rate}, point
            )
            entries.append(entry | {"value": 0.80 + 0.01 * point})
        for i in range(what.seeds):
            seed = 1000 + i
            entries.append(_entry(f"{name}-confirm-seed{seed}", name, "confirm", seed, {}, what.points - 1))
    for entry in entries:
        arm = what.arms[entry["algorithm"]]
        gain = arm.gain + generator.normal(0, what.seed_noise)
        run = folder / "trials" / entry["id"]
        _write_run(run, entry, arm, gain, difficulty_N, what.steps, generator)
        if what.graded:
            _grade(run, gain, difficulty_N, generator)
    selection = {
        name: {
            "trial": f"{name}-search-{what.points - 1:02d}-seed0",
            "point": what.points - 1,
            "metric": what.metric,
            "value": 0.80 + 0.01 * (what.points - 1),
            "overrides": {},
        }
        for name in what.arms
        if what.points
    }
    write_plan(folder, {"trials": entries, "selection": selection, "state": "finished"})
    config = {
        "arms": {name: {"set": {"algorithm": arm.algorithm}} for name, arm in what.arms.items()},
        "budget": {"kind": "steps", "amount": what.steps},
        "metric": what.metric,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(config | what.extra_config), "utf-8")
    (folder / "versions.json").write_text(json.dumps({"packages": {"bgrpo": "0.1.0", "torch": "2.13.0"}}), "utf-8")
    return folder


def write_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write ``trials.json``."""
    (folder / "trials.json").write_text(json.dumps(plan), "utf-8")


def read_plan(folder: Path) -> dict[str, Any]:
    """Read ``trials.json``."""
    plan: dict[str, Any] = json.loads((folder / "trials.json").read_text("utf-8"))
    return plan


def comparison(
    gain: float, difficulty_N: np.ndarray, generator: np.random.Generator, digest: str = "problems"
) -> EvaluationComparison:
    """Before and after on the same problems; before is the same for every call with the same problems."""
    before = _evaluation(difficulty_N, np.random.default_rng(0), digest)
    return EvaluationComparison(before, _evaluation(difficulty_N + gain, generator, digest))


def _evaluation(ability_N: np.ndarray, generator: np.random.Generator, digest: str) -> Evaluation:
    """Each beam is correct on its own, the less probable the lower its rank."""
    penalties_K = 0.6 * np.arange(max(WIDTHS)) + 0.8
    chances_NK = 1 / (1 + np.exp(-(ability_N[:, None] - penalties_K)))
    correct_NK = generator.random(chances_NK.shape) < chances_NK
    sampled_N = generator.binomial(SAMPLES, 1 / (1 + np.exp(-(ability_N - 1))))
    values = {"greedy": correct_NK[:, 0].astype(float).tolist()}
    values |= {f"beam@{k}": correct_NK[:, :k].any(axis=1).astype(float).tolist() for k in WIDTHS}
    values["top1"] = values["greedy"]
    values["beam_rank_score"] = [rank_score(row) for row in correct_NK.tolist()]
    for k in (1, SAMPLES):
        values[f"pass@{k}"] = [pass_at_k(SAMPLES, int(count), k) for count in sampled_N]
    outcomes = {"beam 10": {"correct": int(correct_NK.sum()), "wrong": int((~correct_NK).sum())}}
    return Evaluation(["2_2"] * len(ability_N), values, outcomes, digest)


def _entry(name: str, arm: str, phase: str, seed: int, overrides: dict[str, Any], point: int) -> dict[str, Any]:
    return {
        "id": name,
        "algorithm": arm,
        "phase": phase,
        "point": point if point >= 0 else None,
        "seed": seed,
        "overrides": overrides,
        "state": "finished",
        "reason": "",
        "value": None,
        "started": 1.0,
        "ended": 61.0,
        "attempts": 1,
        "seconds": 60.0,
        "cpu_seconds": 90.0,
        "gpu_seconds": 0.0,
        "resources": {"CPU": 1.5, "GPU": 0.0},
    }


def _write_run(
    run: Path,
    entry: dict[str, Any],
    arm: Arm,
    gain: float,
    difficulty_N: np.ndarray,
    steps: int,
    generator: np.random.Generator,
) -> None:
    run.mkdir()
    lines = [json.dumps(_step(step, steps, arm, gain, generator)) for step in range(1, steps + 1)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (run / "config.yaml").write_text(yaml.safe_dump({"algorithm": arm.algorithm, "seed": entry["seed"]}), "utf-8")
    (run / "run.json").write_text(json.dumps({"status": "finished"}), "utf-8")
    if entry["phase"] == "confirm":
        comparison(gain, difficulty_N, generator).save(run / "evaluation.json")


def _grade(run: Path, gain: float, difficulty_N: np.ndarray, generator: np.random.Generator) -> None:
    """Put graded results in the place of a run's; the first problem could not be scored."""

    def evaluation(ability_N: np.ndarray, noise: np.random.Generator) -> Evaluation:
        rewards_N = 3 * ability_N - 5 + noise.normal(0, 0.1, len(ability_N))
        rewards_N[0] = math.nan
        values = {"greedy_reward": rewards_N, "greedy_overlap": 0.1 * rewards_N, "best_reward@3": rewards_N + 1}
        outcomes = {"beam 3": {"scored": 3 * len(ability_N) - 3, "unscored": 3}}
        return Evaluation([""] * len(ability_N), {k: v.tolist() for k, v in values.items()}, outcomes, "problems")

    before = evaluation(difficulty_N, np.random.default_rng(0))
    after = with_win_rate(evaluation(difficulty_N + gain, generator), before)
    if (run / "evaluation.json").is_file():
        EvaluationComparison(with_win_rate(before, before), after).save(run / "evaluation.json")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        for name in ("correct", "wrong"):
            line["outcome/scored"] = line.get("outcome/scored", 0) + line.pop(f"outcome/{name}")
        line |= {"outcome/unscored": 2, "part/overlap/share": 0.7}
        if "validation/greedy" in line:
            line |= {"validation/greedy_reward": line.pop("validation/greedy") * 9 - 8, "validation/win_rate": 0.6}
            del line["validation/beam@10"], line["validation/beam_rank_score"]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")


def _step(step: int, steps: int, arm: Arm, gain: float, generator: np.random.Generator) -> dict[str, Any]:
    completions = 320
    solved = 0.3 + 0.2 * gain * step / steps + generator.normal(0, 0.02)
    correct = round(completions * solved)
    line: dict[str, Any] = {
        "step": step,
        "time": 1.7e9 + step,
        "reward_mean": solved,
        "kl": 0.002 * gain * step,
        "entropy": 0.2 * math.exp(-step / steps),
        "grad_norm": abs(generator.normal(0.1, 0.02)),
        "completion_length": arm.tokens,
        "outcome/correct": correct,
        "outcome/wrong": completions - correct - 4,
        "outcome/truncated": 4,
        "seconds/total": 1.5,
    }
    amounts = {"steps": step, "gradient_steps": step, "completions": completions * step, "seconds": 1.5 * step}
    line |= {f"used/{name}": value for name, value in (amounts | {"tokens": completions * arm.tokens * step}).items()}
    if step % 5 == 0:
        share = step / steps
        line |= {
            "validation/greedy": 0.55 + 0.12 * gain * share + generator.normal(0, 0.01),
            "validation/beam@10": 0.95 + 0.01 * gain * share,
            "validation/beam_rank_score": 0.86 + 0.04 * gain * share + generator.normal(0, 0.004),
        }
    return line
