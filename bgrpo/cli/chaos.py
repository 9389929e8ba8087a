"""What ``bgrpo chaos`` does."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from bgrpo.chaos.faults import Schedule
from bgrpo.config import TrainConfig, load_config
from bgrpo.display.terminal import table_console
from bgrpo.errors import UserError
from bgrpo.files import write_atomically
from bgrpo.runs.folder import RunFolder, load_new_config, settle_runs

LEAST_LEARNER_FAILURES = 1000


def run_chaos_command(
    config_name: str | None,
    overrides: list[str],
    schedule: Schedule,
    minutes: float | None,
    undisturbed: str | None,
    as_json: bool,
) -> int:
    """Disturb a run, compare, report; 1 when a promise was not kept. Mistakes are told before the slow imports."""
    given = _given_run(undisturbed, config_name, overrides, minutes)
    config = prepare_config(load_new_config(TrainConfig, config_name, overrides) if given is None else given[1])
    if given is not None:
        given[0].check_same_result(config)
    from bgrpo.chaos.run import ChaosPlan, run_chaos

    console = table_console(stderr=as_json)
    folder = _make_folder(config)
    plan = ChaosPlan(config, schedule, minutes, None if given is None else given[0])
    report = run_chaos(plan, folder, lambda text: console.print(text, highlight=False, soft_wrap=True, markup=False))
    write_atomically(folder / "chaos.json", json.dumps(report.to_dict(), indent=1) + "\n")
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        console.print(report.tables())
        console.print(report.verdict(), highlight=False, soft_wrap=True, markup=False)
        console.print(f"report: {folder / 'chaos.json'}", highlight=False, soft_wrap=True)
    return 1 if report.problems else 0


def prepare_config(config: TrainConfig) -> TrainConfig:
    """``config`` with learners that may be lost :data:`LEAST_LEARNER_FAILURES` times, which changes no result."""
    failures = max(config.learner.max_failures, LEAST_LEARNER_FAILURES)
    return config.model_copy(update={"learner": config.learner.model_copy(update={"max_failures": failures})})


def _given_run(
    name: str | None, config_name: str | None, overrides: list[str], minutes: float | None
) -> tuple[RunFolder, TrainConfig] | None:
    """The undisturbed run that the user names, and its configuration with the overrides."""
    if name is None:
        return None
    if config_name is not None or minutes is not None:
        raise UserError(f"--undisturbed {name}: has its own configuration and steps; leave out --config and --minutes")
    runs = settle_runs(
        load_config(TrainConfig, None, [text for text in overrides if text.startswith("run.dir=")]).run.dir
    )
    run = RunFolder.open(runs, name)
    if not (run.policy / "model.safetensors").is_file():
        raise UserError(f"--undisturbed {name}: {run.path} has no final policy; resume it first")
    config = load_config(TrainConfig, str(run.config_path), [f"run.name={_new_name()}", *overrides])
    return run, config


def _new_name() -> str:
    return f"chaos-{datetime.now():%Y%m%d-%H%M%S}"


def _make_folder(config: TrainConfig) -> Path:
    folder = Path(config.run.dir) / (config.run.name or _new_name())
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{folder} exists: set another run.name") from None
    except OSError as error:
        raise UserError(f"run.dir={config.run.dir}: cannot be written ({error.strerror})") from error
    return folder
