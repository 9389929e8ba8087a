"""Which name was probably meant: typing errors are recognised, and no guess is made where none is good."""

from __future__ import annotations

import pytest

from bgrpo.config import TrainConfig
from bgrpo.settings.key_table import known_keys
from bgrpo.settings.spelling import nearest, nearest_keys

KNOWN = known_keys(TrainConfig)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("rollout.group_sise", "rollout.group_size"),
        ("rollout.gruop_size", "rollout.group_size"),
        ("rollout.groupsize", "rollout.group_size"),
        ("rollout.group-size", "rollout.group_size"),
        ("rollout.Group_Size", "rollout.group_size"),
        ("rollout.temprature", "rollout.temperature"),
        ("rollout.max_new_token", "rollout.max_new_tokens"),
        ("rollout.max_new", "rollout.max_new_tokens"),
        ("rollout.promts_per_step", "rollout.prompts_per_step"),
        ("rollout.actor", "rollout.actors"),
        ("learner.learning_rat", "learner.learning_rate"),
        ("learner.learnig_rate", "learner.learning_rate"),
        ("learner.bta", "learner.beta"),
        ("learner.warmup", "learner.warmup_steps"),
        ("learner.max_gradnorm", "learner.max_grad_norm"),
        ("learner.num_iteration", "learner.num_iterations"),
        ("learnr", "learner"),
        ("stesp", "steps"),
        ("step", "steps"),
        ("algoritm", "algorithm"),
        ("checkpoint.evry", "checkpoint.every"),
        ("evaluation.beam_width", "evaluation.beam_widths"),
        ("group_size", "rollout.group_size"),
        ("learner.group_size", "rollout.group_size"),
        ("group_sise", "rollout.group_size"),
        ("learning_rate", "learner.learning_rate"),
        ("learner.actors", "rollout.actors"),
        ("tau", "reward.tau"),
        ("task.trian", "task.train"),
        ("task.train.cuont", "task.train.count"),
    ],
)
def test_a_typing_error_is_recognised(typed: str, meant: str) -> None:
    assert nearest_keys(typed, KNOWN) == [meant]


@pytest.mark.parametrize(
    "typed",
    [
        "learner.lora_r", "learner.lr", "learner.gamma", "learner.rank", "learner.dropout",
        "learner.gae",
        "rollout.vllm", "rollout.batch", "reward.model",
        "reward.path",
        "reward.scale", "policy.quantization", "policy.name", "policy.lora", "wandb", "logger",
        "batch_size", "device",
        "max_steps", "model", "run.id", "run.tags", "tracking.wandb", "evaluation.metrics", "checkpoint.best", "lr",
        "x", "",
        "task.prompt", "kl_coef", "gradient_accumulation_steps", "num_train_epochs", "save_steps",
        "per_device_batch_size",
    ],
)  # fmt: skip
def test_no_guess_is_made_for_what_is_unrelated(typed: str) -> None:
    assert nearest_keys(typed, KNOWN) == []


def test_a_name_that_is_in_several_sections_gives_them_all() -> None:
    assert nearest_keys("threads", KNOWN) == ["rollout.threads", "reward_model.threads", "learner.threads"]
    assert nearest_keys("every", KNOWN) == ["evaluation.every", "checkpoint.every"]


def test_of_two_that_are_equally_near_none_is_chosen() -> None:
    assert nearest("abcd_x", ["abcd_y", "abcd_z"]) is None
    assert nearest("abcd_xy", ["abcd_xz", "abcd_xy_more"]) == "abcd_xz"
