"""Prompts beyond the limit: refused with their line, left out, or cut to their end; told, and the same on resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_words import IDS, chat_tokenizer, ids
from hypothesis import given
from hypothesis import strategies as st

from bgrpo.cli.measure import Decoding, decode_file
from bgrpo.config import ProblemSource, TrainConfig, build_config
from bgrpo.config.rollouts import PolicySection
from bgrpo.errors import UserError
from bgrpo.policies.io import load_policy, save_policy
from bgrpo.policies.model import build_policy
from bgrpo.policies.text import cut_left
from bgrpo.runs.preparation import check_input, load_problems, save_problems
from bgrpo.runs.run_folder import RunFolder
from bgrpo.scoring.readable_groups import encode_prompts

LENGTHS = [1, 9, 2, 12, 3, 4]  # words of the prompts; each has a BOS besides
CONTEXT, NEW = 16, 6
DROP = {"long_prompts": "drop", "max_prompt_tokens": 5}
CUT = {"long_prompts": "cut_left", "max_prompt_tokens": 5}


def words(count: int) -> str:
    return " ".join(["user", "assistant", "be", "brief"][i % 4] for i in range(count - 1)) + " ho"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "policy"
    tokenizer = chat_tokenizer()
    save_policy(build_policy(tokenizer, 1, 2, 16, CONTEXT, seed=0), tokenizer, folder)
    return folder


@pytest.fixture
def config(policy: Path, tmp_path: Path) -> Any:
    for name, first in (("train", "hi"), ("validation", "user"), ("test", "system")):
        rows = [{"prompt": f"{first} {words(count - 1)}" if count > 1 else first} for count in LENGTHS]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def made(**rollout: Any) -> TrainConfig:
        files = {name: {"file": str(tmp_path / f"{name}.jsonl")} for name in ("train", "validation", "test")}
        tree = {
            "policy": {"path": str(policy)},
            "task": {"name": "text", **files},
            "rollout": {"prompts_per_step": 2, "max_new_tokens": NEW, **rollout},
            "run": {"dir": str(tmp_path / "runs"), "name": "x"},
        }
        return build_config(TrainConfig, tree, "test")

    return made


def test_the_default_is_what_the_context_leaves_and_refuses_by_line(config: Any, tmp_path: Path) -> None:
    longest = (
        rf"^task\.train: {tmp_path}/train\.jsonl:4 has 13 tokens \+ rollout\.max_new_tokens=6 = 19, .*context is 16"
    )
    with pytest.raises(UserError, match=longest):
        check_input(config())
    check_input(config(max_new_tokens=3))
    with pytest.raises(
        UserError, match=r"train\.jsonl:4 has 13 tokens, more than rollout\.max_prompt_tokens=5: .*drop"
    ):
        check_input(config(max_prompt_tokens=5))
    with pytest.raises(UserError, match=r"max_prompt_tokens=11 \+ rollout\.max_new_tokens=6 = 17, .*context is 16"):
        check_input(config(max_prompt_tokens=11))
    with pytest.raises(UserError, match=r"max_new_tokens=16 leaves no room for a prompt"):
        check_input(config(max_new_tokens=16))


def test_dropped_problems_are_counted_told_and_gone_on_resume(config: Any) -> None:
    prepared = check_input(config(**DROP))
    kept = [i for i, count in enumerate(LENGTHS) if count + 1 <= 5]
    for name in ("train", "validation", "test"):
        assert [problem.line for problem in getattr(prepared.splits, name)] == [i + 1 for i in kept]
        assert prepared.counts[name] == {"used": len(kept), "dropped": 2, "cut": 0}
        (note,) = [
            line for line in prepared.splits.notes if line.startswith(f"note: task.{name}: ") and "longer" in line
        ]
        assert "2 of 6 prompts are longer" in note and ":4, has 13 tokens: these problems are left out" in note
    folder = RunFolder.create(config(**DROP), "test")
    save_problems(prepared.splits, folder)
    again = check_input(config(**DROP), load_problems(folder))
    assert again.splits == prepared.splits and not again.splits.notes
    with pytest.raises(UserError, match=r"every prompt is longer than rollout\.max_prompt_tokens=1"):
        check_input(config(long_prompts="drop", max_prompt_tokens=1))


def test_cut_prompts_keep_their_bos_and_their_end_in_every_process_and_on_resume(config: Any) -> None:
    prepared = check_input(config(**CUT))
    folder = RunFolder.create(config(**CUT), "test")
    save_problems(prepared.splits, folder)
    again = check_input(config(**CUT), load_problems(folder))
    assert again.splits == prepared.splits and not again.splits.notes
    for splits in (prepared.splits, again.splits):
        expected = [ids(f"<s> hi {words(count - 1)}" if count > 1 else "<s> hi") for count in LENGTHS]
        expected = [row if len(row) <= 5 else row[:1] + row[-4:] for row in expected]
        assert encode_prompts(prepared.policy.tokenizer, splits.train, "here") == expected
    assert prepared.counts["test"] == {"used": 6, "dropped": 0, "cut": 2}
    assert sum("the last 5 are kept" in line for line in prepared.splits.notes) == 3


def test_a_chat_is_cut_as_its_template_renders_it(config: Any, tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi ho hi"}]
    rows = [{"prompt": chat}, {"prompt": "hi"}]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    prepared = check_input(config(**CUT))
    (cut, _) = encode_prompts(prepared.policy.tokenizer, prepared.splits.train, "here")
    assert cut == ids("<s> ho hi assistant :")


def test_a_template_that_fails_is_told_with_file_and_line(config: Any, policy: Path, tmp_path: Path) -> None:
    """Held-out problems keep the line of the file that they came from."""
    refusing = chat_tokenizer("{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}user hi")
    save_policy(load_policy(str(policy)).model, refusing, tmp_path / "refusing")
    chat = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    rows = [{"prompt": "hi"}, {"prompt": "ho"}, {"prompt": "be"}, {"prompt": chat}]
    made = config()
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, text in (("validation", "hi hi"), ("test", "ho ho")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": text}))
    for task in (made.task, made.task.model_copy(update={"test": ProblemSource(share=0.7)})):
        changed = {"task": task, "policy": PolicySection(path=str(tmp_path / "refusing"))}
        with pytest.raises(
            UserError, match=r"^task\.\w+: .*/train\.jsonl:4: the policy's chat template fails: .*one turn"
        ):
            check_input(made.model_copy(update=changed))


@given(st.lists(st.sampled_from(sorted(set(IDS) - {"<s>"})), min_size=1, max_size=9), st.integers(1, 9), st.booleans())
def test_what_is_cut_is_no_longer_than_asked_and_ends_as_it_did(text: list[str], most: int, starts: bool) -> None:
    whole = ids(" ".join(["<s>"] * starts + text))
    cut = cut_left(chat_tokenizer(), whole, most)
    assert len(cut) == min(most, len(whole))
    assert (cut[0] == IDS["<s>"]) == (starts and (most > 1 or len(whole) == 1))
    assert whole[len(whole) - len(cut) + 1 :] == cut[1:]


def test_decode_leaves_out_what_a_run_leaves_out(
    config: Any, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config()
    overrides = [
        "task.name=text",
        "rollout.long_prompts=drop",
        "rollout.max_prompt_tokens=5",
        "rollout.max_new_tokens=2",
    ]
    decoding = Decoding.chosen(str(policy), None, overrides, None, 1)
    assert decoding.max_new_tokens == 2
    assert decode_file(decoding, tmp_path / "train.jsonl", tmp_path / "out.jsonl", 2, None, 64, False) == 0
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [len(prompt.split()) for prompt in prompts] == [count for count in LENGTHS if count < 5]
    assert "2 of 6 prompts are longer" in capsys.readouterr().err
