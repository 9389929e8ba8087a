"""The page of one run as files that need no server and no network: HTML, style, script, and data in script files.

Everything that comes from the run is data in JSON; the page's script shows it as text and nothing else.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bgrpo.config import PretrainConfig, TrainConfig
from bgrpo.errors import UserError
from bgrpo.files import atomic_path
from bgrpo.groups import RANKED
from bgrpo.runs.audit import audit
from bgrpo.runs.missing_steps import missing_steps
from bgrpo.runs.run_folder import RunFolder
from bgrpo.runs.samples import SampledGroup, SampleReader

ASSETS = Path(__file__).parent
PAGE = "index.html"
STATIC = (PAGE, "run_browser.css", "run_browser.js")
INDEX = "data/index.js"
CHUNK_BYTES = 1 << 20  # of one data file, about
MAX_BYTES = 256 << 20  # of all data files; steps are left out evenly to stay below
NAMES = ("solved_groups", "kl", "entropy", "completion_length")  # metrics shown beside a step's reward


@dataclass(frozen=True, slots=True)
class RunPage:
    """What was written.

    Attributes:
        folder: of the page.
        files: names of its files, relative to the folder: all that there is to serve.
        notes: sentences on what is missing, and why.
    """

    folder: Path
    files: tuple[str, ...]
    notes: tuple[str, ...]


def write_page(run: RunFolder, out: Path, max_bytes: int = MAX_BYTES) -> RunPage:
    """Write the page of a run, in place of an older one.

    Args:
        run: whose samples are shown; it may still be going on.
        out: folder to make.
        max_bytes: of data; a run with more is shown with every 2nd, 3rd … step.

    Raises:
        UserError: not a training run, ``out`` holds something else, or it cannot be written.
    """
    config = _config(run)
    _check_ours(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(out) as folder:
            (folder / "data").mkdir(parents=True)
            for name in STATIC:
                shutil.copyfile(ASSETS / name, folder / name)
            notes = _write_data(run, config, folder, max_bytes)
            files = tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file()))
    except OSError as error:
        raise UserError(f"{out}: the page cannot be written ({error.strerror or error}): give another --out") from error
    return RunPage(out, files, tuple(notes))


def _config(run: RunFolder) -> TrainConfig:
    try:
        return run.load_config(TrainConfig)
    except UserError:
        if _is_supervised(run):
            raise UserError(f"{run.path}: is a run of bgrpo pretrain, which writes no completions") from None
        raise


def _is_supervised(run: RunFolder) -> bool:
    try:
        run.load_config(PretrainConfig)
    except UserError:
        return False
    return True


def _check_ours(out: Path) -> None:
    """An older page may be replaced, nothing else."""
    known = {*STATIC, "data"}
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"--out {out}: is no folder; give the name of one")
    if out.is_dir() and (found := {path.name for path in out.iterdir()}) and not found <= known:
        raise UserError(f"--out {out}: holds {min(found - known)!r}, which is not of such a page: give another folder")


def _write_data(run: RunFolder, config: TrainConfig, folder: Path, max_bytes: int) -> list[str]:
    reader = SampleReader(run)
    every = max(1, math.ceil(reader.size / max_bytes))
    chunks = _Chunks(folder)
    for group in reader:
        if (group.step - 1) % every == 0:
            chunks.add(group)
    chunks.close()
    steps = run.metrics()
    notes = [*_notes(config, chunks.steps, bool(steps), every, reader.damaged), *filter(None, [missing_steps(run)])]
    notes += audit(config.reward, steps)
    metrics = {line["step"]: line for line in steps}
    index = {
        "run": run.name,
        "facts": {
            "algorithm": config.algorithm,
            "group size": config.rollout.group_size,
            "reward": _reward_of(config),
            "advantage": config.advantage_kind,
            "status": run.status,
            "steps": _steps_of(run, config, steps),
            "kept": f"{min(config.rollout.keep_samples, config.rollout.prompts_per_step)} of "
            f"{config.rollout.prompts_per_step} groups a step",
        },
        "order": "rank" if config.decode_mode in RANKED else "draw",  # of a group's completions: samples have no rank
        "curve": "score" if config.reward.parts else "reward",
        "notes": notes,
        "chunks": chunks.count,
        "outcomes": sorted(chunks.outcomes),
        "steps": [
            {"step": step, "chunk": chunk, "problems": problems, **_metrics_of(config, metrics.get(step, {}))}
            for step, (chunk, problems) in chunks.steps.items()
        ],
    }
    (folder / INDEX).write_text(f"window.bgrpoIndex = {script_json(index)};\n", "ascii")
    return notes


def _steps_of(run: RunFolder, config: TrainConfig, steps: Sequence[Mapping[str, Any]]) -> str:
    """How far the run has come, and of how many, where that is known."""
    info = run.info()  # where there are epochs, their steps are known once the problems are counted
    total = config.steps if config.epochs is None else info.get("steps") if "problems" in info else None
    made = max((line["step"] for line in steps), default=0)
    return f"{made} of {total}" if isinstance(total, int) else f"{made}"


def _reward_of(config: TrainConfig) -> str:
    """How rank shapes the reward; of named parts, what is added up and what is only watched."""
    parts = config.reward.parts
    weighted = " + ".join(f"{part.weight:g} {name}" for name, part in parts.items() if part.weight)
    watched = [name for name, part in parts.items() if not part.weight]
    texts = [config.reward_kind, weighted.replace(" + -", " − ")]
    texts += ["each by its group's mean and deviation first"] if config.reward.combine != "sum" else []
    texts += [f"watched: {', '.join(watched)}"] if watched else []
    return ", ".join(filter(None, texts))


def _metrics_of(config: TrainConfig, line: dict[str, Any]) -> dict[str, Any]:
    """Of a step; rewards of normalised parts have a mean of about 0 in every step, so scores are told, too."""
    metrics = {name: line[name] for name in NAMES if name in line}
    means = {name: line.get(f"part/{name}/mean") for name in config.reward.parts}
    metrics |= {f"part {name}": value for name, value in means.items() if value is not None}
    return {"reward": line.get("reward_mean"), "score": line.get("score_mean"), "metrics": metrics}


def _notes(config: TrainConfig, shown: Collection[int], trained: bool, every: int, damaged: int) -> list[str]:
    notes = []
    if not shown and not config.rollout.keep_samples:
        notes.append(
            "This run has kept no completions: rollout.keep_samples is 0. Set it to the number of groups to keep of "
            "each step, then train, or resume the run."
        )
    elif not shown and not trained:
        notes.append("This run has made no step yet. Call bgrpo show again when it has.")
    elif not shown:
        notes.append(
            "This run's steps have no completions that can be read: they are of an older bgrpo, or were "
            "removed, or not kept. Train, or resume the run, to get some."
        )
    if every > 1:
        notes.append(f"There are more samples than a page can hold: one of every {every} steps is here.")
    if damaged:
        notes.append(f"{damaged} damaged lines of samples were left out.")
    return notes


class _Chunks:
    """Data files, each with the groups of consecutive whole steps.

    Attributes:
        steps: step -> its chunk, and the problems of its groups.
        count: of the files.
        outcomes: of all completions.
    """

    def __init__(self, folder: Path) -> None:
        self.steps: dict[int, tuple[int, list[int]]] = {}
        self.count = 0
        self.outcomes: set[str] = set()
        self._folder = folder
        self._groups: list[str] = []
        self._size = 0

    def add(self, group: SampledGroup) -> None:
        """Take the next group, of the same step as the one before or a later one."""
        if group.step not in self.steps:
            if self._size >= CHUNK_BYTES:
                self.close()
            self.steps[group.step] = (self.count, [])
        self.steps[group.step][1].append(group.problem)
        self.outcomes |= {completion.outcome for completion in group.completions}
        self._groups.append(script_json(group.model_dump()))
        self._size += len(self._groups[-1])

    def close(self) -> None:
        """Write what waits."""
        if not self._groups:
            return
        groups = ",\n".join(self._groups)
        text = f"window.bgrpoChunk({self.count}, [\n{groups}\n]);\n"
        (self._folder / "data" / f"chunk-{self.count:05d}.js").write_text(text, "ascii")
        self.count += 1
        self._groups, self._size = [], 0


def script_json(value: Any) -> str:
    """JSON that is also JavaScript, wherever in a page it stands: ASCII alone, no ``<``, no ``>``, no ``&``."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
