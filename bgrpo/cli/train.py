"""What the commands that run something for long do: train, pretrain, sweep, here or as a job on a cluster."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from bgrpo.config import SHIPPED_CONFIGS, PretrainConfig, TrainConfig, load_config
from bgrpo.errors import UserError
from bgrpo.runs.run_folder import load_new_config, load_run_config
from bgrpo.runs.stopping import stop_signals
from bgrpo.settings.strict_yaml import read_text
from bgrpo.waits import LIBRARIES, waiting


def train_policy(
    config: str | None, overrides: list[str], resume: str | None, as_json: bool, local: bool = False
) -> int:
    """Reinforcement learning, ``local`` without Ray. Mistakes in the configuration are told before slow imports."""
    with stop_signals():
        loaded = load_run_config(TrainConfig, config, overrides, resume)
        if local:
            with waiting(LIBRARIES):
                from bgrpo.training.driver import train_and_announce as train_somewhere
                from bgrpo.training.in_process import InProcess

            return train_somewhere(InProcess(), loaded, config, resume is not None, as_json)
        with waiting(LIBRARIES):
            from bgrpo.distributed.train.training_run import train_and_announce

        return train_and_announce(loaded, config, resume is not None, as_json)


def pretrain_policy(config: str | None, overrides: list[str], resume: str | None) -> int:
    """Supervised training. Mistakes in the configuration are told before the slow imports."""
    with stop_signals():
        loaded = load_run_config(PretrainConfig, config, overrides, resume)
        with waiting(LIBRARIES):
            from bgrpo.distributed.train.pretraining_run import pretrain_and_announce

        return pretrain_and_announce(loaded, config, overrides, resume is not None)


def sweep_arms(config: str | None, overrides: list[str], resume: str | None, retry_failed: bool, as_json: bool) -> int:
    """Compare algorithms. Mistakes in the configuration are told before the slow imports."""
    with stop_signals():
        from bgrpo.sweep.sweep_folder import load_new_sweep, load_resumed_sweep

        if resume is None:
            sweep, old = load_new_sweep(config, overrides), None
        else:
            sweep, old = load_resumed_sweep(resume, overrides)
        with waiting(LIBRARIES):
            from bgrpo.sweep.sweep_driver import sweep_and_announce

        return sweep_and_announce(sweep, config, old, retry_failed, as_json)


def submit_training(address: str, config: str | None, overrides: list[str], resume: str | None, as_json: bool) -> int:
    """Send a training run to a cluster and follow its log. What can be checked here is, before anything is sent."""
    if resume is None:
        load_new_config(TrainConfig, config, overrides)
    return _submit(address, "ray_jobs.train", config, overrides, resume, as_json)


def submit_sweep(
    address: str, config: str | None, overrides: list[str], resume: str | None, retry_failed: bool, as_json: bool
) -> int:
    """Send a sweep to a cluster and follow its log. What can be checked here is, before anything is sent."""
    from bgrpo.sweep.sweep_config import SweepConfig
    from bgrpo.sweep.trial_configs import TrialConfigs

    if resume is None:
        sweep = load_config(SweepConfig, config, overrides)
        TrialConfigs(sweep, Path(sweep.run.dir)).check()
    flags = ["--retry-failed"] if retry_failed else []
    return _submit(address, "ray_jobs.sweep", config, [*flags, *overrides], resume, as_json)


def _submit(
    address: str, module: str, config: str | None, overrides: list[str], resume: str | None, as_json: bool
) -> int:
    from bgrpo.cluster.submit import refuse_credentials, submit

    refuse_credentials(overrides, "command line")
    if config is not None and os.path.isfile(config):  # noqa: PTH113 raises nothing, whatever the path
        refuse_credentials(read_text(Path(config)).splitlines(), config)
    arguments = [] if config is None else ["--config", _portable_config(config)]
    arguments += [] if resume is None else ["--resume", resume]
    log = sys.stderr if as_json else sys.stdout
    jobs: list[str] = []

    def announce(job: str) -> None:
        jobs.append(job)
        print(f"job {job} on {address}; stop it with: ray job stop --address {address} {job}", file=log, flush=True)

    def write(text: str) -> None:
        print(text, end="", file=log, flush=True)

    status = submit(address, module, [*arguments, *overrides], announce, write)
    if as_json:
        print(json.dumps({"job": jobs[0], "address": address, "exit_status": status}))
    return status


def _portable_config(config: str) -> str:
    """A configuration's name, or its path relative to the folder that is sent to the cluster."""
    path = Path(config)
    if not path.is_file() or path.resolve().parent == SHIPPED_CONFIGS:
        return path.stem if path.is_file() else config
    try:
        return path.resolve().relative_to(Path.cwd().resolve()).as_posix()
    except ValueError:
        raise UserError(
            f"--config {config}: lies outside the current folder, which is what --submit sends; copy it here"
        ) from None
