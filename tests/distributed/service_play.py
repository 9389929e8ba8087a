"""A started rollout service to play with, and the same groups without Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from transformers import PreTrainedModel

from bgrpo.chaos.faults import alive, children, wait_until
from bgrpo.config import TrainConfig
from bgrpo.distributed.rollout.service import start_service
from bgrpo.groups import ScoredGroup
from bgrpo.learning.rollout_source import LocalRolloutSource, decode_settings
from bgrpo.policies.flat_weights import flatten_parameters
from bgrpo.policies.model import build_policy
from bgrpo.scoring.judge import Judge
from bgrpo.tasks.base import Problem
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer(0, 0)
TEXTS = [f"+ {'* P 2 ' * (i % 3)}a P {i % 10} ⁇" for i in range(20)]
INDICES = [7, 3, 19, 0, 11, 4, 16, 2, 9]
WAIT_S = 200.0
PROBLEMS = [Problem(text) for text in TEXTS]
NUMBERED = [(index, PROBLEMS[index]) for index in INDICES]


def policy(seed: int) -> PreTrainedModel:
    """A tiny policy whose completions end soon."""
    model = build_policy(TOKENIZER, layers=1, heads=2, width=16, context=32, seed=seed)
    with torch.no_grad():
        for weights in model.parameters():  # large, so that completions depend on the prompt and on the weights
            weights *= 12 if weights.ndim > 1 else 1
        end = model.transformer.wte.weight[TOKENIZER.eos_token_id]
        model.transformer.ln_f.bias += 2 * end / (end @ end)  # the end token's logit goes up by two
    return model


def configuration(policy_dir: Path, **changes: Any) -> TrainConfig:
    """Nine prompts make five requests of two; ``changes`` are sections' values."""
    tree: dict[str, Any] = {
        "policy": {"path": str(policy_dir)},
        "rollout": {"group_size": 8, "max_new_tokens": 6, "prompts_per_request": 2, "timeout_s": WAIT_S},
        "reward": {"function": "reward_functions:parity"},
    }
    for section, values in changes.items():
        tree[section] = tree.get(section, {}) | values if isinstance(values, dict) else values
    return TrainConfig.model_validate(tree)


class Client:
    """Calls the service's methods and waits."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.actor: Any = start_service(config, decode_settings(config, TOKENIZER), len(TOKENIZER))

    def __getattr__(self, name: str) -> Any:
        return lambda *args: ray.get(getattr(self.actor, name).remote(*args), timeout=WAIT_S + 10)

    def collect(self, *args: Any) -> list[ScoredGroup]:
        return collected(self.actor.collect.remote(*args))

    def publish_model(self, version: int, model: PreTrainedModel) -> None:
        self.publish(version, [ray.put(flatten_parameters(model))])

    def pids(self, pool: str) -> list[int]:
        return [actor["pid"] for actor in self.status()[pool]["actors"] if "pid" in actor]

    def ready_pids(self, pool: str, count: int) -> list[int]:
        """Once so many actors are up."""
        found: list[int] = []

        def ready() -> bool:
            actors = self.status()[pool]["actors"]
            found[:] = [actor["pid"] for actor in actors if actor["state"] not in ("pending", "starting")]
            return len(found) >= count

        wait_until(ready, f"{count} actors of pool {pool}", WAIT_S, poll_s=0.05)
        return found


def collected(call: ray.ObjectRef) -> list[ScoredGroup]:
    """The groups of a call of the service's ``collect``."""
    (groups,) = ray.get(call, timeout=WAIT_S + 10)
    return ray.get(groups, timeout=WAIT_S)


@contextlib.contextmanager
def service(config: TrainConfig) -> Iterator[Client]:
    """A started service. At the end it is killed, and every process that belongs to it must end with it."""
    client = Client(config)
    yield client
    pids = client.pids("rollout") + client.pids("verifier")
    pids += [child for pid in pids for child in children(pid)]
    ray.kill(client.actor)
    wait_until(lambda: not any(map(alive, pids)), "the end of what belongs to the service")


def local(config: TrainConfig, model: PreTrainedModel, step: int, draw: int = 0) -> list[ScoredGroup]:
    """The same groups without Ray."""
    with Judge(config).start(None) as scorer:
        source = LocalRolloutSource(PROBLEMS, TOKENIZER, config, scorer.judge)
        source.publish(0, model)
        return source.collect(step, 0, INDICES, draw)


def assert_equal(groups: list[ScoredGroup], expected: list[ScoredGroup], version: int) -> None:
    """Equal but for float noise: in this process all prompts are decoded in one batch."""
    assert [group.index for group in groups] == INDICES
    for group, other in zip(groups, expected, strict=True):
        assert group.version == version
        assert group.prompt_ids == other.prompt_ids
        assert [c.tokens for c in group.completions] == [c.tokens for c in other.completions]
        for c, d in zip(group.completions, other.completions, strict=True):
            assert (c.text, c.finished) == (d.text, d.finished)
            assert c.sampled_logprobs == pytest.approx(d.sampled_logprobs, abs=1e-4)
        assert [c.logprob for c in group.completions] == pytest.approx([c.logprob for c in other.completions], abs=1e-4)
        assert group.outcomes == other.outcomes
        assert group.rewards == other.rewards
