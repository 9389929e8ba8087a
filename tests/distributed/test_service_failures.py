"""What goes wrong around the rollout service: lies, no room, and the loss of its own process."""

from __future__ import annotations

import asyncio
import re
import threading
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGSTOP
from typing import Any

import pytest
import ray
from pooled_actors import Garbler
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from service_play import (
    INDICES,
    NUMBERED,
    PROBLEMS,
    TOKENIZER,
    WAIT_S,
    assert_equal,
    configuration,
    local,
    policy,
    service,
)

from bgrpo.chaos.faults import alive, hit, wait_until
from bgrpo.config import TrainConfig
from bgrpo.distributed.pool.actor_pool import remote_class
from bgrpo.distributed.rollout import service as rollout_service
from bgrpo.distributed.rollout.remote import (
    ServiceDecoder,
    ServiceRolloutSource,
    answer,
    in_spite_of_restarts,
    publish_in_spite_of_restarts,
)
from bgrpo.distributed.rollout.service import RolloutService
from bgrpo.distributed.watch.run_log import RunLog
from bgrpo.errors import UserError
from bgrpo.groups import ScoredGroup
from bgrpo.learning.rollout_source import decode_settings
from bgrpo.policies.flat_weights import flatten_parameters

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def test_garbage_never_reaches_the_verifiers(policy_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service runs in this process, with actors of which one lies once."""
    once = tmp_path / "once"
    once.touch()
    remote = remote_class(Garbler).options(num_cpus=0).remote

    def spawn(config: TrainConfig, cpus: float) -> ActorHandle:
        return remote(str(once), config.policy.path)

    monkeypatch.setattr(rollout_service, "spawn_rollout_actor", spawn)
    monkeypatch.setattr(rollout_service, "start_run_log", lambda run, actor: RunLog(run, actor))
    config = configuration(policy_dir, rollout={"actors": 2})

    async def collect() -> tuple[list[ScoredGroup], dict[str, Any]]:
        made = RolloutService(config, decode_settings(config, TOKENIZER), len(TOKENIZER), "")
        await made.publish(0, [ray.put(flatten_parameters(policy(5)))])
        try:
            (reference,) = await made.collect(0, 0, 0, NUMBERED, WAIT_S)
            return await reference, await made.status()
        finally:
            await made.shutdown()

    groups, status = asyncio.run(asyncio.wait_for(collect(), WAIT_S + 10))
    assert_equal(groups, local(config, policy(5), step=0), version=0)
    assert status["rollout"]["garbled_replies"] == 1 and not once.exists()
    assert "is garbage: group 0: completion 1: token ids 1000000" in status["rollout"]["first_failure"]["cause"]
    assert sum(status["outcomes"].values()) == sum(len(group.completions) for group in groups)


@pytest.mark.long
def test_a_stand_in_works_while_the_lost_actor_starts_again(policy_dir: Path) -> None:
    """It reserves no CPU, answers before the lost actor is replaced, with the same groups, and rests then."""
    with service(configuration(policy_dir, rollout={"actors": 1, "stand_ins": 1})) as client:
        client.publish_model(0, policy(5))
        client.ready_pids("rollout", 2)
        worker, stand_in = client.status()["rollout"]["actors"]
        assert (worker["is_stand_in"], worker["is_at_work"]) == (False, True)
        assert (stand_in["is_stand_in"], stand_in["is_at_work"]) == (True, False)
        hit(worker["pid"], SIGKILL)
        groups = client.collect(0, 0, 0, NUMBERED, WAIT_S)
        by_number = {actor["actor"]: actor for actor in client.status()["rollout"]["actors"]}
        assert by_number.pop(stand_in["actor"])["version"] == 0, "it has worked"
        assert all(actor["state"] in ("pending", "starting") for actor in by_number.values()), "nobody else could"
        assert_equal(groups, local(client.config, policy(5), step=0), version=0)
        client.ready_pids("rollout", 2)
        assert [actor["is_at_work"] for actor in client.status()["rollout"]["actors"]] == [False, True]


def test_what_finds_no_room_says_what_it_asked_for(policy_dir: Path) -> None:
    """Only nodes of a kind that this cluster lacks would do."""
    rollout = {"actors": 1, "node_resource": "decoders", "placement_s": 1.0}
    with service(configuration(policy_dir, rollout=rollout)) as client:
        with pytest.raises(UserError) as caught:
            client.ready(WAIT_S)
        assert re.search(
            r"no rollout actor found room for \d+ s: each asks for 0.5 CPU, 0.001 decoders", str(caught.value)
        )
        assert "the cluster has 8 CPU" in str(caught.value)


@pytest.mark.long
def test_a_stopped_verifier_is_replaced(policy_dir: Path) -> None:
    """Its checks may take minutes, so that only its silence tells it from one that checks."""
    config = configuration(policy_dir, rollout={"actors": 1}, watchdog={"silence_s": 10.0})
    with service(config) as client:
        client.publish_model(4, policy(4))
        (victim,) = client.ready_pids("verifier", 1)
        hit(victim, SIGSTOP)
        groups = client.collect(4, 4, 0, NUMBERED, WAIT_S)
        assert_equal(groups, local(client.config, policy(4), step=4), version=4)
        status = client.status()["verifier"]
        assert "gave no sign of life for more than 10 s" in status["first_failure"]["cause"]
        assert status["restarts"] == 1
        wait_until(lambda: not alive(victim), "its end: Ray asks it to end first")


@pytest.mark.long
@pytest.mark.timeout(600)  # the service starts four times
def test_the_start_and_an_evaluation_outlive_the_service_itself(policy_dir: Path) -> None:
    """Ray starts it again, empty; the weights are published again, and the batch that was open is decoded again."""
    with service(configuration(policy_dir, rollout={"actors": 1})) as client:
        first, asked = client.status()["service"]["pid"], []

        def ask() -> None:
            asked.append(client.actor.ready.remote(WAIT_S))
            if len(asked) == 1:
                hit(first, SIGKILL)
            answer(asked[-1], WAIT_S + 10)

        in_spite_of_restarts(ask, WAIT_S)
        assert len(asked) > 1, "the first call was lost with the service"
        status = client.status()
        assert status["service"]["pid"] != first
        assert [actor["state"] for actor in status["rollout"]["actors"]] == ["idle"]

        source = ServiceRolloutSource(client.actor, client.config)
        publish = partial(publish_in_spite_of_restarts, source, 4, policy(5))
        publish()
        (worker,), pid = client.ready_pids("rollout", 1), client.status()["service"]["pid"]
        hit(worker, SIGSTOP)  # so that the batch is surely open
        killer = threading.Timer(2.0, hit, (pid, SIGKILL))
        killer.start()
        decode = ServiceDecoder(client.actor, client.config, 4, TOKENIZER, publish_again=publish)
        judged = decode([PROBLEMS[index] for index in INDICES], "beam", 8, None)
        killer.join()
        expected = local(client.config, policy(5), step=0)
        assert [[c.outcome for c in group] for group in judged] == [group.outcomes for group in expected]
        assert client.status()["service"]["pid"] != pid
        assert not alive(worker), "what belonged to the service ended with it"
        hit(client.status()["service"]["pid"], SIGKILL)
        with pytest.raises(RayActorError):  # without publish_again it is the caller's to handle
            for _ in range(100):
                ServiceDecoder(client.actor, client.config, 4, TOKENIZER)([PROBLEMS[0]], "beam", 8, None)
        publish()
        again = ServiceDecoder(client.actor, client.config, 4, TOKENIZER)([PROBLEMS[0]], "beam", 8, None)
        assert len(again) == 1
