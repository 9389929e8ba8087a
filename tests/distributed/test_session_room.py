"""A cluster that is too small is refused with the arithmetic, before anything starts."""

from collections.abc import Mapping, Sequence

import pytest
import ray
from ray.core.generated import autoscaler_pb2

from bgrpo.config import TrainConfig, load_config
from bgrpo.distributed.session.node_autoscaler import wait_for_verdict
from bgrpo.distributed.session.ray_session import check_room, ray_session, training_demand
from bgrpo.errors import RunError, UserError


def demand(*overrides: str) -> list:
    return training_demand(load_config(TrainConfig, None, overrides))


def test_the_default_run_fits_two_cores() -> None:
    check_room(demand(), {"CPU": 2.0})


def test_two_learners_and_two_actors_fit_two_cores() -> None:
    check_room(demand("learner.workers=2"), {"CPU": 2.0})


def test_missing_cpus_are_shown_with_their_sum() -> None:
    with pytest.raises(UserError) as caught:
        check_room(demand("rollout.actors=6", "rollout.cpus_per_actor=1"), {"CPU": 4.0})
    assert "rollout.actors 6 × 1" in str(caught.value)
    assert "= 6.5 CPU, the cluster has 4: 2.5 missing" in str(caught.value)


def test_missing_gpus_are_named() -> None:
    with pytest.raises(UserError, match=r"learner\.workers 2 × 1 = 2 GPU, the cluster has 0: 2 missing"):
        check_room(demand("learner.workers=2", "learner.gpus_per_worker=1"), {"CPU": 8.0})


def test_an_elastic_pool_needs_room_for_its_fewest_actors() -> None:
    elastic = demand("rollout.actors=4", "rollout.min_actors=1", "rollout.max_actors=64", "rollout.cpus_per_actor=1")
    check_room(elastic, {"CPU": 1.5})
    with pytest.raises(UserError, match=r"rollout\.min_actors 1 × 1 = 1.5 CPU, the cluster has 1: 0.5 missing"):
        check_room(elastic, {"CPU": 1.0})


def test_kinds_of_nodes_are_part_of_the_sum() -> None:
    kinds = demand("learner.node_resource=learners", "rollout.node_resource=decoders", "verifier.node_resource=checks")
    check_room(kinds, {"CPU": 2.0, "learners": 1.0, "decoders": 1.0, "checks": 1.0})
    with pytest.raises(UserError, match=r"small: rollout\.actors 2 × 0.001 = 0.002 decoders, the cluster has 0: 0.002"):
        check_room(kinds, {"CPU": 2.0, "learners": 1.0, "checks": 1.0})
    with pytest.raises(UserError, match=r"verifier\.processes 1 × 0.001 = 0.001 checks"):
        check_room(kinds, {"CPU": 2.0, "learners": 1.0, "decoders": 1.0})


def test_an_autoscaler_is_asked_for_all_processes_at_once_and_believed() -> None:
    asked: list[list[dict[str, float]]] = []

    def says(answer: bool) -> object:
        def can_grow(bundles: Sequence[Mapping[str, float]]) -> bool:
            asked.append([dict(bundle) for bundle in bundles])
            return answer

        return can_grow

    wanted = demand("rollout.actors=2", "rollout.gpus_per_actor=1", "rollout.node_resource=decoders")
    check_room(wanted, {"CPU": 0.0}, says(True))  # type: ignore[arg-type]
    assert asked == [[{"CPU": 0.5}] + [{"CPU": 0.5, "GPU": 1.0, "decoders": 0.001}] * 2]
    with pytest.raises(UserError, match=r"2 × 1 = 2 GPU, the cluster has 0: 2 missing.*no autoscaler that could add"):
        check_room(wanted, {"CPU": 2.0, "decoders": 2.0}, says(False))  # type: ignore[arg-type]
    check_room(wanted, {"CPU": 2.0, "GPU": 2.0, "decoders": 2.0}, says(False))  # type: ignore[arg-type]
    assert len(asked) == 2, "not asked where there is room"


class Autoscaler:
    """Looks at the cluster every ``interval_s`` and says after so many looks that it cannot hold what was asked."""

    def __init__(self, interval_s: float, infeasible: bool, looks: int = 2) -> None:
        self.now = 0.0
        self._interval_s = interval_s
        self._infeasible = infeasible
        self._looks = looks

    def status(self) -> object:
        messages: object = autoscaler_pb2
        reply = messages.GetClusterStatusReply()  # type: ignore[attr-defined]
        looks = int(self.now // self._interval_s)
        reply.cluster_resource_state.cluster_resource_state_version = 100 + looks
        reply.autoscaling_state.last_seen_cluster_resource_state_version = 99 + looks
        if self._infeasible and looks >= self._looks:
            reply.autoscaling_state.infeasible_cluster_resource_constraints.add()
        return reply

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def verdict(self, timeout_s: float) -> bool | None:
        return wait_for_verdict(self.status, timeout_s, lambda: self.now, self.sleep)


def test_the_autoscalers_verdict_is_one_about_our_question() -> None:
    """What it said before it saw the question does not count."""
    assert Autoscaler(5.0, infeasible=True).verdict(30.0) is False
    assert Autoscaler(5.0, infeasible=False).verdict(30.0) is True
    assert Autoscaler(5.0, infeasible=True, looks=3).verdict(30.0) is False, "a yes is asked for twice"
    silent = Autoscaler(1e9, infeasible=False)
    assert silent.verdict(30.0) is None and silent.now == pytest.approx(30.0, abs=1.0)


def test_a_local_ray_that_does_not_start_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    words = r"^Ray did not start on this machine: The current node timed out.* /tmp/bgrpo-.*/logs; .* try again$"
    with pytest.raises(RunError, match=words), ray_session([]):
        pytest.fail("there is no Ray")
