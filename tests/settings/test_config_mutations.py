"""Whatever a configuration file or an override holds: it is accepted and means the same again,
or one line says why."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgrpo.config import SHIPPED_CONFIGS, PretrainConfig, TrainConfig, dump_config, load_config
from bgrpo.errors import MAX_MESSAGE, UserError
from bgrpo.settings.key_table import known_keys
from bgrpo.settings.values import Section
from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.trial_configs import TrialConfigs

TREES = {"train": TrainConfig, "pretrain": PretrainConfig, "sweep": SweepConfig}
CONFIGS = {path.stem: path.read_text("utf-8") for path in sorted(SHIPPED_CONFIGS.glob("*.yaml"))}
PER_FILE = 250
HOSTILE = [
    "", " ", "~", "null", "nan", ".nan", "-.inf", "inf", "1e999", "-1e999", "1e-400", "-1", "0", "-0.0", "1", "1.5",
    "010", "0x1F", "0o17", "0b1", "1_000", "1:30", "+5", "1e3", "5.", ".5", "True", "yes", "off", "'5'", '"true"',
    "9" * 20, "9" * 300, "9" * 5000, "2026-01-01", "2026-01-01T00:00:00Z", "2026", "=", "<<", "<<: {a: 1}", "? [a]",
    "[", "]", "{", "}", "[[]]", "[1, [2, nan]]", "{a: {b: {c: 1}}}", "{a: 1, a: 2}", "{1: 2}", "{true: 1}", "{~: 1}",
    "&a [*a]", "*a", "&a b", "[&a x, *a]", "!!python/object/apply:os.system ['x']", "!!binary aGk=", "!!int '5'",
    "!x y",
    "[" * 100, "[" * 30000, "{a: " * 100, "- " * 400, "a: " * 50, "%YAML 1.1", "---", "...", "--- a\n--- b", "# x",
    "|\n  a\n",
    ">", "'", '"', '"\\x00"', '"\\ud800"', "\x00", "\x1b[2J", "\ud800", "\udcff", "\ufeff", "\u2028", "é", "⁇", "a\tb",
    "\t", "a\nb", "/tmp/x[/b]", "[bold]", ":smile:", "x" * 5000, "/" * 5000, "../..", "~/x", "~nobody-of-that-name/x",
    "os:system", "a:b:c", "{" + ", ".join(f"k{i}: {i}" for i in range(2000)) + "}", "&a {b: &b [&c x, *c]}",
]  # fmt: skip


def tree_of(name: str) -> type[Section]:
    return TREES["sweep" if "arms:" in CONFIGS[name] else "pretrain" if name.startswith("pretrain") else "train"]


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield value


def tell(tree: type[Section], config: str | None, overrides: list[str], folder: Path) -> bool:
    """Whether it is accepted. Anything but a UserError of one bounded line fails the test."""
    try:
        loaded = load_config(tree, config, overrides)
        if isinstance(loaded, SweepConfig):
            TrialConfigs(loaded, folder).check()
    except UserError as error:
        assert str(error).isprintable(), repr(str(error))
        assert 0 < len(str(error)) <= MAX_MESSAGE
        return False
    assert all(math.isfinite(number) for number in numbers(loaded.model_dump()))
    dump_config(loaded, folder / "again.yaml")
    assert load_config(tree, str(folder / "again.yaml")) == loaded, "a dumped configuration means the same"
    return True


def mutated(text: str, draw: random.Random) -> str:
    """The text of a configuration with one to three things changed."""
    for _ in range(draw.randint(1, 3)):
        lines = text.split("\n")
        at, place = draw.randrange(len(lines)), draw.randrange(len(text) + 1)
        change = draw.randrange(8)
        if change == 0:
            lines[at] = draw.choice(
                ["", lines[at] + "\n" + lines[at], " " + lines[at], lines[at].lstrip(), "\t" + lines[at]]
            )
        elif change == 1:
            key, colon, _ = lines[at].partition(":")
            lines[at] = f"{key}{colon} {draw.choice(HOSTILE)}"
        elif change == 2:
            lines[at] = lines[at].replace(
                draw.choice(["1", "5", "a", "e", "{", "}", "[", ","]), draw.choice(HOSTILE), 1
            )
        elif change == 3:
            other = draw.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        text = "\n".join(lines)
        if change == 4:
            text = text[:place]
        elif change == 5:
            text = text[:place] + draw.choice(HOSTILE) + text[place:]
        elif change == 6:
            text = (
                text[:place]
                + chr(draw.choice([0, 7, 9, 10, 13, 33, 38, 42, 58, 91, 123, 133, 160, 8232, 65279]))
                + text[place:]
            )
        elif change == 7:
            text = text[:place] + text[place + draw.randint(1, 20) :]
    return text


@pytest.mark.parametrize("name", CONFIGS)
def test_a_damaged_file_is_refused_in_one_line_or_means_the_same_again(name: str, tmp_path: Path) -> None:
    draw, accepted = random.Random(name), 0
    for _ in range(PER_FILE):
        content = mutated(CONFIGS[name], draw).encode("utf-8", "surrogatepass")
        if draw.random() < 0.1:
            at = draw.randrange(len(content) + 1)
            content = content[:at] + draw.randbytes(draw.randint(1, 4)) + content[at:]
        (tmp_path / "mutated.yaml").write_bytes(content)
        accepted += tell(tree_of(name), str(tmp_path / "mutated.yaml"), [], tmp_path)
    assert 0 < accepted < PER_FILE, "the changes are neither all harmless nor all fatal"


@pytest.mark.parametrize("name", TREES)
def test_every_key_with_every_hostile_value(name: str, tmp_path: Path) -> None:
    draw = random.Random(name)
    for key in known_keys(TREES[name]):
        for value in draw.sample(HOSTILE, 15):
            tell(TREES[name], None, [f"{key}={value}"], tmp_path)


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_every_kind_of_key_with_each_hostile_value(value: str, tmp_path: Path) -> None:
    keys = ["steps", "learner.beta", "run.name", "run.dir", "algorithm", "task.options", "task.options.x", "rollout",
            "evaluation.beam_widths", "rollout.skip_uninformative", "budget.seconds", "x.y", value,
            f"run.{value}"]  # fmt: skip
    for key in keys:
        tell(TrainConfig, None, [f"{key}={value}"], tmp_path)
    for key in ["space", "space.learner.beta", "space.learner.beta.values", "space.learner.beta.min", "train", "arms",
                "train.learner.beta", "arms.grpo.set.reward.kind", "arms.grpo", "base", "seed",
                f"arms.{value}.set"]:  # fmt: skip
        tell(SweepConfig, "quick", [f"{key}={value}"], tmp_path)
    for override in (value, f"={value}", f"{value}="):
        tell(TrainConfig, "quickstart", [override], tmp_path)
