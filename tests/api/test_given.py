"""What Python users give becomes the one configuration: every form of rewards and problems, and what is refused."""

from __future__ import annotations

import functools
import json
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reward_functions
from datasets import Dataset, DatasetDict
from torch.nn import Linear

import bgrpo
from bgrpo.api.given import Given
from bgrpo.api.measuring import _as_test
from bgrpo.config import TrainConfig, load_config
from bgrpo.groups import Verdict
from bgrpo.runs.run_folder import RunFolder
from bgrpo.scoring.attempts import Attempt
from bgrpo.scoring.judge import Judge
from bgrpo.tasks.base import Problem, load_task
from bgrpo.tasks.splits import load_splits

OFFSET = 10


def with_global(prompt: str, completion: str) -> float:
    return len(completion) + OFFSET


class Counter:
    def __call__(self, completions: list[str], wanted: list[str], **columns: Any) -> list[float]:
        return [text.count(word) for text, word in zip(completions, wanted, strict=True)]


def parts_of(rewards: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    given = Given()
    given.add_rewards(rewards)
    return given.keys["reward.parts"], given.functions


def test_rewards_in_every_form() -> None:
    double = functools.partial(with_global, "")
    parts, functions = parts_of(
        [
            reward_functions.length,
            (lambda prompt, completion: 1.0, 0.5),
            "token_f1",
            ("check", 0),
            "my_rewards:polite",
            "models/judge",
            Path("models/judge"),
            "http://127.0.0.1:8500/score",
            {"model": "owner/name", "max_tokens": 9},
            Counter(),
            double,
        ]
    )
    assert parts == {
        "length": {"function": "reward_functions:length"},
        "lambda": {"function": "kept:lambda", "weight": 0.5},
        "token_f1": {"metric": "token_f1"},
        "check": {"check": True, "weight": 0},
        "polite": {"function": "my_rewards:polite"},
        "judge": {"model": "models/judge"},
        "judge_2": {"model": "models/judge"},
        "server": {"url": "http://127.0.0.1:8500/score"},
        "name": {"model": "owner/name", "max_tokens": 9},
        "Counter": {"function": "kept:Counter"},
        "with_global": {"function": "kept:with_global"},
    }
    assert set(functions) == {"lambda", "Counter", "with_global"} and functions["with_global"] is double
    named, _ = parts_of({"quality": ("models/judge", 0.7), "size": {"metric": "completion_words", "weight": 0.3}})
    assert named == {
        "quality": {"model": "models/judge", "weight": 0.7},
        "size": {"metric": "completion_words", "weight": 0.3},
    }
    assert parts_of({"metric": "token_f1"})[0] == {"token_f1": {"metric": "token_f1"}}
    assert parts_of("embedding_similarity")[0] == {"embedding_similarity": {"metric": "embedding_similarity"}}
    assert load_config(TrainConfig, None, [], {"reward.parts": named}).reward.parts["quality"].weight == 0.7


@pytest.mark.parametrize(
    "rewards, parts",
    [
        ({"check": with_global}, {"check": {"function": "kept:check"}}),
        ({"check": ("check", 0.5)}, {"check": {"check": True, "weight": 0.5}}),
        ({"check": True, "weight": 0.5}, {"check": {"check": True, "weight": 0.5}}),
        ({"model": with_global, "url": "check"}, {"model": {"function": "kept:model"}, "url": {"check": True}}),
        ({"model": "a/b", "short": "token_f1"}, {"model": {"model": "a/b"}, "short": {"metric": "token_f1"}}),
        ({"model": "a/b", "max_tokens": 9}, {"b": {"model": "a/b", "max_tokens": 9}}),
        ({"model": "a/b", "weigth": 0.5}, {"b": {"model": "a/b", "weigth": 0.5}}),
    ],
)
def test_a_mapping_is_names_unless_it_can_only_be_a_part(
    rewards: Any, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bgrpo.api.given.module_name", lambda function: None)
    assert parts_of(rewards)[0] == parts


def reward(prompt: str, completion: str) -> float:
    """Called as many a script calls its function, and as the metrics call the sum of all parts."""
    return 1.0


@pytest.mark.parametrize("rewards", [reward, [reward], [reward, "token_f1"], (reward, 0.5), [(reward, 0.5), reward]])
def test_the_names_that_rewards_get_are_names_of_parts(rewards: Any) -> None:
    parts, functions = parts_of(rewards)
    assert set(load_config(TrainConfig, None, [], {"reward.parts": parts}).reward.parts) == set(parts)
    assert next(iter(parts)) == "reward_1" and parts["reward_1"].get("weight", 1) in (1, 0.5) and not functions


def written(tmp_path: Path, given: Given) -> tuple[RunFolder, TrainConfig]:
    config = load_config(TrainConfig, None, [], given.keys | {"run.dir": str(tmp_path), "run.name": "made"})
    folder = RunFolder.create(config, None)
    return folder, given.write(folder, config)


def attempt(text: str) -> Attempt:
    return Attempt(Problem("a b", fields={"wanted": "b"}), text)


def scores(config: TrainConfig, texts: list[str]) -> list[Verdict]:
    with Judge(config).start(attempt("x")) as scorer:
        return scorer.judge([attempt(text) for text in texts])


def test_functions_that_no_module_holds_score_in_their_own_process(tmp_path: Path) -> None:
    factor = 3

    async def later(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        return [None if text == "no" else factor * len(text) for text in completions]

    given = Given()
    given.add_rewards(
        {"plain": lambda prompt, completion: OFFSET + len(completion), "later": later, "count": Counter()}
    )
    folder, config = written(tmp_path, given)
    found = [verdict.parts for verdict in scores(config, ["b b", "no"])]
    assert found == [{"plain": 13.0, "later": 9.0, "count": 2.0}, {"plain": 12.0, "later": None, "count": 0.0}]
    files = sorted(folder.given.iterdir())
    assert [file.name for file in files] == ["count.pkl", "later.pkl", "plain.pkl"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert set(folder.info()["kept"]) == {"count", "later", "plain"}


def damaged(folder: RunFolder) -> None:
    (folder.given / "plain.pkl").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")


def readable(folder: RunFolder) -> None:
    (folder.given / "plain.pkl").chmod(0o644)


def forgotten(folder: RunFolder) -> None:
    folder.update(kept={})


def absent(folder: RunFolder) -> None:
    (folder.given / "plain.pkl").unlink()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (damaged, "it is not what the run wrote"),
        (readable, "others than its owner, this user, may read or write it"),
        (forgotten, "kept:plain: this run keeps no such function"),
        (absent, "No such file or directory"),
    ],
)
def test_a_kept_function_that_is_not_the_runs_own_is_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = Given()
    given.add_rewards({"plain": lambda prompt, completion: 1.0})
    folder, config = written(tmp_path / "runs", given)
    change(folder)
    with pytest.raises(bgrpo.UserError) as error:
        scores(config, ["x"])
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("name", ["plain", "../plain", "", "a/b"])
def test_a_new_configuration_can_name_no_kept_function(tmp_path: Path, name: str) -> None:
    keys = {"reward.parts": {"a": {"function": f"kept:{name}"}}, "run.dir": str(tmp_path)}
    for further in ({}, {"run.name": "absent"}):
        with pytest.raises(bgrpo.UserError, match="this run keeps no such function"):
            scores(load_config(TrainConfig, None, [], keys | further), ["x"])


def test_a_function_that_cannot_be_written_down_is_refused_in_one_line(tmp_path: Path) -> None:
    lock, much = threading.Lock(), bytearray(80 * 2**20)

    def locked(prompt: str, completion: str) -> float:
        with lock:
            return 1.0

    for function, told in ((locked, "cannot be written down"), (lambda p, c: float(len(much)), "refers to 80 MiB")):
        given = Given()
        given.add_rewards({"part": function})
        with pytest.raises(bgrpo.UserError) as error:
            written(tmp_path / told.split()[0], given)
        assert told in str(error.value) and "\n" not in str(error.value)


def test_problems_in_every_form_are_the_same(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    forms: list[Any] = [str(file), file, rows, Dataset.from_list(rows), {"train": rows}]
    found = []
    for number, form in enumerate(forms):
        given = Given()
        given.add_problems(form, task_is_named=False)
        _, config = written(tmp_path / str(number), given)
        found.append(load_splits(load_task(config.task.name), config.task))
    assert all(splits == found[0] for splits in found[1:])
    assert len(found[0].train) == 22 and found[0].test[0].fields["wanted"]
    given = Given()
    given.add_problems(
        DatasetDict({"train": Dataset.from_list(rows[:20]), "test": Dataset.from_list(rows[20:])}), False
    )
    _, config = written(tmp_path / "splits", given)
    assert len(load_splits(load_task("text"), config.task).test) == 4


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    given = Given()
    given.add_problems([{"prompt": "w1", "level": np.int64(3), "share": np.float32(0.5)}], False)
    folder, config = written(tmp_path, given)
    assert json.loads((folder.given / "train.jsonl").read_text()) == {"prompt": "w1", "level": 3, "share": 0.5}
    assert config.task.train.file == str(folder.given / "train.jsonl")
    keys = {"steps": np.int64(7), "learner": {"beta": np.float32(0.5)}, "evaluation.beam_widths": [np.int32(2)]}
    made = load_config(TrainConfig, None, [], keys)
    assert (made.steps, made.learner.beta, made.evaluation.beam_widths) == (7, 0.5, [2])
    with pytest.raises(bgrpo.UserError, match=r"steps=7\.0: expected a whole number"):
        load_config(TrainConfig, None, [], {"steps": np.float64(7)})


def test_a_task_by_name() -> None:
    for name in ("polynomial", "user_tasks:Echo"):
        given = Given()
        given.add_problems(name, task_is_named=False)
        assert given.keys == {"task.name": name}
        assert _as_test(name) == name, "its own problems, not a file"
    given = Given()
    given.add_problems("train.txt", task_is_named=True)
    assert given.keys == {"task.train.file": "train.txt"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"problems": 3}, "problems: train are a int: expected a file"),
        ({"problems": [3]}, "problems: train[0] is a int: expected a dictionary"),
        ({"problems": {"training": []}}, "problems: are named ['training']: expected some of train"),
        ({"problems": [{"prompt": "w1", "x": object()}]}, "problems: train[0]: column 'x' cannot be written as JSON"),
        ({"problems": [{"prompt": "w1", "x": float("nan")}]}, "problems: train[0]: column 'x' cannot be written"),
        ({"problems": []}, "problems: train are empty: expected at least one"),
        ({"problems": [{"text": "w1"}] * 3}, "has no column 'prompt'"),
        ({"rewards": []}, "rewards: are empty"),
        ({"rewards": 3}, "rewards: int: is 3: expected a function"),
        ({"rewards": [None]}, "rewards: NoneType: is None: expected a function"),
        ({"rewards": {"a b": "token_f1"}}, "rewards: 'a b': expected a name of letters"),
        ({"rewards": ("token_f1", 1.0, 2)}, "rewards: float: is 1.0"),
        ({"rewards": [("token_f1", "much")]}, "reward.parts.token_f1.weight='much': expected a number"),
        ({"rewards": {"a": {"metric": "token_f1", "wieght": 2}}}, "wieght"),
        (
            {"rewards": "token_f2"},
            "rewards: no folder is called so, and metric 'token_f2': expected one of exact_match",
        ),
        ({"rewards": {"reward": "token_f1", "a": "bleu"}}, "parts.reward: metrics call the weighted sum"),
        ({"rewards": Linear(2, 1)}, "rewards: Linear: is a model in memory (Linear): save it with its tokenizer"),
        (
            {"rewards": lambda p, c: 1 / 0, "config": {"rollout.prompts_per_step": 2}},
            "reward 'lambda': tried on prompt",
        ),
        ({"problems": Dataset.from_list([])}, "problems: train are empty: expected at least one"),
        ({"problems": [{"prompt": "w1"}, {"prompt": None}]}, "problems: train[1]: 'prompt' is NoneType"),
        ({"problems": [{"prompt": "w1"}, {"prompt": "w\ud800"}]}, "problems: train[1]: 'prompt' holds half of"),
        ({"problems": Dataset.from_list([{"prompt": "w1"}, {"prompt": ""}])}, "problems: train[1]: 'prompt' is empty"),
        ({"problems": [{"prompt": "w1"}]}, "task.test: problems: train: nothing can be held out of 1 problems"),
        ({"policy": 3}, "policy: is a int"),
        ({"algorithm": "ppo"}, "algorithm='ppo'"),
        ({"steps": 2.5}, "steps=2.5: expected a whole number"),
        ({"steps": True}, "steps=true: expected a whole number"),
        ({"config": 3}, "config: is a int: expected a mapping"),
        ({"config": {3: 4}}, "configuration key 3: expected text"),
        ({"config": {"learner.learning_rat": 1}}, "did you mean 'learner.learning_rate'"),
        ({"overrides": {"learner": {"learning_rat": 1}}}, "did you mean 'learner.learning_rate'"),
        ({"config": "no_such"}, "--config no_such: no such file"),
        ({"resume": 3}, "resume: is a int: expected a run"),
        ({"resume": "nowhere"}, "no run 'nowhere'"),
        ({"name": "a/b"}, "run.name='a/b'"),
        ({"config": {"learner.workers": 2}}, "learner.workers=2: a local run has one learner"),
        ({"config": {"rollout.gpus_per_actor": 0.5}}, "rollout.gpus_per_actor=0.5: a local run reserves nothing"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line_and_leaves_nothing(
    tmp_path: Path,
    policy_folder: Path,
    rows: list[dict[str, Any]],
    arguments: dict[str, Any],
    told: str,
) -> None:
    usual: dict[str, Any] = {"policy": policy_folder, "problems": rows, "rewards": lambda p, c: 1.0, "steps": 1}
    given = ({} if "resume" in arguments else usual) | {"runs": tmp_path / "runs", "local": True} | arguments
    with pytest.raises(bgrpo.UserError) as error:
        bgrpo.train(**given, progress=False)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "runs").glob("*") if path.is_dir()]
