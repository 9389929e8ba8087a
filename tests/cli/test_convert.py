"""convert, as typed: both directions are exact, a whole run at once, and nothing is replaced unasked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bgrpo.cli.app import main
from bgrpo.policies.io import load_policy, save_policy
from bgrpo.policies.model import build_policy
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_policy(str(folder)).model.state_dict()


def same(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    tokenizer = build_tokenizer(0, 0)
    save_policy(build_policy(tokenizer, layers=1, heads=2, width=8, context=64, seed=3), tokenizer, tmp_path / "policy")
    return tmp_path / "policy"


def test_there_and_back_is_the_same_policy(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, back = tmp_path / "mine.pt", tmp_path / "back"
    assert main(["convert", str(policy), "--out", str(there), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == [str(there), str(tmp_path / "mine.json")]
    assert isinstance(torch.load(there, weights_only=True)["tok_emb.weight"], torch.Tensor)
    assert main(["convert", str(there), "--out", str(back)]) == 0
    assert capsys.readouterr().out == f"{back}\n"
    assert same(policy, back)
    for command in (["convert", str(there), "--out", str(back)], ["convert", str(policy), "--out", str(there)]):
        assert main(command) == 2
        assert "is there already" in capsys.readouterr().err
    assert main(["convert", str(policy), "--out", str(there), "--overwrite"]) == 0


def test_safetensors_of_a_wrapped_model_are_read(policy: Path, tmp_path: Path) -> None:
    """As the original's trainer saves them, under the names of its wrapper, and as its script turned them into .pt."""
    assert main(["convert", str(policy), "--out", str(tmp_path / "mine.pt")]) == 0
    state = torch.load(tmp_path / "mine.pt", weights_only=True)
    wrapped = tmp_path / "model.safetensors"
    save_file({f"model.{name}": tensor.contiguous() for name, tensor in state.items()}, wrapped)
    config = ["--config", str(tmp_path / "mine.json")]
    assert main(["convert", str(wrapped), *config, "--out", str(tmp_path / "back")]) == 0
    assert same(policy, tmp_path / "back")
    assert main(["convert", str(wrapped), *config, "--out", str(tmp_path / "again.pt")]) == 0
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)


def test_every_complete_checkpoint_of_a_run(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    for step in (50, 100, 150):
        written = CheckpointStore(run / "checkpoints", keep=9).save(
            step, lambda folder: shutil.copytree(policy, folder / "policy")
        )
        if step == 150:
            (written / "COMPLETE.json").unlink()
    shutil.copytree(policy, run / "policy")
    (run / "run.json").write_text("{}")
    out = tmp_path / "all"
    assert main(["convert", "mine", "--runs", str(run.parent), "--out", str(out)]) == 0
    names = ["policy", "step-00000050", "step-00000100"]
    assert sorted(path.name for path in out.iterdir()) == [f"{n}{s}" for n in names for s in (".json", ".pt")]
    assert "step-00000150: is no complete checkpoint" in capsys.readouterr().err
    assert main(["convert", str(out / "policy.pt"), "--out", str(tmp_path / "back")]) == 0
    assert same(policy, tmp_path / "back")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nothing", "--out", "x.pt"],
            "nothing: is no file that ends with .pt, .pth, .safetensors, no policy's folder",
        ),
        (["absent.pt", "--out", "x"], "absent"),
        (["policy", "--out", "x"], "give a name that ends with .pt"),
        (["policy", "--out", "x.pt", "--config", "a.json"], "--config a.json: belongs to a file"),
        (["pickle.pt", "--out", "x"], "pickle.pt: refused, not a plain state dict of tensors"),
        (["policy", "--out", "x.pt", "--task", "text"], "task 'text' has no method export_policy()"),
    ],
)
def test_wrong_usage_is_one_line(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.save({"f": print}, "pickle.pt")
    (tmp_path / "pickle.json").write_text('{"n_head": 2}')
    before = sorted(tmp_path.iterdir())
    assert main(["convert", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
