"""Whole runs on Ray: what they leave behind, and that losing a process or stopping changes nothing in the result."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL, SIGSTOP

import pytest
import torch
from rich.console import Console

from bgrpo.chaos.faults import at_steps, find, hit, wait_until
from bgrpo.chaos.run_comparison import compare_metrics
from bgrpo.config import TrainConfig, build_config
from bgrpo.distributed.train import training_run
from bgrpo.distributed.train.learner_places import read_learners
from bgrpo.distributed.train.training_run import RunResult, run_training
from bgrpo.errors import LostRunError, RunError, UserError
from bgrpo.policies.io import load_policy, save_policy
from bgrpo.policies.model import build_policy
from bgrpo.runs.run_folder import RunFolder
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer
from bgrpo.training import driver
from bgrpo.training.in_process import InProcess
from bgrpo.training.run_attempt import STOP_FILE

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(600)]
STEPS = 8


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random one-layer policy."""
    folder = tmp_path_factory.mktemp("policy") / "policy"
    tokenizer = build_tokenizer(0, 0)
    save_policy(build_policy(tokenizer, 1, 2, 16, 128, seed=3), tokenizer, folder)
    return folder


def config(policy: Path, runs: Path, name: str, /, **sections: object) -> TrainConfig:
    """Few, tiny steps. The reward is a user's function, so that a random policy has something to learn."""
    options = {"kind": "single", "degrees": [[2, 2]], "coefficients": 3}
    source = {"options": options, "count": 12}
    tree: dict = {
        "steps": STEPS,
        "policy": {"path": str(policy)},
        "task": {"train": source | {"seed": 1}, "validation": source | {"seed": 2}, "test": source | {"seed": 3}},
        "rollout": {"actors": 1, "group_size": 4, "prompts_per_step": 4, "prompts_per_request": 2, "max_new_tokens": 6},
        "reward": {"function": "reward_functions:length"},
        "learner": {"warmup_steps": 0, "threads": 1, "learning_rate": 1e-2},
        "evaluation": {"beam_widths": [1, 2], "samples": 2, "every": 4, "problems": 4},
        "checkpoint": {"every": 2},
        "run": {"dir": str(runs), "name": name},
    }
    for key, value in sections.items():
        tree[key] = tree.get(key, {}) | value if isinstance(value, dict) else value
    return build_config(TrainConfig, tree, "test")


def weights(result: RunResult) -> torch.Tensor:
    model = load_policy(str(result.folder.policy)).model
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture(scope="module")
def undisturbed(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run_training(config(policy, tmp_path_factory.mktemp("runs"), "undisturbed"))


def test_a_run_leaves_policy_metrics_comparison_plot_and_tracking(undisturbed: RunResult, policy: Path) -> None:
    folder = undisturbed.folder
    assert [line["step"] for line in folder.metrics()] == list(range(1, STEPS + 1))
    assert folder.info()["status"] == "finished"
    table = json.loads(folder.evaluation_path.read_text())["table"]
    assert {"greedy", "beam@2", "pass@2", "beam_rank_score"} <= table.keys()
    start = load_policy(str(policy)).model
    assert not torch.equal(weights(undisturbed), torch.cat([p.detach().flatten() for p in start.parameters()]))
    assert (folder.policy / "model.safetensors").exists()

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=undisturbed.tracking_uri)
    run = client.get_run(folder.info()["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["rollout.group_size"] == "4"
    assert len(client.get_metric_history(run.info.run_id, "reward_mean")) == STEPS
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "report.png", "evaluation.json", "policy"} <= artifacts


def kill(role: str) -> Callable[[], object]:
    """SIGKILL one process of the run's, as soon as there is one."""

    def act() -> None:
        wait_until(lambda: find(role), f"a process of role {role}")
        hit(find(role)[0], SIGKILL)

    return act


def test_losing_any_process_changes_nothing(undisturbed: RunResult, policy: Path, tmp_path: Path) -> None:
    kills = {1: kill("rollout"), 2: kill("verifier"), 4: kill("learner"), 6: kill("service")}
    with at_steps(tmp_path / "disturbed" / "metrics.jsonl", kills) as begun:
        result = run_training(config(policy, tmp_path, "disturbed"))
    assert begun == list(kills) and not result.stopped
    assert torch.equal(weights(result), weights(undisturbed))
    assert compare_metrics(undisturbed.folder.metrics(), result.folder.metrics()) == []


def test_a_local_run_goes_on_with_ray_and_back_and_all_come_to_the_same(
    undisturbed: RunResult, policy: Path, tmp_path: Path
) -> None:
    here = InProcess()
    local = driver.run_training(here, config(policy, tmp_path, "local"))
    assert torch.equal(weights(local), weights(undisturbed))
    assert compare_metrics(undisturbed.folder.metrics(), local.folder.metrics()) == []
    evaluations = [json.loads(run.folder.evaluation_path.read_text()) for run in (local, undisturbed)]
    assert evaluations[0] == evaluations[1]
    run, folder = config(policy, tmp_path, "both"), tmp_path / "both"
    with at_steps(folder / "metrics.jsonl", {2: (folder / STOP_FILE).touch}):
        assert driver.run_training(here, run).stopped
    with at_steps(folder / "metrics.jsonl", {4: (folder / STOP_FILE).touch}):
        assert run_training(run, resume=True).stopped
    assert RunFolder(folder).info()["status"] == "stopped"
    result = driver.run_training(here, run, resume=True)
    assert not result.stopped and torch.equal(weights(result), weights(undisturbed))
    assert compare_metrics(undisturbed.folder.metrics(), result.folder.metrics()) == []


def test_an_adapter_learned_on_ray_and_here_is_the_same(policy: Path, tmp_path: Path) -> None:
    """With a rollout actor killed; only the adapter travels."""
    lora = {"warmup_steps": 0, "threads": 1, "learning_rate": 1e-1, "lora": {"rank": 2}}
    short = {"steps": 3, "learner": lora, "evaluation": {"beam_widths": [2], "samples": 0, "every": 0}}
    local = driver.run_training(InProcess(), config(policy, tmp_path, "local", **short))
    with at_steps(tmp_path / "ray" / "metrics.jsonl", {1: kill("rollout")}):
        on_ray = run_training(config(policy, tmp_path, "ray", **short))
    assert torch.equal(weights(on_ray), weights(local))
    assert compare_metrics(local.folder.metrics(), on_ray.folder.metrics()) == []
    evaluations = [json.loads(run.folder.evaluation_path.read_text()) for run in (local, on_ray)]
    assert evaluations[0] == evaluations[1]
    base = load_policy(str(policy)).model
    sent = on_ray.folder.metrics()[0]["published_bytes"]
    assert sent == 4 * load_policy(str(on_ray.folder.policy)).adapter.numbers < 4 * base.num_parameters()
    assert not torch.equal(weights(on_ray), torch.cat([weight.detach().flatten() for weight in base.parameters()]))


@pytest.mark.long
def test_two_learners_stopped_and_resumed_make_the_update_of_one(
    undisturbed: RunResult, policy: Path, tmp_path: Path
) -> None:
    learner = {"workers": 2, "warmup_steps": 0, "threads": 1, "learning_rate": 1e-2}
    run, folder = config(policy, tmp_path, "two", learner=learner), tmp_path / "two"
    with at_steps(folder / "metrics.jsonl", {3: (folder / STOP_FILE).touch}):
        assert run_training(run).stopped
    result = run_training(run, resume=True)
    torch.testing.assert_close(weights(result), weights(undisturbed), rtol=1e-3, atol=1e-4)


AHEAD = {"max_staleness": 2, "max_extra_draws": 1}


@pytest.fixture(scope="module")
def ahead(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Each step decoded with the weights of two steps before; in this process."""
    runs = tmp_path_factory.mktemp("runs")
    return driver.run_training(InProcess(), config(policy, runs, "ahead", rollout=AHEAD))


def test_rollouts_ahead_are_two_versions_old(ahead: RunResult, undisturbed: RunResult) -> None:
    assert [line["staleness"] for line in ahead.folder.metrics()] == [0.0, 1.0] + [2.0] * (STEPS - 2)
    first, other = ahead.folder.metrics()[0], undisturbed.folder.metrics()[0]
    assert first["reward_mean"] == other["reward_mean"]
    assert not torch.equal(weights(ahead), weights(undisturbed))


@pytest.mark.long
def test_rollouts_ahead_on_ray_stopped_resumed_and_disturbed_change_nothing(
    ahead: RunResult, policy: Path, tmp_path: Path
) -> None:
    run, folder = config(policy, tmp_path, "ahead", rollout=AHEAD), tmp_path / "ahead"
    with at_steps(folder / "metrics.jsonl", {1: kill("rollout"), 3: (folder / STOP_FILE).touch}):
        assert run_training(run).stopped
    with at_steps(folder / "metrics.jsonl", {6: kill("learner")}) as begun:
        result = run_training(run, resume=True)
    assert begun == [6]
    assert torch.equal(weights(result), weights(ahead))


@pytest.mark.long
def test_a_divergence_ends_the_run_with_its_reason(policy: Path, tmp_path: Path) -> None:
    learner = {"learning_rate": 10.0, "warmup_steps": 0, "max_kl": 0.01, "threads": 1}
    with pytest.raises(UserError, match=r"diverged at step \d+: .*learner\.max_kl=0\.01"):
        run_training(config(policy, tmp_path, "diverging", learner=learner))
    assert json.loads((tmp_path / "diverging" / "run.json").read_text())["status"] == "failed"


@pytest.mark.long
def test_a_learner_that_stops_and_dies_is_named_before_those_that_waited_for_it(policy: Path, tmp_path: Path) -> None:
    learner = {"workers": 2, "warmup_steps": 0, "threads": 1, "max_failures": 0}
    off: dict = {"evaluation": {"final": False, "every": 0}, "tracking": {"enabled": False}}
    run = config(policy, tmp_path, "lost", learner=learner, watchdog={"stall_s": 6.0}, **off)
    terminal, places = io.StringIO(), []

    def stop_then_kill() -> None:
        begin = len(terminal.getvalue())
        places.append(json.loads((tmp_path / "lost" / "learners" / "0.crash").read_text())["where"])
        victim = int(places[0].split()[3])
        hit(victim, SIGSTOP)
        wait_until(
            lambda: "learner 1 (process" in terminal.getvalue()[begin:], "the report of the stall", 90, poll_s=0.1
        )
        places.append(terminal.getvalue()[begin:])
        hit(victim, SIGKILL)

    with (
        at_steps(tmp_path / "lost" / "metrics.jsonl", {2: stop_then_kill}),
        pytest.raises(RunError) as caught,
    ):
        run_training(run, console=Console(file=terminal, width=200))
    place, stall = places
    assert re.search(r"after step \d: nothing has come for \d+ s\n", stall)
    assert re.search(r"learner 0(:\n  says nothing| .*:\n  does not answer)", stall)
    assert re.search(r"learner 1 \(process \d+ on .*\), no step for \d+ s:\n  .*:\n(    .*\n)*    .*trainer.py:", stall)
    lines = str(caught.value).splitlines()
    assert lines[0] == "training failed; the last complete checkpoint is kept."
    assert lines[1].startswith(f"{place}: its process (pid {place.split()[3]} at ")
    assert "it was killed (SIGKILL" in lines[1]


@pytest.mark.long
def test_a_learner_that_hangs_is_replaced_and_a_folder_that_goes_ends_the_run(policy: Path, tmp_path: Path) -> None:
    off: dict = {"evaluation": {"final": False, "every": 0}, "tracking": {"enabled": False}}
    run, folder = config(policy, tmp_path, "hung", steps=400, watchdog={"silence_s": 10.0}, **off), tmp_path / "hung"
    places = []

    def stop() -> None:
        places.append(read_learners(folder)[0].pid)
        hit(places[0], SIGSTOP)

    def remove() -> None:
        places.append(read_learners(folder)[0].pid)
        while folder.exists():  # the run may write between the removal of what is in the folder and that of the folder
            shutil.rmtree(folder, ignore_errors=True)

    with (
        at_steps(folder / "metrics.jsonl", {3: stop, 6: remove}) as begun,
        pytest.raises(LostRunError, match="hung: the folder was removed or replaced"),
    ):
        run_training(run)
    assert begun == [3, 6] and places[0] != places[1]
    assert not folder.exists()


def test_a_finished_run_has_nothing_left_to_do_and_a_taken_one_is_refused(
    undisturbed: RunResult, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(policy, undisturbed.folder.path.parent, "undisturbed")
    monkeypatch.setattr(training_run, "guarded_ray_session", lambda demands, signals: pytest.fail("Ray is used"))
    again = run_training(run, resume=True)
    assert (again.folder, again.stopped, again.tracking_uri) == (undisturbed.folder, False, undisturbed.tracking_uri)
    assert again.comparison is not None and undisturbed.comparison is not None
    assert again.comparison.rows() == undisturbed.comparison.rows()
    longer = config(policy, undisturbed.folder.path.parent, "undisturbed", steps=STEPS + 1)
    with undisturbed.folder.owned(), pytest.raises(UserError, match="run undisturbed belongs to process"):
        run_training(longer, resume=True)
    assert undisturbed.folder.info()["status"] == "finished"


def test_bad_input_is_refused_before_a_run_folder_exists(policy: Path, tmp_path: Path) -> None:
    for sections, message in (
        ({"policy": {"path": str(tmp_path / "nowhere")}}, "nowhere"),
        ({"task": {"train": {"file": str(tmp_path / "none.txt")}}}, "none.txt"),
        ({"rollout": {"max_new_tokens": 4000}}, "context"),
        ({"reward": {"function": "reward_functions:absent"}}, "absent"),
    ):
        with pytest.raises(UserError, match=message):
            run_training(config(policy, tmp_path, "refused", **sections))
        assert not (tmp_path / "refused").exists()
