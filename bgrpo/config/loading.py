"""A YAML file, then dotted overrides, then checks that show their arithmetic."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from bgrpo.config.pretraining import PretrainConfig
from bgrpo.config.problems import SPLITS, TaskSection
from bgrpo.config.training import TrainConfig
from bgrpo.errors import UserError, one_line
from bgrpo.settings.messages import explain, shown
from bgrpo.settings.paths import expanded
from bgrpo.settings.spelling import nearest
from bgrpo.settings.strict_yaml import dump_yaml, read_yaml
from bgrpo.settings.typed import UNKNOWN, alternatives, below, is_section, override_value, settle
from bgrpo.settings.values import Section

SHIPPED_CONFIGS = Path(__file__).resolve().parents[2] / "ray_jobs" / "configs"
C = TypeVar("C", bound=Section)


def load_config(
    model: type[C], config: str | None, overrides: Sequence[str] = (), keys: Mapping[str, Any] | None = None
) -> C:
    """Read a configuration.

    Args:
        model: the tree's class, for example :class:`~bgrpo.config.training.TrainConfig`.
        config: name of a shipped configuration (``quickstart``), path of a YAML file, or None for the defaults.
        overrides: ``key.path=value`` each. The type of a key says how its value is read: text as it stands, everything
            else as YAML. One that names another task than the file does leaves out what the file tells its own task.
        keys: likewise from Python, after them: dotted keys or nested sections, and their values.

    Raises:
        UserError: missing file, bad YAML, unknown key (with the one that was probably meant), or a value that does not
            fit; or two overrides that say the same key.
    """
    source = config or "configuration"
    tree = read_yaml(_find(config)) if config is not None else {}
    _refuse_another_command(model, tree, source)
    _refuse_dotted_again(tree, source)
    parsed = [_parse(model, text, overrides[i + 1 : i + 2]) for i, text in enumerate(overrides)]
    refuse_repeated([(path, value, text) for (path, value), text in zip(parsed, overrides, strict=True)])
    parsed += dotted_keys(model, keys or {})
    names = {tuple(path[:-1]): value for path, value in parsed if path[-2:] == ["task", "name"]}
    for path, name in names.items():
        _leave_to_its_task(tree, path, name, source)
    _choose_length(tree, [".".join(path) for path, _ in parsed])
    for key, value in parsed:
        _assign(tree, key, value)
    typed = [path for path, _ in parsed[: len(overrides)]]
    return build_config(model, settle(tree, model, source), source, typed if config is not None else ())


def build_config(model: type[C], tree: dict[str, Any], source: str, typed: Sequence[Sequence[str]] = ()) -> C:
    """Validate a plain dictionary.

    Args:
        model: its class.
        tree: the dictionary.
        source: names it in errors.
        typed: paths in it that came from the command line, which is named where all that is wrong is there.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        places = [tuple(map(str, item["loc"])) for item in error.errors(include_url=False)]
        if all(any(place and place[: len(path)] == tuple(path) for path in typed) for place in places):
            source = "command line"
        raise UserError(f"{source}: {explain(model, error)}") from None


def dump_config(config: Section, path: Path) -> None:
    """Write the whole tree as YAML, so that loading it again gives an equal configuration."""
    path.write_text(dump_yaml(config.model_dump(mode="json")), "utf-8")


def refuse_repeated(given: Iterable[tuple[Sequence[str], Any, str]]) -> None:
    """Refuse two values for one key, of which the last would count without a word.

    Args:
        given: path, value and text of each, in the order in which they count. A mapping gives all that is in it, and
            takes the place of what its section was given before.

    Raises:
        UserError: names both texts.
    """
    seen: dict[str, str] = {}  # every key, and every section that holds one, with the text that gave it
    for path, value, text in given:
        key = ".".join(path)
        if key in seen:
            raise UserError(f"{key} is given twice, as {shown(seen[key])} and as {shown(text)}: give it once")
        for leaf in _leaves(path, value):
            for length in range(1, len(leaf) + 1):
                seen.setdefault(".".join(leaf[:length]), text)


def _refuse_another_command(model: type[Section], tree: dict[str, Any], source: str) -> None:
    """A file that another command can read, and this one cannot, is told as what it is, not key by key."""
    foreign = set(tree) - set(model.model_fields)
    trees: dict[str, type[Section]] = {"train": TrainConfig, "pretrain": PretrainConfig}
    meant = [name for name, other in trees.items() if set(tree) <= set(other.model_fields)]
    meant += ["sweep"] if "arms" in foreign else []
    if foreign and meant:
        raise UserError(f"{source}: this is a configuration for bgrpo {' and bgrpo '.join(meant)}")


def _refuse_dotted_again(tree: Any, source: str) -> None:
    """A file's mapping may hold dotted keys, as a sweep's ``train`` does, but no key both dotted and in a section."""
    if isinstance(tree, dict):
        try:
            refuse_repeated((key.split("."), value, key) for key, value in tree.items())
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
    for inner in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        _refuse_dotted_again(inner, source)


def _leaves(path: Sequence[str], value: Any) -> Iterator[Sequence[str]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves([*path, *str(name).split(".")], inner)
    else:
        yield path


def drop_foreign_options(tree: dict[str, Any], name: str, source: str) -> None:
    """Take the options out of a section ``task`` that is to name another task: they are for the present one.

    Args:
        tree: the section; changed in place.
        name: of the other task. Nothing happens when it is the present one.
        source: where the tree comes from, for the line on standard error that says what was left out.
    """
    present = tree.get("name", TaskSection().name)
    parts = [("task", tree), *((f"task.{split}", tree.get(split)) for split in SPLITS)]
    dropped = [f"{key}.options" for key, part in parts if isinstance(part, dict) and part.get("options")]
    if name == present or not dropped:
        return
    for _, part in parts:
        if isinstance(part, dict):
            part.pop("options", None)
    print(
        f"note: task.name={name}: {', '.join(dropped)} of {source} are left out: they are for task {present!r}; give "
        f"your own where you need them",
        file=sys.stderr,
    )


def _leave_to_its_task(tree: dict[str, Any], path: Sequence[str], name: str, source: str) -> None:
    section: Any = tree
    for key in path:
        section = section.get(key) if isinstance(section, dict) else None
    if isinstance(section, dict) and isinstance(name, str):
        drop_foreign_options(section, name, source)


def _find(config: str) -> Path:
    try:
        path = expanded(config)
    except ValueError as error:
        raise UserError(f"--config {shown(config)}: {error}") from None
    shipped = SHIPPED_CONFIGS / f"{config}.yaml"
    is_file = os.path.isfile  # raises nothing, whatever the path
    if is_file(path) or (os.path.lexists(path) and not is_file(shipped)):
        return Path(path)
    if is_file(shipped):
        return shipped
    names = sorted(path.stem for path in SHIPPED_CONFIGS.glob("*.yaml"))
    meant = nearest(Path(path).stem, names)
    hint = f"; did you mean {meant!r}?" if meant else f"; shipped: {', '.join(names)}"
    raise UserError(f"--config {config}: no such file, and no shipped configuration of that name{hint}")


def _choose_length(tree: dict[str, Any], overridden: Sequence[str]) -> None:
    """``epochs`` decide over ``steps``, but not over those of an override, which take the place of a file's epochs."""
    if {"steps", "epochs"} <= set(overridden):
        raise UserError("steps and epochs are both given: each says how long to train, so give one of them")
    if "steps" in overridden:
        tree.pop("epochs", None)


def _parse(model: type[Section], override: str, following: Sequence[str]) -> tuple[list[str], Any]:
    """The path of an override's key, and its value."""
    name, equals, text = override.partition("=")
    path = name.strip().split(".")
    if not equals:
        if name.endswith((".yaml", ".yml")) or os.path.isfile(SHIPPED_CONFIGS / f"{name}.yaml"):  # noqa: PTH113
            word = one_line(name, 100)
            raise UserError(f"override {shown(override)}: expected key=value; for a configuration, --config {word}")
        values = [word for word in following if "=" not in word] or ["…"]
        example = "rollout.group_size=10" if below(model, name) is UNKNOWN else f"{name}={values[0]}"
        raise UserError(f"override {shown(override)}: expected key=value, for example {example}")
    return path, override_value(text, reduce(below, path, model), one_line(override, 100))


def dotted_keys(model: type[Section], keys: Mapping[str, Any], above: str = "") -> Iterator[tuple[list[str], Any]]:
    """The paths of keys from Python, and their values as YAML could hold them: lists for tuples, text for paths.

    Args:
        model: the tree's class.
        keys: dotted keys or nested sections.
        above: where they lie.

    Raises:
        UserError: a key is no text.
    """
    for name, value in keys.items():
        if not isinstance(name, str):
            raise UserError(f"configuration key {shown(name)}: expected text, as 'learner.learning_rate'")
        key = f"{above}{name}"
        if isinstance(value, Mapping) and any(is_section(part) for part in alternatives(below(model, key))):
            yield from dotted_keys(model, value, f"{key}.")
        else:
            yield key.split("."), _as_in_yaml(value)


def _as_in_yaml(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_in_yaml(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_in_yaml(item) for item in value]
    if isinstance(value, Real) and type(value) not in (bool, int, float):  # NumPy's numbers
        return int(value) if isinstance(value, Integral) else float(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _assign(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for i, key in enumerate(path[:-1], start=1):
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise UserError(f"override of {'.'.join(path)}: {'.'.join(path[:i])} is a value, not a section")
    tree[path[-1]] = value
