"""From what Python users give to the one configuration tree; objects go into the run's own folder, by value."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from bgrpo.api.policy import PolicyLike, load_policy
from bgrpo.config import TrainConfig, unknown_metric
from bgrpo.config.rewards import PART_SOURCES, PartSection
from bgrpo.errors import UserError, one_line, representation
from bgrpo.runs.run_folder import RunFolder
from bgrpo.scoring.kept_functions import DIGESTS, PREFIX, keep_function, module_name
from bgrpo.tasks.base import shipped_tasks

if TYPE_CHECKING:
    from datasets import Dataset

    from bgrpo.policies.io import LoadedPolicy

Rows: TypeAlias = "Dataset | Sequence[Mapping[str, Any]]"
Problems: TypeAlias = "str | PathLike[str] | Rows | Mapping[str, str | PathLike[str] | Rows]"
"""A shipped task's name, or ``module:Class``; a file or data set of the task ``text``; rows with columns, as a list of
dictionaries or a ``datasets.Dataset``; or a mapping of ``train``, ``validation`` and ``test`` to any of the latter."""

Reward: TypeAlias = "Callable[..., Any] | str | PathLike[str] | Mapping[str, Any]"
"""A function in one of the two forms; ``module:function``; the name of a metric; ``check``; a reward model's folder or
id of the Hub; the URL of a reward server; or the keys of a part, as ``{"model": …, "max_tokens": 512}``."""

Weighted: TypeAlias = "Reward | tuple[Reward, float]"

Rewards: TypeAlias = "Weighted | Sequence[Weighted] | Mapping[str, Weighted]"
"""One reward, a list of them, or a mapping of names to them; each alone or as ``(reward, weight)``."""

SPLITS = ("train", "validation", "test")
_OF_SOURCE: Mapping[str, Any] = {
    "check": bool,
    "function": str | Callable,
    "metric": str,
    "model": str | PathLike,
    "url": str,
}  # types of the values that make a part of a source
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_SUM = "reward"  # what metrics call the weighted sum of all parts
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,40}")


@dataclass(slots=True)
class Given:
    """What was given, as keys of the configuration; what are objects, to be written when there is a folder.

    Attributes:
        keys: dotted key -> value.
        policy: a policy that is in memory.
        rows: split -> problems that are in memory.
        functions: part of the reward -> function that no module holds.
    """

    keys: dict[str, Any] = field(default_factory=dict)
    policy: LoadedPolicy | None = None
    rows: dict[str, Rows] = field(default_factory=dict)
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    _folder: Path | None = None  # where the objects were written

    @property
    def has_objects(self) -> bool:
        """Whether there is anything to be written."""
        return self.policy is not None or bool(self.rows or self.functions)

    def add_policy(self, policy: PolicyLike | None) -> None:
        """The policy to start from.

        Raises:
            UserError: it is none.
        """
        if isinstance(policy, str | PathLike):
            self.keys["policy.path"] = fspath(policy)
        elif policy is not None:
            self.policy = load_policy(policy).loaded

    def add_problems(self, problems: Problems | None, task_is_named: bool) -> None:
        """The problems; those given for no split are to be learned from, and the others are held out of them.

        Args:
            problems: any of their forms.
            task_is_named: the configuration says whose they are.

        Raises:
            UserError: they have another form.
        """
        if problems is None:
            return
        if is_task_name(problems):
            self.keys["task.name"] = problems
            return
        splits = problems if isinstance(problems, Mapping) else {"train": problems}
        if not splits or not set(splits) <= set(SPLITS):
            raise UserError(f"problems: are named {sorted(map(str, splits))[:5]}: expected some of {', '.join(SPLITS)}")
        if not task_is_named:
            self.keys["task.name"] = "text"
        for split, source in splits.items():
            if isinstance(source, str | PathLike):
                self.keys[f"task.{split}.file"] = fspath(source)
            else:
                self.rows[split] = _checked_rows(split, source)

    def add_rewards(self, rewards: Rewards | None) -> None:
        """What scores completions.

        Raises:
            UserError: it has another form.
        """
        if rewards is None:
            return
        named: list[tuple[str | None, Any]]
        if isinstance(rewards, Mapping) and not _is_part(rewards):
            named = list(rewards.items())
        elif isinstance(rewards, Sequence) and not isinstance(rewards, str | bytes) and not _is_weighted(rewards):
            named = [(None, reward) for reward in rewards]
        else:
            named = [(None, rewards)]
        if not named:
            raise UserError("rewards: are empty: expected at least one")
        parts: dict[str, dict[str, Any]] = {}
        for name, reward in named:
            weight = {}
            if isinstance(reward, tuple):
                if len(reward) != 2:
                    raise UserError(f"rewards: {representation(reward)}: expected (reward, weight)")
                reward, weight["weight"] = reward
            chosen = self._name(name, reward, parts)
            parts[chosen] = self._part(chosen, reward) | weight
        self.keys["reward.parts"] = parts

    def write(self, folder: RunFolder, config: TrainConfig) -> TrainConfig:
        """Write the objects into a new run's folder; the configuration that names them there.

        Raises:
            UserError: one of them cannot be written.
        """
        folder.given.mkdir(mode=0o700)
        self._folder = folder.given
        changes: dict[str, Any] = {"run": {"dir": str(folder.path.parent), "name": folder.name}}
        if self.policy is not None:
            from bgrpo.policies.io import save_policy

            save_policy(self.policy.model, self.policy.tokenizer, folder.given / "policy")
            changes["policy"] = {"path": str(folder.given / "policy")}
        for split, rows in self.rows.items():
            path = _write_rows(folder.given / split, split, rows)
            changes.setdefault("task", {})[split] = getattr(config.task, split).model_copy(update={"file": str(path)})
        folder.update(**{DIGESTS: {name: keep_function(f, folder.path, name) for name, f in self.functions.items()}})
        sections = {name: getattr(config, name).model_copy(update=values) for name, values in changes.items()}
        return config.model_copy(update=sections)

    @contextmanager
    def in_their_words(self) -> Iterator[None]:
        """For a block that reads what was written: its errors name what was given, not a file that nobody made."""
        try:
            yield
        except UserError as error:
            error.args = (self._in_their_words(str(error)),)
            raise

    def _in_their_words(self, message: str) -> str:
        if self._folder is None:
            return message
        folder = re.escape(str(self._folder))
        message = re.sub(rf"'{re.escape(PREFIX)}{folder}/(\w+)\.pkl'", r"reward '\1'", message)
        of_rows = re.compile(rf"{folder}/({'|'.join(SPLITS)})(?:\.jsonl)?\b(?::(?: row )?(\d+))?")
        return of_rows.sub(
            lambda found: f"problems: {found[1]}" + (f"[{int(found[2]) - 1}]" if found[2] else ""), message
        )

    def _name(self, name: Any, reward: Any, taken: Mapping[str, Any]) -> str:
        if name is not None:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise UserError(
                    f"rewards: {representation(name)}: expected a name of letters, digits and '_', at most 41, "
                    "beginning with a letter"
                )
            return name
        stem = re.sub(r"\W", "_", _stem(reward), flags=re.ASCII).lstrip("_0123456789")[:30].rstrip("_") or "reward"
        chosen, number = stem, int(stem != _SUM)
        while chosen in taken or chosen == _SUM:
            number += 1
            chosen = f"{stem}_{number}"
        return chosen

    def _part(self, name: str, reward: Any) -> dict[str, Any]:
        if isinstance(reward, Mapping):
            inner = reward.get("function")
            return {**reward, **(self._part(name, inner) if callable(inner) else {})}
        if _is_torch_module(reward):
            raise UserError(
                f"rewards: {name}: is a model in memory ({type(reward).__name__}): save it with its tokenizer "
                "(save_pretrained), and give the folder"
            )
        if callable(reward):
            known = module_name(reward)
            if known is None:
                self.functions[name] = reward
            return {"function": known or f"{PREFIX}{name}"}
        if isinstance(reward, PathLike):
            return {"model": fspath(reward)}
        if not isinstance(reward, str) or not reward:
            raise UserError(
                f"rewards: {name}: is {representation(reward)}: expected a function, 'module:function', a metric's "
                "name, 'check', a reward model's folder or id, or the URL of a reward server"
            )
        return _named_part(reward)


def is_task_name(problems: Any) -> TypeGuard[str]:
    """Whether a task is named, a shipped one or ``module:Class``, which brings its own problems."""
    return isinstance(problems, str) and (problems in shipped_tasks() or _FUNCTION.fullmatch(problems) is not None)


def _is_weighted(rewards: Any) -> bool:
    """Whether it is one ``(reward, weight)``, not a sequence of rewards."""
    return isinstance(rewards, tuple) and len(rewards) == 2 and isinstance(rewards[1], int | float)


def _is_part(rewards: Mapping[Any, Any]) -> bool:
    """Whether a mapping is the keys of one part, ``{"model": …, "weight": 0.5}``, not names of rewards.

    A part's name may be that of a key: ``{"check": my_function}`` is a part called check, since no part has a function
    there. What stands beside the one source is a key where it is one, and where it could be no reward.
    """
    sources = [key for key in PART_SOURCES if key in rewards]
    if len(sources) != 1 or not isinstance(rewards[sources[0]], _OF_SOURCE[sources[0]]):
        return False
    others = [key for key in rewards if key not in PartSection.model_fields]
    return all(isinstance(rewards[key], int | float | None) for key in others)


def _named_part(reward: str) -> dict[str, Any]:
    """What a text names."""
    if reward == "check":
        return {"check": True}
    if reward.startswith(("http://", "https://")):
        return {"url": reward}
    if _FUNCTION.fullmatch(reward):
        return {"function": reward}
    wrong = unknown_metric(reward)
    if wrong is None:
        return {"metric": reward}
    if "/" in reward or os.path.lexists(os.path.expanduser(reward)):  # noqa: PTH111 raise for no text
        return {"model": reward}
    raise UserError(f"rewards: no folder is called so, and metric {reward!r}: {wrong}")


def _stem(reward: Any) -> str:
    """What a reward that has no name is called after."""
    if isinstance(reward, Mapping):
        inner = next((reward[key] for key in PART_SOURCES if reward.get(key)), "reward")
        return "check" if inner is True else _stem(inner)
    if isinstance(reward, str | PathLike):
        text = fspath(reward)
        return "server" if text.startswith(("http://", "https://")) else re.split("[/:]", text.rstrip("/"))[-1]
    inner = getattr(reward, "func", reward)  # of a partial
    return str(getattr(inner, "__name__", type(inner).__name__)).strip("<>")


def _checked_rows(split: str, rows: Any) -> Any:
    if (_is_data_set(rows) or isinstance(rows, Sequence)) and not len(rows):
        raise UserError(f"problems: {split} are empty: expected at least one")
    if _is_data_set(rows):
        return rows
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        raise UserError(
            f"problems: {split} are a {type(rows).__name__}: expected a file, a datasets.Dataset, or a list of "
            "dictionaries"
        )
    for position, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(
                f"problems: {split}[{position}] is a {type(row).__name__}: expected a dictionary of columns, as "
                "{'prompt': …, 'answer': …}"
            )
    return rows


def _is_data_set(rows: Any) -> bool:
    """Of the ``datasets`` library, which is slow to import: whoever has one has imported it."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(rows, library.Dataset)


def _is_torch_module(reward: Any) -> bool:
    """Whoever has one has imported torch, which is slow to import."""
    library = sys.modules.get("torch")
    return library is not None and isinstance(reward, library.nn.Module)


def _write_rows(stem: Path, split: str, rows: Any) -> Path:
    """A data set as the library saves it; rows as JSON lines."""
    if _is_data_set(rows):
        from datasets import disable_progress_bars, enable_progress_bars
        from datasets.utils import are_progress_bars_disabled

        shown = not are_progress_bars_disabled()
        disable_progress_bars()
        try:
            rows.save_to_disk(str(stem))
        finally:
            if shown:
                enable_progress_bars()
        return stem
    path = stem.with_suffix(".jsonl")
    with path.open("w", encoding="utf-8") as file:
        file.writelines(_json_lines(split, rows))
    return path


def _json_lines(split: str, rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for position, row in enumerate(rows):
        for column, value in row.items():
            try:
                json.dumps(value, allow_nan=False, default=_plain_number)
            except (TypeError, ValueError, RecursionError) as error:
                raise UserError(
                    f"problems: {split}[{position}]: column {representation(column)} cannot be written as JSON "
                    f"({one_line(str(error), 100)}): expected text, numbers, and lists and dictionaries of them"
                ) from error
        yield json.dumps(dict(row), default=_plain_number) + "\n"


def _plain_number(value: Any) -> int | float:
    """NumPy's numbers, for one."""
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
