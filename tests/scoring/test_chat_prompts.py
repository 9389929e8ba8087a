"""Chats become prompts through the policy's own template; texts beside them stay texts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from chat_words import chat_tokenizer, ids

from bgrpo.errors import UserError
from bgrpo.pretraining.supervised_lines import tokenise
from bgrpo.scoring.readable_groups import encode_prompts
from bgrpo.tasks.base import Problem


def chat(*contents: str, answer: str = "") -> Problem:
    roles = ["system", "user"][-len(contents) :]
    messages = tuple({"role": role, "content": text} for role, text in zip(roles, contents, strict=True))
    return Problem(" ".join(contents), answer, messages=messages)


def test_chats_and_texts_are_encoded_in_their_order_with_one_bos() -> None:
    problems = [chat("hi"), Problem("hi ho"), chat("be brief", "ho"), Problem("ho")]
    assert encode_prompts(chat_tokenizer(), problems, "here") == [
        ids("<s> user : hi assistant :"),
        ids("<s> hi ho"),
        ids("<s> system : be brief user : ho assistant :"),
        ids("<s> ho"),
    ]
    assert encode_prompts(chat_tokenizer(), [], "here") == []


def test_an_answer_follows_what_the_template_wrote() -> None:
    lines = tokenise([chat("hi", answer="ho hi"), Problem("hi", "ho")], chat_tokenizer())
    assert lines.tokens.tolist() == ids("<s> user : hi assistant : ho hi </s> <s> hi ho </s>")
    assert lines.prompt_lengths.tolist() == [6, 2]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "here: problem 2: is a chat, but the policy has no chat template"),
        (
            "{{ raise_exception('one turn') }}",
            "here: problem 2: the policy's chat template fails: .*one turn",
        ),
        ("{{ messages[7].role }}", "here: problem 2: the policy's chat template fails: UndefinedError"),
        ("{% if %}", "here: problem 2: the policy's chat template fails: TemplateSyntaxError"),
        ("", "here: problem 2: the policy's chat template"),
        ("unknown words", "here: problem 2: "),
    ],
)
def test_a_template_that_fails_is_told_with_the_problem(template: str | None, message: str) -> None:
    tokenizer: Any = copy.deepcopy(chat_tokenizer(template))
    with pytest.raises(UserError, match=rf"^{message}[^\n]*$"):
        encode_prompts(tokenizer, [Problem("hi"), chat("ho")], "here")
