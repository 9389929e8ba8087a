"""The house: every import points downwards, Ray stays where it is listed, and no domain is known outside its folder."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgrpo.config import TaskSection
from bgrpo.tasks.base import shipped_tasks

PACKAGE = Path(__file__).resolve().parents[1] / "bgrpo"
FLOORS = {
    1: "errors seeds groups files waits settings",
    2: "config policies decoding",
    3: "tasks",
    4: "scoring",
    5: "runs evaluation",
    6: "learning pretraining cluster display",
    7: "training",
    8: "distributed",
    9: "bench chaos sweep",
    10: "cli api",
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}
MAY_KNOW_RAY = (
    "distributed/",
    "cluster/",
    "bench/step/",
    "bench/scaling/",
    "chaos/disturbed_run.py",
    "chaos/run_view.py",
    "sweep/sweep_driver.py",
    "sweep/tune/",
)
EVERYDAY = ("text", "chat")  # domains whose names are words that any module may use
MODULES = sorted(PACKAGE.rglob("*.py"))
BARE = "ray trl mlflow pydantic accelerate datasets typer rich"


def imports(module: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def upward(source: str, target: str) -> bool:
    """Whether an import from one room into another breaks the order of floors."""
    if source == target:
        return False
    if FLOOR_OF[source] == 1:  # these may know errors, and settings the files, nothing else
        return target not in (("errors", "files") if source == "settings" else ("errors",))
    return FLOOR_OF[target] >= FLOOR_OF[source]


def test_every_room_has_a_floor() -> None:
    assert {room(module) for module in MODULES} - {"__init__", "__main__"} == set(FLOOR_OF)


def test_imports_point_downwards() -> None:
    wrong = [
        f"{module.relative_to(PACKAGE)}:{line} imports {name}"
        for module in MODULES
        for line, name in imports(module)
        if name.startswith("bgrpo.")
        and room(module) not in ("__init__", "__main__")
        and upward(room(module), name.split(".")[1])
    ]
    assert not wrong, "\n".join(wrong)


def test_the_rule_of_floors_finds_wrong_imports() -> None:
    assert upward("tasks", "scoring") and upward("policies", "decoding") and upward("groups", "seeds")
    assert not upward("cli", "config") and not upward("files", "errors") and not upward("tasks", "tasks")


def test_ray_is_known_only_where_it_is_listed() -> None:
    wrong = [
        f"{module.relative_to(PACKAGE)}:{line} imports {name}"
        for module in MODULES
        for line, name in imports(module)
        if name.split(".")[0] == "ray" and not module.relative_to(PACKAGE).as_posix().startswith(MAY_KNOW_RAY)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_domain_is_known_outside_its_folder() -> None:
    """Only the default of ``task.name`` names one."""
    domains = shipped_tasks()
    assert domains, "the list of shipped tasks is empty"
    patterns = [re.compile(rf"tasks[./]{name}\b|{name}task" if name in EVERYDAY else name) for name in domains]
    found = [
        f"{module.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for module in MODULES
        if room(module) != "tasks" or module.parent.name == "tasks"
        for number, line in enumerate(module.read_text("utf-8").splitlines(), start=1)
        if any(pattern.search(line.lower()) for pattern in patterns) or "⁇" in line
    ]
    assert [line.split(": ")[1:] for line in found] == [["name", *found[0].split(": ")[2:]]], "\n".join(found)
    assert found[0].startswith("config/problems.py") and TaskSection().name in domains


@pytest.mark.parametrize(
    ("absent", "modules"),
    [
        (BARE, "policies.io tasks.polynomial.mingpt policies.model decoding.engine tasks.polynomial.task"),
        (
            "ray",
            "learning.trainer learning.rollout_source evaluation.metrics display.run_report pretraining.pretrain "
            "runs.preparation training.driver training.in_process",
        ),
        ("torch transformers flint ray trl mlflow pydantic accelerate datasets", "cli.app"),
        ("torch transformers flint trl mlflow accelerate datasets", "distributed.rollout.service decoding"),
        ("transformers trl accelerate datasets", "distributed.train.learner_loop"),
    ],
    ids=["bare machine", "algorithm without Ray", "command line before parsing", "rollout service", "train controller"],
)
def test_modules_import_without(absent: str, modules: str) -> None:
    code = f"import sys\nfor name in {absent.split()}: sys.modules[name] = None\n" + "".join(
        f"import bgrpo.{module}\n" for module in modules.split()
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
