"""What the policy wrote: bounded lines that are the same after a resume, and a reader that no file can upset."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampled_runs import completion, drawn_group, group, new_run, sampled_run, write_step, writer

from bgrpo.errors import UserError
from bgrpo.groups import Completion
from bgrpo.runs.group_log import GroupLog
from bgrpo.runs.run_folder import RunFolder
from bgrpo.runs.samples import MAX_COMPLETIONS, MAX_LINE, MAX_TOKENS, SampleReader, sample_table


def everything(run: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.samples.iterdir()}


def test_a_group_comes_back_with_what_the_judge_and_the_update_said(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    judged = [
        completion([2, 3, 0], [-0.1, -0.25, -1.0], parts={"safety": 0.25, "style": None}, score=0.5),
        completion([5, 0], outcome="error", detail="boom"),
    ]
    writer(run).write(7, [group(judged, index=3, version=6)], {0: [0.5, -0.5]})
    (kept,) = SampleReader(run)
    assert (kept.step, kept.group, kept.problem, kept.version, kept.size) == (7, 0, 3, 6, 2)
    assert (kept.prompt, kept.answer, kept.category) == ("Tell a story of sat.", "the sat", "story")
    first, second = kept.completions
    assert (first.tokens, first.pieces, first.logprobs) == ([2, 3, 0], ["cat", "sat", "<end>"], [-0.1, -0.25, -1.0])
    assert (first.text, first.length, first.finished, first.logprob) == ("cat sat", 3, True, -1.35)
    assert (first.outcome, first.score, first.parts) == ("correct", 0.5, {"safety": 0.25, "style": None})
    assert (first.reward, first.advantage, second.advantage) == (1.0, 0.5, -0.5)
    assert (second.rank, second.outcome, second.detail, second.parts, second.reward) == (2, "error", "boom", {}, 0.0)


@pytest.mark.parametrize(("groups", "kept"), [(0, []), (1, [4]), (2, [4, 9]), (9, [4, 9, 2])])
def test_the_first_groups_of_a_step_are_kept_and_those_left_out_of_the_update_have_no_advantage(
    tmp_path: Path, groups: int, kept: list[int]
) -> None:
    run = new_run(tmp_path)
    writer(run, groups).write(1, [drawn_group(1, index) for index in (4, 9, 2)], {1: [0.5] * 6})
    read = list(SampleReader(run))
    assert [item.problem for item in read] == kept
    assert all((item.completions[0].advantage is not None) == (item.problem == 9) for item in read)


def worst_group(rng: random.Random, size: int, length: int) -> list[Completion]:
    """Everything as long as it can be, in characters that JSON writes long."""
    tokens = [rng.randrange(50) for _ in range(length)]
    values = {f"\x01{part}" * 500: math.nan for part in range(200)}
    return [
        Completion(tokens, [-math.inf, *[-math.pi] * (length - 1)], False, "\ud800\x01" * 90_000, verdict)
        for verdict in [completion([1], outcome="\x01" * 900, detail="\x02" * 90_000, parts=values).verdict] * size
    ]


@pytest.mark.parametrize(("size", "length"), [(1, 20_000), (8, 900), (500, 70), (2, 1)])
def test_a_line_is_bounded_whatever_the_policy_writes(tmp_path: Path, size: int, length: int) -> None:
    run = new_run(tmp_path)
    writer(run).write(1, [group(worst_group(random.Random(0), size, length))])
    ((name, content),) = everything(run).items()
    assert name == "steps-00000001-00000100.jsonl"
    assert len(content) < MAX_LINE
    (kept,) = SampleReader(run)
    assert (kept.size, len(kept.completions)) == (size, min(size, MAX_COMPLETIONS))
    assert sum(len(item.tokens) for item in kept.completions) <= MAX_TOKENS
    assert kept.completions[0].length == length and kept.completions[0].logprob is None
    assert kept.completions[0].text.endswith("…") and kept.completions[0].text.startswith("?\x01")


@pytest.mark.parametrize("cut", [0, 1, 99, 100, 101])
def test_a_resumed_run_keeps_what_an_undisturbed_one_keeps(tmp_path: Path, cut: int) -> None:
    """Killed anywhere after the checkpoint of step ``cut``, in the middle of a line too."""
    whole = sampled_run(tmp_path / "whole", 110, 2)
    for later, torn in ((0, b""), (2, b'{"step":'), (7, b"")):
        run = new_run(tmp_path / f"{later}")
        for step in range(1, min(cut + later, 110) + 1):
            write_step(run, step, 2)
        for path in sorted(run.samples.glob("*"))[-1:]:
            path.write_bytes(path.read_bytes() + torn)
        writer(run).truncate_after(cut)
        for step in range(cut + 1, 111):
            write_step(run, step, 2)
        assert everything(run) == everything(whole)


def test_no_samples_are_no_error(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    writer(run).truncate_after(5)
    assert list(SampleReader(run)) == [] and SampleReader(run).size == 0


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.samples.symlink_to("/dev/full/none")
    with pytest.raises(UserError, match=r"steps-00000001-00000100\.jsonl: cannot be written"):
        write_step(run, 1)


@pytest.mark.parametrize("name", ["samples", "metrics", "log"])
def test_a_pipe_in_the_place_of_a_file_that_grows_is_not_waited_for(tmp_path: Path, name: str) -> None:
    run = new_run(tmp_path)
    path = {
        "samples": run.samples / "steps-00000001-00000100.jsonl",
        "metrics": run.metrics_path,
        "log": run.group_log_path,
    }[name]
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(UserError, match=rf"{path.name}: cannot be written \(Is a pipe, socket or device\)"):
        if name == "samples":
            write_step(run, 1)
        elif name == "metrics":
            run.append_metrics(1, {})
        else:
            GroupLog(run, 1).write(1, [drawn_group(1, 4)], {})


def test_a_flipped_bit_is_no_other_sample(tmp_path: Path) -> None:
    """Many flips give a line of the right form, with another number or letter."""
    run = sampled_run(tmp_path, 1)
    (path,) = run.samples.iterdir()
    known, content = list(SampleReader(run)), path.read_bytes()
    for bit in range(3, 8 * len(content), 61):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert all(sample in known for sample in SampleReader(run))


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no object": lambda line: [line],
    "deep": lambda line: "[" * 100_000,
    "no step": lambda line: {name: value for name, value in line.items() if name != "step"},
    "step is text": lambda line: line | {"step": "1"},
    "step is true": lambda line: line | {"step": True},
    "huge step": lambda line: line | {"step": 10**30},
    "step of another file": lambda line: line | {"step": 101},
    "no completions": lambda line: line | {"completions": []},
    "too many": lambda line: line | {"completions": line["completions"] * 65},
    "prompt is a list": lambda line: line | {"prompt": ["a"]},
    "rank is text": lambda line: line | {"completions": [line["completions"][0] | {"rank": "1"}]},
    "text is missing": lambda line: line | {"completions": [{"rank": 1}]},
    "parts nest": lambda line: line | {"completions": [line["completions"][0] | {"parts": {"a": {"b": 1}}}]},
    "infinite": lambda line: line | {"completions": [line["completions"][0] | {"reward": math.inf}]},
    "longest": lambda line: line | {"prompt": "x" * MAX_LINE},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_line_of_another_form_is_left_out_and_counted(tmp_path: Path, kind: str) -> None:
    run = sampled_run(tmp_path, 3)
    (path,) = run.samples.iterdir()
    lines = path.read_text().splitlines()
    bad = HOSTILE[kind](json.loads(lines[2]))
    lines[2] = bad if isinstance(bad, str) else json.dumps(bad)
    path.write_text("\n".join(lines) + "\n")
    reader = SampleReader(run)
    assert [item.step for item in reader] == [1, 1, 2, 3, 3]
    assert reader.damaged >= 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), piece=st.binary(min_size=1, max_size=30), cut=st.integers(0, 40))
def test_no_damage_to_a_file_raises(tmp_path: Path, place: int, piece: bytes, cut: int) -> None:
    run = RunFolder(tmp_path / "runs" / "told")
    if not run.path.exists():
        sampled_run(tmp_path, 2)
        (run.path / "whole").write_bytes(next(run.samples.iterdir()).read_bytes())
    content = (run.path / "whole").read_bytes()
    place %= len(content)
    next(run.samples.iterdir()).write_bytes(content[:place] + piece + content[place + cut :])
    assert len(list(SampleReader(run))) <= 4


@pytest.mark.parametrize(("steps", "rows", "shown"), [(0, 10, []), (4, 1000, [1, 2, 3, 4]), (9, 40, [1, 4, 7])])
def test_a_table_is_bounded_and_of_evenly_spread_steps(tmp_path: Path, steps: int, rows: int, shown: list[int]) -> None:
    table = sample_table(sampled_run(tmp_path, steps), rows)
    assert sorted(set(table.get("step", []))) == shown
    assert all(len(column) == 12 * len(shown) <= rows for column in table.values())
    if shown:
        first = next(iter(SampleReader(RunFolder(tmp_path / "runs" / "told")))).completions[0]
        row = {name: column[0] for name, column in table.items()}
        assert (row["completion"], row["reward"], row["rank"]) == (first.text, first.reward, 1)
        assert json.loads(row["parts"]) == first.parts
