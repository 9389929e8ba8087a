"""Runs with samples, written by the run's own writer, for the tests of the page."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bgrpo.config import TrainConfig, load_config
from bgrpo.groups import Completion, ScoredGroup, Verdict
from bgrpo.runs.run_folder import RunFolder
from bgrpo.runs.samples import SampleWriter
from bgrpo.tasks.base import Problem

WORDS = [
    "<end>",
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "two",
    "green",
    "birds",
    "fly",
    "over",
    "an",
    "old",
    "house",
    "near",
    "my",
    "river",
]
PROBLEMS = [Problem(prompt=f"Tell a story of {word}.", answer=f"the {word}", category="story") for word in WORDS]


class WordTokenizer:
    """As much of a tokenizer as samples need."""

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return WORDS[token] if token < len(WORDS) else None

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(WORDS[token] for token in tokens if token < len(WORDS))


@dataclass(frozen=True, slots=True)
class VerdictWithParts(Verdict):
    """What a judge with parts says."""

    parts: Any = None


def completion(tokens: list[int], logprobs: list[float] | None = None, **verdict: Any) -> Completion:
    """A finished completion whose text is its words."""
    text = WordTokenizer().decode(tokens[:-1])
    known = {"outcome": "correct"} | verdict
    judged = VerdictWithParts(**known) if "parts" in known else Verdict(**known)
    return Completion(tokens, logprobs or [-0.5] * len(tokens), True, text, judged)


def group(completions: Sequence[Completion], index: int = 0, version: int = 0) -> ScoredGroup:
    """A group; a correct completion earns 1, another 0."""
    rewards = [float(item.outcome == "correct") for item in completions]
    return ScoredGroup([1, 2], list(completions), rewards, index, version)


def drawn_group(step: int, index: int, size: int = 6) -> ScoredGroup:
    """Beams of a common stem, a pure function of its arguments."""
    rng = random.Random(f"{step} {index}")
    stem = [rng.randrange(1, len(WORDS)) for _ in range(4)]
    found = {tuple(stem[: rng.randint(1, 4)] + [rng.randrange(1, len(WORDS)) for _ in range(rng.randint(1, 5))])}
    while len(found) < size:
        found.add(tuple(stem[: rng.randint(1, 4)] + [rng.randrange(1, len(WORDS)) for _ in range(rng.randint(1, 5))]))
    completions = []
    for tokens in sorted(found):
        chances = [random.Random(str(tokens[: place + 1])) for place in range(len(tokens))]
        logprobs = [round(-(chance.random() ** 3) * 3, 3) for chance in chances]
        outcome = rng.choice(["correct", "wrong", "unparseable"])
        parts = {"length": float(len(tokens)), "safety": rng.choice([None, 0.25, 1.0])}
        completions.append(completion([*tokens, 0], [*logprobs, -0.01], outcome=outcome, parts=parts))
    completions.sort(key=lambda item: -item.logprob)
    return group(completions, index, step - 1)


def new_run(folder: Path, *overrides: str) -> RunFolder:
    """An empty run."""
    config = load_config(TrainConfig, None, [f"run.dir={folder / 'runs'}", "run.name=told", *overrides])
    return RunFolder.create(config, None)


def writer(run: RunFolder, groups: int = 2) -> SampleWriter:
    return SampleWriter(run, PROBLEMS, WordTokenizer(), groups)  # type: ignore[arg-type]


def write_step(run: RunFolder, step: int, size: int = 6) -> None:
    """A step's samples and metrics; problem 3 comes every third step."""
    indices = [3 if step % 3 == 0 else step % 3, 4 + step % 7]
    groups = [drawn_group(step, index, size) for index in indices]
    means = {place: [reward - 0.5 for reward in item.rewards] for place, item in enumerate(groups)}
    writer(run).write(step, groups, means)
    rewards = [reward for item in groups for reward in item.rewards]
    run.append_metrics(step, {"reward_mean": sum(rewards) / len(rewards), "kl": 0.001 * step})


def sampled_run(folder: Path, steps: int = 12, size: int = 6, *overrides: str) -> RunFolder:
    run = new_run(folder, *overrides)
    for step in range(1, steps + 1):
        write_step(run, step, size)
    return run
