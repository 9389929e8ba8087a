"""What scripts assert at run time, and bgrpo refuses before a process starts, or keeps whatever the rewards are."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import make_trainer, scored, tiny_policy, train_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from bgrpo.errors import UserError
from bgrpo.groups import Completion, ScoredGroup
from bgrpo.learning.batch import choose_groups
from bgrpo.learning.learner_state import policy_folder
from bgrpo.learning.step_metrics import rollout_metrics
from bgrpo.policies.io import load_policy, save_policy
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.scoring.advantages import advantages, is_informative
from bgrpo.tasks.text.task import TextTask

CENTRED = ("mean", "std", "batch", "leave_one_out")
REWARD = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0])
GROUPS = st.lists(st.lists(st.none() | REWARD, min_size=1, max_size=8), min_size=1, max_size=5)


def group(rewards: list[float | None], index: int = 0) -> ScoredGroup:
    completions = [Completion([5, 1], [-0.5, -0.1], True) for _ in rewards]
    return replace(scored(index, [3], completions, ["wrong"] * len(rewards), 0), rewards=rewards)


@pytest.mark.parametrize("size", [1, 0, -4])
def test_a_group_of_one_completion_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=rf"rollout\.group_size={size}: expected a whole number from 2"):
        train_config(rollout={"group_size": size})


def test_a_policy_without_tokenizer_is_refused(tmp_path: Path) -> None:
    from learner_cases import TOKENIZER

    save_policy(tiny_policy(), TOKENIZER, tmp_path / "policy")
    (tmp_path / "policy" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"policy .*tokenizer\.json"):
        load_policy(str(tmp_path / "policy"))


@pytest.mark.parametrize("row", [{"text": "2 + 2?", "answer": "4"}, {"prompt": None}, {"prompt": [1, 2]}])
def test_a_file_that_gives_no_prompts_is_refused_by_its_line(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"prompt": "fine"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"data\.jsonl:2: "):
        TextTask().load(path)


@given(GROUPS, st.sampled_from(CENTRED))
def test_advantages_have_the_shape_of_the_rewards_and_are_centred_to_the_rounding_of_their_type(
    rewards: list[list[float | None]], kind: str
) -> None:
    found = advantages(rewards, [[0.0] * len(row) for row in rewards], kind)
    assert [len(row) for row in found] == [len(row) for row in rewards]
    for row, of in zip(found, rewards, strict=True):
        largest = max(map(abs, row))
        size = max([largest, *(abs(reward) * 1e-9 for reward in of if reward is not None)])
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            mean = torch.tensor(row, dtype=dtype).double().mean().abs().item()
            assert mean <= max(torch.finfo(dtype).eps / 2, 1e-9) * size
        if not is_informative(of):
            assert not any(row), "equal rewards: exactly 0, not rounding noise over a tiny deviation"


@given(GROUPS, st.booleans())
def test_groups_with_equal_rewards_are_counted(rewards: list[list[float | None]], skip: bool) -> None:
    config = train_config(rollout={"skip_uninformative": skip, "prompts_per_step": 8}, advantage={"kind": "std"})
    step = choose_groups([group(row, index) for index, row in enumerate(rewards)], config)
    metrics = rollout_metrics(step, 0, "sample", config.reward)
    differ = [len({reward for reward in row if reward is not None}) > 1 for row in rewards]
    assert metrics["informative_groups"] == pytest.approx(sum(differ) / len(rewards))
    assert metrics["groups_used"] == (sum(differ) if skip else sum(row.count(None) < len(row) for row in rewards))


def test_another_number_of_advantages_than_of_completions_is_an_error() -> None:
    broken = replace(group([1.0, 0.0]), rewards=[1.0])
    with pytest.raises(ValueError, match=r"zip\(\)|index"):
        advantages([broken.rewards], [[0.0, 0.0], [0.0]], "mean")


def test_checkpoints_load_by_from_pretrained(tmp_path: Path) -> None:
    from learner_cases import ScriptedSource

    store = CheckpointStore(tmp_path / "checkpoints", 2, ("policy/config.json",))
    trainer = make_trainer(train_config(steps=1), ScriptedSource(), tmp_path, store=store)
    trainer.run()
    newest = store.latest()
    assert newest is not None and newest.name == "step-00000001"
    shutil.copytree(policy_folder(newest), tmp_path / "moved")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    for loaded, trained in zip(model.state_dict().values(), trainer.model.state_dict().values(), strict=True):
        assert torch.equal(loaded, trained)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "moved")) == model.config.vocab_size
