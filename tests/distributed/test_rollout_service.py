"""The rollout service against decoding in this process, undisturbed and while its processes are killed and stopped."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import ray
from service_play import (
    INDICES,
    NUMBERED,
    PROBLEMS,
    TEXTS,
    TOKENIZER,
    WAIT_S,
    Client,
    assert_equal,
    collected,
    configuration,
    local,
    policy,
    service,
)
from transformers import PreTrainedModel

from bgrpo.chaos.faults import children
from bgrpo.config import TrainConfig
from bgrpo.distributed.rollout.actor import RolloutActor, RolloutRequest
from bgrpo.distributed.rollout.remote import ServiceRolloutSource
from bgrpo.distributed.rollout.weights import Weights
from bgrpo.errors import UserError
from bgrpo.learning.rollout_source import decode_settings
from bgrpo.policies.flat_weights import flatten_parameters
from bgrpo.policies.text import decode_completion
from bgrpo.seeds import rollout_seed
from bgrpo.tasks.base import Problem

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def single(policy_dir: Path) -> Iterator[Client]:
    """One rollout actor that is soon taken to hang, and a reward function with accidents."""
    with service(
        configuration(
            policy_dir,
            rollout={"actors": 1, "timeout_s": 3.0},
            reward={"function": "reward_functions:parity_with_accidents"},
            verifier={"processes": 2, "timeout_s": 2.0},
        )
    ) as client:
        yield client


@pytest.fixture(scope="module")
def pair(policy_dir: Path) -> Iterator[Client]:
    """Two rollout actors; groups are samples, from a part of the distribution of a policy that cannot write all."""
    sampling = {"top_p": 0.9, "min_p": 0.01, "stop": ["3", "P P"], "min_new_tokens": 1, "banned_tokens": ["7", 9]}
    with service(configuration(policy_dir, algorithm="grpo", rollout={"actors": 2} | sampling)) as client:
        yield client


@pytest.fixture(scope="module")
def trio(policy_dir: Path) -> Iterator[Client]:
    """Three rollout actors and two verifiers."""
    with service(configuration(policy_dir, rollout={"actors": 3}, verifier={"processes": 2})) as client:
        yield client


def test_same_groups_whatever_the_number_of_actors(single: Client, pair: Client, trio: Client) -> None:
    """Equal to the last bit between one, two and three actors."""
    expected = local(trio.config, policy(5), step=3)
    assert {"correct", "wrong", "truncated"} == {outcome for group in expected for outcome in group.outcomes}
    for client in (single, pair, trio):
        client.publish_model(3, policy(5))
    trio.ready_pids("rollout", 3)
    three = trio.collect(3, 3, 0, NUMBERED, WAIT_S)
    assert_equal(three, expected, version=3)
    one = single.collect(3, 3, 0, NUMBERED, WAIT_S)
    for group, other in zip(one, three, strict=True):  # all but the verdicts: its reward function has accidents
        assert [(c.tokens, c.logprobs) for c in group.completions] == [
            (c.tokens, c.logprobs) for c in other.completions
        ]
    beams = decode_settings(trio.config, TOKENIZER)
    two = pair.run([PROBLEMS[index] for index in INDICES], beams, 3, [0] * len(INDICES), WAIT_S)
    assert [dataclasses.replace(group, index=index) for group, index in zip(two, INDICES, strict=True)] == three


def test_samples_follow_their_seeds(pair: Client, trio: Client) -> None:
    """Each draw has its own; the same ones elsewhere give the same samples."""
    for client in (pair, trio):
        client.publish_model(4, policy(5))
    first = pair.collect(4, 4, 0, NUMBERED, WAIT_S)
    assert_equal(first, local(pair.config, policy(5), step=4), version=4)
    other_draw = pair.collect(4, 4, 1, NUMBERED, WAIT_S)
    assert_equal(other_draw, local(pair.config, policy(5), step=4, draw=1), version=4)
    assert [group.completions for group in first] != [group.completions for group in other_draw]
    seeds = [rollout_seed(pair.config.seed, 4, index, 1) for index in INDICES]
    elsewhere = trio.run(
        [PROBLEMS[index] for index in INDICES], decode_settings(pair.config, TOKENIZER), 4, seeds, WAIT_S
    )
    assert [group.completions for group in elsewhere] == [group.completions for group in other_draw]


def test_several_learners_share_one_computation(trio: Client) -> None:
    """All ask at once, some before the weights are published."""
    before = sum(trio.status()["outcomes"].values())
    early = [trio.actor.collect.remote(10, 10, 0, NUMBERED, WAIT_S) for _ in range(2)]
    time.sleep(0.2)
    trio.publish_model(10, policy(1))
    late = [trio.actor.collect.remote(10, 10, 0, NUMBERED, WAIT_S) for _ in range(2)]
    (shared,), *others = ray.get(early + late, timeout=WAIT_S)
    assert all(other == [shared] for other in others)  # one copy in the object store
    groups = ray.get(shared, timeout=WAIT_S)
    assert_equal(groups, local(trio.config, policy(1), step=10), version=10)
    computed = sum(trio.status()["outcomes"].values()) - before
    assert computed == sum(len(group.completions) for group in groups)
    with pytest.raises(RuntimeError, match="one learner asked for"):
        trio.collect(10, 10, 0, NUMBERED[:-1], WAIT_S)


def test_versions(trio: Client) -> None:
    """Each version gives its own rollouts; dropped ones are refused; a resumed run publishes a version again."""
    for version in (20, 21, 22):
        trio.publish_model(version, policy(version))
    assert trio.status()["versions"] == [21, 22]
    assert_equal(trio.collect(20, 22, 0, NUMBERED, WAIT_S), local(trio.config, policy(22), step=20), version=22)
    assert_equal(trio.collect(21, 21, 0, NUMBERED, WAIT_S), local(trio.config, policy(21), step=21), version=21)
    with pytest.raises(RuntimeError, match=r"weights of version 20 are stale; held: \[21, 22\]"):
        trio.collect(22, 20, 0, NUMBERED, WAIT_S)
    trio.publish_model(21, policy(99))
    assert trio.status()["versions"] == [21]
    assert_equal(trio.collect(21, 21, 0, NUMBERED, WAIT_S), local(trio.config, policy(99), step=21), version=21)
    with pytest.raises(TimeoutError, match=r"version 22 were not published within 0.2 s; held: \[21\]"):
        trio.collect(22, 22, 0, NUMBERED, 0.2)


@pytest.mark.parametrize("pool", ["rollout", "verifier"])
def test_killed_in_the_middle(trio: Client, pool: str) -> None:
    """All processes of a pool are stopped, so that they surely hold work, and one is killed."""
    step, count = {"rollout": (30, 3), "verifier": (31, 2)}[pool]
    trio.publish_model(step, policy(step))
    victim, *others = trio.ready_pids(pool, count)
    checks = children(victim)
    for pid in (victim, *others):
        os.kill(pid, signal.SIGSTOP)
    call = trio.actor.collect.remote(step, step, 0, NUMBERED, WAIT_S)
    time.sleep(0.7)
    for pid in (victim, *checks):
        os.kill(pid, signal.SIGKILL)
    for pid in others:
        os.kill(pid, signal.SIGCONT)
    groups = collected(call)
    assert_equal(groups, local(trio.config, policy(step), step=step), version=step)
    assert victim not in trio.ready_pids(pool, count)
    status = trio.status()[pool]
    assert f"pid {victim} on " in status["first_failure"]["cause"]
    assert status["failure"] is None


def test_a_step_begun_ahead_is_computed_once_whatever_happens_meanwhile(trio: Client) -> None:
    """While it is decoded, newer weights come, a validation with them runs, and an actor dies."""
    trio.publish_model(34, policy(34))
    victim, *others = trio.ready_pids("rollout", 3)
    before = sum(trio.status()["outcomes"].values())
    for pid in (victim, *others):
        os.kill(pid, signal.SIGSTOP)
    trio.prefetch(35, 34, NUMBERED, WAIT_S)
    trio.publish_model(35, policy(35))
    settings = decode_settings(trio.config, TOKENIZER)
    validation = trio.actor.run.remote([PROBLEMS[index] for index in INDICES], settings, 35, [0] * len(INDICES), WAIT_S)
    time.sleep(0.5)
    os.kill(victim, signal.SIGKILL)
    for pid in others:
        os.kill(pid, signal.SIGCONT)
    groups = trio.collect(35, 34, 0, NUMBERED, WAIT_S)
    assert_equal(groups, local(trio.config, policy(34), step=35), version=34)
    validated = ray.get(validation, timeout=WAIT_S)
    assert [group.outcomes for group in validated] == [
        group.outcomes for group in local(trio.config, policy(35), step=0)
    ]
    computed = sum(trio.status()["outcomes"].values()) - before
    assert computed == sum(len(group.completions) for group in [*groups, *validated])


def test_a_killed_check_process_costs_nothing(trio: Client) -> None:
    """The verifiers' children, not the verifiers."""
    trio.publish_model(33, policy(33))
    restarts = trio.status()["verifier"]["restarts"]
    for verifier in trio.ready_pids("verifier", 2):
        for child in children(verifier):
            os.kill(child, signal.SIGKILL)
    assert_equal(trio.collect(33, 33, 0, NUMBERED, WAIT_S), local(trio.config, policy(33), step=33), version=33)
    assert trio.status()["verifier"]["restarts"] == restarts


def test_hung_rollout_actor_is_replaced(single: Client) -> None:
    single.publish_model(40, policy(40))
    expected = single.collect(40, 40, 0, NUMBERED, WAIT_S)
    (victim,) = single.pids("rollout")
    os.kill(victim, signal.SIGSTOP)
    with pytest.raises(TimeoutError) as caught:
        single.collect(41, 40, 0, NUMBERED, 1.0)
    assert "step 41, draw 0 is not complete after 1 s" in str(caught.value)
    assert re.search(r"rollout actors: actor \d+ has been busy with request \d+ for", str(caught.value))
    groups = single.collect(41, 40, 0, NUMBERED, WAIT_S)  # the same computation goes on
    assert [group.completions for group in groups] == [group.completions for group in expected]
    status = single.status()["rollout"]
    assert status["restarts"] >= 1 and single.pids("rollout") != [victim]
    assert "for more than 3 s" in status["first_failure"]["cause"]


def test_checks_that_misbehave_are_counted_apart(single: Client) -> None:
    single.publish_model(50, policy(5))
    before = Counter(single.status()["outcomes"])
    groups = single.collect(50, 50, 0, NUMBERED, WAIT_S)
    outcomes = Counter(outcome for group in groups for outcome in group.outcomes)
    assert {"correct", "wrong", "timeout", "error", "truncated"} == set(outcomes)
    assert Counter(single.status()["outcomes"]) - before == outcomes
    undisturbed = local(configuration(Path(single.config.policy.path)), policy(5), step=50)
    for group, other in zip(groups, undisturbed, strict=True):
        for position, completion in enumerate(group.completions):
            text = TEXTS[group.index] + decode_completion(TOKENIZER, completion.tokens)
            accident = {3: "timeout", 4: "error", 5: "error"}.get(crc32(text.encode()) % 11)
            expected = accident if accident and completion.finished else other.outcomes[position]
            assert group.outcomes[position] == expected


def test_run_decodes_any_prompts(trio: Client) -> None:
    trio.publish_model(40, policy(40))
    settings = decode_settings(trio.config, TOKENIZER)
    groups = trio.run([PROBLEMS[index] for index in INDICES], settings, 40, [0] * len(INDICES), WAIT_S)
    assert [group.index for group in groups] == list(range(len(INDICES)))
    expected = local(trio.config, policy(40), step=0)
    assert [group.outcomes for group in groups] == [group.outcomes for group in expected]
    assert trio.run([], settings, 40, [], WAIT_S) == []


def test_status_and_report(trio: Client) -> None:
    trio.publish_model(50, policy(50))
    trio.collect(50, 50, 0, NUMBERED, WAIT_S)
    status = trio.status()
    assert {actor["version"] for actor in status["rollout"]["actors"]} <= {None, 50}
    assert all(actor["pid"] and actor["host"] and actor["node"] for actor in status["verifier"]["actors"])
    assert status["rollout"]["queue"] == 0 and status["rollout"]["oldest_wait_s"] == 0.0
    assert "rollout actors: actor" in trio.stall_report()


def test_the_process_of_the_service_itself_has_not_loaded_pytorch(trio: Client) -> None:
    """Those of its actors have."""
    trio.publish_model(55, policy(55))
    trio.collect(55, 55, 0, NUMBERED, WAIT_S)
    pids = [trio.status()["service"]["pid"], trio.ready_pids("rollout", 1)[0]]
    assert ["libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in pids] == [False, True]


def test_wrong_prompt_is_the_users_error(trio: Client) -> None:
    trio.publish_model(60, policy(60))
    long = [Problem("a " * 39 + "⁇")]
    with pytest.raises(UserError, match="40"):
        trio.run(long, decode_settings(trio.config, TOKENIZER), 60, [0], WAIT_S)


def test_what_cannot_start_says_why(policy_dir: Path) -> None:
    nowhere = configuration(policy_dir, policy={"path": "/nowhere/policy"}, rollout={"actors": 1})
    with service(nowhere) as client:
        with pytest.raises(UserError, match="/nowhere/policy"):
            client.ready(WAIT_S)
        client.publish_model(0, policy(0))
        client.prefetch(0, 0, NUMBERED, WAIT_S)  # fails in the background; its cause comes with collect
        with pytest.raises(UserError, match="/nowhere/policy"):
            client.collect(0, 0, 0, NUMBERED, WAIT_S)
        assert "/nowhere/policy" in client.status()["failure"]
        client.shutdown()
        assert client.pids("verifier") == []


def test_weights_outlive_the_process_that_published_them(policy_dir: Path) -> None:
    """An actor that starts after the publisher's death still loads them."""

    class Publisher:  # in here, so that it travels by value
        def publish(self, service: Any, config: TrainConfig, model: PreTrainedModel) -> None:

            ServiceRolloutSource(service, config).publish(0, model)

    with service(configuration(policy_dir, rollout={"actors": 1})) as client:
        publisher: Any = ray.remote(num_cpus=0)(Publisher).remote()
        ray.get(publisher.publish.remote(client.actor, client.config, policy(5)), timeout=WAIT_S)
        ray.kill(publisher)
        (victim,) = client.ready_pids("rollout", 1)
        os.kill(victim, signal.SIGKILL)
        groups = client.collect(0, 0, 0, NUMBERED, WAIT_S)
        assert_equal(groups, local(client.config, policy(5), step=0), version=0)


def test_rollout_actor_refuses_other_weights(policy_dir: Path) -> None:
    """In this process: what an actor holds decides, not what it is told."""
    actor = RolloutActor(str(policy_dir), "fp32", threads=1, device="cpu")
    actor.prepare()
    settings = decode_settings(configuration(policy_dir), TOKENIZER)
    asked = Weights(version=2, publication=5)
    request = RolloutRequest(asked, PROBLEMS[:1], [rollout_seed(0, 0, 0)], settings)
    with pytest.raises(RuntimeError, match="holds None"):
        actor.serve(request)
    actor.load(asked, flatten_parameters(policy(0)))
    assert actor.serve(request).weights == asked
    actor.load(Weights(version=2, publication=6), flatten_parameters(policy(0)))
    with pytest.raises(RuntimeError, match="publication=5"):
        actor.serve(request)
    with pytest.raises(ValueError, match="another architecture"):
        actor.load(asked, flatten_parameters(policy(0))[:-4])
    with pytest.raises(RuntimeError, match="holds None"):
        actor.serve(request)
