"""Between a sweep's plan and Ray Tune: which trial starts when there is room, and what its end means."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.tune.search import Searcher

from bgrpo.config import TrainConfig
from bgrpo.distributed.session.ray_session import training_demand
from bgrpo.errors import UserError
from bgrpo.sweep.cluster_room import Bundle, fits, total
from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.sweep_folder import SweepFolder, last_validation
from bgrpo.sweep.sweep_plan import EndState, Plan, SavedPlan, Trial
from bgrpo.sweep.trial_configs import TrialConfigs
from bgrpo.sweep.tune.tune_trial import OUTCOME, PERCENT, PROCESS_LOSSES, REASON, TrialJob
from bgrpo.training.run_attempt import STOP_FILE


class PlanSearcher(Searcher):
    """Hands the plan's trials to Tune, and keeps the plan in memory and in the sweep's folder. Used by several threads.

    Args:
        sweep: what was asked for.
        folder: of the sweep.
        plan: its trials; others may read it.
        configs: makes their training configurations.
        parent_run: MLflow run of the sweep; None when nothing is recorded.
        note: prints a line for people.

    Attributes:
        stopping: no trial is to be started any more.
        abandoned: those that run are to be ended, without a checkpoint.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        folder: SweepFolder,
        plan: Plan,
        configs: TrialConfigs,
        parent_run: str | None,
        note: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.plan = plan
        self.stopping = self.abandoned = False
        self._sweep = sweep
        self._folder = folder
        self._configs = configs
        self._parent_run = parent_run
        self._note = note
        self._lock = threading.RLock()
        self._names: dict[str, str] = {}  # Tune's id of a trial -> ours
        self._bundles: dict[str, list[Bundle]] = {}
        self._requested: list[Bundle] = []
        self._save()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes down what it was given, but only the sweep's folder is read again."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, see :meth:`__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see :meth:`__getstate__`."""

    @property
    def is_over(self) -> bool:
        """True when no trial is to be started any more."""
        with self._lock:
            return self.stopping or self.plan.is_done

    def abandon(self) -> None:
        """End the trials that run, wherever they are; see :attr:`abandoned`."""
        self.abandoned = True

    def suggest(self, trial_id: str) -> Any:
        """The trial to start now; None, to be asked again, when none is pending or has room."""
        with self._lock:
            if self.is_over:
                return Searcher.FINISHED
            job = self._next_job()
            if job is None:
                return None
            self._names[trial_id] = job.trial
            return {"job": job}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial has ended, ``error`` when its process was lost too often."""
        self.trial_ended(self._names.pop(trial_id), None if error else result)

    def trial_ended(self, name: str, result: dict[str, Any] | None) -> None:
        """The trial of our id has ended; ``result`` is its last one, None when its process was lost too often."""
        with self._lock:
            trial = self.plan.trial(name)
            if result is None:
                self._end(trial, "failed", f"its process was lost more than {PROCESS_LOSSES} times")
            elif OUTCOME not in result:
                reason = f"cut by {self._sweep.scheduler} at {result.get(PERCENT, 0):.0f} % of its budget"
                self._end(trial, "stopped", reason)
            elif result[OUTCOME] == "interrupted":
                self.plan.interrupt(trial, time.time())
                self._save()
            elif result[OUTCOME] == "diverged":
                self._end(trial, "failed", result[REASON], diverged=True)
            else:
                self._end(trial, result[OUTCOME], result[REASON])

    def arm_searched_by(self, name: str) -> str | None:
        """The arm that competes in a search trial; None for a confirm trial."""
        trial = self.plan.trial(name)
        return trial.algorithm if trial.phase == "search" else None

    def ask_to_stop(self) -> None:
        """Start nothing more, and have running trials save a checkpoint and end; to be repeated until they have.

        A run forgets what it was asked before it began.
        """
        self.stopping = True
        for trial in self.plan.running:
            run = self._folder.trials / trial.id
            if run.is_dir():
                (run / STOP_FILE).touch()

    def close(self, state: str) -> None:
        """Keep how the sweep ended, and let an autoscaler take its nodes back."""
        if self._requested:
            request_resources(bundles=[])
        with self._lock:
            self._save(state)

    def _next_job(self) -> TrialJob | None:
        running = self.plan.running
        if len(running) >= (self._sweep.max_concurrent or len(self.plan.trials)):
            return None
        trial = self.plan.next_trial()
        if trial is None:
            return None
        try:
            config = self._configs.of(trial)
        except UserError as error:  # a suggested point that does not make a configuration
            self.plan.start(trial, time.time())
            self._end(trial, "failed", str(error))
            return None
        wanted = [*(self._bundles[other.id] for other in running), trial_bundles(config)]
        if not fits(cluster_nodes(), wanted):
            self._ask_for_room(trial, wanted)
            return None
        self._bundles[trial.id] = wanted[-1]
        trial.resources = total(wanted[-1])
        self.plan.start(trial, time.time())
        self._save()
        tags = {"sweep": self._folder.name, "arm": trial.algorithm, "phase": trial.phase}
        if self._parent_run is not None:
            tags["mlflow.parentRunId"] = self._parent_run
        return TrialJob(trial.id, config, tags, self._sweep.metric, self._folder.logs / f"{trial.id}.log")

    def _ask_for_room(self, trial: Trial, wanted: list[list[Bundle]]) -> None:
        """Tell an autoscaler, where there is one, what one trial more would take."""
        bundles = [bundle for processes in wanted for bundle in processes]
        if bundles != self._requested:
            if len(wanted) == 1:
                self._note(f"{trial.id} waits for a node: nothing runs, and it has no room")
            self._requested = bundles
            request_resources(bundles=[dict(bundle) for bundle in bundles if bundle])

    def _end(self, trial: Trial, state: EndState, reason: str, diverged: bool = False) -> None:
        value = last_validation(self._folder.trials / trial.id, self._sweep.metric)
        self.plan.end(trial, state, time.time(), value, reason, diverged)
        self._save()
        shown = "" if value is None else f", {self._sweep.metric} {value:.3f}"
        self._note(f"{trial.id} {state}{shown}" + (f": {reason}" if reason else ""))

    def _save(self, state: str = "running") -> None:
        plan = self.plan
        self._folder.write_plan(SavedPlan(state, plan.total, self._parent_run, plan.selection(), plan.trials))


def trial_bundles(config: TrainConfig) -> list[Bundle]:
    """What each process of a trial reserves."""
    return [demand.reserved for demand in training_demand(config) for _ in range(demand.count)]


def cluster_nodes() -> list[Bundle]:
    """Total resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
