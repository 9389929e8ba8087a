"""Preference pairs: bad files are refused with their line, groups stay on one side, intervals hold."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from bgrpo.errors import UserError
from bgrpo.scoring.preference_pairs import Pair, accuracy_interval, check_disjoint, read_pairs, split_pairs

GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}
CHAT = [{"role": "user", "content": "hello"}]


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "pairs.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return path


def test_texts_messages_weights_and_margins_are_read(tmp_path: Path) -> None:
    chat = {"prompt": CHAT, "chosen": [{"role": "assistant", "content": "x"}], "rejected": "y", "speaker": 7}
    whole = {"chosen": "x y", "rejected": "x z", "weight": 2, "margin": -0.5, "speaker": "s"}
    first, second = read_pairs(written(tmp_path, chat, b"", whole), "speaker")
    assert first == Pair(CHAT, chat["chosen"], "y", 1.0, 0.0, "7", 1)
    assert second == Pair("", "x y", "x z", 2.0, -0.5, "s", 3)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"3", "expected an object"),
        ({"prompt": "p", "chosen": "a"}, "rejected is missing"),
        ({**GOOD, "chosen": None}, "chosen is null"),
        ({**GOOD, "chosen": ""}, 'chosen is ""'),
        ({**GOOD, "rejected": []}, "rejected is []"),
        ({**GOOD, "prompt": 3}, "prompt is 3"),
        ({**GOOD, "prompt": [{"role": "user"}]}, "prompt is"),
        ({**GOOD, "rejected": "a"}, "are the same"),
        ({**GOOD, "weight": -1}, "weight is -1; expected a number of at least 0"),
        ({**GOOD, "weight": "x"}, "weight is"),
        ({**GOOD, "weight": True}, "weight is true"),
        (b'{"chosen": "a", "rejected": "b", "weight": NaN}', "weight is NaN"),
        (b'{"chosen": "a", "rejected": "b", "margin": 1e999}', "margin is Infinity"),
        (GOOD, "has no 'speaker' to group by; it has prompt, chosen, rejected"),
        ({**GOOD, "speaker": ["a"]}, "has no 'speaker'"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(row: Any, told: str, tmp_path: Path) -> None:
    path = written(tmp_path, {**GOOD, "speaker": "s"}, row)
    with pytest.raises(UserError) as error:
        read_pairs(path, "speaker")
    assert str(error.value).startswith(f"{path}:2: ") and told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "has no pairs"), (b"\n\n", "has no pairs"), (b"\xff\xfe", "is not UTF-8"), (None, "cannot be read")],
)
def test_a_file_without_pairs_is_refused(content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=told):
        read_pairs(path)
    with pytest.raises(UserError, match="every weight is 0"):
        read_pairs(written(tmp_path, {**GOOD, "weight": 0}))


def pairs_of(groups: list[int]) -> list[Pair]:
    return [Pair("p", "a", "b", 1.0, 0.0, str(group), line) for line, group in enumerate(groups, 1)]


@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=80).filter(lambda groups: len(set(groups)) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_a_split_divides_no_group_and_loses_no_pair(groups: list[int], share: float, seed: int) -> None:
    pairs = pairs_of(groups)
    train, held = split_pairs(pairs, share, seed)
    assert train and held and sorted(train + held, key=lambda pair: pair.line) == pairs
    assert not {pair.group for pair in train} & {pair.group for pair in held}
    assert split_pairs(pairs, share, seed) == (train, held)
    largest = max(groups.count(group) for group in groups)
    assert abs(len(held) - share * len(pairs)) <= largest


def test_one_group_cannot_be_divided_and_shared_groups_are_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one group"):
        split_pairs(pairs_of([3] * 9), 0.2, 0)
    check_disjoint(pairs_of([1, 2]), pairs_of([3, 4]), tmp_path)
    with pytest.raises(UserError, match=r":2: its group '2' is also in the training pairs \(line 2\)"):
        check_disjoint(pairs_of([1, 2]), pairs_of([3, 2]), tmp_path)


def test_without_groups_the_interval_is_wilsons() -> None:
    for right, count in ((0, 5), (5, 5), (37, 50), (480, 1000)):
        answers = [True] * right + [False] * (count - right)
        share, low, high = accuracy_interval(answers, [str(number) for number in range(count)])
        expected = proportion_confint(right, count, method="wilson")
        assert share == right / count and (low, high) == pytest.approx(
            expected, abs=2e-3 if 0 < right < count else 1e-9
        )


def test_the_interval_covers_the_truth_where_groups_are_alike() -> None:
    """Groups of 20 answers that share their chance: intervals that take answers as independent cover too seldom."""
    draw = random.Random(0)
    covered = naive = 0
    for _ in range(300):
        answers, groups = [], []
        for group in range(40):
            chance = draw.choice([0.5, 0.9])
            answers += [draw.random() < chance for _ in range(20)]
            groups += [str(group)] * 20
        _, low, high = accuracy_interval(answers, groups)
        covered += low <= 0.7 <= high
        low, high = proportion_confint(sum(answers), len(answers), method="wilson")
        naive += low <= 0.7 <= high
    assert 0.91 <= covered / 300 <= 0.985 and naive / 300 < 0.75
