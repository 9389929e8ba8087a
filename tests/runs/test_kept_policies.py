"""A run's policy is what the run wrote, whatever reads it; elsewhere a policy is anybody's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bgrpo.cli.app import main
from bgrpo.config import TrainConfig, load_config
from bgrpo.errors import UserError
from bgrpo.policies.io import save_policy
from bgrpo.policies.model import build_policy
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.kept_policies import forget_policy, record_policy, refuse_changed
from bgrpo.runs.preparation import check_policy
from bgrpo.runs.run_folder import RunFolder
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer


def write(folder: Path) -> None:
    tokenizer = build_tokenizer(0, 0)
    save_policy(build_policy(tokenizer, layers=1, heads=2, width=8, context=64, seed=3), tokenizer, folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs with a finished one, ``mine``: a policy, and a checkpoint of step 2."""
    runs = tmp_path_factory.mktemp("runs")
    run = RunFolder.create(load_config(TrainConfig, None, [f"run.dir={runs}", "run.name=mine"]), None)
    CheckpointStore(run.checkpoints).save(2, lambda folder: write(folder / "policy"))
    write(run.policy)
    record_policy(run)
    return runs


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(finished, tmp_path / "runs")
    return RunFolder(tmp_path / "runs" / "mine")


FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "export": lambda policy: ["export", str(policy), "--out", "out"],
    "convert": lambda policy: ["convert", str(policy), "--out", "out.pt"],
    "evaluate": lambda policy: ["evaluate", "--policy", str(policy), "--problems", "1", "--beam-width", "1"],
    "train": lambda policy: ["train", "--local", f"policy.path={policy}", "task.train.count=40"],
    "reference": lambda policy: ["train", "--local", f"learner.reference.path={policy}", "task.train.count=40"],
}


def flip(path: Path) -> None:
    """The lowest bit of a digit or of a weight: nothing else would notice."""
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", ["policy", "checkpoints/step-00000002/policy"])
@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_in_any_file_is_noticed(run: RunFolder, place: str, file: str) -> None:
    policy = run.path / place
    assert sorted(path.name for path in policy.iterdir()) == FILES
    refuse_changed(policy)
    flip(policy / file)
    with pytest.raises(UserError, match=rf"^policy .*: {file} is not what was written.*copy the folder elsewhere"):
        check_policy(str(policy))


@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_reads_it_refuses_it(
    run: RunFolder, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.path.parent)
    flip(run.policy / "model.safetensors")
    assert main(COMMANDS[command](Path("mine/policy"))) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "mine/policy: model.safetensors is not what was written: its SHA-256 differs: put back" in told
    assert not any(Path(name).exists() for name in ("out", "out.pt"))


def test_a_whole_run_is_converted_without_what_is_damaged(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.path)
    flip(run.checkpoints / "step-00000002" / "policy" / "model.safetensors")
    assert main(["convert", str(run.path), "--out", "all"]) == 0
    assert sorted(path.name for path in Path("all").iterdir()) == ["policy.json", "policy.pt"]
    assert "step-00000002: is no complete checkpoint (policy/model.safetensors is not what" in capsys.readouterr().err
    flip(run.policy / "model.safetensors")
    assert main(["export", str(run.path), "--out", "exported"]) == 2


def test_elsewhere_and_of_an_earlier_version_it_passes(run: RunFolder, tmp_path: Path) -> None:
    flip(run.policy / "model.safetensors")
    shutil.copytree(run.policy, tmp_path / "elsewhere" / "policy")
    refuse_changed(tmp_path / "elsewhere" / "policy")
    for other in ("shipped", "owner/model", "", "\0"):
        refuse_changed(other)
    forget_policy(run)
    refuse_changed(run.policy)
