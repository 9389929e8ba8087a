"""The table that a run ends with and ``bgrpo evaluate --config runs/RUN/config.yaml`` are one table."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bgrpo.cli.app import main
from bgrpo.config import TrainConfig, build_config
from bgrpo.decoding import DecodeSettings
from bgrpo.distributed.rollout import remote
from bgrpo.distributed.rollout.actor import RolloutActor, RolloutRequest
from bgrpo.distributed.rollout.remote import ServiceDecoder
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.evaluation.metrics import Measures, evaluate
from bgrpo.groups import ScoredGroup
from bgrpo.policies.io import load_policy
from bgrpo.runs.preparation import check_input
from bgrpo.runs.run_folder import RunFolder
from bgrpo.scoring.attempts import attempts_of, trial_of
from bgrpo.scoring.judge import Judge
from bgrpo.tasks.base import Problem

SOURCE = {"options": {"kind": "single", "degrees": [[2, 2]], "coefficients": 4}, "count": 24}


class Service:
    """The rollout service's part in an evaluation: its actors' and verifiers' code, in this process."""

    def __init__(self, config: TrainConfig, check: Any) -> None:
        self._config, self._check = config, check
        self._actor = RolloutActor(config.policy.path, config.rollout.dtype, config.rollout.threads, "cpu")
        self._actor.prepare()
        self.run = SimpleNamespace(remote=self._run)

    def _run(
        self, problems: Sequence[Problem], settings: DecodeSettings, version: int, seeds: list[int], limit_s: float
    ) -> list[ScoredGroup]:
        scored, size = [], self._config.rollout.prompts_per_request
        for start in range(0, len(problems), size):
            part = list(problems[start : start + size])
            request = RolloutRequest(None, part, seeds[start : start + size], settings)  # type: ignore[arg-type]
            groups = self._actor.serve(request).groups
            verdicts = self._check(attempts_of(part, groups))
            scored += Judge(self._config).score(range(len(part)), groups, verdicts, version)
        return scored


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"reward": {"function": "reward_functions:length"}},
        {"algorithm": "grpo", "rollout": {"temperature": 0.5, "prompts_per_step": 8}},
        {"rollout": {"dtype": "bf16", "prompts_per_step": 8}, "seed": 3},
    ],
    ids=["the task's check", "a reward function", "another temperature", "bf16"],
)
def test_a_runs_last_table_is_that_of_evaluate_with_its_configuration(
    sections: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {
        "task": {"train": SOURCE | {"seed": 1}, "validation": SOURCE | {"seed": 2}, "test": SOURCE | {"seed": 3}},
        "rollout": {"prompts_per_step": 8, "prompts_per_request": 5},
        "evaluation": {"beam_widths": [1, 4], "samples": 6},
        "run": {"dir": str(tmp_path), "name": "run"},
    }
    config = build_config(TrainConfig, tree | sections, "test")
    run = RunFolder.create(config, None)
    monkeypatch.setattr(remote, "answer", lambda reference, timeout_s: reference)
    problems = check_input(config).splits.test
    with Judge(config).start(trial_of(problems)) as checks:
        decode = ServiceDecoder(Service(config, checks.judge), config, 7, load_policy(config.policy.path).tokenizer)
        section = config.evaluation
        measures = Measures.of(config)
        trained = evaluate(decode, problems, section.beam_widths, section.samples, config.seed, measures)
    expected = {row.metric: row.after for row in EvaluationComparison(trained, trained, config.seed).rows()}

    assert main(["evaluate", "--config", str(run.config_path), "--threads", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {name: tuple(row.values()) for name, row in result["metrics"].items()} == {
        name: tuple(row) for name, row in expected.items()
    }
    assert result["outcomes"] == trained.outcomes
    assert expected["beam@4"].mean > 0 and set(expected) == set(config.reward.metrics([1, 4], 6))


def test_decode_says_what_it_wrote_and_what_was_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("three.txt").write_text("+ P 3 + * P 2 ^ a P 2 ^ a P 4 ⁇ ^ a P 2\n" * 3, "utf-8")
    common = ["--data", "three.txt", "--threads", "1"]
    assert main(["decode", *common, "--out", "out.jsonl", "--beam-width", "4", "--limit", "5"]) == 0
    said = capsys.readouterr().err
    assert "note: three.txt has 3 problems, fewer than --limit 5" in said
    assert re.search(r"out\.jsonl: 3 problems, 12 completions: \d+ \w+", said)
    assert "warning" not in said
    assert main(["decode", *common, "--out", "out.jsonl", "--overwrite", "--max-new-tokens", "1"]) == 0
    assert "warning: 27 of 30 completions were cut off at 1 tokens" in capsys.readouterr().err
    evaluation = ["--samples", "0", "--max-new-tokens", "1", "--problems", "9"]
    assert main(["evaluate", *common, *evaluation]) == 0
    said = capsys.readouterr().err
    assert "has 3 problems, fewer than --problems 9" in said and "completions were cut off at 1 tokens" in said
