"""What a sweep's configuration accepts, what it refuses and how it says so; the trials' configurations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_configs import sweep_config

from bgrpo.config import load_config
from bgrpo.errors import UserError
from bgrpo.runs.run_folder import flatten
from bgrpo.sweep.config_keys import flat_keys, merge, nest
from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.sweep_plan import Plan, Trial
from bgrpo.sweep.trial_configs import TrialConfigs

NAMES = st.text("abc", min_size=1, max_size=2)
TREES = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(NAMES, inner, min_size=1),
    max_leaves=6,
)


@given(st.dictionaries(NAMES, TREES, min_size=1))
def test_dotted_and_nested_keys_say_the_same(tree: dict[str, Any]) -> None:
    assert nest(flat_keys(tree)) == tree


@given(st.dictionaries(NAMES, TREES), st.dictionaries(NAMES, TREES, min_size=1))
def test_what_is_laid_over_wins(tree: dict[str, Any], over: dict[str, Any]) -> None:
    merged = flatten(merge(tree, over))
    assert flatten(over).items() <= merged.items()
    for key, value in flatten(tree).items():
        hidden = any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in flatten(over))
        assert hidden or merged[key] == value


def test_an_override_reaches_space_arms_and_training_configuration() -> None:
    sweep = load_config(
        SweepConfig,
        "quick",
        ["space.learner.learning_rate.values=[1e-6, 3e-5]", "arms.bgrpo.set.reward.kind=simple", "confirm_seeds=4",
         "train.rollout.actors=3", "space.learner.beta.min=0.01", "space.learner.beta.max=0.05"],
    )  # fmt: skip
    assert sweep.space["learner.learning_rate"].values == [1e-6, 3e-5]
    assert sweep.space["learner.beta"].min == 0.01
    assert nest(sweep.arms["bgrpo"].set)["reward"] == {"kind": "simple"}
    assert sweep.train["rollout"]["actors"] == 3 and sweep.train["rollout"]["prompts_per_step"] > 0


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"confirm_seed": 3}, "unknown key 'confirm_seed'; did you mean 'confirm_seeds'"),
        ({"space": {"learner.learning_rat": {"values": [1]}}}, "did you mean 'learner.learning_rate'"),
        (
            {"arms": {"a": {"set": {"reward.knd": "rank"}}}},
            "arms.a: unknown key 'reward.knd'; did you mean 'reward.kind'",
        ),
        ({"arms": {"a": {"set": {"task.test.count": 10}}}}, "task.test.count must be the same for every trial"),
        ({"space": {"evaluation.problems": {"values": [10]}}}, "evaluation.problems must be the same for every trial"),
        ({"space": {"seed": {"values": [1, 2]}}}, "seed must be the same for every trial"),
        ({"train": {"steps": 10}}, "train.steps is set by the sweep"),
        ({"train": {"budget": {"tokens": 10}}}, "train.budget.tokens is set by the sweep"),
        ({"space": {"learner.beta": {"min": 0.5, "max": 0.1}}}, "expected min < max"),
        ({"space": {"learner.beta": {"min": 0.0, "max": 0.1, "log": True}}}, "both above 0"),
        ({"space": {"learner.beta": {"min": 0.0}}}, "expected either values"),
        ({"space": {"learner.beta": {"values": []}}}, "at least one value"),
        ({"arms": {"a b": {}}}, "expected a name of letters"),
        ({"arms": {}}, "a mapping of keys to values .at least 1, at most 100."),
        ({"baseline": "ppo"}, "expected one of the arms: bgrpo, grpo"),
        ({"budget": {"amount": 1.5}}, "expected a whole number of steps"),
        (
            {"space": {}, "arms": {"a": {"space": {"learner.beta": {"values": [0.1, 0.2]}}}, "b": {}}},
            "arms.b has nothing to search while others have",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep_config(**tree)


def trial(arm: str, phase: Any = "search", **overrides: Any) -> Trial:
    return Trial(f"{arm}-{phase}", arm, phase, 0, 7, overrides)


@pytest.mark.parametrize(
    ("kind", "amount", "expected"),
    [
        ("steps", 40, {"steps": 20, "budget.completions": None, "budget.tokens": None, "budget.seconds": None}),
        ("completions", 1001, {"steps": 126, "budget.completions": 1001, "budget.tokens": None}),
        ("tokens", 1600, {"steps": 200, "budget.tokens": 1600, "budget.completions": None}),
        ("seconds", 2.5, {"steps": 2500, "budget.seconds": 2.5, "budget.tokens": None}),
    ],
)
def test_every_budget_becomes_a_limit_of_the_run(
    kind: str, amount: float, expected: dict[str, Any], tmp_path: Path
) -> None:
    sweep = sweep_config(
        budget={"kind": kind, "amount": amount},
        train={"rollout.prompts_per_step": 8, "learner": {"num_iterations": 2}, "evaluation": {"every": 5}},
    )
    config = TrialConfigs(sweep, tmp_path).of(trial("grpo", algorithm="grpo"))
    assert expected.items() <= flatten(config.model_dump()).items()


def test_a_budget_in_gradient_steps_must_be_reachable(tmp_path: Path) -> None:
    sweep = sweep_config(budget={"amount": 41}, train={"learner.minibatches": 2, "evaluation": {"every": 5}})
    with pytest.raises(UserError, match=r"41 gradient steps do not divide .* = 2 gradient steps each"):
        TrialConfigs(sweep, tmp_path).check()


def test_quick_leaves_the_advantages_at_the_algorithms_own(tmp_path: Path) -> None:
    """Its base, the quickstart, sets one."""
    configs = TrialConfigs(load_config(SweepConfig, "quick"), tmp_path)
    kinds = {name: configs.of(trial(name, algorithm=name)).advantage_kind for name in ("bgrpo", "grpo")}
    assert kinds == {"bgrpo": "mean", "grpo": "std"}


def test_nine_arms_differ_in_their_groups_and_advantages_and_spend_alike(tmp_path: Path) -> None:
    sweep = load_config(SweepConfig, "nine_arms")
    configs = TrialConfigs(sweep, tmp_path)
    configs.check()
    built = {name: configs.of(trial(name, **flat_keys(arm.set))) for name, arm in sweep.arms.items()}
    ways = {
        (each.decode_mode, each.reward_kind, each.advantage_kind, each.advantage.duplicates) for each in built.values()
    }
    assert len(ways) == len(sweep.arms) == 9
    assert {
        (each.budget.tokens, each.rollout.prompts_per_step, each.rollout.group_size) for each in built.values()
    } == {(740_000, 32, 10)}
    assert Plan(sweep).total == 9 * (4 + 5)


def test_the_test_problems_are_for_confirm_trials_only(tmp_path: Path) -> None:
    sweep = sweep_config(run={"dir": str(tmp_path)}, tracking={"experiment": "mine"})
    configs = TrialConfigs(sweep, tmp_path / "trials")
    search = configs.of(trial("bgrpo", algorithm="bgrpo", **{"learner.learning_rate": 1e-5}))
    confirm = configs.of(trial("bgrpo", "confirm", algorithm="bgrpo"))
    assert not search.evaluation.final and confirm.evaluation.final
    assert search.learner.learning_rate == 1e-5 and search.seed == 7
    assert search.run.dir == str(tmp_path / "trials") and search.run.name == "bgrpo-search"
    assert search.tracking.experiment == "mine"
    assert search.tracking.uri == f"sqlite:///{tmp_path / 'mlflow.db'}"  # one store for the sweep and its trials


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train": {}}, "set train.evaluation.every"),
        ({"space": {"rollout.group_size": {"values": [4, 1]}}}, "rollout.group_size"),
        (
            {"space": {"rollout.group_size": {"min": 1, "max": 4}}, "searcher": "optuna", "trials_per_arm": 2},
            "group_size",
        ),
        ({"arms": {"grpo": {"set": {"algorithm": "grpo", "reward.kind": "rank"}}}}, "needs ranked beams"),
        ({"base": "quickstrat"}, "base=quickstrat: .*did you mean 'quickstart'"),
    ],
)
def test_a_point_that_makes_no_configuration_is_found_beforehand(
    tree: dict[str, Any], message: str, tmp_path: Path
) -> None:
    default: dict[str, Any] = {"train": {"evaluation": {"every": 5}}, "space": {"learner.beta": {"values": [0.1]}}}
    sweep = load_sweep(default | {"searcher": "grid"} | tree)
    with pytest.raises(UserError, match=message):
        TrialConfigs(sweep, tmp_path).check()


def load_sweep(tree: dict[str, Any]) -> SweepConfig:
    return SweepConfig.model_validate(tree)


@pytest.mark.parametrize("entry", [[math.nan, 1.0], [0.1, math.inf], [True, 3], [0, "5"], [-(10**30), 1], [0, 10**400]])
def test_a_range_has_finite_bounded_ends(entry: list[Any]) -> None:
    with pytest.raises(
        UserError, match=r"space\.learner\.beta\.(min|max)=.*: expected a number from -10\^12 to 10\^12"
    ):
        sweep_config(space={"learner.beta": {"min": entry[0], "max": entry[1]}})


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, True, "0.1", None, [0.1], {}])
def test_a_value_of_a_space_must_fit_its_key(value: Any, tmp_path: Path) -> None:
    sweep = load_sweep({"train": {"evaluation": {"every": 5}}, "space": {"learner.beta": {"values": [0.1, value]}},
                        "searcher": "grid"})  # fmt: skip
    with pytest.raises(UserError, match=r"arm bgrpo, learner.beta=.*expected a number"):
        TrialConfigs(sweep, tmp_path).check()


@pytest.mark.parametrize("section", ["evaluation", "rollout", "task", "learner", "tracking"])
@pytest.mark.parametrize("value", [None, 3, [], ["x"], "text", {"no_such_key": 1}])
def test_a_section_of_train_that_is_none_is_refused(section: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        TrialConfigs(sweep_config(train={section: value}), tmp_path).check()
    with pytest.raises(UserError):
        TrialConfigs(sweep_config(arms={"a": {"set": {section: value}}}), tmp_path).check()


def test_the_base_gives_no_options_to_another_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = load_config(SweepConfig, "quick", ["train.task.name=mine:Task", "train.task.train.options.length=3"])
    config = TrialConfigs(sweep, tmp_path).of(trial("bgrpo"))
    assert (config.task.name, config.task.train.options, config.task.test.options) == ("mine:Task", {"length": 3}, {})
    assert "of base=quickstart are left out" in capsys.readouterr().err
