"""What a task is: problems to solve, and a check that says whether a completion solves one.

A shipped task is a folder here with a module ``task.py``; a user's own is a class named as ``module:Class``.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from bgrpo.errors import Stopped, UserError, summary
from bgrpo.settings.spelling import nearest
from bgrpo.waits import waiting

Progress = Callable[[int, int | None], None]
"""Called now and then with (lines read, lines in all as far as can be told)."""


class Outcome(StrEnum):
    """What became of one completion. Always counted apart, never folded into "wrong"."""

    CORRECT = "correct"
    WRONG = "wrong"
    TRIVIAL = "trivial"
    UNPARSEABLE = "unparseable"
    TRUNCATED = "truncated"
    TIMEOUT = "timeout"
    ERROR = "error"
    SCORED = "scored"  # it has a score, and nothing says what would be right
    UNSCORED = "unscored"  # no part of the reward applies to it


Message = dict[str, str]  # of a chat: {"role": …, "content": …}


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a data file.

    Attributes:
        prompt: text that the tokenizer turns into the prompt; of a chat, its messages as one text, for people to read.
        answer: the known answer, without terminator; empty when none is known.
        category: label of the breakdown in evaluations, empty for none.
        messages: of a chat, which the policy's chat template turns into the prompt; empty when the prompt is text.
        alternatives: further answers that are as right as ``answer``.
        fields: whatever else its row holds, by column, as JSON can hold it.
        prompt_tokens: of the prompt's tokens the policy reads the last so many, and a BOS among them; 0: all.
        passages: texts that a policy's encoder reads apart, in place of the prompt; empty when it reads the prompt.
        answer_prefix: text that completions may begin with, which no score sees.
        line: of the data file, or row of a data set, from 1, for messages; 0 where there is none.
    """

    prompt: str
    answer: str = ""
    category: str = ""
    messages: tuple[Message, ...] = ()
    alternatives: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    prompt_tokens: int = 0
    passages: tuple[str, ...] = ()
    answer_prefix: str = ""
    line: int = field(default=0, compare=False)

    @property
    def answers(self) -> list[str]:
        """Every known answer; none when none is known."""
        return [self.answer, *self.alternatives] if self.answer else []


@dataclass(frozen=True, slots=True)
class Record:
    """One problem of a data file with the line that holds it, its own answer unchecked.

    Attributes:
        text: the line that a file of the same kind holds for it, without line end.
        problem: what it says.
    """

    text: str
    problem: Problem


def listed(counts: Mapping[str, int]) -> dict[str, int]:
    """Completions by outcome: every outcome that a check, or where there are scores a score, may have."""
    kinds = (Outcome.SCORED, Outcome.UNSCORED)
    graded = any(counts.get(kind) for kind in kinds)
    unsure = (Outcome.TRUNCATED, Outcome.TIMEOUT, Outcome.ERROR)
    return {
        str(outcome): counts.get(outcome, 0)
        for outcome in Outcome
        if counts.get(outcome) or outcome in unsure or (outcome in kinds) == graded
    }


@dataclass(frozen=True, slots=True)
class LoadedProblems:
    """Problems of a file, and what its own answers verified as.

    Attributes:
        problems: the usable problems, in file order.
        outcomes: outcome of every line's own answer, over all lines (usable or not).
    """

    problems: list[Problem]
    outcomes: dict[str, int] = field(default_factory=dict)


class Task(Protocol):
    """A source of problems with a checker. Implementations must be cheap to construct (they live in every process).

    A task may have further methods, which some commands ask for; see :func:`ability`:

    - ``generate(options, count, seed, exclude=()) -> list[Problem]``: ``count`` distinct problems, a pure function of
      (options, count, seed), none with a prompt in ``exclude``. Without it, problems come from files.
    - ``tokenizer() -> PreTrainedTokenizerBase``: of policies trained from scratch (``bgrpo pretrain``).
    - ``write_data(options, count, seed, out, workers, progress, exclude)``: write a data file (``generate-data``).
    - ``verify(path, progress) -> dict``: check every line's own answer (``verify``).
    - ``measure_speed(seconds) -> dict``: time its check and its generator (``bench task``).
    - ``generator_help() -> dict[str, str]``: the generator's options, each with a line of help.
    - ``records(path) -> Iterator[Record]``: a data file's problems, one after another, in bounded memory (``filter``,
      ``mix``, ``overlap``, ``histogram``); ``record_suffixes``: endings of the names of files with such lines, where
      their readers need one. Without it files are loaded, and their lines are copied by ``Problem.line``.
    - ``quantities() -> dict[str, str]``: whole numbers that a problem has, each with a line of help: options of
      ``filter``, rows of ``histogram``; with it ``quantify(problem) -> dict[str, int]``, some or all of them, and
      ``grid() -> tuple[str, str]``: the two that are the rows and columns of heat maps.
    - ``import_policy(weights, config, out)``: a file of another format, and its configuration, as a policy's folder
      (``convert``); ``export_policy(policy, weights, config)``: the other way.
    - ``problem_key(problem) -> str``: the same for the same problem in another writing; default: the prompt.

    Its ``load`` may have a further parameter ``progress``, see :func:`load_file`.
    """

    name: str

    check: Callable[..., Outcome]
    """``check(prompt, completion)``: outcome of a completion (text without end token); never raises on any text. Where
    the first parameter is named ``problem``, it gets the whole problem, its answers included."""

    def load(self, path: Path, *, for_training: bool = False, allow_bad: bool = False) -> LoadedProblems:
        """Read a data file, verify each line's own answer, drop trivial problems.

        Raises:
            UserError: missing, empty or malformed file (with the line number); or a file for training some of whose
                own answers are wrong, unless ``allow_bad``.
        """
        ...


METHODS = ("check", "load")
"""What every task has."""


def shipped_tasks() -> list[str]:
    """Names of the tasks that come with this package."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/task.py"))


def load_task(name: str, options: dict[str, Any] | None = None) -> Task:
    """The task called ``name``.

    Args:
        name: of a shipped task, or ``module:Class``.
        options: arguments of its class.

    Raises:
        UserError: there is no such task, it cannot be imported, or it has no such option.
    """
    shipped = shipped_tasks()
    target = f"bgrpo.tasks.{name}.task:{name.title()}Task" if name in shipped else name
    asked = f"task.name={name!r}"
    factory = import_named(target, asked, f"{', '.join(map(repr, shipped))} or 'module:Class'")
    missing = [f"{method}()" for method in METHODS if not callable(getattr(factory, method, None))]
    if not isinstance(factory, type) or missing:
        lacks = f" without {', '.join(missing)}" if missing else ""
        raise UserError(f"{asked}: is a {type(factory).__name__}{lacks}, expected the class of a task")
    try:
        inspect.signature(factory).bind(**(options or {}))
    except (TypeError, ValueError) as error:
        known = [key for key in inspect.signature(factory).parameters if key not in (options or {})]
        meant = [near for key in options or {} if (near := nearest(key, known))]
        hint = f"; did you mean {meant[0]!r}?" if meant else ""
        raise UserError(f"task.options={options}: do not fit task {name!r} ({error}){hint}") from None
    with _users_code(f"{asked}: {factory.__name__}(…)"):
        task: Task = factory(**(options or {}))
    if not isinstance(getattr(task, "name", None), str):
        raise UserError(f"{asked}: {factory.__name__} has no name, expected a text")
    return task


def import_named(target: str, asked: str, expected: str) -> Any:
    """What ``module:attribute`` names.

    Args:
        target: the name.
        asked: how the user asked for it, for the message.
        expected: what it should look like, for the message.

    Raises:
        UserError: it has another form, or cannot be imported.
    """
    module_name, _, attribute = target.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        raise UserError(f"{asked}: is a file; name the module: '{Path(module_name).stem}:{attribute or 'NAME'}'")
    if not module_name or not attribute:
        raise UserError(f"{asked}: expected {expected}")
    with _users_code(f"{asked}: importing {module_name}"):
        try:
            module = importlib.import_module(module_name)
            found = getattr(module, attribute, None)
        except ImportError as error:
            raise UserError(f"{asked}: cannot import it ({error})") from error
    if found is None:
        meant = nearest(attribute, [name for name in vars(module) if not name.startswith("_")])
        hint = f"; did you mean {meant}?" if meant else ""
        raise UserError(f"{asked}: cannot import it: module {module_name} has no {attribute}{hint}")
    return found


def load_file(
    task: Task,
    path: Path,
    *,
    for_training: bool = False,
    allow_bad: bool = False,
    progress: Progress | None = None,
) -> LoadedProblems:
    """What ``task.load`` gives, see :meth:`Task.load`; a user's task may raise or return anything.

    A task whose ``load`` has a further parameter ``progress`` is given ``progress``.

    Raises:
        UserError: the file is wrong, the task fails, or it returns something else.
    """
    with _named(task, f"load({str(path)!r})"):
        further = {"progress": progress} if "progress" in inspect.signature(task.load).parameters else {}
        loaded = task.load(path, for_training=for_training, allow_bad=allow_bad, **further)
    if not isinstance(loaded, LoadedProblems) or not _are_problems(loaded.problems):
        raise UserError(f"task {task.name!r}: load() returned {_kind(loaded)}, expected LoadedProblems of Problem")
    return loaded


def read_records(task: Task, path: Path) -> Iterator[Record]:
    """What ``task.records`` gives, see :class:`Task`; a user's task may raise or give anything.

    Raises:
        UserError: the file is wrong, the task fails, or it gives something else.
    """
    with _named(task, f"records({str(path)!r})"):
        for record in ability(task, "records", "this command")(path):
            if not isinstance(record, Record):
                raise UserError(f"task {task.name!r}: records() gave a {type(record).__name__}, expected Record")
            yield record


def generate_problems(
    task: Task, options: dict[str, Any], count: int, seed: int, exclude: Sequence[str] = ()
) -> list[Problem]:
    """What ``task.generate`` gives, see :class:`Task`; a user's task may raise or return anything.

    Raises:
        UserError: the options do not fit, the task fails, or it returns something else.
    """
    generate = ability(task, "generate", "a split without a file")
    with _named(task, f"generate({options}, {count}, {seed})"):
        problems = generate(options, count, seed, exclude)
    if not _are_problems(problems):
        raise UserError(f"task {task.name!r}: generate() returned {_kind(problems)}, expected a list of Problem")
    prompts = {problem.prompt for problem in problems}
    if len(problems) != count or len(prompts) != count or not prompts.isdisjoint(exclude):
        again = len(prompts.intersection(exclude))
        raise UserError(
            f"task {task.name!r}: generate({options}, {count}, {seed}) returned {len(problems):,} problems with "
            f"{len(prompts):,} different prompts, {again:,} of them to be left out; expected {count:,} of neither kind"
        )
    return problems


def outcome_of(task: Task, problem: Problem, completion: str) -> Outcome:
    """What ``task.check`` gives in this process, see :class:`Task`; a user's task may raise or return anything.

    Raises:
        UserError: the task fails, or it returns something else.
    """
    with _named(task, "check()"):
        return Outcome(checker(task)(problem, completion))


@contextmanager
def _users_code(doing: str) -> Iterator[None]:
    """A failure of what a user wrote, told in one line that says what was being done, and where it failed."""
    try:
        with waiting(doing):
            yield
    except (UserError, KeyboardInterrupt, GeneratorExit, Stopped):
        raise
    except BaseException as error:  # it may raise anything; panics of libraries in Rust are no Exceptions
        raise UserError(f"{doing} failed: {summary(error, __file__)}") from error


def _named(task: Task, call: str) -> AbstractContextManager[None]:
    return _users_code(f"task {task.name!r}: {call}")


def _are_problems(problems: Any) -> bool:
    return isinstance(problems, list) and all(
        isinstance(problem, Problem)
        and isinstance(problem.prompt, str)
        and isinstance(problem.answer, str)
        and isinstance(problem.category, str)
        for problem in problems
    )


def _kind(value: Any) -> str:
    inner = value.problems if isinstance(value, LoadedProblems) else value
    return f"a list of {type(inner[0]).__name__}" if isinstance(inner, list) and inner else f"a {type(inner).__name__}"


def checker(task: Task) -> Callable[[Problem, str], Outcome]:
    """The task's check, called with the whole problem, whichever of its two forms it has."""
    if next(iter(inspect.signature(task.check).parameters), "") == "problem":
        return task.check
    return lambda problem, completion: task.check(problem.prompt, completion)


def can_generate(task: Task) -> bool:
    """Whether problems of this task need no file."""
    return callable(getattr(task, "generate", None))


def ability(task: Task, method: str, purpose: str) -> Callable[..., Any]:
    """A method that a task may have; what it raises becomes a UserError.

    Args:
        task: whose method.
        method: its name.
        purpose: what it is needed for, for the message.

    Raises:
        UserError: the task does not have it; when it is called, its failure.
    """
    found = getattr(task, method, None)
    if not callable(found):
        raise UserError(f"task {task.name!r} has no method {method}(), which {purpose} needs")

    def call(*arguments: Any) -> Any:
        with _named(task, f"{method}()"):
            return found(*arguments)

    return call
