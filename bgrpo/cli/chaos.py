"""What ``bgrpo chaos`` does."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from bgrpo.chaos.run_comparison import final_weights
from bgrpo.chaos.schedule import Schedule
from bgrpo.config import TrainConfig, load_config
from bgrpo.display.terminal import table_console
from bgrpo.errors import UserError
from bgrpo.files import write_atomically
from bgrpo.runs.run_folder import RunFolder, load_new_config, settle_runs

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
    calm = None if undisturbed is None else _finished_run(undisturbed, config_name, overrides, minutes)
    if calm is None:
        config = prepare_config(load_new_config(TrainConfig, config_name, overrides))
    else:
        named = any(text.partition("=")[0].strip() == "run.name" for text in overrides)
        overrides = [*overrides, *([] if named else [f"run.name={_new_name()}"])]
        config = prepare_config(load_config(TrainConfig, str(calm.config_path), overrides))
        calm.check_same_result(config)
    from bgrpo.chaos.disturbed_run import run_chaos

    console = table_console(stderr=as_json)
    folder = _make_folder(config)

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    report = run_chaos(config, schedule, minutes, calm, folder, say)
    write_atomically(folder / "chaos.json", json.dumps(report.to_dict(), indent=1) + "\n")
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        console.print(report.tables())
        say(report.verdict())
        say(f"report: {folder / 'chaos.json'}")
    return 1 if report.problems else 0


def prepare_config(config: TrainConfig) -> TrainConfig:
    """``config`` with learners that may be lost :data:`LEAST_LEARNER_FAILURES` times, which changes no result."""
    failures = max(config.learner.max_failures, LEAST_LEARNER_FAILURES)
    return config.model_copy(update={"learner": config.learner.model_copy(update={"max_failures": failures})})


def _finished_run(name: str, config_name: str | None, overrides: list[str], minutes: float | None) -> RunFolder:
    """The undisturbed run that the user names."""
    if config_name is not None or minutes is not None:
        raise UserError(f"--undisturbed {name}: has its own configuration and steps; leave out --config and --minutes")
    place = load_config(TrainConfig, None, [text for text in overrides if text.startswith("run.dir=")]).run.dir
    run = RunFolder.open(settle_runs(place), name)
    if final_weights(run) is None:
        raise UserError(f"--undisturbed {name}: {run.path} has no final policy; resume it first")
    return run


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
