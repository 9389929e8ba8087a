"""``bgrpo.decode`` and policies from Python: every form of prompt and policy comes to the same completions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_rewards import TEMPLATE, write_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import bgrpo
from bgrpo.policies.io import load_policy

PROMPTS = ["w1 w2 w3", "w40", "w7 w8"]


def as_lists(groups: list[bgrpo.Group]) -> list[tuple[list[int], list[tuple[list[int], list[float], str, bool]]]]:
    return [(g.prompt_ids, [(c.tokens, c.logprobs, c.text, c.finished) for c in g.completions]) for g in groups]


def test_one_beam_is_what_transformers_generates(policy_folder: Path) -> None:
    policy = bgrpo.load_policy(policy_folder)
    for prompt, text in zip(PROMPTS, policy.generate(PROMPTS, max_new_tokens=6), strict=True):
        ids = policy.tokenizer(prompt, return_tensors="pt")["input_ids"]
        found = policy.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
        assert text == policy.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
        (group,) = bgrpo.decode(policy, prompt, group_size=1, max_new_tokens=6)
        assert group.completions[0].tokens == found[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("search", ["beam", "sample"])
def test_logprobs_are_the_models_own(policy_folder: Path, search: Any) -> None:
    policy = bgrpo.load_policy(policy_folder)
    (group,) = bgrpo.decode(policy, PROMPTS[0], search, 4, 5, seed=3)
    assert len(group.completions) == 4
    for completion in group.completions:
        ids = torch.tensor([group.prompt_ids + completion.tokens])
        logps = policy.model(ids).logits.detach().log_softmax(-1)[0, len(group.prompt_ids) - 1 : -1]
        expected = [float(row[token]) for row, token in zip(logps, completion.tokens, strict=True)]
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)
        assert completion.logprob == pytest.approx(sum(expected), abs=1e-3)


def test_prompts_in_three_forms_are_equal(policy_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    how: dict[str, Any] = {"group_size": 3, "max_new_tokens": 4}
    texts = as_lists(bgrpo.decode(str(policy_folder), PROMPTS, **how))
    assert texts == as_lists(bgrpo.decode(policy_folder, ids, **how))
    chat = [{"role": "user", "content": "w1 w2"}]
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    chats = as_lists(bgrpo.decode(policy_folder, [chat], **how))
    assert chats == as_lists(bgrpo.decode(policy_folder, [rendered], **how)) != texts[:1]
    mixed = as_lists(bgrpo.decode(policy_folder, [ids[0], chat, PROMPTS[1]], **how))
    assert [prompt for prompt, _ in mixed] == [ids[0], rendered, ids[1]]
    alone = [bgrpo.decode(policy_folder, prompt, **how) for prompt in (PROMPTS[0], ids[0], chat)]
    assert [len(groups) for groups in alone] == [1, 1, 1]
    assert as_lists(alone[0]) == as_lists(alone[1]) and as_lists(alone[2]) == chats
    assert [c.tokens for c in alone[0][0].completions] == [tokens for tokens, *_ in texts[0][1]]


def test_policies_in_every_form_are_equal_and_stay_as_they_are(policy_folder: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy_folder), AutoTokenizer.from_pretrained(policy_folder)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    forms: list[Any] = [str(policy_folder), (model.train(), tokenizer), load_policy(str(policy_folder))]
    forms.append(bgrpo.load_policy((model, tokenizer)))
    found = [as_lists(bgrpo.decode(form, PROMPTS, "sample", 3, 4, seed=9)) for form in forms]
    assert found[0] == found[1] == found[2] == found[3]
    assert model.training and all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert found[0] != as_lists(bgrpo.decode(forms[2], PROMPTS, "sample", 3, 4, seed=10))
    assert found[0] != as_lists(bgrpo.decode(forms[2], PROMPTS, "sample", 3, 4, seed=9, temperature=3.0))


def test_a_policy_is_saved_and_loaded_again(policy_folder: Path, tmp_path: Path) -> None:
    policy = bgrpo.load_policy(policy_folder)
    policy.save(tmp_path / "copy")
    policy.max_new_tokens = 6
    copy = bgrpo.load_policy(tmp_path / "copy")
    assert copy.generate(PROMPTS, max_new_tokens=6) == policy.generate(PROMPTS)
    assert policy.generate(PROMPTS, temperature=1.0, seed=1) != policy.generate(PROMPTS, temperature=1.0, seed=2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"policy": 3}, "policy: is a int: expected 'shipped', a folder"),
        ({"policy": ("a", "b")}, "policy: is a tuple of str, str: expected"),
        ({"policy": "/nowhere/at/all"}, "policy /nowhere/at/all: no such directory"),
        ({"prompts": 3}, "prompts: are a int: expected a list"),
        ({"prompts": []}, "prompts: are empty"),
        ({"prompts": [3.5]}, "prompts[0]: is 3.5: expected text, token ids, a chat of"),
        ({"prompts": ["w1", {"role": "user"}]}, "prompts[1]: is {'role': 'user'}: expected text"),
        ({"prompts": [["w1", "w2"]]}, "prompts[0]: is a list of passages, but the policy has no encoder"),
        ({"prompts": [["w1", 2]]}, "prompts[0]: is ['w1', 2]: expected text"),
        ({"prompts": [[{"role": "user"}]]}, "prompts[0]: message {'role': 'user'}: expected {'role': text"),
        ({"prompts": ["w1", ""]}, "prompts[1]: prompt '' is empty"),
        ({"prompts": [[5], "unheard"]}, "prompts[1]: 'unheard': holds a token that is not in the policy's vocabulary"),
        ({"prompts": [5, 10**9]}, "prompts[0]: has token 1000000000: the policy's vocabulary is 0 to 96"),
        (
            {"prompts": ["w1", "w1 " * 80]},
            "prompts[1]: has 81 tokens + max_new_tokens=4 = 85, but the policy's",
        ),
        ({"search": "depth"}, "search='depth': expected one of beam, sample"),
        ({"group_size": 0}, "group_size=0: expected a whole number from 1"),
        ({"group_size": 2.5}, "group_size=2.5: expected a whole number"),
        ({"max_new_tokens": "8"}, "max_new_tokens='8': expected a whole number"),
        ({"seed": -1}, "seed=-1: expected a whole number from 0"),
        ({"temperature": 0.5}, "temperature=0.5: beams are searched at temperature 1"),
        ({"temperature": "hot"}, "temperature='hot': expected a number"),
        (
            {"top_p": 0.5},
            "top_p=0.5: cuts off what independent samples are drawn from; beams are",
        ),
        ({"search": "sample", "top_p": 0}, "top_p=0.0: expected a number above 0"),
        ({"search": "sample", "min_p": "x"}, "min_p='x': expected a number"),
        ({"stop": ["w1", ""]}, "stop: holds an empty text"),
        ({"stop": 3}, "stop=3: expected a list of texts"),
        ({"min_new_tokens": 5}, "min_new_tokens=5: expected 0 to max_new_tokens=4"),
        ({"banned_tokens": ["unheard"]}, "banned_tokens='unheard': is no token of the policy's vocabulary"),
        ({"allowed": ["w1 unheard"]}, "allowed[0]: 'w1 unheard': holds a token"),
        ({"allowed": "w1"}, "allowed='w1': expected a list of texts"),
        ({"banned_tokens": "w1"}, "banned_tokens='w1': expected a list of token ids and texts"),
        ({"banned_tokens": [97]}, "banned_tokens=97: the policy's vocabulary has ids 0 to 96"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(policy_folder: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(bgrpo.UserError) as error:
        bgrpo.decode(**{"policy": policy_folder, "prompts": ["w1"], "max_new_tokens": 4} | changes)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_model_that_cannot_be_decoded_exactly_is_refused_by_name(tmp_path: Path) -> None:
    write_model(tmp_path / "bert", "bert", template=TEMPLATE, kind="encoder")
    with pytest.raises(bgrpo.UserError, match="bert"):
        bgrpo.load_policy(tmp_path / "bert")
