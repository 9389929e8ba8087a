"""The schedule of faults: the same for the same seed, every kind in turn, and what the command line says of it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgrpo.chaos.faults import TITLES
from bgrpo.chaos.schedule import DEFAULT_KINDS, Fault, FaultKind, Schedule, parse_every, parse_kinds
from bgrpo.cli.app import main
from bgrpo.errors import UserError

KINDS = st.lists(st.sampled_from(list(FaultKind)), min_size=1, unique=True)


@given(st.integers(0, 500), st.integers(0, 1000), KINDS)
def test_a_fault_is_a_function_of_seed_and_index(index: int, seed: int, kinds: list[FaultKind]) -> None:
    later = [Schedule(seed, (2.0, 9.0), tuple(kinds)).fault(i) for i in (index + 1, index)]
    fault = Schedule(seed, (2.0, 9.0), tuple(kinds)).fault(index)
    assert fault is not None and fault == later[1]
    assert fault.index == index and 2.0 <= fault.gap_s <= 9.0 and fault.kind in kinds


@given(st.integers(0, 1000), KINDS, st.integers(1, 5))
def test_every_kind_comes_once_per_round(seed: int, kinds: list[FaultKind], rounds: int) -> None:
    schedule = Schedule(seed, (1.0, 1.0), tuple(kinds), length=rounds * len(kinds))
    found = Counter(fault.kind for i in range(rounds * len(kinds)) if (fault := schedule.fault(i)) is not None)
    assert found == dict.fromkeys(kinds, rounds)
    assert schedule.fault(rounds * len(kinds)) is None


def test_seeds_differ_in_kinds_gaps_and_victims() -> None:
    schedules = [[Schedule(seed, (20.0, 40.0), DEFAULT_KINDS).fault(i) for i in range(30)] for seed in (1, 2)]
    for name in ("kind", "gap_s", "pick"):
        first, second = ([getattr(fault, name) for fault in faults] for faults in schedules)
        assert first != second
    assert len({getattr(fault, "gap_s", 0) for fault in schedules[0]}) == 30


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 50))
def test_the_victim_is_one_of_those_there(pick: float, count: int) -> None:
    assert Fault(0, FaultKind.KILL_ROLLOUT, 1.0, pick).choose(range(count)) in range(count)


def test_a_kind_says_whom_it_hits_with_which_signal() -> None:
    hits = {kind: (kind.target, kind.signal.name) for kind in FaultKind}
    assert hits[FaultKind.STOP_ROLLOUT] == ("rollout", "SIGSTOP")
    assert hits[FaultKind.TERMINATE_DRIVER] == ("driver", "SIGTERM")
    assert {signal for kind, (_, signal) in hits.items() if kind.startswith("kill-")} == {"SIGKILL"}
    assert {target for target, _ in hits.values()} - {"driver", "check", "node"} == set(TITLES)


def test_every_kind_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    main(["chaos", "--help"])
    words = capsys.readouterr().out.replace("│", " ").split()
    assert {str(kind) for kind in FaultKind} <= {word.strip(",.;()") for word in words}


def test_kinds_and_gaps_are_read() -> None:
    assert parse_kinds(None) == DEFAULT_KINDS
    assert parse_kinds("kill-learner, kill-rollout,kill-learner") == (FaultKind.KILL_LEARNER, FaultKind.KILL_ROLLOUT)
    assert parse_every("20,40") == (20.0, 40.0)
    assert parse_every("7.5") == (7.5, 7.5)


@pytest.mark.parametrize("text", ["kill-everything", "", ",", "kill-rollout,nonsense"])
def test_unknown_kinds_are_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(UserError, match=r"--faults .*expected a list of kill-rollout, stop-rollout"):
        parse_kinds(text)


@pytest.mark.parametrize("text", ["", "a", "0,5", "5,1", "1,2,3", "-3", "1,inf", "nan"])
def test_gaps_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--every .*expected seconds"):
        parse_every(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--faults", "nonsense"], "--faults nonsense: expected"),
        (["--every", "x"], "--every x: expected"),
        (["--undisturbed", "absent"], "no run 'absent'"),
        (["--undisturbed", "absent", "--minutes", "3"], "leave out --config and --minutes"),
        (["stepz=3"], "did you mean 'steps'?"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["chaos", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
