"""Training reward models: what is learned, weighted and measured, and that the result is a function of the seed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_rewards import TEMPLATE, write_model
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from bgrpo.cli.app import main
from bgrpo.errors import UserError
from bgrpo.scoring.preference_pairs import Pair
from bgrpo.scoring.reward_model import RewardModel
from bgrpo.scoring.reward_training import (
    TrainingOptions,
    WeightedRewardTrainer,
    load_base,
    train_reward_model,
)
from bgrpo.scoring.scored_text import Item


def pairs_where_low_words_win(count: int, seed: int, weight: float = 1.0) -> list[dict[str, Any]]:
    """The chosen completion is made of w0 … w9, the rejected one of w10 … w19."""
    draw = random.Random(seed)

    def words(first: int) -> str:
        return " ".join(f"w{first + draw.randrange(10)}" for _ in range(4))

    return [
        {"prompt": words(20), "chosen": words(0), "rejected": words(10), "weight": weight, "speaker": number // 2}
        for number in range(count)
    ]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def as_pairs(rows: list[dict[str, Any]]) -> list[Pair]:
    return [
        Pair(row["prompt"], row["chosen"], row["rejected"], row["weight"], 0.0, str(line), line)
        for line, row in enumerate(rows, 1)
    ]


@pytest.mark.parametrize(("family", "kind", "template"), [("bert", "encoder", None), ("llama", "causal", TEMPLATE)])
def test_the_command_trains_what_from_pretrained_and_reward_model_load(
    family: str, kind: str, template: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_model(tmp_path / "base", family, kind=kind, template=template)
    data = written(tmp_path / "pairs.jsonl", pairs_where_low_words_win(200, 0))
    out = tmp_path / "out"
    arguments = ["reward-model", "--train", data, "--base", str(base), "--out", str(out), "--group-by", "speaker"]
    assert main([*arguments, "--learning-rate", "3e-3", "--epochs", "4", "--held-out-share", "0.2", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["pairs"] == [160, 40] and done["steps"] == 40
    assert done["after"][0] > 0.9 > done["before"][0] and done["after"][1] < done["after"][0] <= done["after"][2] <= 1
    assert not list(out.glob("*.bin"))
    assert "Held-out pairs in the right order" in (out / "README.md").read_text()
    AutoModelForSequenceClassification.from_pretrained(out, use_safetensors=True)
    good, bad = RewardModel(str(out)).score([Item("w25", "w1 w2"), Item("w25", "w11 w12")])
    assert good.value is not None and bad.value is not None and good.value > bad.value
    assert main([*arguments, "--max-steps", "1"]) == 0
    told = capsys.readouterr()
    assert "180 pairs to learn from, 20 held out" in told.err and "trained on 180 pairs; steps: 1" in told.out


def test_training_is_a_function_of_the_seed(tmp_path: Path) -> None:
    base = str(write_model(tmp_path / "base", kind="encoder"))
    pairs = as_pairs(pairs_where_low_words_win(24, 0))

    def trained(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed + 100)  # what was drawn before does not matter
        options = TrainingOptions(max_steps=2, batch_size=8, seed=seed)
        return train_reward_model(base, pairs, pairs[:4], options, lambda *_: None).model.state_dict()

    first, second, other = trained(1), trained(1), trained(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def batch(weights: list[float]) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 60, (2 * len(weights), 9), generator=draw)
    margin = torch.tensor([0.5, -0.25, 0.0])[: len(weights)]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "margin": margin, "weight": torch.tensor(weights)}


def test_the_loss_is_trls_with_weights_and_margins(tmp_path: Path) -> None:
    model, tokenizer = load_base(str(write_model(tmp_path / "base", kind="encoder")), seed=0)
    arguments = RewardConfig(output_dir=str(tmp_path / "x"), bf16=False, report_to="none", disable_tqdm=True)
    from datasets import Dataset

    rows = Dataset.from_list([{"chosen_ids": [1], "rejected_ids": [2], "margin": 0.0}])
    common = {"model": model, "args": arguments, "train_dataset": rows, "processing_class": tokenizer}
    trl, ours = RewardTrainer(**common), WeightedRewardTrainer(**common)
    model.train()
    equal = batch([1.0, 1.0, 1.0])
    plain = {name: value for name, value in equal.items() if name != "weight"}
    assert ours.compute_loss(model, equal).item() == pytest.approx(trl.compute_loss(model, plain).item(), rel=1e-6)
    single = [ours.compute_loss(model, batch([*[0.0] * k, 3.0, *[0.0] * (2 - k)])).item() for k in range(3)]
    expected = sum(weight * loss for weight, loss in zip((0.5, 0.0, 2.5), single, strict=True)) / 3
    assert ours.compute_loss(model, batch([0.5, 0.0, 2.5])).item() == pytest.approx(expected, rel=1e-6)


def test_pairs_of_weight_0_teach_nothing(tmp_path: Path) -> None:
    """Reversed pairs of weight 0 beside right ones: the right order is learned."""
    base = str(write_model(tmp_path / "base", kind="encoder"))
    right = pairs_where_low_words_win(60, 0)
    wrong = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"], "weight": 0.0}
        for row in pairs_where_low_words_win(60, 1)
    ]
    mixed = as_pairs([row for both in zip(right, wrong, strict=True) for row in both])
    options = TrainingOptions(learning_rate=3e-3, epochs=4)
    done = train_reward_model(base, mixed, as_pairs(pairs_where_low_words_win(40, 2)), options, lambda *_: None)
    assert done.after[0] > 0.9


def test_pairs_that_are_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    base = str(write_model(tmp_path / "base", kind="encoder", limit=32))
    rows = pairs_where_low_words_win(12, 0)
    rows[3]["prompt"] = "w1 " * 40
    pairs = as_pairs(rows)
    options = TrainingOptions(max_steps=1)
    done = train_reward_model(base, pairs, pairs[:4], options, lambda *_: None)
    assert done.pairs == (11, 3) and done.too_long == (1, 1)
    with pytest.raises(UserError, match="every training pair is longer than 5 tokens"):
        train_reward_model(base, pairs, pairs, TrainingOptions(max_tokens=5), lambda *_: None)


def test_a_base_that_lacks_more_than_a_head_is_refused(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", kind="encoder")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(
        UserError, match=r"^base model .* lacks 16 weights that are no head, first 'bert.encoder.layer.2"
    ):
        load_base(str(base), seed=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--train", "absent.jsonl"], "absent.jsonl: cannot be read"),
        (["--held-out-share", "1"], "Invalid value for '--held-out-share'"),
        (["--group-by", "nobody"], ":1: has no 'nobody'"),
        (["--base", "absent/folder/x"], "base model absent/folder/x: no such directory"),
        (["--out", "."], "exists and is not a policy"),
        (["--held-out", "SAME", "--group-by", "speaker"], "is also in the training pairs"),
        (["--serve", "x"], "give --train PAIRS --base MODEL --out DIR, or --serve MODEL"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_loaded(
    change: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = written(tmp_path / "pairs.jsonl", pairs_where_low_words_win(8, 0))
    options = {"--train": data, "--base": "absent/folder/y", "--out": "out"}
    given = {**options, **dict(zip(change[::2], change[1::2], strict=True))}
    words = [word if word != "SAME" else data for pair in given.items() for word in pair]
    assert main(["reward-model", *words]) == 2
    error = capsys.readouterr().err
    assert told in error.splitlines()[-1] and "Traceback" not in error and not (tmp_path / "out").exists()


def test_an_interrupt_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_model(tmp_path / "base", kind="encoder")
    data = written(tmp_path / "pairs.jsonl", pairs_where_low_words_win(40, 0))

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WeightedRewardTrainer, "compute_loss", interrupt)
    arguments = ["reward-model", "--train", data, "--base", str(base), "--out", str(tmp_path / "out")]
    assert main(arguments) == 130
    assert not (tmp_path / "out").exists() and "Traceback" not in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    base = str(write_model(tmp_path / "base", kind="encoder"))
    pairs = as_pairs(pairs_where_low_words_win(40, 0))
    with pytest.raises(UserError, match=r"the loss is .*try a lower --learning-rate"):
        train_reward_model(base, pairs, pairs[:4], TrainingOptions(learning_rate=1e30, epochs=4), lambda *_: None)
