"""Supervised training: the right loss, the right schedule, resumed = uninterrupted, N processes = one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bgrpo.config import PretrainConfig, build_config, dump_config
from bgrpo.errors import UserError
from bgrpo.policies.io import flatten_parameters, load_policy
from bgrpo.policies.model import build_policy
from bgrpo.pretraining.pretrain import export_best, make_data, pretrain, train
from bgrpo.pretraining.supervised_lines import BatchOrder
from bgrpo.pretraining.supervised_trainer import SupervisedTrainer, learning_rate_ratio
from bgrpo.pretraining.validation import SELECTION, selection_score
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

TASK = {
    "name": "pretrain_toy_task:ReverseTask",
    "train": {"count": 200, "seed": 1},
    "validation": {"count": 20, "seed": 2},
    "test": {"count": 20, "seed": 3},
}
TINY: dict[str, Any] = {
    "layers": 1, "heads": 2, "width": 16, "context": 24, "max_new_tokens": 8, "task": TASK, "steps": 24,
    "batch_size": 32, "warmup_steps": 4, "validate_every": 8, "validation_problems": 10, "bf16": False, "threads": 1,
}  # fmt: skip


def ignore(metrics: dict[str, float]) -> None:
    """A sink for metrics that nobody looks at."""


def config(**changes: Any) -> PretrainConfig:
    return build_config(PretrainConfig, TINY | changes, "test")


def weights(run_dir: Path, step: int) -> np.ndarray:
    return flatten_parameters(load_policy(str(run_dir / "checkpoints" / f"step-{step:08d}")).model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run of the tiny configuration, made once; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("whole")
    make_data(config()).save(folder)
    train(config(), folder, ignore)
    return folder


@given(st.integers(0, 50), st.integers(1, 200), st.floats(0, 1))
def test_learning_rate_warms_up_then_falls_to_its_floor_and_stays(warmup: int, steps: int, floor: float) -> None:
    ratios = [learning_rate_ratio(step, warmup, steps, floor) for step in range(warmup + steps + 50)]
    assert all(0 < ratio <= 1 or floor == 0 for ratio in ratios)
    assert np.allclose(np.diff(ratios[: warmup + 1]), 1 / (warmup + 1))
    assert ratios[warmup] == pytest.approx(1.0)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(ratios[warmup:], ratios[warmup + 1 :], strict=False))
    if steps > warmup + 1:
        assert ratios[steps - 1 :] == pytest.approx([floor] * len(ratios[steps - 1 :]))
        halfway = learning_rate_ratio(warmup + (steps - 1 - warmup) // 2, warmup, steps, floor)
        assert halfway >= (1 + floor) / 2 - 1e-9


def test_selection_prefers_accuracy_then_loss() -> None:
    ordered = [selection_score(0.5, 9.0), selection_score(0.5, 0.1), selection_score(0.501, 9.0)]
    assert ordered == sorted(ordered)
    assert len(set(ordered)) == 3


def test_loss_is_the_mean_over_answer_and_end_tokens_of_the_batch(tmp_path: Path) -> None:
    """Against a row-by-row, unpadded computation."""
    settings = config(task=TASK | {"train": {"count": 64, "seed": 1, "options": {"digits": 5}}}, context=32)
    lines = make_data(settings).train
    tokenizer = build_tokenizer()
    model = build_policy(tokenizer, 1, 2, 16, 32, seed=0)
    trainer = SupervisedTrainer(model, tokenizer, settings, lines, tmp_path, lambda metrics: None)
    batch = next(iter(trainer.get_train_dataloader()))
    logprobs = []
    for index in BatchOrder(len(lines), settings.batch_size, settings.seed).batch(0):
        ids = torch.from_numpy(lines.tokens[lines.starts[index] : lines.starts[index + 1]].astype(np.int64))
        scores = model(ids[None]).logits[0].log_softmax(-1)
        logprobs += [scores[t - 1, ids[t]] for t in range(int(lines.prompt_lengths[index]), len(ids))]
    loss = trainer.compute_loss(model, batch)
    assert len(logprobs) == 32 * 6 == batch["global_tokens"]
    torch.testing.assert_close(loss, -torch.stack(logprobs).mean())


def test_a_policy_learns_the_task_and_is_written_with_its_card(tmp_path: Path) -> None:
    records: list[dict[str, float]] = []
    task = TASK | {"train": {"count": 800, "seed": 1}}
    settings = config(
        task=task, layers=2, width=32, steps=200, learning_rate=5e-3, validate_every=100, bf16=True, keep=1,
        out=str(tmp_path / "out" / "policy"),
    )  # fmt: skip
    out = pretrain(settings, tmp_path / "run", "bgrpo pretrain --config toy", records.append)
    assert out == tmp_path / "out" / "policy"
    policy = load_policy(str(out))
    prompt = policy.tokenizer("P 4 7 1 ⁇", return_tensors="pt")["input_ids"]
    answer = policy.model.generate(prompt, max_new_tokens=4, do_sample=False)[0, prompt.shape[1] :]
    assert policy.tokenizer.decode(answer) == "1 7 4 ⁇"
    validations = [record for record in records if "greedy_accuracy" in record]
    assert [record["step"] for record in validations] == [100, 200]
    assert validations[-1]["greedy_accuracy"] >= 0.9
    assert [record["step"] for record in records] == list(range(20, 201, 20))
    assert records[-1]["loss"] < 0.1 * records[0]["loss"]
    card = (out / "README.md").read_text()
    assert "bgrpo pretrain --config toy" in card
    assert f"{validations[-1]['greedy_accuracy']:.1%}" in card or f"{validations[0]['greedy_accuracy']:.1%}" in card


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    """Interrupted inside the third epoch (6 batches each), between two checkpoints."""
    settings, broken = config(), tmp_path / "broken"
    make_data(settings).save(broken)

    class PowerCut(Exception):
        pass

    def cut(metrics: dict[str, float]) -> None:
        if metrics["step"] == 20:
            raise PowerCut

    with pytest.raises(PowerCut):
        train(settings, broken, cut)
    store = CheckpointStore(broken / "checkpoints")
    newest = store.latest()
    assert newest is not None
    assert store.step_of(newest) == 16
    records: list[dict[str, float]] = []
    train(settings, broken, records.append)
    assert np.array_equal(weights(whole, 24), weights(broken, 24))
    assert min(record["step"] for record in records) > 16
    (broken / "checkpoints" / "step-00000024" / "optimizer.pt").write_bytes(b"half")  # damaged: the older one is taken
    train(settings, broken, ignore)
    assert np.array_equal(weights(whole, 24), weights(broken, 24))
    train(settings, broken, ignore)  # nothing left to do


def test_the_best_checkpoint_is_exported_not_the_last(whole: Path, tmp_path: Path) -> None:
    settings = config()
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    store = CheckpointStore(tmp_path / "checkpoints", keep=5)
    metrics = {"greedy_accuracy": 1.0, "validation_loss": 0.0, SELECTION: selection_score(1.0, 0.0)}
    model = load_policy(str(tmp_path / "checkpoints" / "step-00000016"))

    def write(directory: Path) -> None:
        model.model.save_pretrained(directory)
        model.tokenizer.save_pretrained(directory)

    store.save(16, write, metrics)
    out = export_best(settings, tmp_path, "command")
    assert np.array_equal(flatten_parameters(load_policy(str(out)).model), weights(tmp_path, 16))
    assert "step 16 of 24" in (out / "README.md").read_text()


def test_export_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no complete checkpoint"):
        export_best(config(), tmp_path, "command")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 3}, "answer has 4 tokens"),
        ({"context": 8, "max_new_tokens": 5}, "line has 9 tokens"),
        ({"context": 12, "max_new_tokens": 8}, r"5 \+ max_new_tokens=8 = 13"),
        ({"batch_size": 512}, "do not fill"),
        ({"task": TASK | {"train": {"count": 1500}}}, "fewer than 1500"),
    ],
)
def test_what_cannot_work_is_refused_before_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_data(config(**changes))


def test_divergence_ends_the_run_with_a_message_and_saves_nothing(tmp_path: Path) -> None:
    settings = config(warmup_steps=0, validate_every=20).model_copy(update={"learning_rate": 1e30})
    make_data(settings).save(tmp_path)
    with pytest.raises(UserError, match="diverged at step 20"):
        train(settings, tmp_path, ignore)
    assert CheckpointStore(tmp_path / "checkpoints").latest() is None


def run_processes(settings: PretrainConfig, run_dir: Path, count: int) -> None:
    """Train in ``count`` gloo processes, as a launcher would."""
    run_dir.mkdir(exist_ok=True)
    dump_config(settings, run_dir / "config.yaml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "import os, sys, torch\nfrom pathlib import Path\n"
        "from bgrpo.config import PretrainConfig, load_config\nfrom bgrpo.pretraining.pretrain import train\n"
        "torch.distributed.init_process_group('gloo')\n"
        "train(load_config(PretrainConfig, sys.argv[1] + '/config.yaml'), Path(sys.argv[1]), lambda metrics: None)\n"
        "torch.distributed.barrier()\ntorch.distributed.destroy_process_group()\n"
        "sys.stdout.flush()\nos._exit(0)\n"  # gloo's own threads may abort an interpreter that unloads them
    )
    tests = Path(__file__).resolve().parents[1]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(run_dir)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    for process in processes:
        output, _ = process.communicate(timeout=250)
        assert process.returncode == 0, output[-3000:]


def test_two_processes_make_the_updates_of_one(tmp_path: Path) -> None:
    """Lines of several lengths, so that the processes hold different numbers of answer tokens."""
    folder = tmp_path / "lines"
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = ["P " + " ".join(map(str, random.integers(0, 10, random.integers(1, 7)))) + " ⁇" for _ in range(300)]
    (folder / "train.txt").write_text("\n".join(lines))
    settings = config(task=TASK | {"train": {"file": str(folder / "train.txt")}}, workers=2)
    for count, name in ((1, "one"), (2, "two")):
        make_data(settings).save(tmp_path / name)
        if count == 1:
            train(settings, tmp_path / name, ignore)
        else:
            run_processes(settings, tmp_path / name, count)
    one, two = (weights(tmp_path / name, 24)[32:].view(np.float32) for name in ("one", "two"))
    start = flatten_parameters(build_policy(build_tokenizer(), 1, 2, 16, 24, settings.seed))[32:].view(np.float32)
    assert np.abs(one - start).max() > 1e-2
    np.testing.assert_allclose(two, one, atol=2e-5)


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later_to_the_same_weights(whole: Path, tmp_path: Path) -> None:
    settings, stopped = config(), tmp_path / "stopped"
    make_data(settings).save(stopped)
    train(settings, stopped, ignore, should_stop=lambda: True)
    newest = CheckpointStore(stopped / "checkpoints").latest()
    assert newest is not None
    assert newest.name == "step-00000020"
    train(settings, stopped, ignore)
    assert np.array_equal(weights(whole, 24), weights(stopped, 24))
