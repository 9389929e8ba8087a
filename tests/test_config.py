"""The configuration tree: shipped files, overrides, errors that help, and no option that nothing reads."""

from __future__ import annotations

import ast
import functools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bgrpo.config import (
    SHIPPED_CONFIGS,
    PretrainConfig,
    TaskSection,
    TrainConfig,
    build_config,
    dump_config,
    load_config,
)
from bgrpo.errors import UserError
from bgrpo.settings.key_table import all_keys, describe, known_keys
from bgrpo.settings.typed import below, metadata
from bgrpo.settings.values import LEAST, PathText, Section
from bgrpo.sweep.config_keys import nest
from bgrpo.sweep.sweep_config import SpaceEntry, SweepConfig

REPOSITORY = Path(__file__).resolve().parents[1]
PATH_MARK = list(metadata(PathText))[-1]
SHIPPED = sorted(SHIPPED_CONFIGS.glob("*.yaml"))


def _sections(model: type[Section] = Section) -> list[type[Section]]:
    return [section for direct in model.__subclasses__() for section in (direct, *_sections(direct))]


def _attributes_read(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


@functools.cache
def _names_read() -> set[str]:
    """Attributes read anywhere but in bgrpo/config, and there in properties, not in the checks of validators."""
    names: set[str] = set()
    for path in [*(REPOSITORY / "bgrpo").rglob("*.py"), *(REPOSITORY / "ray_jobs").rglob("*.py")]:
        tree = ast.parse(path.read_text("utf-8"))
        if path.parent.name != "config":
            names |= _attributes_read(tree)
            names |= {node.value for node in ast.walk(tree) if _is_split_name(node)}
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(decorator, ast.Name) and decorator.id == "property" for decorator in node.decorator_list
            ):
                names |= _attributes_read(node)
    return names


def _is_split_name(node: ast.AST) -> Any:
    """The three problem sources are read by name."""
    return isinstance(node, ast.Constant) and node.value in ("train", "validation", "test")


@pytest.mark.parametrize("section", _sections(), ids=lambda section: section.__name__)
def test_every_option_is_read_somewhere(section: type[Section]) -> None:
    unread = set(section.model_fields) - _names_read()
    assert not unread, f"{section.__name__} has options that nothing reads: {sorted(unread)}"


@pytest.mark.parametrize("section", _sections(), ids=lambda section: section.__name__)
def test_every_option_is_described(section: type[Section]) -> None:
    for name, field in section.model_fields.items():
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        assert is_section or field.description, f"{section.__name__}.{name} has no description"


COMMANDS: dict[str, type[Section]] = {"train": TrainConfig, "pretrain": PretrainConfig, "sweep": SweepConfig}


def command_of(path: Path) -> str:
    return (
        "sweep" if "arms:" in path.read_text("utf-8") else "pretrain" if path.stem.startswith("pretrain") else "train"
    )


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_load_and_survive_the_disk(path: Path, tmp_path: Path) -> None:
    model = COMMANDS[command_of(path)]
    config = load_config(model, path.stem)
    assert load_config(model, str(path)) == config
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(model, str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_configuration_of_another_command_is_told_as_that(path: Path) -> None:
    for command, model in COMMANDS.items():
        if command != command_of(path):
            with pytest.raises(UserError, match=rf"this is a configuration for bgrpo {command_of(path)}$"):
                load_config(model, path.stem)


def test_there_is_a_configuration_to_start_with() -> None:
    assert "quickstart" in [path.stem for path in SHIPPED]


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (config, key)
        for config in (TrainConfig, PretrainConfig)
        for key in known_keys(config)
        if key.endswith(("learning_rate", "max_grad_norm"))
    ],
)
def test_what_multiplies_tensors_is_no_zero_in_float32(
    config: type[TrainConfig] | type[PretrainConfig], key: str
) -> None:
    for tiny in ("0", "1e-310", "1e-46", "1e-38"):
        with pytest.raises(UserError, match=rf"{key}.*expected a number from"):
            load_config(config, None, [f"{key}={tiny}"])
    load_config(config, None, [f"{key}=0.001"])
    assert np.float32(LEAST) > np.finfo(np.float32).smallest_normal


def test_overrides_are_typed_by_yaml() -> None:
    config = load_config(
        TrainConfig,
        None,
        ["rollout.group_size=7", "learner.learning_rate=1e-5", "evaluation.beam_widths=[2, 4]", "advantage.kind=null",
         "task.train.options.degrees=[[2, 3]]", "rollout.skip_uninformative=false", "run.name=a=b"],
    )  # fmt: skip
    assert config.rollout.group_size == 7
    assert config.learner.learning_rate == 1e-5
    assert config.evaluation.beam_widths == [2, 4]
    assert config.task.train.options == {"degrees": [[2, 3]]}
    assert config.rollout.skip_uninformative is False
    assert config.run.name == "a=b" and config.advantage.kind is None


SECTIONS = [TrainConfig, PretrainConfig, SweepConfig, SpaceEntry]
NO_NUMBERS: list[Any] = [math.nan, math.inf, -math.inf, 10**400, 10**20, -(10**20), True, False, "5", "nan", [5], {}]


def _keys_that_take_numbers(section: type[Section]) -> list[str]:
    """And nothing else, which a list of tokens does."""
    return [key.name for key in all_keys(section) if "number" in key.takes and "text" not in key.takes]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_number_is_finite_and_bounded(section: type[Section]) -> None:
    """Whoever adds a number gives it both bounds, and strictness; nothing else is turned into one."""
    keys = _keys_that_take_numbers(section)
    assert keys
    for key in keys:
        takes = describe(below(section, key))
        assert re.search("number (from|above) .* (to|below) ", takes), f"{key} takes {takes}"
        for value in NO_NUMBERS:
            value = [value] if takes.startswith("a list") else value
            with pytest.raises(UserError, match=rf"^test: {re.escape(key)}(\.0)?=.*: expected a (whole )?number"):
                build_config(section, nest({key: value}), "test")


@pytest.mark.parametrize("key", [key.name for key in all_keys(TrainConfig) if key.takes.startswith("a whole number")])
@pytest.mark.parametrize("text", ["5.0", "1e1", "true", "'5'", "five", "5 5", "[5]", "1e-400"])
def test_no_value_becomes_a_whole_number_in_silence(key: str, text: str) -> None:
    with pytest.raises(UserError, match=f"{re.escape(key)}=.*: expected a whole number"):
        load_config(TrainConfig, None, [f"{key}={text}"])


@pytest.mark.parametrize("value", [math.nan, math.inf, [1, {"x": -math.inf}], {"a": [math.nan]}, "\ud800"])
def test_options_of_tasks_and_generators_are_finite_too(value: Any) -> None:
    for tree in ({"options": {"x": value}}, {"train": {"options": {"x": value}}}):
        with pytest.raises(UserError, match=r"is not a finite number|expected text in UTF-8"):
            build_config(TaskSection, tree, "test")
    with pytest.raises(UserError, match=r"is not a finite number|expected text in UTF-8"):
        build_config(SweepConfig, {"train": {"x": value}}, "test")


TEXTS = ["2026", "1e5", "010", "true", "no", "1:30", "2026-01-01", "nan", "/tmp/x[/b]", "a #b"]
NO_YAML = ["[x", "{a", "a: b", "&a", "*", "!x", "- a", "| a", "@a", "%a"]


@pytest.mark.parametrize("text", TEXTS + NO_YAML)
def test_text_is_taken_as_it_stands(text: str, tmp_path: Path) -> None:
    texts = ["run.name", "run.dir", "policy.path", "tracking.uri", "tracking.experiment", "reward.function"]
    texts += ["task.name", "task.train.file", "rollout.node_resource"]
    for key in texts:
        config = load_config(
            TrainConfig, None, [f"{key}={text}"] + ["reward.kind=function"] * (key == "reward.function")
        )
        assert functools.reduce(getattr, key.split("."), config) == text
    assert load_config(TrainConfig, None, [f"run.name='{text}'"]).run.name == text, "quotes are YAML's"
    sweep = load_config(SweepConfig, "quick", [f"train.policy.path={text}", f"arms.grpo.set.reward.function={text}"])
    assert (sweep.train["policy"]["path"], sweep.arms["grpo"].set["reward"]["function"]) == (text, text)
    if text not in NO_YAML:
        (tmp_path / "a.yaml").write_text(f"run:\n  name: {text}\n")
        assert load_config(TrainConfig, str(tmp_path / "a.yaml")).run.name == text.partition(" #")[0]


@pytest.mark.parametrize("text", ["", "null", "~"])
def test_nothing_is_null_where_null_is_allowed(text: str) -> None:
    config = load_config(
        TrainConfig, "quickstart", [f"run.name={text}", f"advantage.kind={text}", f"budget.tokens={text}"]
    )
    assert (config.run.name, config.advantage.kind, config.budget.tokens) == (None, None, None)
    if text != "~":
        for key in ("policy.path", "run.dir", "task.name", "tracking.experiment"):
            with pytest.raises(UserError, match=f"{key}=null: expected text"):
                load_config(TrainConfig, None, [f"{key}={text}"])


PATHS = ["run.dir", "policy.path", "task.train.file", "task.validation.file", "task.test.file"]


def test_every_key_that_is_a_path_knows_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for section, keys in (
        (TrainConfig, PATHS),
        (PretrainConfig, ["out", "run.dir"]),
        (SweepConfig, ["base", "run.dir"]),
    ):
        found = [
            key for key in (key.name for key in all_keys(section)) if PATH_MARK in [*metadata(below(section, key))]
        ]
        assert set(keys) <= set(found)
        for key in found:
            tree = load_config(section, None, [f"{key}=~/x"])
            assert functools.reduce(getattr, key.split("."), tree) == f"{tmp_path}/x"
            for wrong in ("~nobody-of-that-name/x", "a/" * 3000, "a" * 300, "é" * 200):
                with pytest.raises(UserError, match=r"no user's home folder|no file can have such a path"):
                    load_config(section, None, [f"{key}={wrong}"])
    (tmp_path / "mine.yaml").write_text("steps: 7\n")
    assert load_config(TrainConfig, "~/mine.yaml").steps == 7
    assert load_config(TrainConfig, None, ["run.dir=~"]).run.dir == str(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["checkpoint.metric=no_such_metric"],
            "checkpoint.metric=no_such_metric: validations measure beam_rank_score, greedy",
        ),
        (["checkpoint.metric=beam@5"], "top1, beam@10 .*evaluation.validation_samples"),
        (["checkpoint.metric=pass@4", "evaluation.validation_samples=5"], "pass@1, pass@5"),
        (["checkpoint.metric=pass@10", "evaluation.samples=10"], "did you mean 'beam@10'|validations measure"),
        (["checkpoint.metric=gredy"], "did you mean 'greedy'"),
        (["checkpoint.metric=beam_rank_scor"], "did you mean 'beam_rank_score'"),
    ],
)
def test_a_checkpoint_metric_is_one_that_validations_measure(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(TrainConfig, None, overrides)


@pytest.mark.parametrize("samples", [0, 1, 5, 10, 12])
def test_the_metrics_of_validations_are_those_that_are_measured(samples: int) -> None:
    from bgrpo.evaluation.metrics import RANK_WIDTH, evaluate
    from bgrpo.groups import Completion, Verdict
    from bgrpo.tasks.base import Problem

    def decode(problems: Any, mode: str, group_size: int, seeds: Any) -> Any:
        return [[Completion([1], [0.0], True, "", Verdict("correct"))] * group_size for _ in problems]

    measured = evaluate(decode, [Problem("p")], [RANK_WIDTH], samples, 0).metrics()
    assert set(load_config(TrainConfig, None, []).reward.metrics([RANK_WIDTH], samples)) == set(measured)
    for metric in measured:
        load_config(TrainConfig, None, [f"evaluation.validation_samples={samples}", f"checkpoint.metric={metric}"])


def test_options_of_one_task_are_not_given_to_another(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["task.train.options.length=3", "task.name=mine:Task"]
    task = load_config(TrainConfig, "quickstart", given).task
    assert (task.name, task.train.options, task.validation.options, task.test.options) == (
        "mine:Task",
        {"length": 3},
        {},
        {},
    )
    assert (task.train.count, task.train.seed) == (20000, 11), "how many, and which, is no option of the task"
    line = capsys.readouterr().err
    assert line.startswith(
        "note: task.name=mine:Task: task.train.options, task.validation.options, task.test.options of quickstart"
    )
    assert line.count("\n") == 1
    same = load_config(TrainConfig, "quickstart", [f"task.name={TaskSection().name}"])
    assert same == load_config(TrainConfig, "quickstart")
    assert capsys.readouterr().err == ""


def test_an_option_without_a_value_is_told_how_to_write_it() -> None:
    for overrides, message in (
        (["steps", "5"], "override 'steps': expected key=value, for example steps=5$"),
        (["steps", "seed=5"], "for example steps=…$"),
        (["nothing", "5"], "for example rollout.group_size=10$"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(TrainConfig, None, overrides)


def test_an_override_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 5\nrollout: {group_size: 4, actors: 3}\n")
    config = load_config(TrainConfig, str(path), ["rollout.group_size=6"])
    assert (config.steps, config.rollout.group_size, config.rollout.actors) == (5, 6, 3)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rollout.group_sise=3", r"unknown key 'rollout.group_sise'; did you mean 'rollout.group_size'\?"),
        ("group_size=3", r"did you mean 'rollout.group_size'\?"),
        ("learner.actors=3", r"did you mean 'rollout.actors'\?"),
        ("rollout.group_size=1", r"rollout\.group_size=1: expected a whole number from 2 to 10\^5"),
        ("rollout.group_size=ten", r"rollout\.group_size='ten'"),
        ("algorithm=ppo", r"algorithm='ppo': expected bgrpo, grpo or reinforce"),
        ("steps", r"override 'steps': expected key=value"),
        ("steps.x=3", r"steps=\{'x': '3'\}: expected a whole number"),
        ("steps=[", r"steps=\[: cannot be read as YAML"),
        ("rollout=3", r"rollout=3"),
        ("learner.workers=3", r"prompts_per_step=32.*3 × learner\.minibatches=1 = 3.*32 = 10 × 3 \+ 2.*nearest.* 33"),
        ("reward.kind=function", r"needs reward\.function"),
        (
            "reward.parts.q.metric=rouge_x",
            r"reward\.parts\.q\.metric='rouge_x': expected one of exact_match, .*, embedding_similarity$",
        ),
        (
            "reward.parts.q.weigth=2",
            r"unknown key 'reward\.parts\.q\.weigth'; did you mean 'reward\.parts\.q\.weight'\?",
        ),
        ("reward.parts.q.metric=exact_macth", r"did you mean exact_match\?"),
        ("algorithm=grpo reward.kind=rank", r"needs ranked beams, but algorithm=grpo draws completions"),
        ("rollout.search=stochastic_beam reward.kind=rank", r"beams, but rollout\.search=stochastic_beam draws"),
        ("advantage.kind=set_estimator", r"without replacement, but algorithm=bgrpo makes beams: use rollout\.search="),
        (
            "rollout.search=sample advantage.kind=importance_weighted",
            r"rollout\.search=sample makes independent samples",
        ),
        ("rollout.search=stochastic_beam advantage.kind=set_estimator advantage.keep=0.5", r"keep=0\.5: set_estimator"),
        ("rollout.search=diverse_beam rollout.beam_groups=3", r"beam_groups=3: expected a divisor of group_size=10"),
        ("advantage.kind=pass_at_k rollout.group_size=4", r"advantage\.k=4: .* fewer than rollout\.group_size=4"),
        ("advantage.kind=sibling learner.loss=vespo", r"sibling judges each token, but learner\.loss=vespo has"),
        (
            "advantage.kind=sibling learner.loss=grpo learner.importance_sampling_level=sequence",
            r"one ratio for a whole completion: take a loss with ratios of tokens",
        ),
        ("algorithm=bgrpo rollout.temperature=0.5", r"rollout\.temperature=0\.5: beams .* needs temperature 1"),
        ("algorithm=reinforce learner.num_iterations=2", r"on-policy: learner\.num_iterations=2 must be 1"),
        ("rollout.max_actors=1", r"min_actors=2, actors=2, max_actors=1"),
        ("rollout.min_actors=3", r"min_actors <= actors <= max_actors: min_actors=3, actors=2, max_actors=2"),
        ("rollout.max_extra_draws=1 rollout.skip_uninformative=false", r"needs rollout\.skip_uninformative=true"),
    ],
)
def test_what_does_not_fit_is_explained_in_one_line(override: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as refusal:
        load_config(TrainConfig, None, override.split(" "))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["width=130"], "width=130 is not a multiple of heads=4"),
        (["width=100000", "layers=1000"], "12 × layers=1000 × width=100000² = 1e\\+14 parameters"),
        (["workers=3"], "batch_size=64 is not a multiple of workers=3"),
        (["context=16"], "max_new_tokens=32 leaves no room in context=16"),
    ],
)
def test_pretraining_shows_its_arithmetic(overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        load_config(PretrainConfig, None, overrides)


@pytest.mark.parametrize("name", ["a b", "ä", "", "1st", "x" * 60, 7, None, True, 0.5])
def test_a_part_whose_name_does_not_fit_is_told_what_would(name: Any) -> None:
    with pytest.raises(UserError) as refusal:
        build_config(TrainConfig, {"reward": {"parts": {name: {"metric": "bleu"}, "right": {"check": True}}}}, "test")
    assert str(refusal.value).endswith(
        "is no name that may stand here: expected a letter, then up to 40 letters, digits and _"
    )
    assert str(refusal.value).startswith("test: reward.parts: ")


@pytest.mark.parametrize("section", ["task.options", "task.train.options"])
def test_a_key_of_a_mapping_that_is_no_text_is_told(section: str) -> None:
    tree: Any = {7: 1}
    for name in reversed(section.split(".")):
        tree = {name: tree}
    with pytest.raises(UserError, match=rf"test: {section}: 7 is no name that may stand here: expected a text"):
        build_config(TrainConfig, tree, "test")


@settings(deadline=None)
@given(workers=st.integers(1, 6), minibatches=st.integers(1, 4), prompts=st.integers(1, 64), group=st.integers(2, 50))
def test_groups_are_whole_or_refused(workers: int, minibatches: int, prompts: int, group: int) -> None:
    tree = {
        "rollout": {"prompts_per_step": prompts, "group_size": group},
        "learner": {"workers": workers, "minibatches": minibatches},
    }
    if prompts % (workers * minibatches) == 0:
        assert build_config(TrainConfig, tree, "test").rollout.group_size == group, "any group size fits any number"
    else:
        with pytest.raises(UserError, match="nearest that does is") as refusal:
            build_config(TrainConfig, tree, "test")
        nearest = int(str(refusal.value).rsplit(" ", 1)[1])
        assert nearest % (workers * minibatches) == 0
        assert abs(nearest - prompts) <= workers * minibatches


@pytest.mark.parametrize(
    ("text", "expected"),
    [("- a\n", "expected a mapping"), ("a: [\n", "cannot be read as YAML"), ("steps: 0\n", "steps=0")],
)
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"bad\.yaml: .*{expected}|{expected}"):
        load_config(TrainConfig, str(path))


def test_a_yaml_tag_that_makes_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"run: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        load_config(TrainConfig, str(path))
    assert not (tmp_path / "made").exists()


def test_a_missing_configuration_lists_the_shipped_ones() -> None:
    with pytest.raises(UserError, match=r"--config quickstrat.*'quickstart'"):
        load_config(TrainConfig, "quickstrat")


def test_a_configuration_never_changes() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(TrainConfig, None).rollout.group_size = 3  # type: ignore[misc]


def test_known_keys_are_the_keys_of_the_dump() -> None:
    dumped = yaml.safe_load(yaml.safe_dump(load_config(TrainConfig, None).model_dump(mode="json")))
    keys = known_keys(TrainConfig)
    for section, values in dumped.items():
        assert section in keys
        if isinstance(values, dict):
            assert {f"{section}.{name}" for name in values} <= set(keys)


@pytest.mark.parametrize(
    ("algorithm", "mode", "reward", "advantage"),
    [
        ("bgrpo", "beam", "rank", "mean"),
        ("grpo", "sample", "simple", "std"),
        ("reinforce", "sample", "simple", "leave_one_out"),
    ],
)
def test_each_algorithm_brings_its_defaults(algorithm: str, mode: str, reward: str, advantage: str) -> None:
    config = load_config(TrainConfig, None, [f"algorithm={algorithm}"])
    assert (config.decode_mode, config.reward_kind, config.advantage_kind) == (mode, reward, advantage)
    explicit = load_config(TrainConfig, None, ["reward.kind=simple", "advantage.kind=batch", "reward.wrong_reward=-1"])
    assert (explicit.reward_kind, explicit.advantage_kind, explicit.reward.wrong_reward) == ("simple", "batch", -1)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["stpes=2"], "command line: unknown key 'stpes'; did you mean 'steps'"),
        (["rollout.temperature=hot"], "command line: rollout.temperature='hot'"),
        (["rollout={group_sise: 3}"], "command line: unknown key 'rollout.group_sise'"),
        ([], "mine.yaml: seed=-1"),
        (["stpes=2"], "mine.yaml: "),
    ],
)
def test_a_mistake_is_told_where_it_was_made(tmp_path: Path, overrides: list[str], told: str) -> None:
    (tmp_path / "mine.yaml").write_text("seed: -1" if told.startswith("mine") else "seed: 1")
    with pytest.raises(UserError) as refusal:
        load_config(TrainConfig, str(tmp_path / "mine.yaml"), overrides)
    assert told in str(refusal.value) and str(refusal.value).startswith(("command line", str(tmp_path)))
