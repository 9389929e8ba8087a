"""README and documentation: every command is one that the command line takes, the cheap ones run, and so does the
README's reward."""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from page_commands import PAGES, REPOSITORY, check, commands_of

import bgrpo
from bgrpo.api.given import Given
from bgrpo.cli.app import main
from bgrpo.config import TrainConfig, load_config
from bgrpo.errors import UserError
from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.trial_configs import TrialConfigs
from bgrpo.tasks.base import Outcome, load_task

README = (REPOSITORY / "README.md").read_text("utf-8")
COMMANDS = sorted({(command, mark) for page in PAGES for command, mark in commands_of(page.read_text("utf-8"))})
CONFIGURATIONS = [
    (page.name, block)
    for page in PAGES
    for block in re.findall(r"```yaml\n(algorithm: .*?)```", page.read_text("utf-8"), re.DOTALL)
]
CHEAP = ("generate-data", "verify", "evaluate", "decode", "filter", "mix", "overlap", "histogram")
FEW = {"--count": "30"}
ENOUGH = {"evaluate": {"--problems": "4", "--samples": "2"}, "decode": {"--limit": "3"}}
FEW_STEPS = ["steps=2", "rollout.prompts_per_step=4", "task.train.count=100", "evaluation.final=false"]


@pytest.mark.parametrize(("page", "block"), CONFIGURATIONS, ids=[page for page, _ in CONFIGURATIONS])
def test_every_configuration_on_a_page_is_one(page: str, block: str, tmp_path: Path) -> None:
    (tmp_path / "page.yaml").write_text(block)
    config = load_config(TrainConfig, str(tmp_path / "page.yaml"))
    assert config.algorithm == "grpo" and config.rollout.group_size == 4


def test_the_pages_for_scripts_have_a_configuration() -> None:
    assert {"from_reward_model_grpo.md", "from_composite_reward.md"} <= {page for page, _ in CONFIGURATIONS}


@pytest.mark.parametrize(("command", "mark"), COMMANDS)
def test_every_command_is_one_that_the_command_line_takes(command: str, mark: str) -> None:
    assert check(command, mark) is None


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("bgrpo trian --config quickstart", "no command"),
        ("bgrpo train --confg quickstart", "No such option"),
        ("bgrpo train --config quickest", "no such file"),
        ("bgrpo train --config quickstart rollout.group_sise=3", "did you mean 'rollout.group_size'"),
        ("bgrpo train --config quickstart algorithm=grpo reward.kind=rank", "needs ranked beams"),
        ("bgrpo sweep --config quick train.learner.speed=1", "speed"),
        ("bgrpo bench rolouts", "no command"),
        ("bgrpo decode --data FILE", "Missing"),
        ("make tests", "no such target"),
        ("bgrpo generate-data --degres 2,2 --coefficients 5 --count 3 --out x.txt", "did you mean 'degrees'"),
        ("python -m ray_jobs.train --confg quickstart", "No such option"),
        ("ray job submit --working-dir . -- python -m ray_jobs.train --config quickest", "no such file"),
        ("mlflow ui", "is not marked"),
    ],
)
def test_a_broken_command_is_noticed(command: str, problem: str) -> None:
    assert problem in str(check(command))


def test_commands_are_found_in_blocks_and_in_sentences() -> None:
    text = "```sh\nmake train\nmlflow ui  # needs a browser\n```\nSee `bgrpo doctor`, `bgrpo/errors.py`, `make`."
    assert list(commands_of(text)) == [("make train", ""), ("mlflow ui", "needs a browser"), ("bgrpo doctor", "")]
    assert len(COMMANDS) > 60


def save_files_of(text: str, folder: Path) -> list[str]:
    """Write the files that a page says to save; their names."""
    files = re.findall(r"[Ss]aved? (?:this )?as `([\w.]+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL)
    for name, content in files:
        (folder / name).write_text(content, "utf-8")
    return [name for name, _ in files]


@pytest.mark.parametrize("page", ["getting_started.md", "tasks_and_rewards.md", "data_files.md"])
def test_the_commands_on_data_and_policies_run_in_their_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With fewer problems. What a page reads, a line above it has written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (REPOSITORY / "docs" / page).read_text("utf-8")
    save_files_of(text, tmp_path)
    lines = [shlex.split(command)[1:] for command, mark in commands_of(text) if not mark]
    cheap = [words for words in lines if len(words) > 1 and words[0] in CHEAP and "FILE" not in words]
    made = [words for words in cheap if words[0] == "generate-data"]
    assert len(made) < len(cheap)
    for words in made + [words for words in cheap if words not in made]:
        for option, value in FEW.items():
            if option in words:
                words[words.index(option) + 1] = value
        for option, value in ENOUGH.get(words[0], {}).items():
            words += [] if option in words else [option, value]
        assert main(words) == 0, capsys.readouterr().err


def test_the_task_on_the_page_generates_loads_checks_and_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exactly the page's class, file and commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (REPOSITORY / "docs" / "tasks_and_rewards.md").read_text("utf-8")
    assert save_files_of(text, tmp_path) == ["my_task.py", "digits.txt"]
    evaluate, decode = (
        shlex.split(command)[1:] for command, _ in commands_of(text) if "--data digits.txt --task" in command
    )
    assert main([*evaluate, "--json"]) == 0, capsys.readouterr().err
    result = json.loads(capsys.readouterr().out)
    assert result["problems"] == 3
    assert result["by_category"].keys() == {"3 digits", "4 digits", "5 digits"}
    assert main(decode) == 0, capsys.readouterr().err
    assert len((tmp_path / "reversed.jsonl").read_text("utf-8").splitlines()) == 3

    task = load_task("my_task:ReverseTask")
    first = task.generate({}, 20, seed=1)
    assert first == task.generate({}, 20, seed=1)
    further = task.generate({"digits": 2}, 90, seed=1, exclude=[f"P 1 {digit} ⁇" for digit in range(10)])
    assert len({problem.prompt for problem in further}) == 90
    assert {task.check(problem.prompt, problem.answer) for problem in first + further} == {Outcome.CORRECT}
    assert task.check("P 1 2 ⁇", "1 2") == Outcome.WRONG
    with pytest.raises(UserError, match="fewer than 11"):
        task.generate({"digits": 1}, 11, seed=1)


def test_the_sweep_on_its_page_is_one(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "sweeps.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(block)
    sweep = load_config(SweepConfig, str(tmp_path / "sweep.yaml"))
    TrialConfigs(sweep, tmp_path).check()


def test_the_moved_script_and_its_command_are_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (REPOSITORY / "docs" / "from_trl.md").read_text("utf-8")
    (call,) = re.findall(r"```python\n(import bgrpo\n.*?)```", page, re.DOTALL)
    keys: dict[str, Any] = {}

    def train(policy: str, problems: str, rewards: str, **named: Any) -> None:
        given = Given()
        given.add_policy(policy)
        given.add_problems(problems, task_is_named=False)
        keys.update(given.keys | named.pop("config") | {"reward.function": rewards})
        keys.update({{"group_size": "rollout.group_size", "name": "run.name"}.get(k, k): v for k, v in named.items()})

    monkeypatch.setattr(bgrpo, "train", train)
    (tmp_path / "moved.py").write_text(call)
    runpy.run_path(str(tmp_path / "moved.py"), {"dataset": "train.jsonl", "exact": "my_rewards:exact"})
    (command,) = re.findall(r"bgrpo train (algorithm=grpo .*?)  #", page)
    assert load_config(TrainConfig, None, command.split()) == load_config(TrainConfig, None, [], keys)


@pytest.fixture(scope="module")
def reward_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's Python, as the file that it says to save."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 15
    path = tmp_path_factory.mktemp("reward") / "my_reward.py"
    assert f"Save this as `{path.name}`" in README
    path.write_text(code, "utf-8")
    return path


def test_the_readmes_reward_trains(reward_file: Path) -> None:
    """Exactly the README's file and command, with fewer and smaller steps, in one process."""
    (command,) = re.findall(r"^bgrpo train .*my_reward:.*$", README, re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-m", "bgrpo.cli.app", *shlex.split(command)[1:], "--local", *FEW_STEPS, "run.name=mine"],
        cwd=reward_file.parent,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = reward_file.parent / "runs" / "mine"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert all(0 < step["reward_mean"] < 1 for step in steps)
    assert (run / "policy" / "model.safetensors").exists()


def test_the_readmes_reward_pays_right_and_short_answers(reward_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(reward_file.parent))
    reward = importlib.import_module("my_reward").short_and_right
    prompt = "+ ^ a P 4 P 1 ⁇"  # a⁴ + 1
    right, longer, wrong, trivial = (
        reward(prompt, answer) for answer in ("^ a P 2", "+ ^ a P 2 P 1 2", "+ ^ a P 2 a", "a")
    )
    assert 1 > right > longer > 0 == wrong == trivial
