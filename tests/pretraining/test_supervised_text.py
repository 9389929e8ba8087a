"""Supervised first, from the same text files that reinforcement learning takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_words import IDS, chat_tokenizer, ids
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from bgrpo.config import PretrainConfig, TrainConfig, build_config, load_config
from bgrpo.errors import UserError
from bgrpo.policies.io import flatten_parameters, load_policy, save_policy
from bgrpo.policies.model import build_policy
from bgrpo.policies.text import end_of_answer, set_end_tokens
from bgrpo.pretraining.pretrain import make_data, pretrain
from bgrpo.pretraining.start import train_tokenizer
from bgrpo.pretraining.supervised_lines import Lines
from bgrpo.runs.preparation import check_input
from bgrpo.runs.run_folder import RunFolder
from bgrpo.scoring.readable_groups import encode_prompts

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho ho"}]
ROWS: list[dict[str, Any]] = [
    {"messages": CHAT},
    {"messages": [{"role": "system", "content": "be brief"}, *CHAT]},
    {"messages": CHAT[:1]},  # no answer
    {"messages": [*CHAT, {"role": "user", "content": "ho"}, {"role": "assistant", "content": "hi"}]},
    {"messages": [{"role": "user", "content": "brief"}, {"role": "assistant", "content": "ho " * 9}]},  # too long
]
HELD_OUT = [{"messages": [{"role": "user", "content": "be"}, CHAT[1]]}]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "policy"
    save_policy(build_policy(chat_tokenizer(), 1, 2, 16, 32, seed=0), chat_tokenizer(), folder)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    rows = {"train": ROWS, "validation": HELD_OUT, "test": [{"prompt": "brief"}]}
    for name, kept in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, kept)))
    return {"name": "text"} | {name: {"file": str(tmp_path / f"{name}.jsonl")} for name in rows}


def config(task: dict[str, Any], policy: Path | None, **changes: Any) -> PretrainConfig:
    tree = {
        "task": task, "steps": 4, "batch_size": 2, "warmup_steps": 0, "validate_every": 100, "max_new_tokens": 8,
        "bf16": False, "threads": 1, "long_lines": "drop",
    }  # fmt: skip
    return build_config(PretrainConfig, tree | {"policy": {"path": policy and str(policy)}} | changes, "test")


def rows_of(lines: Lines) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer of each line."""
    whole = [lines.tokens[lines.starts[i] : lines.starts[i + 1]].tolist() for i in range(len(lines))]
    return [(row[:n], row[n:]) for row, n in zip(whole, lines.prompt_lengths.tolist(), strict=True)]


def test_the_prompts_of_both_kinds_of_training_have_the_same_ids(files: dict[str, Any], policy: Path) -> None:
    """And they are what transformers' own template call gives; loss is on the answer and one end token alone."""
    answered = [row for i, row in enumerate(ROWS) if i in (0, 1, 3)]
    Path(files["train"]["file"]).write_text("\n".join(map(json.dumps, answered)))
    rollout = {"prompts_per_step": 1, "max_new_tokens": 8}
    tree = {"task": files, "rollout": rollout, "policy": {"path": str(policy)}}
    prepared = check_input(build_config(TrainConfig, tree, "test"))
    read_by_train = encode_prompts(prepared.policy.tokenizer, prepared.splits.train, "here")
    learned = rows_of(make_data(config(files, policy)).train)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    by_hand = [
        tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_dict=False)
        for row in answered
    ]
    assert [prompt for prompt, _ in learned] == read_by_train == by_hand
    assert [prompt.count(IDS["<s>"]) for prompt, _ in learned] == [1, 1, 1]
    assert [answer for _, answer in learned] == [ids(f"{text} </s>") for text in ("ho ho", "ho ho", "hi")]


def test_what_cannot_be_learned_from_is_counted_or_refused_by_line(files: dict[str, Any], policy: Path) -> None:
    data = make_data(config(files, policy))
    path = files["train"]["file"]
    assert data.counts["train"] == {"used": 3, "unanswered": 1, "dropped": 1}
    assert f"note: task.train: {path}: 1 of 5 problems have no answer, and are left out" in data.notes
    too_long = f"task.train: {path}:5: its answer has 10 tokens with its end: max_new_tokens=8 cuts it"
    assert any(note.endswith(f"1 of 4 lines are too long, and are left out; first {too_long}") for note in data.notes)
    with pytest.raises(UserError, match=rf"^{too_long}; long_lines=drop"):
        make_data(config(files, policy, long_lines="refuse"))
    Path(path).write_text(json.dumps({"prompt": "hi"}))
    with pytest.raises(UserError, match=rf"^task\.train: {path}: none of 1 problems has an answer"):
        make_data(config(files, policy))


def test_training_goes_on_from_the_policy_and_its_result_is_one(
    files: dict[str, Any], policy: Path, tmp_path: Path
) -> None:
    start = flatten_parameters(load_policy(str(policy)).model)[32:].view(np.float32)
    records: list[dict[str, float]] = []
    slow = config(files, policy, learning_rate=1e-9, steps=1, out=str(tmp_path / "slow"))
    pretrain(slow, tmp_path / "run-slow", "again", ignore := records.append)
    same = flatten_parameters(load_policy(str(tmp_path / "slow")).model)[32:].view(np.float32)
    np.testing.assert_allclose(same, start, atol=1e-6)
    before = records.pop()
    fast = config(files, policy, learning_rate=1e-2, epochs=40, out=str(tmp_path / "out"))
    pretrain(fast, tmp_path / "run", "again", ignore)
    after = records[-1]
    assert after["step"] == 60 == round(40 * 3 / 2) and after["epoch"] == 40
    assert after["validation_loss"] < 0.2 * before["validation_loss"]
    assert after["validation_perplexity"] == pytest.approx(np.exp(after["validation_loss"]))
    assert after["greedy_accuracy"] == 1.0
    model, tokenizer = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForCausalLM, AutoTokenizer))
    prompt = tokenizer.apply_chat_template(
        HELD_OUT[0]["messages"][:1], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    written = model.generate(prompt, max_new_tokens=5, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.decode(written) == "ho ho </s>"
    assert f"trained from `{policy}`" in (tmp_path / "out" / "README.md").read_text()


def test_an_answer_in_a_chat_ends_as_the_template_ends_it() -> None:
    tokenizer = chat_tokenizer(
        "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <pad> {% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    chat = ({"role": "user", "content": "hi"},)
    assert end_of_answer(tokenizer, chat, "ho") == IDS["</s>"]  # nothing says that <pad> ends anything
    set_end_tokens(tokenizer, [IDS["</s>"], IDS["<pad>"]])
    assert end_of_answer(tokenizer, chat, "ho") == IDS["<pad>"]
    assert end_of_answer(chat_tokenizer(), chat, "ho") == IDS["</s>"]  # its template ends no message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 2}, r"layers=2 is of a new policy, but policy\.path=.* is there already"),
        ({"width": 64}, "width=64 is of a new policy"),
        ({"vocabulary": 300}, "vocabulary=300 is of a new policy"),
        ({"context": 33}, "context=33: policy .* reads no more than 32 tokens"),
        ({"max_new_tokens": 32}, "max_new_tokens=32 leaves no room in the policy's context=32"),
        ({"policy": None}, r"no method tokenizer\(\), .*: set policy\.path to .*, or vocabulary=8000"),
    ],
)
def test_what_does_not_go_together_is_refused(
    files: dict[str, Any], policy: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_data(config(files, **({"policy": policy} | changes)))


def test_a_task_with_a_tokenizer_takes_no_other() -> None:
    with pytest.raises(UserError, match="task 'polynomial' brings its own tokenizer"):
        make_data(
            config({"train": {"count": 4}, "validation": {"count": 2}, "test": {"count": 2}}, None, vocabulary=300)
        )


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_a_trained_tokenizer_reads_and_writes_every_text(text: str) -> None:
    tokens = TRAINED(text, add_special_tokens=False)["input_ids"]
    assert TRAINED.decode(tokens) == text
    assert len(tokens) <= len(text.encode())


TRAINED = train_tokenizer(["the cat sat on the mat", "the dog sat on the cat"] * 5, 280)


def test_a_trained_tokenizer_is_the_same_again_and_shorter_on_its_texts() -> None:
    again = train_tokenizer(["the cat sat on the mat", "the dog sat on the cat"] * 5, 280)
    assert again.get_vocab() == TRAINED.get_vocab() and 258 < len(TRAINED) <= 280
    assert len(TRAINED("the cat")["input_ids"]) <= 3 < len(TRAINED("zebra!")["input_ids"])


def test_a_new_policy_learns_text_with_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{word} →", "answer": f" {word.upper()}"} for word in ("cat", "dog", "ant", "bee", "owl", "elk")
    ]
    parts = {
        "train": rows,
        "validation": [{"prompt": "cat", "answer": " C"}],
        "test": [{"prompt": "yak", "answer": " Y"}],
    }
    for name, kept in parts.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, kept)))
    task = {"name": "text"} | {name: {"file": str(tmp_path / f"{name}.jsonl")} for name in parts}
    records: list[dict[str, float]] = []
    settings = config(
        task, None, vocabulary=300, layers=1, heads=2, width=32, context=24, batch_size=6, epochs=120,
        learning_rate=2e-2, out=str(tmp_path / "out"),
    )  # fmt: skip
    pretrain(settings, tmp_path / "run", "again", records.append)
    assert records[-1]["step"] == 120
    loaded = load_policy(str(tmp_path / "out"))
    assert loaded.tokenizer.eos_token == "<|end|>" and loaded.model.config.vocab_size == len(loaded.tokenizer)
    prompt = loaded.tokenizer("owl →", return_tensors="pt")["input_ids"]
    written = loaded.model.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :]
    assert loaded.tokenizer.decode(written) == " OWL<|end|>"


@given(st.floats(0.01, 50), st.integers(1, 5000), st.integers(1, 200))
def test_steps_of_epochs_cover_them_and_no_step_more(epochs: float, problems: int, batch: int) -> None:
    tree = {"epochs": epochs, "rollout": {"prompts_per_step": batch}}
    steps = build_config(TrainConfig, tree, "test").with_steps(problems).steps
    assert steps * batch >= epochs * problems * (1 - 1e-12) and (steps == 1 or (steps - 1) * batch < epochs * problems)
    assert (
        build_config(PretrainConfig, {"epochs": epochs, "batch_size": batch}, "test").with_steps(problems).steps
        == steps
    )


def test_epochs_decide_unless_an_override_gives_steps(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("steps: 7\nepochs: 2.0\n")
    for model in (TrainConfig, PretrainConfig):
        assert load_config(model, str(file)).epochs == 2
        assert load_config(model, str(file), ["steps=9"]).epochs is None
        assert load_config(model, str(file), ["epochs=3"]).epochs == 3
        assert load_config(model, None).with_steps(10).steps == load_config(model, None).steps
        with pytest.raises(UserError, match="steps and epochs are both given"):
            load_config(model, None, ["steps=9", "epochs=3"])


def test_a_resumed_run_knows_the_steps_of_its_epochs(tmp_path: Path) -> None:
    run = build_config(TrainConfig, {"epochs": 2, "run": {"dir": str(tmp_path), "name": "x"}}, "test").with_steps(320)
    folder = RunFolder.create(run, "test")
    assert folder.info()["steps"] == 20
    with pytest.raises(UserError, match=r"epochs=2: its run\.json does not say how many"):
        folder.with_steps(run)
    folder.update(problems={"train": {"used": 320}})
    further = folder.with_steps(run.model_copy(update={"epochs": 3.5}))
    assert further.steps == 35
    folder.resume(further)
    assert folder.load_config(TrainConfig) == further and folder.info()["steps"] == 35
