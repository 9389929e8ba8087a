"""``bgrpo.train(local=True)``: whole runs in this process, from what a script or a notebook holds."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import bgrpo
from bgrpo.chaos.faults import wait_until
from bgrpo.chaos.run_comparison import compare_metrics
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.run_folder import RunFolder

REPOSITORY = Path(__file__).resolve().parents[2]


def weights(run: bgrpo.Run) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.policy.model.parameters()])


def test_a_run_from_objects_in_memory_and_what_it_tells(
    tmp_path: Path, policy_folder: Path, rows: list[dict[str, Any]], small: dict[str, Any]
) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy_folder), AutoTokenizer.from_pretrained(policy_folder)
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()
    told: list[int] = []
    threads = torch.get_num_threads()

    def likes_w3(completions: list[str], wanted: list[str], **columns: Any) -> list[float]:
        pairs = zip(completions, wanted, strict=True)
        return [text.split().count("w3") - 0.1 * text.split().count(word) for text, word in pairs]

    async def cell() -> bgrpo.Run:
        """As in a notebook, where an event loop runs."""
        return bgrpo.train(
            (model, tokenizer),
            Dataset.from_list(rows),
            {"w3": ({"function": likes_w3, "score_truncated": True}, 2.0), "words": ("completion_words", 0)},
            algorithm="grpo",
            steps=3,
            group_size=4,
            config=small,
            name="first",
            runs=tmp_path,
            local=True,
            on_step=lambda step, metrics: told.append(step),
        )

    run = asyncio.run(cell())
    assert (run.name, run.status, run.steps, run.folder) == ("first", "finished", 3, tmp_path / "first")
    assert told == [1, 2, 3] and torch.get_num_threads() == threads
    assert [line["step"] for line in run.metrics()] == [1, 2, 3] and "part/w3/mean" in run.metrics()[0]
    assert run.config.reward.parts["w3"].weight == 2.0 and run.config.algorithm == "grpo"
    assert "greedy_reward" in run.table() and "before" in run.table() and run.comparison is not None
    assert {sample.step for sample in run.samples()} == {1, 2, 3} and len(run.samples(2)) == 1
    assert any("cut off at rollout.max_new_tokens=5" in line for line in run.conclusions())
    now = weights(run)
    assert not torch.equal(now, before)
    assert torch.equal(before, torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert len(run.policy.generate(["w1 w2", "w5"])) == 2 and run.policy.max_new_tokens == 5
    again = bgrpo.load_run("first", runs=tmp_path)
    assert torch.equal(weights(again), now) and again.table() == run.table() and "finished" in repr(again)
    with pytest.raises(bgrpo.UserError, match="exists in"):
        bgrpo.train(policy_folder, rows, likes_w3, name="first", runs=tmp_path, local=True)
    with pytest.raises(bgrpo.UserError, match="goes on with its own rewards: leave out rewards"):
        bgrpo.train(rewards=likes_w3, resume=run, local=True)
    measured = bgrpo.evaluate(run.policy, rows, likes_w3, beam_widths=[2], samples=2, config=small, progress=False)
    assert {"greedy_reward", "best_reward@2", "sample_reward"} <= measured.metrics().keys()
    assert len(measured.categories) == len(rows) and "greedy_reward" in measured.table()


def test_a_reward_that_rises_while_what_is_watched_falls_is_told_at_the_end(
    tmp_path: Path, policy_folder: Path, rows: list[dict[str, Any]], small: dict[str, Any]
) -> None:
    def variety(prompt: str, completion: str) -> float:
        words = completion.split()
        return len(set(words)) / max(len(words), 1)

    def says_w3(prompt: str, completion: str) -> float:
        return float(completion.split().count("w3"))

    parts = {"w3": {"function": says_w3, "score_truncated": True}}
    run = bgrpo.train(
        policy_folder,
        rows,
        parts | {"variety": ({"function": variety, "score_truncated": True}, 0)},
        algorithm="grpo",
        steps=21,
        group_size=8,
        config=small,
        runs=tmp_path,
        name="hacked",
        local=True,
        progress=False,
        overrides={"learner.beta": 0},
    )
    rewards = [step["score_mean"] for step in run.metrics()]
    assert sum(rewards[-7:]) > sum(rewards[:7])
    assert any("this may be reward hacking: variety" in line for line in run.conclusions())


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({}, marks=pytest.mark.long),
        {"rollout.search": "stochastic_beam", "advantage.kind": "set_estimator", "rollout.max_staleness": 1},
    ],
    ids=["beams", "without replacement, ahead"],
)
def test_a_run_that_is_stopped_and_resumed_comes_to_the_same(
    tmp_path: Path, policy_folder: Path, rows: list[dict[str, Any]], small: dict[str, Any], keys: dict[str, Any]
) -> None:
    def reward(prompt: str, completion: str) -> float:
        time.sleep(0.05)  # the stop is to come before the last step
        return float(len(set(completion.split())))

    def stop(step: int, metrics: Any) -> None:
        if step == 2:
            (tmp_path / "cut" / "stop").touch()

    rewards = {"function": reward, "score_truncated": True}
    arguments: dict[str, Any] = {"problems": rows, "rewards": rewards, "steps": 5, "group_size": 4, "config": small}
    arguments |= {"policy": policy_folder, "runs": tmp_path, "local": True, "progress": False, "overrides": keys}
    whole = bgrpo.train(**arguments, name="whole")
    cut = bgrpo.train(**arguments, name="cut", on_step=stop)
    assert cut.status == "stopped" and 2 <= cut.steps < 5 and "stopped after" in cut.table()
    assert cut.policy.generate("w1") and cut.comparison is None
    resumed = bgrpo.train(resume=cut, local=True, progress=False)
    assert resumed.status == "finished" and torch.equal(weights(resumed), weights(whole))
    assert compare_metrics(whole.metrics(), resumed.metrics()) == []
    longer = bgrpo.train(resume="whole", runs=tmp_path, steps=6, config={"learner.schedule": "cosine"}, local=True)
    assert longer.steps == 6
    with pytest.raises(bgrpo.UserError, match=r"cannot be resumed with rollout\.group_size=8"):
        bgrpo.train(resume=cut, group_size=8, local=True)


def test_a_callback_that_raises_ends_the_run_and_nothing_is_written_after_it(
    tmp_path: Path, policy_folder: Path, rows: list[dict[str, Any]], small: dict[str, Any]
) -> None:
    def strike(step: int, metrics: Any) -> None:
        raise ZeroDivisionError(f"at step {step}")

    before = set(threading.enumerate())
    keys = small | {"checkpoint.every": 1, "evaluation.final": False}
    with pytest.raises(ZeroDivisionError, match="at step 1"):
        bgrpo.train(
            policy_folder,
            rows,
            {"metric": "distinct_1", "score_truncated": True},
            algorithm="grpo",
            steps=10_000,
            group_size=4,
            config=keys,
            name="raising",
            runs=tmp_path,
            local=True,
            on_step=strike,
        )
    run = bgrpo.load_run(tmp_path / "raising")
    written = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()}
    wait_until(lambda: set(threading.enumerate()) <= before, "the end of the learner's thread", 200)
    assert run.status == "failed" and 1 <= run.steps < 10_000
    assert written == {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()}


SCRIPT = """
import os, signal
import bgrpo

words = 3
rows = [{{"prompt": f"w{{i}} w{{i + 1}}"}} for i in range(24)]
longer = lambda prompt, completion: float(len(completion.split()) >= words) + len(completion) / 100

def strike(step, metrics):
    if step == 2:
        os.kill(os.getpid(), signal.{name})

bgrpo.train({policy!r}, rows, {{"function": longer, "score_truncated": True}}, algorithm="grpo", steps={steps},
            group_size=4, local=True, name="script", config={config!r}, on_step=strike)
"""


def script(folder: Path, policy: Path, config: dict[str, Any], **values: Any) -> subprocess.CompletedProcess[str]:
    text = SCRIPT.format(policy=str(policy), config=config, **values)
    (folder / "script.py").write_text(text)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), pytest.param("SIGTERM", 143, marks=pytest.mark.long)])
def test_a_signal_saves_what_was_learned_and_ends_the_script(
    tmp_path: Path, policy_folder: Path, small: dict[str, Any], name: str, status: int
) -> None:
    """A script without a main guard, whose reward is a lambda."""
    done = script(tmp_path, policy_folder, small, name=name, steps=400)
    assert done.returncode == status, done.stderr
    assert f"{name}: run script is stopped; go on with bgrpo.train(resume=" in done.stderr
    run = bgrpo.load_run("script", runs=tmp_path / "runs")
    assert run.status == "stopped" and 2 <= run.steps < 400
    assert run.policy.path.endswith(f"step-{run.steps:06d}/policy") or str(run.steps) in run.policy.path


def test_ctrl_c_of_the_local_command_saves_and_ends_with_its_status(
    tmp_path: Path, policy_folder: Path, rows: list[dict[str, Any]]
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = ["task.name=text", "task.train.file=rows.jsonl", f"policy.path={policy_folder}", "algorithm=grpo"]
    keys += [
        "reward.parts={words: {metric: distinct_1, score_truncated: true}}",
        "steps=400",
        "rollout.prompts_per_step=4",
        "run.name=local",
    ]
    keys += ["rollout.max_new_tokens=5", "rollout.group_size=4", "tracking.enabled=false", "evaluation.final=false"]
    command = [sys.executable, "-m", "bgrpo.cli.app", "train", "--local", *keys]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    metrics = tmp_path / "runs" / "local" / "metrics.jsonl"
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 1, "two steps", 200)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=240)
    assert process.returncode == 130, told
    assert "SIGINT: saving a checkpoint, then stopping" in told
    assert "stopped; go on with: bgrpo train --local --resume" in told
    folder = RunFolder(tmp_path / "runs" / "local")
    assert folder.status == "stopped" and len(list(folder.checkpoints.glob("*"))) == 1


CLOSED = """
import os, pty, signal, sys, time
from pathlib import Path
metrics, command = Path(sys.argv[1]), sys.argv[2:]
pid, master = pty.fork()
if not pid:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.execv(command[0], command)
while not metrics.exists() or metrics.read_text().count("\\n") < 4:
    print(os.read(master, 1000).decode("utf-8", "replace"), end="", flush=True)
os.close(master)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.long
def test_a_closed_terminal_saves_what_was_learned(
    tmp_path: Path, policy_folder: Path, rows: list[dict[str, Any]]
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "bgrpo.cli.app", "train", "--local", "task.name=text",
               "task.train.file=rows.jsonl",
               f"policy.path={policy_folder}", "algorithm=grpo", "reward.function=chatty:f", "steps=400", "run.name=x",
               "rollout.prompts_per_step=4", "rollout.max_new_tokens=5", "rollout.group_size=4",
               "tracking.enabled=false", "evaluation.final=false"]  # fmt: skip
    chatty = "def f(prompt, completion):\n    for _ in range(30): print('x' * 99)\n    return len(completion)\n"
    (tmp_path / "chatty.py").write_text(chatty)
    metrics = tmp_path / "runs" / "x" / "metrics.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, str(metrics), *command], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 129, done.stdout + done.stderr
    assert done.stdout.count("x" * 99) == 40, "20 lines in the trial, 20 in the run"
    assert "bytes of what it printed are left out so far" in done.stdout
    folder = RunFolder(metrics.parent)
    newest = CheckpointStore(folder.checkpoints).latest()
    assert folder.status == "stopped" and newest is not None
    assert CheckpointStore.step_of(newest) == folder.metrics()[-1]["step"]


def test_local_and_submit_are_not_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    from bgrpo.cli.app import main

    assert main(["train", "--local", "--submit", "http://127.0.0.1:8265"]) == 2
    assert "--local trains in this process, --submit on a cluster" in capsys.readouterr().err


def test_importing_the_package_is_quick_and_heavy_libraries_wait() -> None:
    code = (
        "import time, sys; start = time.process_time(); import bgrpo; took = time.process_time() - start\n"
        "heavy = {'torch', 'transformers', 'ray', 'pydantic', 'datasets', 'trl'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert set(bgrpo.__all__) <= set(dir(bgrpo))\n"
        "print(took)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = bgrpo.trian  # type: ignore[attr-defined]
