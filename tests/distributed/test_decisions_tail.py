"""The driver sees every decision once, and never waits for a service that does not answer. No Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from bgrpo.distributed.train import decisions_tail
from bgrpo.distributed.train.decisions_tail import DecisionsTail


class Service:
    """Answers a call only when told to."""

    def __init__(self) -> None:
        self.decisions: list[str] = []
        self.asked: list[int] = []
        self.is_ready = True
        self.is_gone = False
        self.scaling_decisions = SimpleNamespace(remote=self._ask)

    def _ask(self, seen: int) -> list[str]:
        self.asked.append(seen)
        return self.decisions[seen:]

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        assert timeout == 0
        return (calls, []) if self.is_ready else ([], calls)

    def get(self, call: list[str]) -> list[str]:
        if self.is_gone:
            raise ActorUnavailableError("gone", None)
        return call


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    made = Service()
    monkeypatch.setattr(decisions_tail.ray, "wait", made.wait)
    monkeypatch.setattr(decisions_tail.ray, "get", made.get)
    return made


def test_every_decision_is_seen_once(service: Service) -> None:
    tail = DecisionsTail(service)
    service.decisions = ["1 → 2"]
    assert tail.new_lines(0.0) == ["1 → 2"]
    service.decisions += ["2 → 3", "3 → 2"]
    assert tail.new_lines(1.0) == [], "asked a moment ago"
    assert tail.new_lines(2.0) == ["2 → 3", "3 → 2"]
    assert tail.new_lines(4.0) == []
    assert service.asked == [0, 1, 3]


def test_a_silent_service_is_asked_once_and_not_waited_for(service: Service) -> None:
    tail = DecisionsTail(service)
    service.decisions, service.is_ready = ["1 → 2"], False
    assert [tail.new_lines(float(second)) for second in range(10)] == [[]] * 10
    assert service.asked == [0]
    service.is_ready = True
    assert tail.new_lines(10.0) == ["1 → 2"]


def test_a_service_that_was_started_again_counts_anew(service: Service) -> None:
    tail = DecisionsTail(service)
    service.decisions = ["1 → 2", "2 → 3"]
    assert len(tail.new_lines(0.0)) == 2
    service.is_gone = True
    assert tail.new_lines(2.0) == []
    service.is_gone, service.decisions = False, ["1 → 2 again"]
    assert tail.new_lines(4.0) == ["1 → 2 again"]
