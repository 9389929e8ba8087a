"""The command line of ``bgrpo sweep``: mistakes are told at once, and jobs are sent with what was asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bgrpo.cli.app import main
from bgrpo.sweep.report.sweep_verdict import Verdict
from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.sweep_folder import SweepFolder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "quikc"], "no shipped configuration of that name"),
        (["--config", "quick", "confirm_seed=3"], "did you mean 'confirm_seeds'"),
        (["--config", "quick", "budget.kind=epochs"], "budget.kind"),
        (["--config", "quickstart"], "quickstart: this is a configuration for bgrpo train"),
        (["--resume", "nowhere"], "no sweep 'nowhere'"),
        (["--config", "quick", "--retry-failed"], "--retry-failed needs --resume"),
        (["--config", "quick", "--max-concurrent", "0"], "--max-concurrent"),
        (["--config", "quick", "--submit", "http://127.0.0.1:1", "searcher=best"], "searcher"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not (tmp_path / "runs").exists()


def test_mistakes_are_told_before_ray_is_imported(tmp_path: Path) -> None:
    code = """
import sys
from bgrpo.cli.app import main
assert main(["sweep", "--config", "quick", "confirm_seed=3"]) == 2
print(sorted(name for name in ("ray", "torch", "transformers", "mlflow", "trl") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_a_job_gets_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import bgrpo.cluster.submit as submission

    sent: list[Any] = []

    def submit(address: str, module: str, arguments: list[str], announce: Callable[[str], None], write: Any) -> int:
        sent.append((address, module, arguments))
        announce("raysubmit_1")
        return 143

    monkeypatch.setattr(submission, "submit", submit)
    url = "http://127.0.0.1:8265"
    status = main(["sweep", "--config", "quick", "--submit", url, "--max-concurrent", "4", "confirm_seeds=5"])
    assert status == 143
    arguments = ["--config", "quick", "confirm_seeds=5", "max_concurrent=4"]
    assert sent == [(url, "ray_jobs.sweep", arguments)]
    main(["sweep", "--resume", "mine", "--submit", url])
    assert sent[1] == (url, "ray_jobs.sweep", ["--resume", "mine"])
    main(["sweep", "--resume", "mine", "--retry-failed", "--submit", url, "max_concurrent=2"])
    arguments = ["--resume", "mine", "--retry-failed", "max_concurrent=2"]
    assert sent[2] == (url, "ray_jobs.sweep", arguments)


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["for people", "as JSON"])
def test_the_end_of_a_sweep_tells_its_verdict(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bgrpo.sweep.sweep_driver as driver

    SweepFolder.create(SweepConfig.model_validate({"run": {"dir": str(tmp_path), "name": "mine"}}), None)
    verdict = Verdict("No difference shown.", sentences=["a against b: +0.0"], cautions=["Budgets differ."])
    result = driver.SweepResult(SweepFolder(tmp_path / "mine"), "finished", {"finished": 6}, {}, tmp_path, verdict)
    monkeypatch.setattr(driver, "run_sweep", lambda *_: result)
    assert main(["sweep", "--resume", str(tmp_path / "mine"), *options]) == 0
    printed = capsys.readouterr().out
    lines = json.loads(printed)["verdict"] if options else printed.splitlines()
    assert [line for line in lines if line in verdict.lines()] == verdict.lines()


def test_resuming_takes_the_options_that_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bgrpo.sweep.sweep_driver as driver

    SweepFolder.create(SweepConfig.model_validate({"run": {"dir": str(tmp_path), "name": "mine"}}), None)
    ran: list[Any] = []

    def run_sweep(
        sweep: SweepConfig, name: str | None, folder: SweepFolder | None, console: Any, retry_failed: bool
    ) -> driver.SweepResult:
        ran.append((sweep.max_concurrent, folder, retry_failed))
        return driver.SweepResult(
            SweepFolder(tmp_path / "mine"), "failed", {"failed": 6}, {}, tmp_path / "index.html", None
        )

    monkeypatch.setattr(driver, "run_sweep", run_sweep)
    assert main(["sweep", "--resume", str(tmp_path / "mine"), "--max-concurrent", "1"]) == 1
    assert main(["sweep", "--resume", str(tmp_path / "mine"), "--retry-failed"]) == 1
    assert ran == [(1, SweepFolder(tmp_path / "mine"), False), (None, SweepFolder(tmp_path / "mine"), True)]
