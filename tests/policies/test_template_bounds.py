"""A chat template is a program of somebody else: whatever it does, it ends soon, and one line says what it did."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
from chat_words import TEMPLATE, chat_tokenizer, ids

from bgrpo.errors import UserError
from bgrpo.policies import template_bounds
from bgrpo.policies.template_bounds import Bounds, first_unbounded
from bgrpo.policies.text import encode_chats
from bgrpo.pretraining.supervised_lines import tokenise
from bgrpo.scoring.readable_groups import encode_prompts
from bgrpo.tasks.base import Problem

CHATS = [[{"role": "user", "content": text}] for text in ("hi", "ho", "be brief")]
NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}"
ENDS = "{% endfor %}"
ENDLESS, HUGE, LONG = "does not end", "needs more than 134,217,728 bytes", "renders more than 131,072 characters"
SLOW_AND_HUGE = f"{ENDLESS}|{HUGE}"  # the processor decides which bound is met first
DOUBLED = "{% set n = namespace(s='xx') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}"


@pytest.fixture(autouse=True)
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_bounds, "BOUNDS", Bounds(first_s=1, memory_bytes=1 << 27))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (NESTED + 3 * ENDS, ENDLESS),
        ("{% set x = 2 ** (one * 10 ** 10) %}", SLOW_AND_HUGE),
        ("{% if 3 ** (one * 10 ** 9) > 1 %}{% endif %}", SLOW_AND_HUGE),
        ("{{ 'x' * (one * 10 ** 11) }}", HUGE),
        ("{{ '%2000000000d' % one }}", HUGE),
        ("{{ '{:>9999999999}'.format(one) }}", HUGE),
        ("{{ [0] * (one * 10 ** 9) }}", HUGE),
        (DOUBLED, HUGE),
        ("{{ 'x' * (one * 140000) }}", LONG),
        ("{% for i in range(99999) %}hi ho {% endfor %}", LONG),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "fails: RecursionError"),
        ("{{ " + 5000 * "(" + "1" + 5000 * ")" + " }}", "fails: "),
        ("{{ range(10 ** 9) }}", "fails: OverflowError"),
        ("{{ raise_exception('one turn only') }}", "fails: TemplateError: one turn only"),
        ("{{ nothing.of.it }}", "fails: UndefinedError"),
        ("{{ 1 / 0 }}", "fails: ZeroDivisionError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails: SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('touch owned') }}", "fails: SecurityError"),
        ("{{ lipsum.__globals__['os'].popen('touch owned').read() }}", "fails: "),
        ("{% include '/etc/passwd' %}", "fails: TypeError"),
        ("{% for %}", "fails: TemplateSyntaxError"),
    ],
)  # fmt: skip
def test_a_hostile_template_is_one_line_that_names_the_problem(template: str, message: str) -> None:
    """It acts on the second chat only, where it can be compiled."""
    on_second = "{% set one = messages|length %}{% if messages[0].content == 'ho' %}" + template + "{% endif %}hi"
    tokenizer = chat_tokenizer(on_second)
    problems = [Problem("hi"), *(Problem("", messages=tuple(chat)) for chat in CHATS)]
    with pytest.raises(UserError) as told:
        encode_prompts(tokenizer, problems, "problems.jsonl")
    place = 2 if template.startswith(("{% for %}", "{{ ((")) else 3
    start = f"problems.jsonl: problem {place}: the policy's chat template "
    assert str(told.value).startswith(tuple(start + one for one in message.split("|")))
    assert "\n" not in str(told.value) and len(str(told.value)) < 700


def test_a_template_that_is_never_compiled_is_told() -> None:
    """Jinja computes constants where it compiles, before anything is rendered."""
    _, told = first_unbounded(chat_tokenizer("{{ 7 ** (10 ** 9) }}"), CHATS)  # type: ignore[misc]
    assert told.startswith((ENDLESS, HUGE))


def test_a_template_that_hangs_on_an_answer_only_is_told() -> None:
    tokenizer = chat_tokenizer(
        TEMPLATE + "{% if messages[-1].role == 'assistant' %}" + NESTED + 3 * ENDS + "{% endif %}"
    )
    problem = Problem("", "ho", messages=tuple(CHATS[0]), line=7)
    assert encode_prompts(tokenizer, [problem], "here") == [ids("<s> user : hi assistant :")]
    with pytest.raises(UserError, match=r"^here:7: the policy's chat template does not end[^\n]*$"):
        tokenise([problem], tokenizer, "here")


def test_a_template_that_ends_renders_as_before_also_beside_threads() -> None:
    stop, tokenizer = threading.Event(), chat_tokenizer()
    expected = encode_chats(tokenizer, CHATS, tried=True)
    busy = [threading.Thread(target=lambda: [str(i) for _ in iter(stop.is_set, True) for i in range(99)]) for _ in "ab"]
    for thread in busy:
        thread.start()
    try:
        for _ in range(10):
            assert encode_chats(tokenizer, CHATS) == expected
    finally:
        stop.set()
        for thread in busy:
            thread.join()


def test_what_is_given_may_be_long() -> None:
    chat = [{"role": "user", "content": "hi " * 400_000}]
    assert first_unbounded(chat_tokenizer(), [chat]) is None


@pytest.mark.parametrize("number", [signal.SIGTRAP, signal.SIGKILL])
def test_a_process_that_dies_is_told(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer: Any = chat_tokenizer()
    parent, render = os.getpid(), tokenizer.apply_chat_template

    def dies(*arguments: Any, **options: Any) -> Any:
        if os.getpid() != parent:
            os.kill(os.getpid(), number)
        return render(*arguments, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", dies)
    index, told = first_unbounded(tokenizer, CHATS) or (None, "")
    assert index == 0 and ("killed" if number == signal.SIGKILL else f"status {-number}") in told


def test_no_process_is_left_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[int] = []
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: forked.append(fork()) or forked[-1])  # type: ignore[func-returns-value]

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            first_unbounded(chat_tokenizer(NESTED + 3 * ENDS), CHATS, bounds=Bounds(first_s=60))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ProcessLookupError):
        os.kill(forked[0], 0)
