"""The folder of a run: names, resuming, torn files, and folders that cannot be written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from bgrpo.config import PretrainConfig, TrainConfig, load_config
from bgrpo.errors import UserError
from bgrpo.runs.run_folder import (
    RAY_JOB_VARIABLE,
    RunFolder,
    check_place,
    flatten,
    load_new_config,
    load_resumed_config,
    load_run_config,
)
from bgrpo.training.metrics_tail import MetricsTail


def _config(tmp_path: Path, *overrides: str) -> TrainConfig:
    return load_config(TrainConfig, None, [f"run.dir={tmp_path / 'runs'}", *overrides])


def test_a_new_run_has_its_files_and_is_found_again(tmp_path: Path) -> None:
    run = RunFolder.create(_config(tmp_path, "run.name=first", "rollout.group_size=7"), "quickstart")
    assert run.data.is_dir()
    assert run.checkpoints.is_dir()
    info = run.info()
    assert info["status"] == "running"
    assert info["config"] == "quickstart"
    assert info["versions"]["torch"].startswith("2.")
    assert run.load_config(TrainConfig).rollout.group_size == 7
    assert RunFolder.open(tmp_path / "runs", "first") == run
    assert RunFolder.open("elsewhere", str(run.path)) == run


def test_default_names_are_unique_and_say_what_runs(tmp_path: Path) -> None:
    names = [RunFolder.create(_config(tmp_path), "configs/quick start.yaml").name for _ in range(3)]
    assert len(set(names)) == 3
    assert all(name.startswith("quick-start-bgrpo-20") for name in names)
    pretrain = load_config(PretrainConfig, None, [f"run.dir={tmp_path / 'runs'}"])
    assert RunFolder.create(pretrain, None).name.startswith("defaults-pretrain-20")


def test_a_taken_name_is_refused(tmp_path: Path) -> None:
    RunFolder.create(_config(tmp_path, "run.name=mine"), None)
    with pytest.raises(UserError, match="--resume mine"):
        RunFolder.create(_config(tmp_path, "run.name=mine"), None)


NOT_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/x",
    ".hidden",
    "a b",
    "-x",
    "x" * 300,
    "a\n",
    "a\tb",
    "a\x1b[31m",
    "ä",
    "[/b]",
]


@pytest.mark.parametrize("name", [*NOT_NAMES, "a\0", "mlflow.db", "mlartifacts", "MLflow.db"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    config = _config(tmp_path)
    config = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    with pytest.raises(UserError, match=r"run\.name") as caught:
        RunFolder.create(config, None)
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


def test_a_place_is_checked_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    for directory, name, message in (
        (tmp_path / "file", "a", "file is no folder"),
        (tmp_path / "file" / "runs", "a", "file is no folder"),
        (tmp_path / "dangling", "a", "dangling is no folder"),
        (tmp_path, "taken", "'taken' exists in .* --resume taken"),
        (tmp_path, "file", "'file' exists"),
        (tmp_path, "dangling", "'dangling' exists"),
        (Path("/proc/sys/kernel"), "a", r"run\.dir=/proc.*(may not be written|0 MiB are free)"),
        (Path("/" + "x" * 300 + "/b"), "a", None),
        ("a\0b", "a", "is no path"),
    ):
        if message is not None:
            with pytest.raises(UserError, match=message):
                check_place(str(directory), name)
    check_place(str(tmp_path / "new" / "[/b] %20?"), "a")
    with pytest.raises(UserError, match=r"MiB are free, and the run needs \d+ MiB"):
        check_place(str(tmp_path / "new"), "a", room=2**62)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="may not be written"):
        check_place(str(tmp_path / "new"), "a")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["nowhere", "", "..", "x" * 300, "a\0b", "a\nb", "x/" * 3000])
def test_a_run_that_cannot_be_is_unknown(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no run"):
        RunFolder.open(tmp_path, name)


DAMAGED_LINES = [
    "{",
    "[1]",
    "null",
    "\x00",
    '{"step": "3"}',
    '{"loss": 1}',
    '{"step": 3, "kl": "x"}',
    "[" * 50_000,
    "\xff",
]


@pytest.mark.parametrize("line", DAMAGED_LINES)
def test_a_damaged_line_of_the_metrics_is_told_and_left_out(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder.create(_config(tmp_path), None)
    for step in (1, 2, 3, 4):
        run.append_metrics(step, {"kl": 0.5})
    lines = run.metrics_path.read_bytes().splitlines()
    run.metrics_path.write_bytes(b"\n".join([*lines[:2], line.encode("latin-1"), lines[3], b""]))
    assert [record["step"] for record in run.metrics()] == [1, 2, 4]
    assert "1 damaged line(s), left out" in caplog.text
    run.truncate_after(2)
    run.append_metrics(3, {"kl": 0.5})
    assert [record["step"] for record in run.metrics()] == [1, 2, 3]
    assert [step for step, *_ in MetricsTail(run.metrics_path).new_steps()] == [1, 2, 3]


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00", "[" * 50_000])
def test_a_damaged_run_json_is_told_in_one_line(tmp_path: Path, content: str) -> None:
    run = RunFolder.create(_config(tmp_path), None)
    (run.path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json: cannot be read"):
        load_resumed_config(TrainConfig, str(run.path), [])


def test_an_unknown_run_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        RunFolder.open(tmp_path / "runs", "first")
    for i, name in enumerate(["alpha", "beta", "gamma", "delta"]):
        run = RunFolder.create(_config(tmp_path, f"run.name={name}"), None)
        os.utime(run.path / "run.json", (i, i))
    with pytest.raises(UserError, match=r"did you mean 'gamma'.*the last ones are delta, gamma, beta$"):
        RunFolder.open(tmp_path / "runs", "gama")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"run\.dir=.*cannot be written"):
        RunFolder.create(_config(tmp_path), None)


def test_a_full_disk_at_the_start_is_a_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        RunFolder.create(_config(tmp_path, "run.name=full"), None)
    assert list((tmp_path / "runs").iterdir()) == [], "a second attempt may take the name"


def test_metrics_are_appended_truncated_and_survive_a_torn_line(tmp_path: Path) -> None:
    run = RunFolder.create(_config(tmp_path), None)
    assert run.metrics() == []
    for step in range(1, 6):
        run.append_metrics(step, {"reward_mean": step / 10, "kl": math.nan if step == 2 else 0.5})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 6, "rew')  # the process was killed here
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 5]
    assert run.metrics()[1]["kl"] is None
    run.truncate_after(3)
    run.append_metrics(4, {"reward_mean": 0.7})
    assert [(line["step"], line["reward_mean"]) for line in run.metrics()] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.7)]
    for line in run.metrics_path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_resuming_takes_the_runs_own_configuration(tmp_path: Path) -> None:
    run = RunFolder.create(_config(tmp_path, "run.name=r", "rollout.group_size=7", "steps=10"), None)
    config = load_resumed_config(TrainConfig, "r", [f"run.dir={tmp_path / 'runs'}", "steps=20", "rollout.actors=5"])
    assert (config.rollout.group_size, config.steps, config.rollout.actors) == (7, 20, 5)
    run.resume(config)
    again = load_resumed_config(TrainConfig, str(run.path), [])
    assert again.steps == 20
    assert again == config
    assert "resumed" in run.info()


def test_resuming_on_another_cluster_may_fit_the_run_to_it(tmp_path: Path) -> None:
    run = RunFolder.create(_config(tmp_path, "run.name=r"), None)
    fit = ["rollout.min_actors=1", "rollout.actors=3", "rollout.max_actors=9", "rollout.stand_ins=1"]
    fit += ["rollout.scale_up_s=5", "rollout.scale_down_s=60", "rollout.placement_s=30", "watchdog.silence_s=60"]
    fit += [f"{kind}.node_resource=small" for kind in ("rollout", "verifier", "learner")]
    run.resume(load_resumed_config(TrainConfig, str(run.path), fit))
    assert run.load_config(TrainConfig).rollout.max_actors == 9


def test_resuming_refuses_what_would_change_the_result(tmp_path: Path) -> None:
    run = RunFolder.create(_config(tmp_path, "run.name=r"), None)
    with pytest.raises(UserError) as refusal:
        load_resumed_config(TrainConfig, str(run.path), ["rollout.group_size=11", "seed=4", "checkpoint.every=7"])
    assert "rollout.group_size=11 (the run has 10)" in str(refusal.value)
    assert "seed=4 (the run has 0)" in str(refusal.value)
    assert "checkpoint" not in str(refusal.value)
    assert run.load_config(TrainConfig).rollout.group_size == 10, "a refused resume changes nothing"


@pytest.mark.parametrize(
    ("written", "changed", "key"),
    [("learning_rate: 0.0001", "learning_rate: 0.0003", "learner.learning_rate"), ("seed: 7", "seed: 17", "seed"),
     ("group_size: 6", "group_size: 7", "rollout.group_size"), ("algorithm: bgrpo", "algorithm: grpo", "algorithm")],
)  # fmt: skip
def test_a_configuration_that_was_changed_in_the_folder_is_noticed(
    tmp_path: Path, written: str, changed: str, key: str
) -> None:
    overrides = ("run.name=mine", "learner.learning_rate=0.0001", "seed=7", "rollout.group_size=6")
    run = RunFolder.create(_config(tmp_path, *overrides), None)
    text = run.config_path.read_text()
    assert text.count(written) == 1
    load_resumed_config(TrainConfig, str(run.path), ["steps=999"])
    run.config_path.write_text(text.replace(written, changed))
    with pytest.raises(UserError, match=rf"{key}=.* \(config\.yaml was changed: the run has "):
        load_resumed_config(TrainConfig, str(run.path), ["steps=999"])
    assert "\nsteps: 100\n" in text
    run.config_path.write_text(text.replace("\nsteps: 100\n", "\nsteps: 777\n"))
    assert load_resumed_config(TrainConfig, str(run.path), []).steps == 777, "what may change may"


def test_no_flipped_bit_of_the_records_of_a_run_is_another_number(tmp_path: Path) -> None:
    run = RunFolder.create(_config(tmp_path, "run.name=mine"), None)
    for step in (1, 2, 3):
        run.append_metrics(step, {"reward_mean": step / 7})
    known, info = run.metrics(), run.info()
    for path in (run.metrics_path, run.path / "run.json"):
        content = path.read_bytes()
        for bit in range(0, 8 * len(content), 5):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            assert all(line in known for line in run.metrics())
            try:
                found = run.info()
            except UserError:
                continue
            assert {key: found[key] for key in info} == info
        path.write_bytes(content)


def test_a_step_counts_once(tmp_path: Path) -> None:
    run = RunFolder.create(_config(tmp_path, "run.name=mine"), None)
    for step in (1, 2):
        run.append_metrics(step, {"reward_mean": 0.5})
    run.metrics_path.write_bytes(run.metrics_path.read_bytes() * 2)
    assert [line["step"] for line in run.metrics()] == [1, 2]


def test_passwords_stay_out_of_the_folder_and_are_asked_for_again(tmp_path: Path) -> None:
    uri = "https://me:hunter2@mlflow.example.org/x"
    run = RunFolder.create(_config(tmp_path, f"tracking.uri={uri}"), None)
    for path in run.path.rglob("*"):
        assert path.is_dir() or "hunter2" not in path.read_text()
    with pytest.raises(UserError, match=r"tracking\.uri.*password"):
        load_resumed_config(TrainConfig, str(run.path), [])
    assert load_resumed_config(TrainConfig, str(run.path), [f"tracking.uri={uri}"]).tracking.uri == uri
    assert not load_resumed_config(TrainConfig, str(run.path), ["tracking.enabled=false"]).tracking.enabled


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}


def test_runs_of_a_ray_job_do_not_lie_in_the_folder_that_ray_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(RAY_JOB_VARIABLE, raising=False)
    assert load_new_config(TrainConfig, None, []).run.dir == str(tmp_path / "runs")
    monkeypatch.setenv(RAY_JOB_VARIABLE, "{}")
    assert load_new_config(TrainConfig, None, []).run.dir == str(tmp_path / "home" / "bgrpo" / "runs")


def test_a_policys_folder_becomes_absolute_and_a_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learners work in other folders than the driver."""
    monkeypatch.chdir(tmp_path)
    for folder in ("mine", "shipped"):
        (tmp_path / folder).mkdir()
    expected = {"mine": str(tmp_path / "mine"), "shipped": "shipped", "org/model": "org/model"}
    for given, found in expected.items():
        assert load_new_config(TrainConfig, None, [f"policy.path={given}"]).policy.path == found
    assert load_new_config(TrainConfig, None, ["run.dir=/data/runs"]).run.dir == "/data/runs"


def test_a_resumed_run_keeps_the_configuration_that_it_was_started_with(tmp_path: Path) -> None:
    started = load_config(TrainConfig, "quickstart", [f"run.dir={tmp_path}", "run.name=first", "algorithm=grpo"])
    RunFolder.create(started, "quickstart")
    overrides = [f"run.dir={tmp_path}"]
    assert load_run_config(TrainConfig, "quickstart", overrides, "first").algorithm == "grpo"
    assert load_run_config(TrainConfig, None, overrides, "first").algorithm == "grpo"
    with pytest.raises(UserError, match="first was started with --config quickstart, not with --config other"):
        load_run_config(TrainConfig, "other", overrides, "first")
    assert load_run_config(TrainConfig, "quickstart", overrides, None).algorithm == "bgrpo"
