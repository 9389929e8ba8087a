"""A scorer that fails later than its trial: each command says so, once, with the cause, and shows no zeros."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bgrpo
from bgrpo.cli.app import main
from bgrpo.runs.run_folder import RunFolder

SMALL = ["--config=quickstart", "task.train.count=20", "task.validation.count=5", "task.test.count=5"]
RUN = [
    "--local", *SMALL, "steps=2", "rollout.prompts_per_step=4", "rollout.group_size=4", "evaluation.every=0",
    "tracking.enabled=false",
]  # fmt: skip
FAILS = "no check came to a verdict, so nothing can be measured: error in "
CAUSE = "the first: ValueError: no such ("


@pytest.mark.parametrize(
    ("function", "message", "form"),
    [
        ("fails_after_its_trial", FAILS, []),
        ("applies_to_its_trial", "no part of the reward applies to any of ", ["--json"]),
    ],
)
def test_evaluate_refuses_what_nothing_was_judged_of(
    function: str, message: str, form: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", *SMALL, "--beam-width=2", "--samples=0", f"reward.function=reward_functions:{function}"]
    assert main([*given, *form]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(f"error: {message}") and shown.err.count("\n") == 1
    assert message != FAILS or CAUSE in shown.err


def test_from_python_it_is_an_error_too() -> None:
    small = {"task.test.count": 3}
    with pytest.raises(bgrpo.UserError, match=f"^{FAILS}"):
        bgrpo.evaluate("shipped", rewards="reward_functions:fails_after_its_trial", config=small, progress=False)


def test_a_run_ends_with_the_cause_in_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failing = "reward.function=reward_functions:fails_after_its_trial"
    assert main(["train", *RUN, f"run.dir={tmp_path}", "run.name=x", failing, "evaluation.final=false"]) == 2
    told = capsys.readouterr().err
    assert told.count(CAUSE) == 1 and "step 1: no check came to a verdict" in told
    assert main(["train", *RUN, f"run.dir={tmp_path}", "run.name=y", failing]) == 2
    assert FAILS in capsys.readouterr().err
    for name, words in (("x", "step 1: no check"), ("y", FAILS)):
        info = RunFolder(tmp_path / name).info()
        assert info["status"] == "failed" and words in info["cause"] and CAUSE in info["cause"]


def test_decode_tells_the_first_failure_beside_the_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data.txt", tmp_path / "beams.jsonl"
    data.write_text("+ * P 2 ^ a P 4 P 1 ⁇ ^ a P 2\n")
    failing = "reward.function=reward_functions:fails_after_its_trial"
    assert main(["decode", "--data", str(data), "--out", str(out), "--beam-width=2", failing]) == 0
    told = capsys.readouterr().err
    assert "2 error\n" in told and f"warning: error in 2 of 2 checks, {CAUSE}" in told
    assert {each["outcome"] for each in json.loads(out.read_text())["completions"]} == {"error"}


def test_completions_that_are_nearly_all_cut_off_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["evaluate", *SMALL, "--beam-width=2", "--samples=0", "--max-new-tokens=1", "--json"]
    assert main(given) == 0
    shown = capsys.readouterr()
    assert "warning: 60 of 65 completions were cut off at 1 tokens, unjudged: raise --max-new-tokens" in shown.err
    assert json.loads(shown.out)["outcomes"]["beam 10"]["truncated"] == 45
    with pytest.warns(UserWarning, match="were cut off at 1 tokens, unjudged: raise max_new_tokens"):
        bgrpo.evaluate("shipped", config={"task.test.count": 3}, samples=0, max_new_tokens=1, progress=False)


@pytest.mark.parametrize(
    "command", [["train", *RUN, "run.name=n"], ["evaluate", *SMALL, "--samples=0"]], ids=["train", "evaluate"]
)
def test_a_function_that_never_returns_a_number_is_named_before_anything_is_made(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command, "reward.function=reward_functions:forgets_to_return"]) == 2
    told = capsys.readouterr().err
    assert "function reward_functions:forgets_to_return gave None each time" in told and "32 prompts" not in told
    assert list(tmp_path.iterdir()) == []


def test_a_reward_that_never_differs_is_told_within_a_few_steps_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constant = "reward.function=reward_functions:never_differs"
    few = ["steps=8", "checkpoint.every=100", "evaluation.final=false", f"run.dir={tmp_path}", "run.name=c"]
    given = [word for word in RUN if not word.startswith("steps=")]
    assert main(["train", *given, *few, constant]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    why = "the rewards within each group were equal; look at the scores of reward_functions:never_differs"
    assert [why in line for line in lines] == [True, True], lines
    assert lines[0].startswith("warning: steps 1 to 5 made no update")
    assert lines[1].startswith("warning: none of the 8 steps made an update")
