"""What may be imported where: the algorithm runs without Ray, and decoding on a machine with little more than torch."""

import subprocess
import sys

import pytest

BARE = "ray trl mlflow pydantic accelerate datasets typer rich"
SMALL = "bgrpo.policies.io bgrpo.policies.mingpt bgrpo.policies.model bgrpo.decoding bgrpo.tasks.polynomial.task"


@pytest.mark.parametrize(
    ("absent", "modules"),
    [
        (
            BARE,
            "bgrpo.policies.io bgrpo.policies.mingpt bgrpo.policies.model bgrpo.decoding bgrpo.tasks.polynomial.task",
        ),
        ("ray", "bgrpo.trainer bgrpo.rollouts bgrpo.evaluation bgrpo.report bgrpo.pretrain bgrpo.preparation"),
        (f"torch transformers flint {BARE.replace('typer', '').replace('rich', '')}", "bgrpo.cli"),
    ],
    ids=["bare machine", "algorithm without Ray", "command line before parsing"],
)
def test_modules_import_without(absent: str, modules: str) -> None:
    code = f"import sys\nfor name in {absent.split()}: sys.modules[name] = None\n" + "".join(
        f"import {module}\n" for module in modules.split()
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
