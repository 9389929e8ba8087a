"""A key that is given twice is refused, wherever keys are given: nobody knows which one was meant."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bgrpo
from bgrpo.cli.app import main
from bgrpo.config import TrainConfig, load_config
from bgrpo.config.loading import refuse_repeated
from bgrpo.errors import UserError

NAMES = st.sampled_from(["a", "b"])
LEAVES = st.just(None)
SECTIONS = st.recursive(LEAVES, lambda below: st.dictionaries(NAMES, below, min_size=1), max_leaves=4)


def of_depth(tree: Any, depth: int) -> Any:
    """The same with every leaf as deep as that, so that no value stands in a section's place."""
    if not depth:
        return None
    return {name: of_depth(inner, depth - 1) for name, inner in (tree or {"a": None}).items()}


def numbered(tree: Any, numbers: Any) -> Any:
    return next(numbers) if tree is None else {name: numbered(inner, numbers) for name, inner in tree.items()}


def values_in(tree: Any) -> set[int]:
    return set().union(*map(values_in, tree.values())) if isinstance(tree, dict) else {tree}


@given(st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=3), SECTIONS), max_size=5))
def test_what_is_refused_is_what_would_be_lost(drawn: list[tuple[list[str], Any]]) -> None:
    numbers = iter(range(10**6))
    overrides = [(path, numbered(of_depth(tree, 3 - len(path)), numbers)) for path, tree in drawn]
    counting: dict[str, Any] = {}
    for path, value in overrides:  # one after the other, as if each alone counted
        section = counting
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = deepcopy(value)
    wanted = set().union(*(values_in(value) for _, value in overrides))
    kept = values_in(counting) if counting else set()
    try:
        refuse_repeated([(path, value, ".".join(path)) for path, value in overrides])
    except UserError as error:
        assert "is given twice" in str(error)
        assert kept != wanted, "nothing would have been lost"
    else:
        assert kept == wanted, "something is lost without a word"


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("train seed=1 seed=2", "seed"),
        ("train --local --config quickstart seed=1 seed=1", "seed"),
        ("train rollout.group_size=4 rollout={group_size: 6}", "rollout"),
        ("train rollout={group_size: 6} rollout.group_size=4", "rollout.group_size"),
        ("train --config quickstart --config quickstart", "--config"),
        ("train --submit http://127.0.0.1:1 seed=1 seed=2", "seed"),
        ("train --resume a --resume b", "--resume"),
        ("train --json --json", "--json"),
        ("pretrain seed=1 seed=2", "seed"),
        ("sweep seed=1 seed=2", "seed"),
        ("sweep --max-concurrent 2 max_concurrent=3", "max_concurrent"),
        ("doctor seed=1 seed=2", "seed"),
        ("chaos seed=1 seed=2", "seed"),
        ("chaos --seed 1 --seed 2", "--seed"),
        ("evaluate seed=1 seed=2", "seed"),
        ("evaluate --seed 1 seed=2", "seed"),
        ("evaluate --beam-width 3 evaluation.beam_widths=[4]", "evaluation.beam_widths"),
        ("evaluate --samples 3 evaluation.samples=4", "evaluation.samples"),
        ("evaluate --temperature 1 evaluation.temperature=2", "evaluation.temperature"),
        ("evaluate --max-new-tokens 3 rollout.max_new_tokens=4", "rollout.max_new_tokens"),
        ("evaluate policy.path=a", "policy.path"),
        ("evaluate --task polynomial task.name=text", "task.name"),
        ("decode --data a --out b seed=1 seed=2", "seed"),
        ("filter --data a --out b --solved-by shipped seed=1 seed=2", "seed"),
        ("verify --data a --task-option ring=QQ --task-option ring=ZZ", "ring"),
        ("generate-data --count 1 --count 2 --out a", "--count"),
        ("reward-model --base a --base b", "--base"),
        ("cluster local --max-nodes 2 --max-nodes 3", "--max-nodes"),
        ("bench task --seconds 1 --seconds 2", "--seconds"),
    ],
)
def test_commands_refuse_it(
    line: str, key: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = line.replace(": ", ":\0").split()
    assert main([word.replace("\0", " ") for word in words]) == 2
    told = capsys.readouterr().err
    assert key in told
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_options_that_are_lists_may_come_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.txt")
    assert main(["evaluate", "--beam-width", "1", "--beam-width", "2", "--data", absent]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        {"overrides": {"learner.beta": 1.0, "learner": {"beta": 2.0}}},
        {"config": {"learner.beta": 1.0, "learner": {"beta": 2.0}}},
        {"steps": 5, "overrides": {"steps": 6}},
        {"lora": 4, "overrides": {"learner": {"lora": {"rank": 8}}}},
        {"policy": "a", "overrides": {"policy.path": "b"}},
    ],
    ids=["overrides", "config", "argument", "nested", "policy"],
)
def test_python_refuses_it(arguments: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"given twice|given as an argument too"):
        bgrpo.train(runs=tmp_path, local=True, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_section_of_overrides_leaves_the_others_of_the_configuration() -> None:
    from bgrpo.api.training import check_keys

    keys = check_keys("config", {"learner": {"beta": 1.0, "threads": 3}}) | check_keys("o", {"learner": {"beta": 2.0}})
    learner = load_config(TrainConfig, None, [], keys).learner
    assert (learner.beta, learner.threads) == (2.0, 3)


def test_a_file_gives_a_key_dotted_or_in_a_section(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("train:\n  learner.beta: 0.1\n  learner: {beta: 0.2}\n")
    assert main(["sweep", "--config", str(file)]) == 2


def test_a_sweep_searches_no_key_that_its_arm_sets(capsys: pytest.CaptureFixture[str]) -> None:
    arms = "arms={a: {set: {learner.beta: 0.1}, space: {learner.beta: {values: [0.1, 0.2]}}}}"
    assert main(["sweep", arms]) == 2
    assert "arms.a.set.learner.beta is searched too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "written"),
    [
        ("learner.learning_rate=0,001", "write 0.001"),
        ("steps=1,000", "write 1000"),
        ("evaluation.beam_widths=1,2", "write [1,2]"),
    ],
)
def test_a_comma_in_a_number_is_told_how_it_is_written(override: str, written: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(TrainConfig, None, [override])
    assert str(refused.value).endswith(written)
