"""Problems survive the run folder, and a damaged file is named."""

import errno
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgrpo.errors import UserError
from bgrpo.tasks.base import Problem
from bgrpo.tasks.problem_files import read_problems, write_problems

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(problems=st.lists(st.builds(Problem, TEXT, TEXT, TEXT)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_what_is_written_is_read(problems: list[Problem], tmp_path: Path) -> None:
    write_problems(tmp_path / "p.jsonl", problems)
    assert read_problems(tmp_path / "p.jsonl") == problems


@pytest.mark.parametrize("text", ['{"prompt": "x"', "[1]\n", '{"prompt": "x", "colour": "red"}\n'])
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"p\.jsonl: the run's problems cannot be read"):
        read_problems(tmp_path / "p.jsonl")


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_problems(tmp_path / "p.jsonl", [Problem("x")])
