"""Bad input is found before any process starts, with a line that says what would be right."""

from pathlib import Path

import pytest

from bgrpo.config import TrainConfig, build_config
from bgrpo.errors import UserError
from bgrpo.policies.io import save_policy
from bgrpo.policies.model import build_policy
from bgrpo.runs.preparation import check_input, check_same_input, load_problems, record_input, save_problems
from bgrpo.runs.run_folder import RunFolder
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "policy"
    tokenizer = build_tokenizer(0, 0)
    save_policy(build_policy(tokenizer, 1, 2, 16, 96, seed=0), tokenizer, folder)
    return folder


def config(policy: Path, /, **sections: dict) -> TrainConfig:
    options = {"kind": "single", "degrees": [[2, 2]], "coefficients": 3}
    source = {"options": options, "count": 8}
    tree: dict = {
        "policy": {"path": str(policy)},
        "task": {"train": source | {"seed": 1}, "validation": source | {"seed": 2}, "test": source | {"seed": 3}},
        "rollout": {"prompts_per_step": 4, "max_new_tokens": 16},
    }
    for name, value in sections.items():
        tree[name] = tree.get(name, {}) | value
    return build_config(TrainConfig, tree, "test")


def test_no_split_shares_a_prompt(policy: Path) -> None:
    splits = check_input(config(policy)).splits
    prompts = [problem.prompt for part in (splits.train, splits.validation, splits.test) for problem in part]
    assert len(set(prompts)) == len(prompts) == 24


def test_problems_of_a_resumed_run_are_the_kept_ones(policy: Path, tmp_path: Path) -> None:
    run = config(policy, run={"dir": str(tmp_path)})
    prepared = check_input(run)
    folder = RunFolder.create(run, "test")
    save_problems(prepared.splits, folder)
    assert load_problems(folder) == prepared.splits


def test_prompts_too_long_for_the_policy_show_the_sum(policy: Path) -> None:
    with pytest.raises(UserError, match=r"problem \d+ has \d+ tokens \+ rollout\.max_new_tokens=90 = \d+, .* is 96"):
        check_input(config(policy, rollout={"prompts_per_step": 4, "max_new_tokens": 90}))


def test_tokens_that_the_policy_lacks_are_named(policy: Path, tmp_path: Path) -> None:
    data = tmp_path / "multi.txt"
    data.write_text("* ^ a0 P 2 ^ a1 P 2 ? ^ b0 P 2 & * a0 a1\n")
    with pytest.raises(UserError, match=r"task\.train: .*a0"):
        check_input(config(policy, task={"train": {"file": str(data)}}))


def test_fewer_problems_than_one_step_needs(policy: Path) -> None:
    with pytest.raises(UserError, match=r"task\.train has 8 problems, fewer than rollout\.prompts_per_step=64"):
        check_input(config(policy, rollout={"prompts_per_step": 64, "max_new_tokens": 16}))


def test_other_input_than_the_run_began_with_is_refused_by_name(policy: Path, tmp_path: Path) -> None:
    run = config(policy, run={"dir": str(tmp_path), "name": "x"})
    prepared = check_input(run)
    folder = RunFolder.create(run, "test")
    check_same_input(folder, prepared.policy)  # a run of an earlier bgrpo has nothing to compare
    save_problems(prepared.splits, folder)
    record_input(folder, prepared.policy)
    check_same_input(folder, prepared.policy)

    weight = next(prepared.policy.model.parameters()).data
    old = weight.view(-1)[0].item()
    weight.view(-1)[0] = old + 1e-6
    with pytest.raises(UserError, match=rf"run x cannot be resumed: its policy \({policy}\) is not what"):
        check_same_input(folder, prepared.policy)
    weight.view(-1)[0] = old
    check_same_input(folder, prepared.policy)

    for name in ("train", "validation", "test"):
        path = folder.data / f"{name}.jsonl"
        content = path.read_bytes()
        path.write_bytes(content.replace(b"P 1", b"P 2", 1) if b"P 1" in content else content[1:])
        with pytest.raises(UserError, match=rf"its data/{name}\.jsonl .* is not what it was started with"):
            check_same_input(folder, prepared.policy)
        path.unlink()
        with pytest.raises(UserError, match=rf"its data/{name}\.jsonl"):
            check_same_input(folder, prepared.policy)
        path.write_bytes(content)
